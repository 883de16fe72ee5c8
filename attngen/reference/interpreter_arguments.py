"""The interpreter's arguments: every layout becomes problems over [B, H, S, D], and results go back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Axis, Input
from attngen.reference.interpreter_pages import Cached, gathered, sequence

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    tensors: Mapping[str, Tensor]  # q, k, v as [B, H, S, D]
    gradients: Mapping[str, Tensor]  # dout as out, dlse as lse; none without a backward
    scalars: Mapping[str, Any]
    captured: Mapping[str, Tensor]
    first_b: int
    seed: tuple[int, int]  # and offset
    caches: Mapping[str, Cached] = field(default_factory=dict[str, Cached])


def _layout(graph: Graph) -> str:
    node = graph.nodes["q"]
    assert isinstance(node, Input)
    return node.layout


def problems(graph: Graph, inputs: Mapping[str, Any]) -> list[Problem]:
    nodes = dict(graph.all(Input))
    names = [n for n, node in nodes.items() if node.role == "tensor"]
    incoming = [n for n, node in nodes.items() if node.role == "gradient" and n in inputs]
    scalars: dict[str, Any] = {}
    for name, node in nodes.items():
        if name == "dropout_threshold":
            scalars[name] = dropout_threshold(inputs.get("dropout_p", 0.0))
        elif node.role == "scalar":
            given = inputs.get(name)
            scalars[name] = float(node.default) if given is None else given
    captured = {n: inputs[n] for n, node in nodes.items() if node.role == "captured"}
    layout = _layout(graph)
    if layout != "thd":
        order = [layout.index(c) for c in "bhsd"]
        tensors = {n: inputs[n].double().permute(order) for n in names}
        gradients = {
            n: inputs[n].double().permute(order if inputs[n].ndim == 4 else [0, 1, 2]) for n in incoming
        }
        return [Problem(tensors, gradients, scalars, captured, 0, _seed(inputs))]
    axes = {n: [graph.axis(a) for a in nodes[n].axes] for n in captured}
    sequences = range(len(inputs["cu_seqlens_q"]) - 1)
    in_pages = {n: nodes[n] for n in names if nodes[n].pages is not None}
    return [_sequence(inputs, names, incoming, scalars, captured, axes, b, in_pages) for b in sequences]


def _sequence(
    inputs: Mapping[str, Any],
    names: list[str],
    incoming: list[str],
    scalars: dict[str, Any],
    captured: dict[str, Tensor],
    axes: Mapping[str, list[Axis]],
    b: int,
    tensors_in_pages: Mapping[str, Input],
) -> Problem:
    if tensors_in_pages:
        return _paged(inputs, tensors_in_pages, scalars, captured, axes, b)
    spans = {s: (int(inputs[f"cu_seqlens_{s}"][b]), int(inputs[f"cu_seqlens_{s}"][b + 1])) for s in "qk"}
    if inputs.get("seqused_k") is not None:
        spans["k"] = (spans["k"][0], spans["k"][0] + int(inputs["seqused_k"][b]))
    tensors: dict[str, Tensor] = {}
    for name in names:
        begin, end = spans["q" if name == "q" else "k"]
        tensors[name] = inputs[name][begin:end].double().permute(1, 0, 2)[None]
    own = {name: _own_tokens(tensor, axes[name], spans) for name, tensor in captured.items()}
    rows = slice(*spans["q"])
    gradients = {n: inputs[n][rows].double().permute(1, 0, 2)[None] for n in incoming if n == "dout"}
    gradients |= {n: inputs[n][:, rows].double()[None] for n in incoming if n == "dlse"}
    return Problem(tensors, gradients, scalars, own, b, _seed(inputs))


def dropout_threshold(p: float) -> int:
    """How many of 65536 random numbers drop a weight: p to the nearest, at least one (but none for p = 0), at most 65534."""
    return max(1, min(65534, int(65536 * p + 0.5))) if p else 0


def _seed(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Seed and offset of random numbers; a seed that is a number has offset 0."""
    seed = inputs.get("seed")
    if isinstance(seed, Tensor):
        return int(seed[0]), int(seed[1])
    return (seed or 0), 0


