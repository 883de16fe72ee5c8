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
    Slice,
    Solve,
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
    """The states of a fold: one per place, and the last that it comes to.

    Of tokens, ``at`` [B, H, L, K, V] has the state of each; of chunks, the one that each begins with (in reverse: at its end).
    """

    at: Tensor
    last: Tensor  # [B, H, K, V]


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
    return {name: _joined(graph, name, [run[name] for run in runs]) for name in runs[0]}


def _joined(graph: Graph, name: str, parts: list[Tensor]) -> Tensor:
    """The results of all sequences as one: side by side along tokens or the batch, or added up."""
    axes = getattr(graph.nodes[name], "axes", ())
    if "L" in axes:
        return torch.cat(parts, axes.index("L"))
    return torch.cat(parts) if "B" in axes else torch.stack(parts).sum(0)


def _arguments(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by node; those that a call leaves out are missing. dout and dstates are gradients of the results."""
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
        missing = [o for o in REQUIRED.get(type(node), lambda n: ())(node) if o and o not in run.values]
        if (not isinstance(node, Input) or name in given) and not missing:
            run.values[name] = RECURRENCE_RULES[type(node)](run, node, given.get(name))
    results = ("out", "states", "token_out", "token_states")
    found = {name: run.values[name] for name in results if name in run.values}
    for name, node in graph.all(Input):
        if node.grad and name in given and f"d{name}" in run.values and "dout" in given:
            value: Tensor = run.over(f"d{name}", node.axes)
            found[f"d{name}"] = value.sum_to_size(given[name].shape)
    return found


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
    if node.given and node.given not in run.values:
        return run.values[node.operand]
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


def _slice(run: _Run, node: Slice, _: Any) -> Tensor:
    found: Tensor = run.values[node.operand][..., node.start : node.start + node.columns]
    return found if len(node.axes) == found.ndim else found[..., 0]


def _load(run: _Run, node: Load, _: Any) -> Tensor:
    return run.over(node.operand, node.axes)


def _fold(run: _Run, node: Fold, _: Any) -> Any:
    if node.monoid == "decay":
        return _scanned(run, node) if node.axis == "C" else _states(run, node)
    if node.prefix:
        return _total(run, node)
    return _within(run, node) if node.axis == "J" else _summed(run, node)


def _summed(run: _Run, node: Fold) -> Tensor:
    """The sum over all axes that the result lacks; of heads, over those of each group where it has groups."""
    own, value = list(run.axes(node.element)), run.values[node.element]
    if "G" in node.axes and "H" in own:
        place = own.index("H")
        value = value.unflatten(place, (-1, run.group()))
        own[place : place + 1] = ["G", "H"]
    value = value.sum([n for n, a in enumerate(own) if a not in node.axes])
    kept = [a for a in own if a in node.axes]
    return value.permute([kept.index(a) for a in node.axes])


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
        along = run.over(node.along or node.element, ("B", "H", "L", "K"))
        outer = along[..., :, None] * along[..., None, :]
        eye = torch.eye(keys.shape[-1], dtype=torch.float64)
        diagonal = own if own.shape[-2] == 1 else torch.diag_embed(own[..., 0])
        own = _times(eye - beta * outer, eye * diagonal if own.shape[-2] == 1 else diagonal)
        if node.along:
            own = own.transpose(-1, -2)
        else:
            values = beta[..., 0] * values
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
    elements, start = _elements(run, node), _start(run, node)
    if node.level == "token":
        return _by_token(elements, start)
    if not node.reverse:
        merged = scan(elements)
        after = _times(merged.T, start) + merged.S
        return States(after, torch.cat([start, after], 2)[:, :, -1])
    merged = scan(_reversed(elements))
    after = (_times(merged.T, start) + merged.S).flip(2)
    first = _times(elements.T[:, :, :1], after[:, :, :1]) if after.shape[2] else start
    return States(after, first[:, :, 0])


def _by_token(elements: Decay, start: Tensor) -> States:
    found = [start]
    for t in range(elements.S.shape[2]):
        element = elements[t : t + 1]
        found.append(_times(element.T, found[-1]) + element.S)
    return States(torch.cat([start[:, :, :0], *found[1:]], 2), found[-1][:, :, 0])


def _by_chunk(run: _Run, node: Fold) -> list[Decay]:
    """An element per chunk, from the decay between each of its tokens and its last."""
    keys = run.over(node.element, ("B", "H", "L", "K"))
    values = run.over(node.value, ("B", "H", "L", node.axes[-1]))
    since, late = _between(run, node), _late(run, node)
    if node.reverse and node.decay:  # to where the chunk begins
        since, late = since - since, -since
    found: list[Decay] = []
    for first in range(0, run.sizes["L"], node.chunk):
        part = slice(first, first + node.chunk)
        total = since[:, :, part] if node.decay else torch.zeros(*keys.shape[:2], 1, 1, dtype=torch.float64)
        last = total[:, :, -1:]
        faded = _base(run, node)(last - (late[:, :, part] if node.decay else total))
        own = faded * keys[:, :, part]
        added = own.transpose(-1, -2) @ values[:, :, part]
        whole = _between(run, node)[:, :, part][:, :, -1:] if node.decay else last
        kept = _base(run, node)(whole)[..., None]
        if node.erase:
            erase = run.over(node.erase, ("B", "H", "L", "K"))[:, :, part]
            eye = torch.eye(keys.shape[-1], dtype=torch.float64)
            if node.along:
                own = faded * run.over(node.along, ("B", "H", "L", "K"))[:, :, part]
                taken = run.over(node.taken, ("B", "H", "L", node.axes[-1]))[:, :, part]
                added = added - own.transpose(-1, -2) @ taken
            kept = kept * eye - (own.transpose(-1, -2) @ erase)[:, :, None]
        found.append(Decay(kept, added[:, :, None]))
    return found


def _reversed(elements: Decay) -> Decay:
    """The elements from the last to the first, each with the T of the token after it (1 for the last)."""
    one = torch.ones_like(elements.T[:, :, :1])
    if one.shape[-1] > 1:
        one = torch.eye(one.shape[-1], dtype=one.dtype).expand_as(one)
    shifted = torch.cat([elements.T[:, :, 1:], one], 2)
    return Decay(shifted.flip(2), elements.S.flip(2))


def _scanned(run: _Run, node: Fold) -> States:
    """The state before each chunk, and the last."""
    start, parts = _start(run, node), run.values[node.element]
    if not parts:
        return States(start[:, :, :0], start[:, :, 0])
    ordered = parts[::-1] if node.reverse else parts
    merged = scan(Decay(torch.cat([p.T for p in ordered], 2), torch.cat([p.S for p in ordered], 2)))
    states = torch.cat([start, _times(merged.T, start) + merged.S], 2)
    before = states[:, :, :-1]
    return States(before.flip(2) if node.reverse else before, states[:, :, -1])


def _total(run: _Run, node: Fold) -> Tensor:
    """Sums of all tokens of a chunk up to each, in units of the base."""
    value = run.over(node.element, node.axes)
    if node.factor is not None:
        value = value * ex.evaluate(node.factor, {}, OPS)
    along = node.axes.index("L")
    parts = value.split(node.chunk or max(1, value.shape[along]), along)
    if node.reverse:
        sums = torch.cat([part.flip(along).cumsum(along).flip(along) for part in parts], along)
    else:
        sums = torch.cat([part.cumsum(along) for part in parts], along)
    if node.prefix == "i":
        sums = sums - value
    if node.init in run.values:
        first = run.over(node.init, tuple("C" if a == "L" else a for a in node.axes))
        if "C" in run.axes(node.init):
            first = first.repeat_interleave(node.chunk, along).narrow(along, 0, run.sizes["L"])
        sums = sums + first
    return sums


def _late(run: _Run, node: Fold | Read) -> Tensor:
    return _between(run, node, node.late)


def _between(run: _Run, node: Fold | Read | Contract | Solve, name: str = "") -> Tensor:
    """The decay since the chunk began, in units of its base: [B, H, L, 1 or K]."""
    if not node.decay:
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    has_rows = "K" in run.axes(node.decay)
    total = run.over(name or node.decay, ("B", "H", "L", "K") if has_rows else ("B", "H", "L"))
    return total if has_rows else total[..., None]


def _base(run: _Run, node: Fold | Read | Contract | Solve) -> Callable[[Tensor], Tensor]:
    """The exponential whose base the decay is in."""
    fold = run.graph.nodes.get(node.decay)
    return torch.exp2 if isinstance(fold, Fold) and fold.base == "2" else torch.exp


def _within(run: _Run, node: Fold) -> Tensor:
    """What tokens read of their own chunk: scores of earlier tokens, times the decay between (which may vary by the columns of
    values), times values."""
    scores = run.over(node.element, ("B", "H", "L", "J"))
    values = run.over(node.value, ("B", "H", "L", node.axes[-1]))
    rows, keys = torch.arange(run.sizes["L"])[:, None], torch.arange(run.sizes["L"])
    env = {"t": rows, "j": keys}
    allowed = as_tensor(ex.evaluate(node.domain.mask, env, OPS)) & (rows // node.chunk == keys // node.chunk)
    scores = torch.where(allowed, scores, 0.0)
    weighed = scores[..., None]
    if node.decay:
        total, late = _between(run, node), _late(run, node)
        apart = total[..., :, None, :] - late[..., None, :, :]
        if node.reverse:
            apart = total[..., None, :, :] - late[..., :, None, :]
        between = _base(run, node)(torch.where(allowed[..., None], apart, -torch.inf))
        weighed = weighed * between
    per_column = weighed.shape[-1] > 1
    found = (weighed * values[..., None, :, :]).sum(-2) if per_column else weighed[..., 0] @ values
    return found.permute([("B", "H", "L", node.axes[-1]).index(a) for a in node.axes])


def _contract(run: _Run, node: Contract, _: Any) -> Tensor:
    """The right operand's tokens are along J where the result has it."""
    if node.decay:
        return _decayed(run, node)
    letters: dict[str, str] = {}
    texts: list[str] = []
    values: list[Any] = []
    for side, name in enumerate((node.left, node.right)):
        own, value = run.axes(name), run.values[name]
        if isinstance(value, States):
            value = _through(run, name, value).transpose(1, 2) if side else value.at.transpose(1, 2)
        if "G" in own and "G" not in node.axes:
            value = value.repeat_interleave(run.group(), own.index("G"))
            own = tuple("H" if a == "G" else a for a in own)
        if side == 1 and "J" in node.axes:
            own = tuple("J" if a == "L" else a for a in own)
        values.append(value)
        texts.append("".join(letters.setdefault(a, chr(97 + len(letters))) for a in own))
    return torch.einsum(f"{','.join(texts)}->{''.join(letters[a] for a in node.axes)}", *values)


def _through(run: _Run, name: str, states: States) -> Tensor:
    """What each chunk begins with, decayed to its end."""
    fold = run.graph.nodes[name]
    assert isinstance(fold, Fold)
    local = run.graph.nodes[fold.element]
    assert isinstance(local, Fold)
    if local.erase:
        total = _between(run, fold)
        ends = [total[:, :, n : n + local.chunk][:, :, -1:] for n in range(0, total.shape[2], local.chunk)]
        return states.at * torch.cat([total[:, :, :0], *map(_base(run, fold), ends)], 2)[..., None]
    parts: list[Decay] = run.values[fold.element]
    return torch.cat(
        [states.at[:, :, :0], *(_times(p.T, states.at[:, :, n : n + 1]) for n, p in enumerate(parts))], 2
    )


def _decayed(run: _Run, node: Contract) -> Tensor:
    """q k^T of tokens along J that are no later (in reverse: no earlier), with the decay between the two in each product."""
    left = run.over(node.left, ("B", "H", "L", "K"))
    right = run.over(node.right, ("B", "H", "L", "K"))
    total = _between(run, node)
    apart = total[..., :, None, :] - total[..., None, :, :]
    apart = _base(run, node)((-apart if node.reverse else apart).clamp(max=0.0))
    return (left[..., :, None, :] * right[..., None, :, :] * apart).sum(-1)


def _solve(run: _Run, node: Solve, _: Any) -> Tensor:
    """Chunk by chunk, each by substitution."""
    matrix = run.over(node.matrix, ("B", "H", "L", "J"))
    scale = run.over(node.scale, ("B", "H", "L"))[..., None]
    rhs = run.over(node.rhs, ("B", "H", "L", node.axes[-1]))
    if node.weight:
        rhs = run.over(node.weight, ("B", "H", "L"))[..., None] * rhs
    total = _between(run, node).expand(*rhs.shape[:3], 1)
    found = [rhs[:, :, :0]]
    for first in range(0, run.sizes["L"], node.chunk):
        part = slice(first, first + node.chunk)
        since = total[:, :, part]
        apart = _base(run, node)((since - since.transpose(-1, -2)).clamp(max=0.0))
        lower = (scale[:, :, part] * matrix[:, :, part, part] * apart).tril(-1)
        system = lower.transpose(-1, -2) if node.transposed else lower
        solved = torch.linalg.solve_triangular(
            system, rhs[:, :, part], upper=node.transposed, unitriangular=True
        )
        found.append(solved)
    return torch.cat(found, 2).permute([("B", "H", "L", node.axes[-1]).index(a) for a in node.axes])


def _read(run: _Run, node: Read, _: Any) -> Tensor:
    states: States = run.values[node.state]
    fold = run.graph.nodes[node.state]
    assert isinstance(fold, Fold)
    own, each = run.axes(node.query)[-1], states.at
    if node.before:
        each = torch.cat([_start(run, fold), each], 2)[:, :, :-1]
        if fold.decay:
            each = _between(run, fold).exp()[..., None] * each
    if own != "K":
        each = each.transpose(-1, -2)
    query = run.over(node.query, ("B", "H", "L", own))
    since = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    if fold.axis == "C":
        each = each.repeat_interleave(fold.chunk, 2)[:, :, : run.sizes["L"]]
        since = _base(run, node)(_since(run, node, fold))
    if own == "K":  # the state's rows, which may decay each by itself
        query = query * since
    found = (query[..., None, :] @ each)[..., 0, :]
    if own != "K":
        found = found * since
    return found.permute([("B", "H", "L", node.axes[-1]).index(a) for a in node.axes])


def _since(run: _Run, node: Read, fold: Fold) -> Tensor:
    """The decay between each token and where the state of its chunk is: its start, or in reverse its end."""
    total = _between(run, node)
    if not (fold.reverse and node.decay):
        return total
    ends = [min(first + fold.chunk, run.sizes["L"]) - 1 for first in range(0, run.sizes["L"], fold.chunk)]
    whole = total[:, :, ends].repeat_interleave(fold.chunk, 2)[:, :, : run.sizes["L"]]
    return whole - _late(run, node)


def _merge(run: _Run, node: Merge, _: Any) -> Tensor:
    return sum(run.values[name] for name in (node.left, node.right) if name in run.values)  # pyright: ignore


def _finish(run: _Run, node: Finish, _: Any) -> Tensor:
    if node.result == "out":
        value: Tensor = run.values[node.operand]
        total = value[..., -1:]
        return torch.where(total == 0, 0.0, value[..., :-1] / torch.where(total == 0, 1.0, total))
    states: States = run.values[node.operand]
    own = [a for a in run.axes(node.operand) if a != "C"]
    return states.last.permute([own.index(a) for a in node.axes])


def _store(run: _Run, node: Store, _: Any) -> Any:
    return run.values[node.operand]


def _launch(run: _Run, node: Launch, _: Any) -> None:
    """A kernel leaves what it stores, which other nodes read by themselves."""


REQUIRED: dict[type[Node], Callable[[Any], tuple[str, ...]]] = {
    Map: lambda node: (node.operand, *(() if node.given else node.others)),
    Load: lambda node: (node.operand,),
    Pad: lambda node: (node.operand,),
    Slice: lambda node: (node.operand,),
    Contract: lambda node: (node.left, node.right),
    Read: lambda node: (node.query, node.state),
    Fold: lambda node: (node.element, node.value),
    Finish: lambda node: (node.operand,),
    Store: lambda node: (node.operand,),
}
"""What a node cannot do without: where a call leaves it out, the node has no value."""

RECURRENCE_RULES: dict[type[Node], Callable[[_Run, Any, Any], Any]] = {
    Input: _input,
    Map: _map,
    Pad: _pad,
    Slice: _slice,
    Load: _load,
    Fold: _fold,
    Contract: _contract,
    Read: _read,
    Solve: _solve,
    Merge: _merge,
    Finish: _finish,
    Store: _store,
    Launch: _launch,
}
