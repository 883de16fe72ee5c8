"""The interpreter: what a graph means, semantic or scheduled, in float64. One short function per node type.

It runs no kernel and shares no code with the oracle. A scheduled fold walks the tiles that its plan names and masks only
partial ones, so a wrong plan gives the same wrong numbers here and in the kernel.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch

from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Expr
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Contract,
    Finish,
    Fold,
    Input,
    Launch,
    Lift,
    Load,
    Map,
    Merge,
    Node,
    Pad,
    Pages,
    Random,
    Slice,
    Store,
)
from attngen.ir.tile_ranges import Ranges, ranges_along, tile_ranges
from attngen.reference.interpreter_arguments import Problem, assemble, problems
from attngen.reference.interpreter_operators import OPS, SCALAR_OPS, as_tensor, reader
from attngen.reference.interpreter_pages import gathered
from attngen.reference.interpreter_random import random_bits

Tensor = torch.Tensor
NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True, slots=True)
class Softmax:
    """An element of the softmax monoid, in natural logarithms: running max m, sum l, accumulator acc."""

    m: Tensor  # [B, Hq, Sq]
    l: Tensor  # noqa: E741  (the literature's name)
    acc: Tensor  # [B, Hq, Sq, Dv]


def interpret(
    graph: Graph, inputs: Mapping[str, Any], *, block_m: int = 16, block_n: int = 16
) -> tuple[Tensor, Tensor]:
    """Run a graph on the arguments of the generated function and return (out, lse) in float64; arguments as below."""
    found = interpret_all(graph, inputs, block_m=block_m, block_n=block_n)
    return found["out"], found["lse"]


def interpret_all(
    graph: Graph, inputs: Mapping[str, Any], *, block_m: int = 16, block_n: int = 16
) -> dict[str, Tensor]:
    """Run a graph and return out, lse and, of a differentiated graph, ``d<input>`` for each input that asks for one.

    Args:
        graph: semantic or scheduled.
        inputs: q, k, v, run-time parameters, dropout_p and seed, and captured tensors by name; for packed graphs also
            cu_seqlens_q, cu_seqlens_k and optionally seqused_k. Layouts as in the spec. A differentiated graph also needs
            dout and dlse.
        block_m, block_n: the tile sizes of a scheduled fold; any positive numbers.
    """
    runs = [_Run(graph, problem, block_m, block_n) for problem in problems(graph, inputs)]
    return assemble(graph, inputs, [run.results() for run in runs])


# ---- nodes


class _Run:
    """One evaluation of a graph on one problem."""

    def __init__(self, graph: Graph, problem: Problem, block_m: int, block_n: int) -> None:
        self.graph = graph
        self.problem = problem
        self.block = (block_m, block_n)
        self.values: dict[str, Any] = {}
        q, k = problem.tensors["q"], problem.tensors["k"]
        self.seqlen_q, self.seqlen_k = q.shape[2], k.shape[2]
        self.shift = self.seqlen_k - self.seqlen_q
        self.prefix_len = max((cached.sequence.prefix_keys for cached in problem.caches.values()), default=0)
        self.group = graph.axis("Hkv").group
        self.scalars: dict[str, Any] = {
            **problem.scalars,
            **{name: reader(tensor) for name, tensor in problem.captured.items()},
            "seqlen_q": self.seqlen_q,
            "seqlen_k": self.seqlen_k,
            "prefix_start": 0,
        }
        self.grid = self._grid(q.shape[0], q.shape[1])

    def _grid(self, batch: int, heads: int) -> dict[str, Any]:
        b = torch.arange(batch)[:, None, None, None] + self.problem.first_b
        h = torch.arange(heads)[:, None, None]
        row = torch.arange(self.seqlen_q)[:, None]
        places = {"b": b, "h": h, "hk": h // self.group, "row": row, "j": torch.arange(self.seqlen_k)}
        return {**self.scalars, **places, "i": row + self.seqlen_k - self.seqlen_q}

    def results(self) -> dict[str, Tensor]:
        """Evaluate all nodes and return out [B, Hq, Sq, Dv], lse [B, Hq, Sq], and gradients over their inputs' axes."""
        absent = {
            name
            for name, node in self.graph.all(Input)
            if node.role == "gradient" and name not in self.problem.gradients
        }
        skipped = absent.union(*(nx.descendants(self.graph.dag, name) for name in absent))
        for name in self.graph.order():
            node = self.graph.nodes[name]
            if name not in skipped:
                self.values[name] = RULES[type(node)](self, name, node)
        found = {node.result: self.values[name] for name, node in self.graph.all(Finish)}
        wanted = [f"d{name}" for name, node in self.graph.all(Input) if node.grad]
        found |= {name: self.values[name] for name in wanted if name in self.values}
        for name, _ in self.graph.all(Launch):
            found |= self.values.get(name, {})
        return found

    def program_env(self, span: tuple[slice, slice], first: int, stop: int) -> dict[str, Any]:
        """The scalars of one program: its place, its rows' positions, and the tensors it may look up."""
        b, h = span[0].start, span[1].start
        place = {"b": b + self.problem.first_b, "h": h, "hk": h // self.group, "BLOCK_N": self.block[1]}
        return {**self.scalars, **place, "i_lo": first + self.shift, "i_hi": stop - 1 + self.shift}

    def piece(self, first: int, stop: int) -> _Run:
        """The run of a fold over keys [first, stop), whose positions count from the first of them."""
        part = copy.copy(self)
        part.seqlen_k, part.shift = stop - first, self.shift - first
        part.scalars = {**self.scalars, "seqlen_k": part.seqlen_k, "prefix_start": first}
        places = {"j": torch.arange(part.seqlen_k), "i": self.grid["i"] - first}
        part.grid = {**self.grid, **part.scalars, **places}
        return part

    def key_env(self, span: tuple[slice, slice], first: int, stop: int) -> dict[str, Any]:
        """The scalars of a program that owns a tile of keys and walks over queries."""
        b, h = span[0].start, span[1].start
        place = {"b": b + self.problem.first_b, "h": h, "hk": h // self.group, "BLOCK_M": self.block[0]}
        return {**self.scalars, **place, "j_lo": first, "j_hi": stop - 1}

    def size(self, axis: str) -> int:
        """The length of an axis in this problem."""
        q, v = self.problem.tensors["q"], self.problem.tensors.get("v", self.problem.tensors["k"])
        sizes = {"B": q.shape[0], "Hq": q.shape[1], "Sq": self.seqlen_q, "Sk": self.seqlen_k}
        sizes["Sd"] = max(0, self.seqlen_q + self.seqlen_k - 1)
        return {**sizes, "Hkv": v.shape[1]}[axis]

    def columns(self, axis: str) -> int:
        """The length of an axis of numbered columns."""
        size = self.graph.axis(axis).size
        assert isinstance(size, ex.Const)
        return int(size.value)

    def formula(self, expr: Expr, **more: Any) -> Tensor:
        """Evaluate an expression over the whole grid."""
        return as_tensor(ex.evaluate(expr, {**self.grid, **more}, OPS))


def _input(run: _Run, name: str, node: Input) -> Any:
    return run.problem.tensors.get(name, run.problem.gradients.get(name))


def _slice(run: _Run, name: str, node: Slice) -> Tensor:
    return run.values[node.operand][..., node.start : node.start + node.columns]


def _pad(run: _Run, name: str, node: Pad) -> Tensor:
    value = run.values[node.operand]
    return torch.nn.functional.pad(value, (0, run.columns(node.axes[-1]) - value.shape[-1]))


def _load(run: _Run, name: str, node: Load) -> Tensor:
    """The chunks' columns side by side; lanes past the last column hold zero."""
    whole = (_in_pages(run, node) if isinstance(node.address, Pages) else run.values[node.operand])[
        ..., : node.columns
    ]
    spare = node.chunks[-1][0] + node.chunks[-1][1] - node.columns
    padded = torch.nn.functional.pad(whole, (0, spare))
    return torch.cat([padded[..., start : start + width] for start, width in node.chunks], -1)


def _in_pages(run: _Run, node: Load) -> Tensor:
    """What a load brings from pages, by its own address map."""
    assert isinstance(node.address, Pages)
    name = node.operand
    while isinstance(view := run.graph.nodes[name], Slice):
        name = view.operand
    assert isinstance(view, Input)
    return gathered(run.problem.caches[name], view, node.address)


def _contract(run: _Run, name: str, node: Contract) -> Tensor:
    return _einsum(run, (node.left, node.right), node.axes)


def _einsum(run: _Run, operands: tuple[str, ...], axes: tuple[str, ...], **replaced: Tensor) -> Tensor:
    """Sum of products over the axes that the result lacks; kv heads meet the query heads of their group."""
    letters: dict[str, str] = {}
    texts: list[str] = []
    values: list[Tensor] = []
    for name in operands:
        own = _axes(run, name)
        value: Tensor = replaced[name] if name in replaced else run.values[name]
        values.append(value.repeat_interleave(run.group, own.index("Hkv")) if "Hkv" in own else value)
        texts.append(
            "".join(letters.setdefault("Hq" if a == "Hkv" else a, chr(97 + len(letters))) for a in own)
        )
    wanted = tuple("Hq" if a == "Hkv" else a for a in axes)
    whole = torch.einsum(f"{','.join(texts)}->{''.join(letters[a] for a in wanted)}", *values)
    if "Hkv" not in axes:
        return whole
    place = axes.index("Hkv")
    return whole.unflatten(place, (whole.shape[place] // run.group, run.group)).sum(place + 1)


def _axes(run: _Run, name: str) -> tuple[str, ...]:
    return getattr(run.graph.nodes[name], "axes", ())


def _map(run: _Run, name: str, node: Map) -> Tensor:
    read = {other: _as_grid(run, other) for other in node.others}
    value = run.formula(node.expr, s=_as_grid(run, node.operand), **read).double()
    shape = [run.size(axis) for axis in node.axes]
    return value.expand([*shape, *[1] * (4 - len(shape))]).reshape(shape)


def _random(run: _Run, name: str, node: Random) -> Tensor:
    batch, heads, rows, keys = (run.size(axis) for axis in node.axes)
    return random_bits(run.problem.seed, run.problem.first_b, (batch, heads, rows, keys))


def _as_grid(run: _Run, name: str) -> Tensor:
    """A value over (B, Hq, Sq) or (B, Hq, Sq, Sk) as one that goes with the grid's four axes."""
    value = run.values[name]
    return value[..., None] if value.ndim == 3 else value


def _sum(run: _Run, node: Fold) -> Tensor:
    """A fold of the Sum monoid. Cut into tiles, it visits the tiles of its plan and masks partial ones only."""
    element = run.values[node.element]
    operands = {node.element: element}
    if _axes(run, node.element) == ("B", "Hq", "Sq", "Sk"):
        allowed = run.formula(node.domain.mask).expand(element.shape)
        times = allowed.double() if node.tiles is None or node.level == "whole" else visits(run, node)
        operands[node.element] = torch.where(times != 0, element, 0.0) * times
        if node.value:
            of_group = allowed.unflatten(1, (-1, run.group)).any(2)
            used = of_group if node.axis == "Sk" else allowed.transpose(-1, -2)
            operands[node.value] = _unused_to_zero(run.values[node.value], used)
    if node.factor is not None:
        operands[node.element] = operands[node.element] * run.formula(node.factor)
    if node.at:
        return _added_at(run, node, operands[node.element])
    return _einsum(run, tuple(n for n in (node.element, node.value) if n), node.axes, **operands)


def _added_at(run: _Run, node: Fold, element: Tensor) -> Tensor:
    """Each place of the grid added to the element of the captured tensor that it read."""
    axes = _axes(run, node.element)
    shape = run.problem.captured[node.into].shape if node.into else [run.size(axis) for axis in node.axes]
    total = torch.zeros(shape, dtype=torch.float64)
    grid, rank = (run.grid, 4) if axes[:3] == ("B", "Hq", "Sq") else (_grid_along(run, axes), len(axes))
    places: list[Tensor] = []
    if not node.into:  # a problem's own places
        grid = {**grid, "b": grid["b"] - run.problem.first_b} if "b" in grid else grid
    for index, size in zip(node.at, shape, strict=True):
        place = as_tensor(ex.evaluate(index, grid, OPS)) * (size != 1)
        place = place.expand([*element.shape, *[1] * (rank - element.ndim)]).reshape(element.shape)
        places.append(torch.where(element != 0, place, 0).long())
    total.index_put_(tuple(p.reshape(-1) for p in places), element.reshape(-1), accumulate=True)
    return total


def _grid_along(run: _Run, axes: tuple[str, ...]) -> dict[str, Any]:
    """The positions of a value over some axes, each along its own."""
    found: dict[str, Any] = dict(run.scalars)
    for place, name in enumerate(axes):
        first = run.problem.first_b if name == "B" else 0
        positions = torch.arange(run.size(name)) + first
        found[run.graph.axis(name).symbol] = positions.reshape(-1, *[1] * (len(axes) - 1 - place))
    return found


def visits(run: _Run, node: Fold) -> Tensor:
    """How often each place of the grid is added by a fold that is cut into tiles; the kernel's walk, place by place."""
    assert node.tiles is not None
    by_rows = node.axis == "Sk"
    row = node.tiles.row
    place = run.grid["j" if by_rows else "row"]
    limit = (run.formula(row.lo) <= place) & (place < run.formula(row.hi)) & run.formula(node.tiles.residual)
    shape = [run.size(axis) for axis in ("B", "Hq", "Sq", "Sk")]
    limit = limit.expand(shape)
    times = torch.zeros(shape, dtype=torch.float64)
    plan = ranges_along(node.axis, node.tiles)
    block, step = run.block if by_rows else run.block[::-1]
    for span in _programs(plan, shape[0], shape[1]):
        for first in range(0, shape[2] if by_rows else shape[3], block):
            stop = min(first + block, shape[2] if by_rows else shape[3])
            env = run.program_env(span, first, stop) if by_rows else run.key_env(span, first, stop)
            for name, bound in plan.bindings:
                env[name] = ex.evaluate(bound, env, SCALAR_OPS)
            for masked, found in ((False, plan.full), (True, plan.partial)):
                for lo, hi in (
                    (ex.evaluate(r.lo, env, SCALAR_OPS), ex.evaluate(r.hi, env, SCALAR_OPS)) for r in found
                ):
                    along, across = slice(int(lo) * step, int(hi) * step), slice(first, stop)
                    box = (*span, *((across, along) if by_rows else (along, across)))
                    times[box] += limit[box].double() if masked else 1.0
    return times


def _fold(run: _Run, name: str, node: Fold) -> Softmax | Tensor:
    if node.monoid == "sum":
        return _sum(run, node)
    scores = run.values[node.element]
    if node.factor is not None:
        scores = scores * run.formula(node.factor)
    scores = scores if node.base == "e" else scores * math.log(2.0)
    values = run.values[node.value].repeat_interleave(run.group, 1)
    times = run.values[node.dropout] if node.dropout else torch.ones_like(scores)
    if node.level == "whole":
        allowed = run.formula(node.domain.mask).expand_as(scores)
        seen = torch.where(allowed, scores, NEGATIVE_INFINITY)
        return _element(seen, _unused_to_zero(values, allowed), times)
    if node.domain.prefix is None or node.level != "split":
        return _fold_tiles(run, node, scores, values, times)
    pieces = (0, run.prefix_len), (run.prefix_len, run.seqlen_k)
    return functools.reduce(
        merge,
        (
            _fold_tiles(
                run.piece(*p), node, scores[..., slice(*p)], values[:, :, slice(*p)], times[..., slice(*p)]
            )
            for p in pieces
        ),
    )


def _element(scores: Tensor, values: Tensor, times: Tensor) -> Softmax:
    """Many keys as one element of the monoid; `times` multiplies the weights of values."""
    m = scores.amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], NEGATIVE_INFINITY)
    p = torch.exp(scores - _finite(m)[..., None])
    return Softmax(m, p.sum(-1), (p * times) @ values)


def _finite(m: Tensor) -> Tensor:
    """The maximum to subtract: 0 where there is none yet, so that -inf - (-inf) never happens."""
    return torch.where(m == NEGATIVE_INFINITY, 0.0, m)


def _unused_to_zero(values: Tensor, allowed: Tensor) -> Tensor:
    """Values that no row may use are never read: they may hold NaN; nor are rows without keys, where keys walk over rows."""
    return torch.where(allowed.any(-2)[..., None], values, 0.0)


def merge(left: Softmax, right: Softmax) -> Softmax:
    """The softmax merge: rescale both to the larger max, add. (out = 0, lse = -inf) is its identity."""
    m = torch.maximum(left.m, right.m)
    a, b = torch.exp(left.m - _finite(m)), torch.exp(right.m - _finite(m))
    return Softmax(m, left.l * a + right.l * b, left.acc * a[..., None] + right.acc * b[..., None])


def _fold_tiles(run: _Run, node: Fold, scores: Tensor, values: Tensor, times: Tensor) -> Softmax:
    """Per tile of queries: full tiles without a mask, then partial ones, as the plan says.

    Heads are folded together where the plan does not depend on them.
    """
    tiles = node.tiles
    if tiles is None:
        raise InternalError("a fold cut into tiles has no plan")
    limit = run.formula(tiles.row.lo) <= run.grid["j"]
    limit = limit & (run.grid["j"] < run.formula(tiles.row.hi)) & run.formula(tiles.residual)
    plan = tile_ranges(tiles)
    operands = scores, values, times, limit.expand(scores.shape)
    parts = [_split(run, plan, operands, tiles_of) for tiles_of in _splits(run, node)]
    return functools.reduce(merge, parts)


def _splits(run: _Run, node: Fold) -> list[range]:
    """The tiles of each split of a fold; all tiles where it is not cut across programs.

    Where lengths decide how many there are, each has two tiles: what a machine would give one program is not the graph's.
    """
    size, block = max(run.seqlen_k, 1), run.block[1]
    count, splits = -(-size // block), node.domain.splits
    if node.level != "split" or splits is None:
        return [range(count)]
    each = max(splits.keys // block, 1) if splits.keys else -(-count // splits.count) if splits.count else 2
    return [range(first, min(first + each, count)) for first in range(0, count, each)]


def _split(run: _Run, plan: Ranges, operands: tuple[Tensor, ...], tiles_of: range) -> Softmax:
    scores, values, *_ = operands
    state = Softmax(*_identity(scores, values))
    for span in _programs(plan, scores.shape[0], scores.shape[1]):
        part = _program(run, plan, [x[span] for x in operands], span, tiles_of)
        for whole, piece in ((state.m, part.m), (state.l, part.l), (state.acc, part.acc)):
            whole[span] = piece
    return state


def _identity(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m = scores.new_full(scores.shape[:-1], NEGATIVE_INFINITY)
    return m, torch.zeros_like(m), scores.new_zeros(*m.shape, values.shape[-1])


def _programs(plan: Ranges, batch: int, heads: int) -> list[tuple[slice, slice]]:
    """The (b, h) that share a plan: all of them, or each alone."""
    bounds = [e for _, e in plan.bindings] + [e for r in (*plan.full, *plan.partial) for e in (r.lo, r.hi)]
    if any(ex.symbols(e) & {"b", "h", "hk"} for e in bounds):
        return [(slice(b, b + 1), slice(h, h + 1)) for b in range(batch) for h in range(heads)]
    return [(slice(0, batch), slice(0, heads))]


def _program(
    run: _Run, plan: Ranges, operands: list[Tensor], span: tuple[slice, slice], tiles_of: range
) -> Softmax:
    block_m, _ = run.block
    starts = range(0, run.seqlen_q, block_m)
    done = [_query_tile(run, plan, operands, first, span, tiles_of) for first in starts]
    if not done:
        return Softmax(*_identity(operands[0], operands[1]))
    m, l, acc = (torch.cat([getattr(p, f) for p in done], 2) for f in ("m", "l", "acc"))  # noqa: E741
    return Softmax(m, l, acc)


def _query_tile(
    run: _Run,
    plan: Ranges,
    operands: list[Tensor],
    first: int,
    span: tuple[slice, slice],
    tiles_of: range,
) -> Softmax:
    block_m, block_n = run.block
    scores, values, times, allowed = operands
    rows = slice(first, min(first + block_m, run.seqlen_q))
    env = run.program_env(span, first, rows.stop)
    for name, bound in plan.bindings:
        env[name] = ex.evaluate(bound, env, SCALAR_OPS)
    state = Softmax(*_identity(scores[:, :, rows, :0], values))
    for masked, found in (
        (False, plan.full),
        (True, plan.partial),
    ):  # a block table only regroups partial tiles
        for place in found:
            lo, hi = (int(ex.evaluate(end, env, SCALAR_OPS)) for end in (place.lo, place.hi))
            for tile in range(max(lo, tiles_of.start), min(hi, tiles_of.stop)):
                keys = slice(tile * block_n, min((tile + 1) * block_n, run.seqlen_k))
                part, v, factor = scores[:, :, rows, keys], values[:, :, keys], times[:, :, rows, keys]
                if masked:
                    mask = allowed[:, :, rows, keys]
                    part, v = torch.where(mask, part, NEGATIVE_INFINITY), _unused_to_zero(v, mask)
                state = merge(state, _element(part, v, factor))
    return state


def _lift(run: _Run, name: str, node: Lift) -> Softmax:
    score = run.problem.captured[node.operand].double()[None, :, None]
    q = run.problem.tensors["q"]
    score = score.expand(q.shape[0], q.shape[1], run.seqlen_q)
    return Softmax(
        score,
        torch.where(score == NEGATIVE_INFINITY, 0.0, 1.0),
        score.new_zeros(*score.shape, run.columns("Dv")),
    )


def _merge(run: _Run, name: str, node: Merge) -> Softmax | Tensor:
    left, right = run.values[node.left], run.values[node.right]
    if node.monoid == "sum":
        return left + right
    missing = left.acc.shape[-1] - right.acc.shape[-1]
    return merge(left, Softmax(right.m, right.l, torch.nn.functional.pad(right.acc, (0, missing))))


def _finish(run: _Run, name: str, node: Finish) -> Tensor:
    element: Softmax = run.values[node.operand]
    if node.result == "lse":
        return _finite(element.m) + torch.log(element.l)
    return element.acc / torch.where(element.l == 0, 1.0, element.l)[..., None]


def _store(run: _Run, name: str, node: Store) -> Tensor:
    value = run.values[node.operand]
    if isinstance(value, Softmax):
        fold = run.graph.nodes[node.operand]
        assert isinstance(fold, Fold)
        splits = _splits(run, fold)
        if node.name in ("tiles_of_rows", "total_tiles"):
            return torch.full([run.size(axis) for axis in node.axes], sum(len(tiles) for tiles in splits))
        return value.acc if node.name == "partial_out" else value.m
    size = run.graph.axis(node.axes[-1]).size
    return value[..., : int(size.value)] if isinstance(size, ex.Const) else value


def _launch(run: _Run, name: str, node: Launch) -> dict[str, Tensor]:
    """What a kernel returns; partial results stay between kernels."""
    return {s.name: run.values[n] for n in node.stores if isinstance(s := run.graph.nodes[n], Store)}


RULES: dict[type[Node], Callable[[_Run, str, Any], Any]] = {
    Input: _input,
    Slice: _slice,
    Pad: _pad,
    Load: _load,
    Contract: _contract,
    Map: _map,
    Random: _random,
    Fold: _fold,
    Lift: _lift,
    Merge: _merge,
    Finish: _finish,
    Store: _store,
    Launch: _launch,
}
