"""The arguments of a call of a recurrence, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from attngen.errors import TensorError, did_you_mean
from attngen.reference.oracle_inputs import number, param, tensor
from attngen.spec import Spec
from attngen.spec.model import Recurrence

SSD: Final = {
    "x": "B L H P",
    "dt": "B L H",
    "A": "H",
    "B": "B L G N",
    "C": "B L G N",
    "D": "H",
    "z": "B L H P",
    "dt_bias": "H",
    "initial_states": "S H P N",
}
LINEAR: Final = {
    "q": "B L H K",
    "k": "B L H K",
    "v": "B L H V",
    "g": "B L H",
    "beta": "B L H",
    "initial_state": "S H K W",
}
OPTIONAL: Final = ("D", "z", "dt_bias", "initial_states", "initial_state")


@dataclass(frozen=True)
class Call:
    """A checked call; tensors have the dtype to compute in.

    Attributes:
        dtype: of the result.
        state: before the first token, [sequences, H, K, V].
        bounds: where the sequences of a packed call begin and end, else None.
    """

    spec: Spec
    recurrence: Recurrence
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    state: Tensor
    bounds: tuple[tuple[int, int], ...] | None
    params: Mapping[str, Tensor]
    scale: float
    dt_limit: tuple[float, float]
    return_final: bool

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """A tensor that a call may leave out."""
        return self.tensors.get(name)


def bind(spec: Spec, inputs: Mapping[str, Any], *, same: bool) -> Call:
    """The call that `inputs` make; `same` computes in the dtype of the inputs, sums in float32, instead of float64."""
    recurrence = spec.recurrence
    assert recurrence is not None
    ssd = recurrence.kind == "ssd"
    wanted = dict(SSD if ssd else LINEAR)
    if not isinstance(recurrence.decay, str):
        wanted.pop("g", None)
    elif recurrence.decay == "vector":
        wanted["g"] = "B L H K"
    if recurrence.transition != "delta":
        wanted.pop("beta", None)
    settings = [
        "cu_seqlens",
        *(["return_final_states", "dt_limit"] if ssd else ["return_final_state", "scale"]),
    ]
    params = [p.name for p in spec.params if p.runtime]
    _check_names(spec, inputs, wanted, [*settings, *params])
    given = {name: axes for name, axes in wanted.items() if inputs.get(name) is not None}
    sizes = _sizes(spec, recurrence)
    found = {
        name: _shaped(name, inputs[name], axes, sizes) for name, axes in given.items() if "S" not in axes
    }
    first = found["x" if ssd else "q"]
    shared = spec.heads.q // recurrence.groups
    if ssd and sizes["H"] != shared * sizes["G"]:
        raise TensorError(
            f"x has {sizes['H']} heads and B {sizes['G']}; {spec.name} has {shared} heads per group"
        )
    _check_dtypes(found, ["x", "B", "C", "z"] if ssd else ["q", "k", "v"])
    bounds = _bounds(inputs.get("cu_seqlens"), first)
    sizes["S"] = first.shape[0] if bounds is None else len(bounds)
    wide = torch.promote_types(first.dtype, torch.float32) if same else torch.float64
    state = _state(inputs.get("initial_states" if ssd else "initial_state"), wanted, sizes, first, ssd=ssd)
    scale = inputs.get("scale")
    return Call(
        spec=spec,
        recurrence=recurrence,
        tensors={name: x.to(wide) for name, x in found.items()},
        dtype=first.dtype if same else torch.float64,
        state=state.to(wide),
        bounds=bounds,
        params={p.name: number(param(p, inputs), first.device) for p in spec.params},
        scale=spec.head_dim.qk**-0.5 if scale is None else float(scale),
        dt_limit=_limit(inputs.get("dt_limit")),
        return_final=bool(inputs.get("return_final_states" if ssd else "return_final_state", False)),
    )


def _check_names(
    spec: Spec, inputs: Mapping[str, Any], wanted: Mapping[str, str], more: Sequence[str]
) -> None:
    required = [name for name in wanted if name not in OPTIONAL] + [p.name for p in spec.params if p.runtime]
    for name in required:
        if inputs.get(name) is None:
            raise TensorError(f"missing argument '{name}'; {spec.name} takes {', '.join(required)}")
    known = {*wanted, *more}
    for name, value in inputs.items():
        if name not in known and value is not None:
            raise TensorError(f"unknown argument '{name}' for {spec.name}; {did_you_mean(name, known)}")


def _sizes(spec: Spec, recurrence: Recurrence) -> dict[str, int]:
    """Sizes that the spec fixes; the others are those of the first tensor that has them."""
    if recurrence.kind == "ssd":
        assert recurrence.state is not None
        return {"P": spec.head_dim.v, "N": recurrence.state}
    columns = spec.head_dim.v
    return {"K": spec.head_dim.qk, "V": columns, "W": columns + recurrence.normalise}  # W: those of a state


def _shaped(name: str, value: Any, axes: str, sizes: dict[str, int]) -> Tensor:
    letters = axes.split()
    if name == "D" and isinstance(value, Tensor) and value.dim() == 2:
        letters = ["H", "P"]
    found = tensor(name, value, [sizes.get(letter) for letter in letters], f"[{', '.join(letters)}]")
    if not found.is_floating_point():
        raise TensorError(f"{name} must have a floating-point dtype, got {found.dtype}")
    sizes |= dict(zip(letters, found.shape, strict=True))
    return found


def _check_dtypes(found: Mapping[str, Tensor], names: Sequence[str]) -> None:
    first, *rest = [name for name in names if name in found]
    for name in rest:
        if found[name].dtype != found[first].dtype:
            raise TensorError(
                f"{name} is {found[name].dtype}, {first} is {found[first].dtype}; they must be of one dtype"
            )


def _bounds(cu_seqlens: Any, first: Tensor) -> tuple[tuple[int, int], ...] | None:
    if cu_seqlens is None:
        return None
    starts = [int(start) for start in tensor("cu_seqlens", cu_seqlens, [None], "[sequences + 1]")]
    if first.shape[0] != 1:
        raise TensorError(
            f"packed sequences are a batch of one, got a batch of {first.shape[0]} and cu_seqlens"
        )
    if not starts or starts[0] != 0 or starts[-1] != first.shape[1] or starts != sorted(starts):
        raise TensorError(
            f"cu_seqlens must rise from 0 to {first.shape[1]} (the tokens given), got {starts[:8]}"
        )
    return tuple(pairwise(starts))


def _state(
    given: Any, wanted: Mapping[str, str], sizes: dict[str, int], first: Tensor, *, ssd: bool
) -> Tensor:
    """[sequences, H, K, V]; Mamba-2 has the columns of x first."""
    name = "initial_states" if ssd else "initial_state"
    letters = wanted[name].split()
    if given is None:
        state = first.new_zeros([sizes[letter] for letter in letters], dtype=torch.float32)
    else:
        state = _shaped(name, given, wanted[name], sizes)
    return state.transpose(-1, -2) if ssd else state


def _limit(given: Any) -> tuple[float, float]:
    if given is None:
        return 0.0, float("inf")
    if not (isinstance(given, tuple | list) and len(given) == 2 and given[0] <= given[1]):
        raise TensorError(f"dt_limit is (least, greatest), got {given!r}")
    return float(given[0]), float(given[1])
