"""Gradients of generated kernels in Triton's interpreter against the float64 oracle, each with an error budget of its own.

A gradient may be twice as far from the oracle's as autograd through the same formula in the same dtype is. A kernel's
backward starts from the forward's out, rounded to its dtype, which eager autograd does not: what that changes is
computed too, in float64, and added where it may matter. Nothing else is: half an ulp of the gradient's own size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import attngen
from attngen.check.inputs import make_inputs
from attngen.check.problem import Problem
from attngen.spec import Spec
from tests.passes.gradients import wanted

EPS32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the backward kernels run: tiles of dq, then of dk and dv, then square ones of captured tensors."""

    dq: tuple[int, int] = (16, 16)
    dkdv: tuple[int, int] = (16, 16)
    captured: int = 16
    descriptors: bool = False
    merged: bool = False
    apart: bool = False

    def configs(self, module: ModuleType) -> dict[str, dict[str, Any]]:
        """What `launch_backward` takes. MERGED exists only where one loop can walk all tiles."""
        found: dict[str, dict[str, Any]] = {}
        for kernel, (m, n) in (("_backward_dq", self.dq), ("_backward_dkdv", self.dkdv)):
            sizes = {"BLOCK_M": m, "BLOCK_N": n, "num_warps": 4, "num_stages": 1}
            found[kernel] = sizes | {"USE_DESCRIPTORS": self.descriptors}
            if "MERGED" in module.MANIFEST["kernels"][kernel]["constants"]:
                found[kernel]["MERGED"] = self.merged
        found["_backward_dkdv"]["APART"] = self.apart
        for kernel, described in module.MANIFEST["kernels"].items():
            if kernel.startswith("_backward_captured"):
                sizes = {"BLOCK_M": self.captured, "BLOCK_N": self.captured}
                found[kernel] = {n: sizes[n] for n in described["constants"] if n in sizes}
                found[kernel] |= {"num_warps": 4, "num_stages": 1}
        return found


SMALL = Schedule()
OTHERS = (
    Schedule(dq=(32, 16), dkdv=(16, 32), descriptors=True, merged=True),
    Schedule(dq=(16, 64), dkdv=(64, 16), apart=True, captured=32),
    Schedule(dq=(32, 32), dkdv=(32, 32), merged=True, apart=True),
    Schedule(dq=(64, 32), dkdv=(32, 64), descriptors=True),
    Schedule(dq=(128, 16), dkdv=(16, 128)),
    Schedule(dq=(16, 128), dkdv=(128, 16), descriptors=True, merged=True, apart=True),
)


def inputs_of(spec: Spec, problem: Problem, dtype: torch.dtype, **replaced: Any) -> dict[str, Any]:
    """The arguments of a call; runtime params have values that matter at small lengths."""
    values = {p.name: 5 if p.type == "int" else 0.75 for p in spec.params if p.runtime}
    problem = replace(problem, params=tuple({**values, **dict(problem.params)}.items()))
    return make_inputs(spec, problem, dtype) | replaced


def incoming(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Random gradients of both results."""
    source = torch.Generator().manual_seed(1)
    return tuple(torch.randn(x.shape, generator=source).to(x.dtype) for x in (out, lse))  # type: ignore[return-value]


# ---- the kernels


@contextmanager
def scheduled(module: ModuleType, schedule: Schedule) -> Generator[None]:
    """The schedule in place of the CPU's; memory that nobody has written holds NaN."""
    was = torch.are_deterministic_algorithms_enabled()
    with ExitStack() as stack:
        for kernel, config in schedule.configs(module).items():
            stack.enter_context(patch.dict(module.MANIFEST["kernels"][kernel]["configs"], cpu=[config]))
        forward = {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1, "USE_DESCRIPTORS": False}
        stack.enter_context(patch.dict(module.CONFIGS, cpu=[forward]))
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was)


