"""Numbers from a plan: how many tiles are full, partial and empty, and a picture of them.

Everything is evaluated with numpy over all tiles of rows at once, of all sequences: a plan of a million
rows is some ten thousand numbers, and nothing is ever as large as the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attngen.ir.expr import Expr, Symbol, evaluate, tensors
from attngen.ir.tile_ranges import Range, Ranges, tile_ranges
from attngen.ir.tiles import Tiles

Ints = NDArray[np.int64]
Reader = Callable[..., Any]  # a tensor as a function of its indices
EMPTY, PARTIAL, FULL = 0, 1, 2


def _search(tensor: Reader, at: tuple[Any, ...], value: Any, side: str, size: Any) -> Ints:
    """Bisect ``tensor(*at, x)`` over x in [0, size), for all values at once."""
    wanted, length, *outer = np.broadcast_arrays(value, size, *at)
    low: Ints = np.zeros(wanted.shape, np.int64)
    high: Ints = length.astype(np.int64)
    for _ in range(int(high.max(initial=0)).bit_length()):
        middle = (low + high) // 2
        read = tensor(*outer, np.minimum(middle, np.maximum(length - 1, 0)))
        before = read < wanted if side == "left" else read <= wanted
        low, high = np.where(before & (low < high), middle + 1, low), np.where(before, high, middle)
    return low


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def _floor(x: Any) -> Any:
    return np.floor(x).astype(np.int64)


def _truncated(x: Any) -> Any:
    return np.trunc(x).astype(np.int64)


def _float(x: Any) -> Any:
    return np.asarray(x, np.float64)


NUMPY_OPS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "pow": np.power,
    "neg": np.negative,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "sin": np.sin,
    "cos": np.cos,
    "floor": _floor,
    "int": _truncated,
    "float": _float,
    "search": _search,
}


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Numbers of tiles, of all sequences together."""

    full: int
    partial: int
    empty: int


@dataclass(frozen=True, slots=True)
class TileMap:
    """One class (EMPTY, PARTIAL or FULL) per tile; ``block_m`` x ``block_n`` positions each."""

    classes: NDArray[np.int8]
    block_m: int
    block_n: int


def count(
    tiles: Tiles,
    *,
    seqlen_q: Any,
    seqlen_k: Any,
    block_m: int,
    block_n: int,
    env: Mapping[str, Any] | None = None,
    known_least: Mapping[str, int] | None = None,
) -> TileCounts:
    """Count the tiles of a plan for rows i aligned to the last key.

    Args:
        tiles: the plan.
        seqlen_q, seqlen_k: one length, or one per sequence of a batch.
        block_m, block_n: rows and keys of a tile.
        env: the value of each other symbol (one, or one per sequence), and under a tensor's name its array.
        known_least: proved lower bounds of symbols, as in `tile_ranges`.
    """
    ranges = tile_ranges(tiles, known_least={"BLOCK_N": block_n, **(known_least or {})})
    rows = _Rows.of(tiles, seqlen_q, seqlen_k, block_m, block_n, env or {})
    full, partial = (sum(int(rows.width(r).sum()) for r in part) for part in rows.numbers(ranges))
    total = int((rows.key_tiles).sum())
    return TileCounts(full, partial, total - full - partial)


def tile_map(
    tiles: Tiles,
    *,
    seqlen_q: int,
    seqlen_k: int,
    block_m: int,
    block_n: int,
    env: Mapping[str, Any] | None = None,
    limit: int = 64,
) -> TileMap:
    """Return the class of each tile. Beyond ``limit`` tiles a side, tiles are doubled until they fit."""
    while -(-seqlen_q // block_m) > limit:
        block_m *= 2
    while -(-seqlen_k // block_n) > limit:
        block_n *= 2
    rows = _Rows.of(tiles, seqlen_q, seqlen_k, block_m, block_n, env or {})
    full, partial = rows.numbers(tile_ranges(tiles))
    columns = np.arange(-(-seqlen_k // block_n))
    classes = np.full((len(rows.key_tiles), len(columns)), EMPTY, np.int8)
    for kind, found in ((PARTIAL, partial), (FULL, full)):
        for lo, hi in found:
            inside = (columns >= rows.spread(lo)[:, None]) & (columns < rows.spread(hi)[:, None])
            classes[inside] = kind
    return TileMap(classes, block_m, block_n)


@dataclass(frozen=True, slots=True)
class _Rows:
    """All tiles of rows of all sequences in a row; ``env`` has one value per tile, or one for all."""

    env: dict[str, Any]
    key_tiles: Ints

    @classmethod
    def of(
        cls, tiles: Tiles, seqlen_q: Any, seqlen_k: Any, block_m: int, block_n: int, env: Mapping[str, Any]
    ) -> _Rows:
        q, k = np.broadcast_arrays(
            np.atleast_1d(np.asarray(seqlen_q, np.int64)), np.asarray(seqlen_k, np.int64)
        )
        number = -(-q // block_m)
        sequence = np.repeat(np.arange(len(q)), number)
        first = (np.arange(len(sequence)) - np.repeat(np.cumsum(number) - number, number)) * block_m
        q, k = q[sequence], k[sequence]
        read = {
            name for part in (*tiles.may, *tiles.must) for end in (part.lo, part.hi) for name in tensors(end)
        }
        values = {n: _reader(v) if n in read else _per_tile(v, sequence) for n, v in env.items()}
        values |= {"seqlen_q": q, "seqlen_k": k, "BLOCK_M": block_m, "BLOCK_N": block_n}
        values |= {"i_lo": first + k - q, "i_hi": np.minimum(first + block_m, q) - 1 + k - q}
        return cls(values, -(-k // block_n))

    def numbers(self, ranges: Ranges) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """Evaluate the full and the partial ranges."""
        env = dict(self.env)
        for name, value in ranges.bindings:
            env[name] = _evaluate(value, env)

        def ends(part: tuple[Range, ...]) -> list[tuple[Any, Any]]:
            return [(_evaluate(r.lo, env), _evaluate(r.hi, env)) for r in part]

        return ends(ranges.full), ends(ranges.partial)

    def spread(self, value: Any) -> Ints:
        """One value per tile."""
        return np.broadcast_to(value, self.key_tiles.shape)

    def width(self, ends: tuple[Any, Any]) -> Ints:
        return self.spread(ends[1] - ends[0])


def _evaluate(expr: Expr, env: Mapping[str, Any]) -> Any:
    return env[expr.name] if isinstance(expr, Symbol) else evaluate(expr, env, NUMPY_OPS)


def _reader(value: Any) -> Reader:
    """A tensor as a function of its indices."""
    return value if callable(value) else lambda *at: np.asarray(value)[tuple(at)]


def _per_tile(value: Any, sequence: Ints) -> Any:
    """One value per sequence becomes one per tile."""
    return np.asarray(value)[sequence] if np.ndim(value) else value
