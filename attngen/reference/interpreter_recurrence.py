"""What the graph of a recurrence means, in float64. One short function per node type.

States are found by the monoid's associative scan, where the oracle goes token by token; a scheduled fold is cut into
chunks as its node says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Contract,
    Finish,
    Fold,
    Input,
    Launch,
    Load,
    Map,
    Merge,
    Node,
    Pad,
    Read,
    Store,
)
from attngen.reference.interpreter_operators import OPS, as_tensor

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Decay:
    """Elements of the decay monoid, side by side along the third axis: what multiplies a state, and what is added.

    T is [B, H, n, 1, 1], [B, H, n, K, 1] (a row each), or [B, H, n, K, K]; S is [B, H, n, K, V].
    """

    T: Tensor
    S: Tensor

    def after(self, first: Decay) -> Decay:
        """The merge of two, `first` being the earlier."""
        return Decay(_times(self.T, first.T), _times(self.T, first.S) + self.S)

    def __getitem__(self, part: slice) -> Decay:
        return Decay(self.T[:, :, part], self.S[:, :, part])


def _times(T: Tensor, x: Tensor) -> Tensor:
    return T @ x if T.shape[-1] > 1 else T * x


def scan(elements: Decay) -> Decay:
    """The merge of each element with all before it, in log2(n) rounds."""
    reach = 1
    while reach < elements.S.shape[2]:
        merged = elements[reach:].after(elements[:-reach])
        elements = Decay(
            torch.cat([elements.T[:, :, :reach], merged.T], 2),
            torch.cat([elements.S[:, :, :reach], merged.S], 2),
        )
        reach *= 2
    return elements


@dataclass(frozen=True, slots=True)
class States:
    """States before the first token (or chunk) and after each: [B, H, n + 1, K, V]."""

    all: Tensor

    @property
    def before(self) -> Tensor:
        return self.all[:, :, :-1]

    @property
    def after(self) -> Tensor:
        return self.all[:, :, 1:]


def interpret_recurrence(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run a graph on the arguments of the generated function: out and states, in float64; of a scheduled graph also those
    of the kernel that decodes."""
    given = _arguments(graph, inputs)
    cu_seqlens = inputs.get("cu_seqlens")
    if cu_seqlens is None:
        return _results(graph, given)
    bounds = pairwise(int(x) for x in cu_seqlens)
    runs = [_results(graph, _sequence(graph, given, n, span)) for n, span in enumerate(bounds)]
    if not runs:
        return _results(graph, given)
    return {name: torch.cat([r[name] for r in runs], int(name.endswith("out"))) for name in runs[0]}


