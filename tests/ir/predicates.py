"""Formulas as expressions for the tests of the plan, and the dense mask that a plan is compared with."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from attngen.ir.expr import Element, Expr, Symbol, apply, conjunction, const, evaluate, substitute
from attngen.ir.tile_counts import NUMPY_OPS
from attngen.ir.tile_ranges import Range, tile_ranges
from attngen.ir.tiles import Tiles

_OPS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Div: "div",
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
    ast.And: "and", ast.Or: "or", ast.Not: "not", ast.USub: "neg",
}  # fmt: skip
ROW = apply("sub", Symbol("i"), apply("sub", Symbol("seqlen_k"), Symbol("seqlen_q")))


def formula(source: str) -> Expr:
    """Parse a formula of the tests; subscripts are integer tensors, `row` is written in terms of i."""
    return substitute(_expr(ast.parse(source, mode="eval").body), {"row": ROW})


def _expr(node: ast.expr) -> Expr:
    match node:
        case ast.Constant(value):
            return const(value)  # pyright: ignore[reportArgumentType]
        case ast.Name(name):
            return Symbol(name)
        case ast.UnaryOp(op, a):
            return apply(_OPS[type(op)], _expr(a))
        case ast.BinOp(a, op, b):
            return apply(_OPS[type(op)], _expr(a), _expr(b))
        case ast.BoolOp(op, values):
            result = _expr(values[0])
            for value in values[1:]:
                result = apply(_OPS[type(op)], result, _expr(value))
            return result
        case ast.Compare(first, ops, rest):
            sides = [_expr(first), *map(_expr, rest)]
            return conjunction([apply(_OPS[type(o)], sides[k], sides[k + 1]) for k, o in enumerate(ops)])
        case ast.Call(ast.Name(name), args):
            return apply(name, *map(_expr, args))
        case ast.Subscript(ast.Name(name), ast.Tuple(indices)):
            return Element(name, tuple(map(_expr, indices)), "int")
        case ast.Subscript(ast.Name(name), index):
            return Element(name, (_expr(index),), "int")
        case _:
            raise AssertionError(ast.dump(node))


@dataclass(frozen=True)
class Case:
    """One setting of everything that a predicate depends on."""

    seqlen_q: int
    seqlen_k: int
    block_m: int
    block_n: int
    values: dict[str, Any] = field(default_factory=dict[str, Any])

    def env(self, **more: Any) -> dict[str, Any]:
        """Values of symbols and functions for tensors."""
        values = {n: _reader(v) if isinstance(v, np.ndarray) else v for n, v in self.values.items()}
        return {
            **values,
            "seqlen_q": self.seqlen_q,
            "seqlen_k": self.seqlen_k,
            "BLOCK_N": self.block_n,
            **more,
        }

    def positions(self) -> np.ndarray:
        """The position i of each row."""
        return np.arange(self.seqlen_q) + self.seqlen_k - self.seqlen_q

    def elements(self, expr: Expr) -> np.ndarray:
        """The expression at all (i, j), as [seqlen_q, seqlen_k]."""
        i, j = self.positions()[:, None], np.arange(self.seqlen_k)[None, :]
        value = evaluate(expr, self.env(i=i, j=j, row=i - self.seqlen_k + self.seqlen_q), NUMPY_OPS)
        return np.broadcast_to(value, (self.seqlen_q, self.seqlen_k))


def _reader(tensor: np.ndarray) -> Any:
    def read(*at: Any) -> Any:
        assert all(
            np.all((np.asarray(x) >= 0) & (np.asarray(x) < n)) for x, n in zip(at, tensor.shape, strict=True)
        ), f"a tensor of shape {tensor.shape} is read at {at}"
        return tensor[tuple(at)]

    return read


@dataclass(frozen=True)
class Axes:
    """Which axis is cut into tiles of rows and which is folded: queries and keys, or the reverse."""

    tile: str
    key: str
    tile_length: int
    key_length: int
    shift: int

    @classmethod
    def of(cls, case: Case, transposed: bool) -> Axes:
        if transposed:
            return cls("j", "row", case.seqlen_k, case.seqlen_q, 0)
        return cls("i", "j", case.seqlen_q, case.seqlen_k, case.seqlen_k - case.seqlen_q)


@dataclass(frozen=True)
class Visits:
    """What the ranges of one tile of rows say: the tiles visited as full and as partial, in order."""

    rows: slice
    full: list[int]
    partial: list[int]


def visits(
    tiles: Tiles, case: Case, known_least: dict[str, int] | None = None, *, transposed: bool = False
) -> list[Visits]:
    """Evaluate the ranges for every tile of rows; assert that they are ordered and disjoint."""
    axes = Axes.of(case, transposed)
    ranges = tile_ranges(tiles, tile=axes.tile, known_least=known_least)
    result: list[Visits] = []
    for start in range(0, axes.tile_length, case.block_m):
        rows = slice(start, min(start + case.block_m, axes.tile_length))
        ends = {f"{axes.tile}_lo": rows.start + axes.shift, f"{axes.tile}_hi": rows.stop - 1 + axes.shift}
        env = case.env(**ends)
        for name, value in ranges.bindings:
            env[name] = evaluate(value, env, NUMPY_OPS)
        full, partial = (_walked(part, env, case, axes) for part in (ranges.full, ranges.partial))
        assert not set(full) & set(partial), f"{full} and {partial} share tiles"
        result.append(Visits(rows, full, partial))
    return result


def _walked(part: tuple[Range, ...], env: dict[str, Any], case: Case, axes: Axes) -> list[int]:
    walked: list[int] = []
    for r in part:
        lo, hi = (int(evaluate(e, env, NUMPY_OPS)) for e in (r.lo, r.hi))
        assert 0 <= lo <= hi, f"range [{lo}, {hi})"
        assert lo == hi or hi <= -(-axes.key_length // case.block_n), f"range [{lo}, {hi}) of {axes}"
        walked += range(lo, hi)
    assert walked == sorted(set(walked)), f"tiles {walked} are out of order or visited twice"
    return walked


def check_plan(
    predicate: Expr,
    tiles: Tiles,
    case: Case,
    known_least: dict[str, int] | None = None,
    *,
    transposed: bool = False,
) -> None:
    """Assert that the plan is sound, and exact where it says so."""
    dense = case.elements(predicate).astype(bool)
    check_rows(dense, tiles, case, transposed=transposed)
    dense = dense.T if transposed else dense
    for visit in visits(tiles, case, known_least, transposed=transposed):
        for n in range(-(-dense.shape[1] // case.block_n)):
            inside = dense[visit.rows, n * case.block_n : (n + 1) * case.block_n]
            whole = inside.all() and inside.shape[1] == case.block_n
            place = f"rows {visit.rows}, key tile {n}"
            if inside.any():
                assert n in visit.full or n in visit.partial, f"{place}: allowed keys are never visited"
            if n in visit.full:
                assert whole, f"{place}: called full, is not"
            if tiles.exact:
                assert inside.any() or n not in visit.partial, f"{place}: visited, is empty"
                assert not whole or n in visit.full, f"{place}: full, called partial"


def check_rows(dense: np.ndarray, tiles: Tiles, case: Case, *, transposed: bool = False) -> None:
    """Assert that the bounds of the rows and the residual are the predicate."""
    key = Symbol("row") if transposed else Symbol("j")
    lo, hi, residual, at = (case.elements(e) for e in (tiles.row.lo, tiles.row.hi, tiles.residual, key))
    np.testing.assert_array_equal((at >= lo) & (at < hi) & residual.astype(bool), dense)


# ---- random predicates

SMALL = st.integers(-6, 6)
KEYS = [Element("doc_k", (Symbol("j"),), "int"), Element("bag_k", (Symbol("j"),), "int")]
ROWS = [Element("doc_q", (ROW,), "int"), Element("bag_q", (ROW,), "int")]
LEAVES = st.one_of(
    st.sampled_from([Symbol("i"), Symbol("j")]),
    st.sampled_from([Symbol("i"), Symbol("j"), Symbol("p"), Symbol("w"), *KEYS, *ROWS]),
    SMALL.map(const),
)
DIVISORS = st.one_of(st.sampled_from([2, 3, 5, 7, -3]).map(const), st.just(Symbol("w")))


def _two(op: str, parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.builds(lambda a, b: apply(op, a, b), parts, parts)


def _integers(parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    divided = st.builds(apply, st.sampled_from(["floordiv", "mod"]), parts, DIVISORS)
    chosen = st.builds(lambda a, b, x, y: apply("where", apply("lt", a, b), x, y), parts, parts, parts, parts)
    scaled = st.builds(lambda a, k: apply("mul", a, const(k)), parts, SMALL)
    sums = st.one_of(_two("add", parts), _two("sub", parts), scaled)
    return st.one_of(
        sums,
        sums,
        _two("min", parts),
        _two("max", parts),
        parts.map(lambda a: apply("abs", a)),
        divided,
        chosen,
    )


INTEGERS = st.recursive(LEAVES, _integers, max_leaves=5)
ATOMS = st.builds(apply, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), INTEGERS, INTEGERS)


def _booleans(parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(_two("and", parts), _two("or", parts), parts.map(lambda a: apply("not", a)))


NAMED = {
    "causal": "j <= i",
    "window": "i - j < 7",
    "right": "j - i <= 3",
    "band": "abs(i - j) <= 5",
    "prefix": "j < 9",
    "chunk": "i // 8 == j // 8",
    "natten": "j >= max(0, min(i - 3, seqlen_k - 7)) and j < max(0, min(i - 3, seqlen_k - 7)) + 7",
    "sinks": "j < 3",
    "documents": "doc_q[row] == doc_k[j]",
    "dilated": "(i - j) % 2 == 0",
}
MASKS = st.sampled_from(sorted(NAMED)).map(lambda name: formula(NAMED[name]))
PREDICATES = st.recursive(ATOMS, _booleans, max_leaves=4)
COMBINATIONS = st.recursive(MASKS, _booleans, max_leaves=5)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Lengths, tiles, parameters and tensors; documents start anywhere, and some never end."""
    seqlen_q, seqlen_k = draw(st.integers(0, 24)), draw(st.integers(0, 24))
    ids = st.integers(-4, 12)

    def tensor(size: int) -> np.ndarray:
        return np.array(draw(st.lists(ids, min_size=size, max_size=size)), np.int64)

    values = {"p": draw(st.integers(-4, 20)), "w": draw(st.integers(1, 9))}
    tensors = {"doc_q": np.sort(tensor(seqlen_q)), "doc_k": np.sort(tensor(seqlen_k))}
    tensors |= {"bag_q": tensor(seqlen_q), "bag_k": tensor(seqlen_k)}
    blocks = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16])
    return Case(seqlen_q, seqlen_k, draw(blocks), draw(blocks), values | tensors)
