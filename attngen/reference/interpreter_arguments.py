"""The interpreter's arguments: every layout becomes problems over [B, H, S, D], and results go back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Axis, Input

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    tensors: Mapping[str, Tensor]  # q, k, v as [B, H, S, D]
    scalars: Mapping[str, Any]
    captured: Mapping[str, Tensor]
    first_b: int


def _layout(graph: Graph) -> str:
    node = graph.nodes["q"]
    assert isinstance(node, Input)
    return node.layout


def problems(graph: Graph, inputs: Mapping[str, Any]) -> list[Problem]:
    nodes = dict(graph.all(Input))
    names = [n for n, node in nodes.items() if node.role == "tensor"]
    scalars: dict[str, Any] = {}
    for name, node in nodes.items():
        if node.role == "scalar":
            given = inputs.get(name)
            scalars[name] = float(node.default) if given is None else given
    captured = {n: inputs[n] for n, node in nodes.items() if node.role == "captured"}
    layout = _layout(graph)
    if layout != "thd":
        order = [layout.index(c) for c in "bhsd"]
        tensors = {n: inputs[n].double().permute(order) for n in names}
        return [Problem(tensors, scalars, captured, 0)]
    axes = {n: [graph.axis(a) for a in nodes[n].axes] for n in captured}
    sequences = range(len(inputs["cu_seqlens_q"]) - 1)
    return [_sequence(inputs, names, scalars, captured, axes, b) for b in sequences]


def _sequence(
    inputs: Mapping[str, Any],
    names: list[str],
    scalars: dict[str, Any],
    captured: dict[str, Tensor],
    axes: Mapping[str, list[Axis]],
    b: int,
) -> Problem:
    spans = {s: (int(inputs[f"cu_seqlens_{s}"][b]), int(inputs[f"cu_seqlens_{s}"][b + 1])) for s in "qk"}
    if inputs.get("seqused_k") is not None:
        spans["k"] = (spans["k"][0], spans["k"][0] + int(inputs["seqused_k"][b]))
    tensors: dict[str, Tensor] = {}
    for name in names:
        begin, end = spans["q" if name == "q" else "k"]
        tensors[name] = inputs[name][begin:end].double().permute(1, 0, 2)[None]
    own = {name: _own_tokens(tensor, axes[name], spans) for name, tensor in captured.items()}
    return Problem(tensors, scalars, own, b)


def _own_tokens(tensor: Tensor, axes: list[Axis], spans: Mapping[str, tuple[int, int]]) -> Tensor:
    """A captured tensor with only one sequence's tokens on its packed axes (an axis of size 1 is broadcast)."""
    for position, axis in enumerate(axes):
        if axis.origin and tensor.shape[position] != 1:
            begin, end = spans[axis.origin[0]]
            tensor = tensor.narrow(position, begin, end - begin)
    return tensor


def assemble(
    graph: Graph, inputs: Mapping[str, Any], outs: list[Tensor], lses: list[Tensor]
) -> tuple[Tensor, Tensor]:
    layout = _layout(graph)
    if layout != "thd":
        return outs[0].permute(["bhsd".index(c) for c in layout]), lses[0]
    q = inputs["q"]
    size = graph.axis("Dv").size
    assert isinstance(size, ex.Const)
    out = torch.zeros(q.shape[0], q.shape[1], int(size.value), dtype=torch.float64)
    lse = torch.full((q.shape[1], q.shape[0]), float("-inf"), dtype=torch.float64)
    for b, (part, part_lse) in enumerate(zip(outs, lses, strict=True)):
        begin, end = int(inputs["cu_seqlens_q"][b]), int(inputs["cu_seqlens_q"][b + 1])
        out[begin:end] = part[0].permute(1, 0, 2)
        lse[:, begin:end] = part_lse[0]
    return out, lse