def _arguments(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by node; those that a call leaves out are missing."""
    low, high = inputs.get("dt_limit", (0.0, float("inf")))
    named = {**inputs, "dt_least": low, "dt_most": high}
    found: dict[str, Any] = {}
    for name, node in graph.all(Input):
        value = named.get(name)
        if value is None and node.role == "scalar":
            value = float(node.default)
        if isinstance(value, Tensor):
            value = value.double()
            if value.ndim < len(node.axes):  # D [H] stands for [H, 1]
                value = value[..., None]
        if value is not None:
            found[name] = value
    return found


def _sequence(graph: Graph, given: Mapping[str, Any], index: int, span: tuple[int, int]) -> dict[str, Any]:
    found = dict(given)
    for name, node in graph.all(Input):
        if name in given and "L" in node.axes:
            found[name] = given[name][:, span[0] : span[1]]
        elif name in given and node.axes[:1] == ("B",):
            found[name] = given[name][index : index + 1]
    return found


def _results(graph: Graph, given: Mapping[str, Any]) -> dict[str, Tensor]:
    run = _Run(graph, given)
    for name in graph.order():
        node = graph.nodes[name]
        if not isinstance(node, Input) or name in given:
            run.values[name] = RECURRENCE_RULES[type(node)](run, node, given.get(name))
    results = ("out", "states", "token_out", "token_states")
    return {name: run.values[name] for name in results if name in run.values}


class _Run:
    """One evaluation of a graph, of sequences of one length."""

    def __init__(self, graph: Graph, given: Mapping[str, Any]) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        for name, node in graph.all(Input):
            if name in given:
                self.sizes |= {
                    a: n
                    for a, n in zip(node.axes, getattr(given[name], "shape", ()), strict=True)
                    if n != 1 or a not in self.sizes
                }
        for axis in graph.axes:
            if isinstance(axis.size, ex.Const):
                self.sizes[axis.name] = int(axis.size.value)

    def _measure(self, node: Input, value: Any) -> None:
        """An axis is as long as its inputs, but for those of size 1, which stand for any."""
        for axis, size in zip(node.axes, getattr(value, "shape", ()), strict=True):
            self.sizes[axis] = size if size != 1 else self.sizes.get(axis, 1)

    def group(self) -> int:
        return self.graph.axis("G").group

    def axes(self, name: str) -> tuple[str, ...]:
        return getattr(self.graph.nodes[name], "axes", ())

    def over(self, name: str, axes: tuple[str, ...]) -> Tensor:
        """A value with its axes in the order of `axes`, of size 1 where it lacks one; groups repeat for their heads."""
        own, value = self.axes(name), as_tensor(self.values[name])
        if "G" in own and "H" in axes:
            value = value.repeat_interleave(self.group(), own.index("G"))
            own = tuple("H" if a == "G" else a for a in own)
        value = value.permute([own.index(a) for a in axes if a in own])
        return value.reshape(
            [value.shape[[b for b in axes if b in own].index(a)] if a in own else 1 for a in axes]
        )


def _input(run: _Run, node: Input, value: Any) -> Any:
    return value


def _map(run: _Run, node: Map, _: Any) -> Tensor:
    if any(name not in run.values for name in node.others):
        return run.values[node.operand]  # an optional tensor was left out
    env: dict[str, Any] = {}
    for place, name in enumerate(node.axes):
        size = run.sizes[name]
        env[run.graph.axis(name).symbol] = torch.arange(size).reshape(-1, *[1] * (len(node.axes) - 1 - place))
    env |= {name: run.values[name] for name, x in run.graph.all(Input) if x.role == "scalar"}
    env |= {name: run.over(name, node.axes) for name in node.others}
    if node.operand:
        env["s"] = run.over(node.operand, node.axes)
    value = as_tensor(ex.evaluate(node.expr, env, OPS)).double()
    return value.expand([run.sizes[name] for name in node.axes])


def _pad(run: _Run, node: Pad, _: Any) -> Tensor:
    value: Tensor = run.values[node.operand]
    more = run.sizes[node.axes[-1]] - value.shape[-1]
    return torch.nn.functional.pad(value, (0, more), value=node.fill)


def _load(run: _Run, node: Load, _: Any) -> Tensor:
    return run.over(node.operand, node.axes)


def _fold(run: _Run, node: Fold, _: Any) -> Any:
    if node.monoid == "decay":
        return _scanned(run, node) if node.axis == "C" else _states(run, node)
    return _total(run, node) if node.prefix else _within(run, node)


def _elements(run: _Run, node: Fold) -> Decay:
    """A token each: [B, H, L, ...]."""
    keys = run.over(node.element, ("B", "H", "L", "K"))
    values = run.over(node.value, ("B", "H", "L", node.axes[-1]))
    own = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    if node.decay:
        has_rows = "K" in run.axes(node.decay)
        decay = run.over(node.decay, ("B", "H", "L", "K") if has_rows else ("B", "H", "L"))
        if node.factor is not None:
            decay = decay * as_tensor(ex.evaluate(node.factor, {}, OPS))
        decay = torch.exp2(decay) if node.base == "2" else decay.exp()
        own = decay[..., None] if has_rows else decay[..., None, None]
    own = own.expand(*keys.shape[:3], *own.shape[3:])
    if node.erase:
        beta = run.over(node.erase, ("B", "H", "L"))[..., None, None]
        outer = keys[..., :, None] * keys[..., None, :]
        eye = torch.eye(keys.shape[-1], dtype=torch.float64)
        diagonal = own if own.shape[-2] == 1 else torch.diag_embed(own[..., 0])
        own, values = (
            _times(eye - beta * outer, eye * diagonal if own.shape[-2] == 1 else diagonal),
            beta[..., 0] * values,
        )
    return Decay(own, keys[..., :, None] * values[..., None, :])


def _start(run: _Run, node: Fold) -> Tensor:
    """[B, H, 1, K, V]"""
    if node.init in run.values:
        return run.over(
            node.init, node.axes if "C" not in node.axes else tuple(a for a in node.axes if a != "C")
        )[:, :, None]
    axes = [a for a in node.axes if a != "C"]
    return torch.zeros([run.sizes[a] for a in axes], dtype=torch.float64)[:, :, None]


def _states(run: _Run, node: Fold) -> Any:
    if node.level == "chunk":
        return _by_chunk(run, node)
    elements = _elements(run, node)
    if node.level == "token":
        return _by_token(elements, _start(run, node))
    start, merged = _start(run, node), scan(elements)
    return States(torch.cat([start, _times(merged.T, start) + merged.S], 2))


def _by_token(elements: Decay, start: Tensor) -> States:
    found = [start]
    for t in range(elements.S.shape[2]):
        element = elements[t : t + 1]
        found.append(_times(element.T, found[-1]) + element.S)
    return States(torch.cat(found, 2))


def _by_chunk(run: _Run, node: Fold) -> list[Decay]:
    """An element per chunk, from the decay between each of its tokens and its last."""
    keys = run.over(node.element, ("B", "H", "L", "K"))
    values = run.over(node.value, ("B", "H", "L", node.axes[-1]))
    since, late = _between(run, node), _late(run, node)
    found: list[Decay] = []
    for first in range(0, run.sizes["L"], node.chunk):
        part = slice(first, first + node.chunk)
        total = since[:, :, part] if node.decay else torch.zeros(*keys.shape[:2], 1, 1, dtype=torch.float64)
        last = total[:, :, -1:]
        own = _base(run, node)(last - (late[:, :, part] if node.decay else total)) * keys[:, :, part]
        S = own.transpose(-1, -2) @ values[:, :, part]
        found.append(Decay(_base(run, node)(last)[..., None], S[:, :, None]))
    return found


def _scanned(run: _Run, node: Fold) -> States:
    """The state before each chunk, and the last."""
    start, parts = _start(run, node), run.values[node.element]
    if not parts:
        return States(start)
    merged = scan(Decay(torch.cat([p.T for p in parts], 2), torch.cat([p.S for p in parts], 2)))
    return States(torch.cat([start, _times(merged.T, start) + merged.S], 2))


def _total(run: _Run, node: Fold) -> Tensor:
    """Sums of all tokens of a chunk up to each, in units of the base."""
    value = run.over(node.element, node.axes)
    if node.factor is not None:
        value = value * ex.evaluate(node.factor, {}, OPS)
    along = node.axes.index("L")
    parts = value.split(node.chunk, along)
    return torch.cat([part.cumsum(along) for part in parts], along)


def _late(run: _Run, node: Fold) -> Tensor:
    return _between(run, node, node.late)


def _between(run: _Run, node: Fold | Read, name: str = "") -> Tensor:
    """The decay since the chunk began, in units of its base: [B, H, L, 1 or K]."""
    if not node.decay:
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    has_rows = "K" in run.axes(node.decay)
    total = run.over(name or node.decay, ("B", "H", "L", "K") if has_rows else ("B", "H", "L"))
    return total if has_rows else total[..., None]


def _base(run: _Run, node: Fold | Read) -> Callable[[Tensor], Tensor]:
    """The exponential whose base the decay is in."""
    fold = run.graph.nodes.get(node.decay)
    return torch.exp2 if isinstance(fold, Fold) and fold.base == "2" else torch.exp


def _within(run: _Run, node: Fold) -> Tensor:
    """What tokens read of their own chunk: scores of earlier tokens, times the decay between, times values."""
    scores = run.over(node.element, ("B", "H", "L", "J"))
    values = run.over(node.value, ("B", "H", "L", node.axes[-1]))
    rows, keys = torch.arange(run.sizes["L"])[:, None], torch.arange(run.sizes["L"])
    env = {"t": rows, "j": keys}
    allowed = as_tensor(ex.evaluate(node.domain.mask, env, OPS)) & (rows // node.chunk == keys // node.chunk)
    if node.decay:
        apart = _between(run, node) - _late(run, node).transpose(-1, -2)
        scores = scores * _base(run, node)(torch.where(allowed, apart, -torch.inf))
    found = torch.where(allowed, scores, 0.0) @ values
    return found.permute([("B", "H", "L", node.axes[-1]).index(a) for a in node.axes])


def _contract(run: _Run, node: Contract, _: Any) -> Tensor:
    """q k^T; keys are along J."""
    left = run.over(node.left, ("B", node.axes[1], "L", "K"))
    right = run.over(node.right, ("B", node.axes[1], "L", "K"))
    return left @ right.transpose(-1, -2)


def _read(run: _Run, node: Read, _: Any) -> Tensor:
    states: States = run.values[node.state]
    fold = run.graph.nodes[node.state]
    assert isinstance(fold, Fold)
    query = run.over(node.query, ("B", "H", "L", "K"))
    if fold.axis == "C":
        chunk = fold.chunk
        each = states.before.repeat_interleave(chunk, 2)[:, :, : run.sizes["L"]]
        query = query * _base(run, node)(_between(run, node))
    else:
        each = states.after
    found = (query[..., None, :] @ each)[..., 0, :]
    return found.permute([("B", "H", "L", node.axes[-1]).index(a) for a in node.axes])


def _merge(run: _Run, node: Merge, _: Any) -> Tensor:
    return run.values[node.left] + run.values[node.right]


def _finish(run: _Run, node: Finish, _: Any) -> Tensor:
    if node.result == "out":
        value: Tensor = run.values[node.operand]
        total = value[..., -1:]
        return torch.where(total == 0, 0.0, value[..., :-1] / torch.where(total == 0, 1.0, total))
    states: States = run.values[node.operand]
    rows = run.graph.nodes[node.operand]
    own = [a for a in getattr(rows, "axes", ()) if a != "C"]
    return states.all[:, :, -1].permute([own.index(a) for a in node.axes])


def _store(run: _Run, node: Store, _: Any) -> Any:
    return run.values[node.operand]


def _launch(run: _Run, node: Launch, _: Any) -> None:
    """A kernel leaves what it stores, which other nodes read by themselves."""


RECURRENCE_RULES: dict[type[Node], Callable[[_Run, Any, Any], Any]] = {
    Input: _input,
    Map: _map,
    Pad: _pad,
    Load: _load,
    Fold: _fold,
    Contract: _contract,
    Read: _read,
    Merge: _merge,
    Finish: _finish,
    Store: _store,
    Launch: _launch,
}