def attend(
    module: ModuleType, inputs: dict[str, Any], names: list[str]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(out, lse) and the leaves that they depend on."""
    leaves = {n: inputs[n].detach().requires_grad_() for n in names}
    out, lse = module.attention(**{**inputs, **leaves}, return_lse=True)
    return out, lse, leaves


def kernel_gradients(
    spec: Spec,
    module: ModuleType,
    inputs: dict[str, Any],
    dout: Tensor | None = None,
    dlse: Tensor | None = None,
    schedule: Schedule = SMALL,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Out, and the gradients of all inputs that ask for one, in launches that are watched."""
    names = wanted(spec)
    with scheduled(module, schedule), watched(module):
        out, lse, leaves = attend(module, inputs, names)
        found = torch.autograd.grad(
            [x for x, d in ((out, dout), (lse, dlse)) if d is not None],
            list(leaves.values()),
            [d for d in (dout, dlse) if d is not None],
        )
    return out.detach(), dict(zip(names, found, strict=True))


# ---- the watch

RESULTS = {"lse2", "delta", "dq", "dk", "dv"}


def _addresses(tensor: Tensor) -> np.ndarray:
    """The address of every element."""
    offsets = np.zeros((), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + np.arange(size, dtype=np.int64) * stride
    return np.unique(tensor.data_ptr() + offsets * tensor.element_size())


def _places(touched: np.ndarray, addresses: np.ndarray) -> np.ndarray | None:
    """Where addresses lie in a sorted array, if all do."""
    places = np.minimum(np.searchsorted(addresses, touched), len(addresses) - 1)
    return places if (addresses[places] == touched).all() else None


@contextmanager
def watched(module: ModuleType) -> Iterator[None]:
    """Fail on a read that no tensor of the launch covers, on a write outside its results, on two writes of a place."""
    from triton.runtime import interpreter

    original = interpreter._interpreter
    readable, writable, written = (np.empty(0, dtype) for dtype in (np.int64, np.int64, np.bool_))

    class Watch:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
            if len(readable):
                touched = np.broadcast_to(pointers, mask.shape)[np.asarray(mask) != 0].astype(np.int64)
                assert _places(touched, readable) is not None, "a load reads outside every argument"
            return original.load(pointers, mask, *rest)

        def store(self, pointers: Any, value: Any, mask: Any) -> Any:
            if len(readable):
                touched = np.broadcast_to(pointers, mask.shape)[np.asarray(mask) != 0].astype(np.int64)
                places = _places(touched, writable)
                assert places is not None, "a store writes outside the results"
                assert not written[places].any(), "a place is written twice"
                written[places] = True
            return original.store(pointers, value, mask)

    class Kernel:
        def __init__(self, name: str) -> None:
            self.kernel = getattr(module, name)
            self.results = RESULTS | {f"d{n}" for n in module.SPEC.get("captured", {})}
            self.results |= {f"d{n.removeprefix('_backward_captured_')}" for n in [name]}

        def __getitem__(self, grid: Any) -> Any:
            def launch(**arguments: Any) -> Any:
                nonlocal readable, writable, written
                tensors = {n: t for n, t in arguments.items() if isinstance(t, Tensor) and t.numel()}
                mine = [_addresses(t) for n, t in tensors.items() if n in self.results or n.endswith("_rows")]
                mine += [_addresses(t) for n, t in tensors.items() if n.startswith("ds_")]
                readable = np.unique(np.concatenate([_addresses(t) for t in tensors.values()]))
                writable = np.unique(np.concatenate(mine))
                written = np.zeros(len(writable), np.bool_)
                try:
                    return self.kernel[grid](**arguments)
                finally:
                    readable = np.empty(0, np.int64)

            return launch

    with ExitStack() as stack:
        stack.enter_context(patch.object(interpreter, "_interpreter", Watch()))
        for name in module.MANIFEST["kernels"]:
            if name.startswith("_backward"):
                stack.enter_context(patch.object(module, name, Kernel(name)))
        yield


# ---- the oracle and the budgets


@dataclass(frozen=True)
class Truth:
    """The oracle's gradients of random combinations of out and lse, and what autograd in the inputs' dtype makes of them."""

    spec: Spec
    inputs: dict[str, Any]
    exact: tuple[Tensor, Tensor, dict[str, Tensor]]
    gradients: dict[str, Tensor]
    eager: dict[str, float]  # errors
    dout: Tensor | None
    dlse: Tensor | None

    def budgets(self, out: Tensor) -> dict[str, float]:
        """How far a kernel's gradients may be from the oracle's, whose forward returned `out`."""
        wide, lse, leaves = self.exact
        dout = torch.zeros_like(wide) if self.dout is None else self.dout.double()
        changed = ((out.double() - wide.detach()) * dout).sum(-1)
        changed = changed + 4 * EPS32 * (wide.detach() * dout).abs().sum(-1)
        axes = {"bshd": (0, 2, 1), "thd": (1, 0), "bhsd": (0, 1, 2)}[self.spec.layout]
        scores = max(1.0, largest(lse))  # weights are as exact as fp32 tells lse
        signs = torch.randint(0, 2, lse.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
        weights = EPS32 * scores * signs.double()
        back = torch.tensor(axes).argsort().tolist()
        dlse = 0.0 if self.dlse is None else self.dlse.double() * weights
        moved = _autograd(
            wide, lse, leaves, dout * weights.permute(back)[..., None], dlse - changed.permute(axes)
        )
        # in 16 bits eager autograd rounds weights, which is more than what delta's error does to all but dk
        exempt = {"k"} if self.inputs["q"].dtype != torch.float32 else {*self.gradients}
        return {
            n: 2 * self.eager[n]
            + 2 * largest(moved[n]) * (n in exempt)
            + (torch.finfo(self.inputs[n].dtype).eps / 2 + 2 * EPS32 * scores) * largest(x)
            for n, x in self.gradients.items()
        }


def truth(spec: Spec, inputs: dict[str, Any], *, with_out: bool = True, with_lse: bool = True) -> Truth:
    """Gradients of out and lse together, or of one of them."""
    names = wanted(spec)
    exact = out, lse, _ = _reference(spec, _wide(inputs), names, "float64")
    dout, dlse = incoming(out.to(inputs["q"].dtype), lse.float())
    given = dout if with_out else torch.zeros_like(dout), dlse if with_lse else torch.zeros_like(dlse)
    right = _autograd(*exact, *given)
    eager = _autograd(*_reference(spec, inputs, names, "same"), *given)
    errors = {n: distance(eager[n], right[n]) for n in names}
    return Truth(spec, inputs, exact, right, errors, dout if with_out else None, dlse if with_lse else None)


def _wide(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in inputs.items()
    }


def _reference(
    spec: Spec, inputs: dict[str, Any], names: list[str], precision: str
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    leaves = {n: inputs[n].detach().clone().requires_grad_() for n in names}
    out, lse = attngen.reference(spec, precision=precision, **{**inputs, **leaves}, return_lse=True)
    return out, lse, leaves


def _autograd(
    out: Tensor, lse: Tensor, leaves: dict[str, Tensor], dout: Tensor, dlse: Tensor
) -> dict[str, Tensor]:
    """A row without keys has no lse that anything could change."""
    finite = lse.isfinite()
    total = (out.double() * dout.double()).sum()
    total = total + (torch.where(finite, lse, 0.0).double() * torch.where(finite, dlse, 0.0)).sum()
    if not total.requires_grad:
        return {n: torch.zeros_like(x) for n, x in leaves.items()}
    found = torch.autograd.grad(
        total, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def norm_ratios(spec: Spec, inputs: dict[str, Any], schedule: Schedule, seed: int) -> dict[str, float]:
    """Per gradient, the norm of the kernel's error over the norm of the error of autograd in the inputs' dtype."""
    names, module = wanted(spec), attngen.build(spec)
    exact = out, lse, _ = _reference(spec, _wide(inputs), names, "float64")
    source = torch.Generator().manual_seed(seed)
    dout = torch.randn(out.shape, generator=source).to(inputs["q"].dtype)
    dlse = torch.randn(lse.shape, generator=source) * (seed % 2)
    right = _autograd(*exact, dout, dlse)
    eager = _autograd(*_reference(spec, inputs, names, "same"), dout, dlse)
    with scheduled(module, schedule):
        out, lse, leaves = attend(module, inputs, names)
        found = torch.autograd.grad([out, lse], list(leaves.values()), [dout, dlse])
    errors = zip(names, found, strict=True)
    return {
        n: float((x.double() - right[n]).norm() / (eager[n].double() - right[n]).norm()) for n, x in errors
    }


def largest(x: Tensor) -> float:
    return float(x.detach().double().nan_to_num(posinf=0.0, neginf=0.0).abs().max()) if x.numel() else 0.0


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.detach().double() - right.detach().double()).abs().max()) if right.numel() else 0.0


def assert_close(found: dict[str, Tensor], out: Tensor, expected: Truth, note: str = "") -> None:
    """Every gradient has the shape and dtype of its input, is finite, and lies within its budget."""
    budgets = expected.budgets(out)
    for name, right in expected.gradients.items():
        got, given = found[name], expected.inputs[name]
        assert (got.shape, got.dtype) == (given.shape, given.dtype), name
        assert right.isfinite().all(), f"{name}: the oracle's gradient is not finite"
        assert got.isfinite().all(), f"d{name} is not finite {note}"
        error, budget, size = distance(got, right), budgets[name], largest(right)
        assert error <= budget, f"d{name}: {error:.2e} off, allowed {budget:.2e}, largest {size:.2e} {note}"
        assert budget <= 0.2 * size + 1e-3, f"d{name}: a budget of {budget:.2e} says nothing of {size:.2e}"


def check(
    spec: Spec,
    inputs: dict[str, Any],
    schedules: tuple[Schedule, ...] = (SMALL,),
    *,
    exact: dict[str, Any] | None = None,
    **which: bool,
) -> dict[str, Tensor]:
    """Compare with the oracle (on `exact` values where given) under each schedule; return the first's gradients."""
    module = attngen.build(spec)
    expected = truth(spec, {**inputs, **(exact or {})}, **which)
    results: list[dict[str, Tensor]] = []
    for schedule in schedules:
        out, found = kernel_gradients(spec, module, inputs, expected.dout, expected.dlse, schedule)
        assert_close(found, out, expected, str(schedule))
        results.append(found)
    return results[0]