def _paged(
    inputs: Mapping[str, Any],
    nodes: Mapping[str, Input],
    scalars: dict[str, Any],
    captured: dict[str, Tensor],
    axes: Mapping[str, list[Axis]],
    b: int,
) -> Problem:
    """One sequence whose keys lie in pages: they are gathered, and kept as they lie for loads with an address map."""
    rows = int(inputs["cu_seqlens_q"][b]), int(inputs["cu_seqlens_q"][b + 1])
    tensors = {"q": inputs["q"][slice(*rows)].double().permute(1, 0, 2)[None]}
    caches: dict[str, Cached] = {}
    for name, node in nodes.items():
        assert node.pages is not None
        found = sequence(node.pages, inputs, b)
        scale = inputs[node.argument.replace("cache", "scale")] if node.scales else None
        caches[name] = Cached(inputs[node.argument], scale, found)
        tensors[name] = gathered(caches[name], node, node.pages)
    own = {name: _own_tokens(tensor, axes[name], {"q": rows}) for name, tensor in captured.items()}
    return Problem(tensors, {}, scalars, own, b, _seed(inputs), caches)


def _own_tokens(tensor: Tensor, axes: list[Axis], spans: Mapping[str, tuple[int, int]]) -> Tensor:
    """A captured tensor with only one sequence's tokens on its packed axes (an axis of size 1 is broadcast)."""
    for position, axis in enumerate(axes):
        if axis.origin and tensor.shape[position] != 1:
            begin, end = spans[axis.origin[0]]
            tensor = tensor.narrow(position, begin, end - begin)
    return tensor


def assemble(graph: Graph, inputs: Mapping[str, Any], parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put the results of all problems together, laid out as the generated function returns them."""
    layout = _layout(graph)
    nodes = dict(graph.all(Input))
    captured = {f"d{n}" for n, node in nodes.items() if node.role == "captured"}
    wanted = [f"d{n}" for n, node in nodes.items() if node.grad]
    known = parts[0] if parts else dict.fromkeys(wanted if "dout" in inputs else ())
    names = ["out", "lse", *(name for name in wanted if name in known)]
    if layout != "thd":
        order = ["bhsd".index(c) for c in layout]
        [whole] = parts
        return {n: whole[n] if n in captured or n == "lse" else whole[n].permute(order) for n in names}
    return {n: _packed(graph, inputs, n, [part[n] for part in parts]) for n in names}


def _packed(graph: Graph, inputs: Mapping[str, Any], name: str, parts: list[Tensor]) -> Tensor:
    """One result of packed sequences: tokens of no sequence have out 0, lse -inf and gradients 0."""
    source = graph.nodes.get(name.removeprefix("d"))
    if isinstance(source, Input) and source.role == "captured":
        return _packed_captured(graph, inputs, name, source, parts)
    q = inputs["q"]
    if name == "lse":
        whole = torch.full((q.shape[1], q.shape[0]), float("-inf"), dtype=torch.float64)
    elif name == "out":
        size = graph.axis("Dv").size
        assert isinstance(size, ex.Const)
        whole = torch.zeros(q.shape[0], q.shape[1], int(size.value), dtype=torch.float64)
    else:
        whole = torch.zeros(inputs[name.removeprefix("d")].shape, dtype=torch.float64)
    side = "k" if name in ("dk", "dv") else "q"
    for b, part in enumerate(parts):
        begin = int(inputs[f"cu_seqlens_{side}"][b])
        if name == "lse":
            whole[:, begin : begin + part.shape[-1]] = part[0]
        else:
            whole[begin : begin + part.shape[2]] = part[0].permute(1, 0, 2)
    return whole


def _packed_captured(
    graph: Graph, inputs: Mapping[str, Any], name: str, node: Input, parts: list[Tensor]
) -> Tensor:
    """Gradients of a captured tensor add up over sequences, each on its own tokens."""
    whole = torch.zeros(inputs[name.removeprefix("d")].shape, dtype=torch.float64)
    for b, part in enumerate(parts):
        view = whole
        for position, axis in enumerate(map(graph.axis, node.axes)):
            if axis.origin and whole.shape[position] != 1:
                begin = int(inputs[f"cu_seqlens_{axis.origin[0]}"][b])
                view = view.narrow(position, begin, part.shape[position])
        view += part
    return whole
