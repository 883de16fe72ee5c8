"""The gradients of one problem: the oracle's by autograd, those of the graphs, those of the kernels, and their budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attngen.check.budget import EPS32, EXACT, Truth, max_error, size
from attngen.check.uses import largest_number
from attngen.ir.graph import Graph
from attngen.ir.nodes import Input
from attngen.reference.interpreter import interpret_all
from attngen.reference.oracle import reference
from attngen.spec import Spec

Inputs = dict[str, Any]


@dataclass(frozen=True)
class GradientTruth:
    """The oracle's gradients by input, for random gradients of out and lse, and how far a kernel may be from them."""

    incoming: dict[str, Tensor]  # dout, dlse
    expected: dict[str, Tensor]
    exact: dict[str, float]
    budget: dict[str, float]


def wanted(graph: Graph) -> list[str]:
    """The inputs that get a gradient."""
    return [name for name, node in graph.all(Input) if node.grad]


def gradient_truth(spec: Spec, names: list[str], inputs: Inputs, known: Truth) -> GradientTruth:
    """Compute the oracle's gradients and their budgets.

    A kernel may be twice as far from the oracle as autograd of an eager model in the tensors' dtype. Two things come on top:
    a rounding of the result, and what rounding of `out` does to delta = rowsum(out * dout), which eager models do not need.
    """
    source = torch.Generator().manual_seed(known.out.numel())
    dtype = inputs["q"].dtype
    dout = torch.randn(known.out.shape, generator=source).to(dtype)
    dlse = torch.where(known.lse == -torch.inf, 0.0, torch.randn(known.lse.shape, generator=source))
    expected = _autograd(spec, names, inputs, dout, dlse, "float64")
    eager = _autograd(spec, names, inputs, dout, dlse, "same")
    noise = _noise(spec, names, inputs, dout, known)
    rounding = _rounding(spec, inputs, known)
    budget = {
        name: 2 * max_error(eager[name], expected[name])
        + rounding * size(expected[name])
        + noise.get(name, 0.0)
        for name in names
    }
    exact = {name: EXACT * max(1.0, size(value)) for name, value in expected.items()}
    return GradientTruth({"dout": dout, "dlse": dlse.float()}, expected, exact, budget)


def _autograd(
    spec: Spec, names: list[str], inputs: Inputs, dout: Tensor, dlse: Tensor, precision: Any
) -> dict[str, Tensor]:
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    if precision == "float64":
        leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    result = reference(spec, precision=precision, **(inputs | leaves), return_lse=True)
    assert isinstance(result, tuple)
    out, lse = result
    given = [(t, g.to(t.dtype)) for t, g in ((out, dout), (lse, dlse)) if t.requires_grad]
    if not given:  # without keys
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    results, gradients = zip(*given, strict=True)
    found = torch.autograd.grad(results, list(leaves.values()), gradients, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def _rounding(spec: Spec, inputs: Inputs, known: Truth) -> float:
    """Half an ulp of the tensors' dtype, and what fp32 can tell of scores of this size."""
    return torch.finfo(inputs["q"].dtype).eps / 2 + 2 * EPS32 * max(
        1.0, size(known.lse), largest_number(spec)
    )


def _noise(spec: Spec, names: list[str], inputs: Inputs, dout: Tensor, known: Truth) -> dict[str, float]:
    """What half an ulp of out does: delta is off by a row's sum of |out dout|, and with it ds by p times that.

    A change of delta is one of -dlse, so that a captured tensor's share is a gradient of lse.
    """
    rows = size((known.out.abs() * dout.double().abs()).sum(-1)) * _rounding(spec, inputs, known)
    scale = spec.head_dim.qk**-0.5
    wide = {name: inputs[name].detach().double().nan_to_num() for name in ("q", "k", "v") if name in inputs}
    if spec.head_dim.v_from_k:
        wide["v"] = wide["k"][..., : spec.head_dim.v].clone()
        spec = replace(spec, head_dim=replace(spec.head_dim, v_from_k=None))
    values = wide["v"].requires_grad_()
    whole = reference(spec, **(inputs | wide))
    assert isinstance(whole, Tensor)
    columns = torch.autograd.grad([whole.sum()], [values])[0] if whole.requires_grad else values
    found = {"q": rows * scale * size(inputs["k"]), "k": rows * scale * size(inputs["q"]) * size(columns)}
    # eager models round weights in 16 bits: that is more than what delta's error does to sums of them
    captured = [name for name in names if name not in wide and inputs["q"].dtype == torch.float32]
    drawn = torch.randint(0, 2, known.lse.shape, generator=torch.Generator().manual_seed(3)) * 2.0 - 1.0
    for signs in (torch.ones_like(known.lse), drawn) if captured else ():
        dlse = torch.where(known.lse == -torch.inf, 0.0, rows * signs)
        moved = _autograd(spec, captured, inputs, torch.zeros_like(dout), dlse, "float64")
        found |= {name: max(size(moved[name]), found.get(name, 0.0)) for name in captured}
    return found


def of_graph(graph: Graph, inputs: Inputs, truth: GradientTruth, **blocks: int) -> dict[str, Tensor]:
    """The gradients that a graph means."""
    found = interpret_all(graph, {**inputs, **truth.incoming}, **blocks)
    return {name: found[f"d{name}"] for name in truth.expected}


def of_kernels(module: ModuleType, inputs: Inputs, truth: GradientTruth) -> dict[str, Tensor]:
    """The gradients that autograd gets from the generated kernels."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in truth.expected}
    out, lse = module.attention(**(inputs | leaves), return_lse=True)
    found = torch.autograd.grad([out, lse], list(leaves.values()), list(truth.incoming.values()))
    return dict(zip(leaves, found, strict=True))
