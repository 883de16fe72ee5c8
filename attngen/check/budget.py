"""How far a kernel may be from the truth: derived from the data, never a constant.

The yardstick is what an eager torch model makes of the same values in fp32 (`reference(precision="same")`),
since a kernel accumulates in fp32 whatever the dtype of its tensors. A kernel may be twice as far from the
oracle, and 16-bit tensors cost two roundings more: of the probabilities and of the output, half an ulp each.
For bf16 this is tighter than twice the error of an eager bf16 model, whose scores are rounded too (near
-2.5e5 all to one number).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from attngen.check.stored import numbers
from attngen.check.uses import largest_number
from attngen.reference.oracle import reference
from attngen.spec import Spec

TENSORS: Final = ("q", "k", "v", "k_cache", "v_cache")
EXACT: Final = 1e-9
"""Relative tolerance between float64 computations of one formula."""
EPS32: Final = torch.finfo(torch.float32).eps
EPS_TF32: Final = 2.0**-10


@dataclass(frozen=True)
class Truth:
    """The oracle's results and the largest error that a kernel may have, per tensor."""

    out: Tensor
    lse: Tensor
    out_budget: float
    lse_budget: float

    @property
    def exact(self) -> dict[str, float]:
        """Budgets between float64 computations."""
        return {"out": EXACT * max(1.0, size(self.out)), "lse": EXACT * max(1.0, size(self.lse))}


def truth(spec: Spec, inputs: dict[str, Any]) -> Truth:
    """Compute the oracle and the budgets of one problem.

    Raises:
        CheckError: the spec reads a captured tensor out of bounds.
    """
    out, lse = _both(spec, inputs, "float64")
    out32, lse32 = _both(spec, _as_fp32(spec, inputs), "same")
    eps = torch.finfo(inputs["q"].dtype).eps
    rounding = max(eps, EPS_TF32) if spec.precision == "tf32" else eps
    values = _values(inputs)
    condition = EPS32 * max(1.0, size(lse), largest_number(spec))  # what fp32 can tell of scores of this size
    weight = 1 / (1 - inputs.get("dropout_p", 0.0))  # what those that dropout keeps add up to at most
    roundings = (rounding * size(values) * weight + eps * size(out)) / 2
    return Truth(
        out=out,
        lse=lse,
        out_budget=2 * max_error(out32, out) + roundings + condition * size(out),
        lse_budget=2 * max_error(lse32, lse) + 4 * condition,
    )


def _values(inputs: dict[str, Any]) -> Tensor:
    """What is averaged; of stored numbers with their scales."""
    name = next(name for name in ("v", "v_cache", "k", "k_cache") if name in inputs)
    scale = inputs.get(name.replace("cache", "scale"))
    if name.endswith("cache") and scale is not None:
        return torch.tensor(size(numbers(inputs[name])) * size(scale))
    return inputs[name]


def max_error(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; equal infinities do not differ, NaN differs infinitely."""
    if found.shape != expected.shape:
        return math.inf
    difference = (found.double() - expected.double()).abs()
    difference = torch.where(found.double() == expected.double(), 0.0, difference)
    return float(difference.nan_to_num(nan=math.inf, posinf=math.inf).max()) if difference.numel() else 0.0


def _both(spec: Spec, inputs: dict[str, Any], precision: Any) -> tuple[Tensor, Tensor]:
    result = reference(spec, precision=precision, **inputs, return_lse=True)
    assert isinstance(result, tuple)
    return result


def _as_fp32(spec: Spec, inputs: dict[str, Any]) -> dict[str, Any]:
    wide = {
        name: inputs[name].float() for name in TENSORS if name in inputs and f"{name[0]}_scale" not in inputs
    }
    if spec.precision == "tf32" and inputs["q"].dtype == torch.float32:
        wide = {name: _tf32(tensor) for name, tensor in wide.items()}
    return inputs | wide


def _tf32(tensor: Tensor) -> Tensor:
    """Round to ten bits after the leading one."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def size(tensor: Tensor) -> float:
    """The largest finite magnitude."""
    magnitudes = tensor.double().abs().nan_to_num(nan=0.0, posinf=0.0)
    return float(magnitudes.max()) if magnitudes.numel() else 0.0
