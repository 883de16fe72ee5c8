"""Gradients two ways: torch's autograd through the oracle, and the interpreter on a differentiated graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from attngen.check.inputs import make_inputs
from attngen.check.problem import Problem
from attngen.ir.graph import Graph, verify
from attngen.passes.build import build
from attngen.passes.differentiate import Differentiate
from attngen.reference.interpreter import interpret_all
from attngen.reference.oracle import reference
from attngen.spec import Spec, load_spec

SPECS = Path(__file__).parents[2] / "specs"
OTHERS = (
    "cache:",
    "recurrence:",
)  # caches are read only; of recurrences tests/test_recurrence_committed.py knows
NAMES = sorted(p.stem for p in SPECS.glob("*.yaml") if not any(key in p.read_text() for key in OTHERS))
RELATIVE = 1e-12  # of the largest gradient of a tensor


def make(**changes: Any) -> Spec:
    """A small differentiable spec; all its float captured tensors ask for gradients."""
    small = {"attngen": 1, "name": "x", "heads": {"q": 2, "kv": 1}, "head_dim": 16, "dtype": "float32"}
    return with_gradients({**small, **changes})


def committed(name: str, **changes: Any) -> Spec:
    """A spec of ``specs/``, differentiable."""
    return with_gradients({**yaml.safe_load((SPECS / f"{name}.yaml").read_text()), **changes})


def with_gradients(data: dict[str, Any]) -> Spec:
    captured = {n: {**c, "grad": "float" in c["dtype"]} for n, c in data.get("captured", {}).items()}
    return load_spec({**data, "grad": True, **({"captured": captured} if captured else {})})


def graph_of(spec: Spec) -> Graph:
    graph = Differentiate().apply(build(spec))
    verify(graph)
    return graph


def inputs_of(spec: Spec, problem: Problem, **replaced: Tensor) -> dict[str, Any]:
    """The arguments of a call; floats are float64, so that neither way rounds them."""
    found = make_inputs(spec, problem, torch.float64) | replaced
    return {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in found.items()}


def wanted(spec: Spec) -> list[str]:
    """The inputs that get gradients."""
    tensors = ["q", "k"] if spec.head_dim.v_from_k else ["q", "k", "v"]
    return [*tensors, *(["sinks"] if spec.sinks else []), *(c.name for c in spec.captured if c.grad)]


def incoming(out: Tensor, lse: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random gradients of both results."""
    source = torch.Generator().manual_seed(seed + 1)
    dout, dlse = (torch.randn(x.shape, generator=source, dtype=torch.float64) for x in (out, lse))
    return dout, dlse


def autograd(spec: Spec, inputs: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The oracle's gradients by torch, 0 where nothing depends on an input; and the gradients that came in."""
    names = wanted(spec)
    leaves = {n: inputs[n].clone().requires_grad_() for n in names}
    out, lse = reference(spec, **{**inputs, **leaves}, return_lse=True)
    dout, dlse = incoming(out, lse)
    total = (out * dout).sum() + torch.where(lse.isfinite(), lse * dlse, 0.0).sum()
    if not total.requires_grad:  # an empty batch
        return {n: torch.zeros_like(x) for n, x in leaves.items()}, dout, dlse
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True)), dout, dlse


def compare(spec: Spec, problem: Problem, *, floor: float = 0.0, **replaced: Tensor) -> dict[str, Tensor]:
    """Assert that both ways agree for every input, and return the gradients.

    ``floor`` is an absolute error that is no error: where the terms of a gradient cancel, only their rounding is left.
    """
    inputs = inputs_of(spec, problem, **replaced)
    expected, dout, dlse = autograd(spec, inputs)
    found = interpret_all(graph_of(spec), {**inputs, "dout": dout, "dlse": dlse})
    assert {n for n in found if n not in ("out", "lse")} == {f"d{n}" for n in expected}
    for name, right in expected.items():
        got = found[f"d{name}"]
        assert got.shape == inputs[name].shape, name
        assert right.isfinite().all(), f"{name}: the oracle's gradient is not finite"
        assert got.isfinite().all(), f"{name}: not finite"
        if right.numel():
            error, largest = float((got - right).abs().max()), float(right.abs().max())
            wrong = f"{name}: {error:.1e}, the largest gradient is {largest:.1e}"
            assert error <= RELATIVE * largest + floor, wrong
    return {n: found[f"d{n}"] for n in expected}
