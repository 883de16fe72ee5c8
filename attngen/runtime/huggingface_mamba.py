"""Generated Mamba-2 modules in models of Hugging Face transformers: prefill by `ssd`, decode by `ssd_step`.

    use(model, attngen.build("specs/mamba2_130m.yaml"))
    model.generate(tokens)

The mixers of Mamba-2, Bamba, Falcon-H1, Granite 4, Nemotron-H and Zamba2 call two functions of their file by name, a scan
over the prompt and an update of the state. `use` gives each mixer of one model a `forward` in which these names mean the
generated module; projections, convolution, norm and cache stay those of transformers. Models train on modules that have
a backward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from torch import Tensor, nn

from attngen.errors import LoadError, TensorError
from attngen.spec import load_spec

__all__ = ["restore", "use"]

SCAN: Final = "mamba2_chunk_scan"
UPDATE: Final = "mamba2_selective_state_update"
PACKED: Final = ("cu_seqlens", "seq_idx")


def use(model: nn.Module, module: ModuleType) -> int:
    """Run the Mamba-2 mixers of a model on a generated module; return how many there are.

    Raises:
        LoadError: the module is none of Mamba-2, the model has no mixer, or one that the module does not compute.

    Decode raises RuntimeError where gradients are enabled: generate under torch.no_grad(), as `model.generate` does.
    Hooks of accelerate on a mixer (weights kept elsewhere) are not called.
    """
    found = list(mixers(model))
    if not found:
        raise LoadError(f"{type(model).__name__} has no mixer that calls {SCAN} and {UPDATE}")
    for name, mixer in found:
        _check(name, mixer, module)
    for _, mixer in found:
        functions = _Functions(module, tuple(mixer.time_step_limit))
        mixer.forward = _rebound(mixer, {SCAN: functions.scan, UPDATE: functions.update})
    return len(found)


def restore(model: nn.Module) -> None:
    """Give the mixers of a model transformers' own functions back."""
    for _, mixer in mixers(model):
        vars(mixer).pop("forward", None)


def mixers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The Mamba-2 mixers of a model by name: modules whose forward calls both functions."""
    for name, part in model.named_modules():
        if {SCAN, UPDATE} <= set(_forward(part).__code__.co_names):
            yield name, part


def _forward(part: nn.Module) -> FunctionType:
    return inspect.unwrap(type(part).forward)  # pyright: ignore[reportReturnType]


def _rebound(mixer: nn.Module, functions: dict[str, Any]) -> MethodType:
    """The mixer's forward, with other functions by these names."""
    own = _forward(mixer)
    made = FunctionType(own.__code__, {**own.__globals__, **functions}, own.__name__, own.__defaults__)
    made.__kwdefaults__ = own.__kwdefaults__
    return MethodType(made, mixer)


def _check(name: str, mixer: Any, module: ModuleType) -> None:
    spec = load_spec(module.SPEC)
    recurrence = spec.recurrence
    if recurrence is None or recurrence.kind != "ssd":
        raise LoadError(f"{spec.name}: is no Mamba-2; a spec of it says `recurrence: {{kind: ssd, ...}}`")
    if not recurrence.dt_softplus:
        raise LoadError(f"{spec.name}: the mixers of transformers have a softplus; add `dt_softplus: true`")
    computed = {
        "head_dim": (spec.head_dim.v, mixer.head_dim),
        "state": (recurrence.state, mixer.ssm_state_size),
        "heads per group": (spec.heads.q // recurrence.groups, mixer.num_heads // mixer.n_groups),
    }
    for what, (own, wanted) in computed.items():
        if own != wanted:
            raise LoadError(f"{name} has {what} {wanted}, {spec.name} has {own}: change the spec")


@dataclass(frozen=True)
class _Functions:
    """The functions that a mixer calls, on a generated module."""

    module: ModuleType
    dt_limit: tuple[float, float]

    def scan(
        self,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        *,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        initial_states: Tensor | None = None,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        **others: Any,
    ) -> Any:
        """Prefill. The module has a chunk of its own, which changes no more than rounding."""
        _refuse(dt_softplus, others)
        return self.module.ssd(
            _rows(hidden_states),
            dt,
            A,
            _rows(B),
            _rows(C),
            D=D,
            z=z,
            dt_bias=dt_bias,
            dt_limit=tuple(dt_limit),
            initial_states=initial_states,
            return_final_states=return_final_states,
        )

    def update(
        self,
        state: Tensor,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        **others: Any,
    ) -> Tensor:
        """Decode, in place; dt, A and dt_bias come expanded from numbers per head. dt is limited as in prefill."""
        _refuse(dt_softplus, others)
        return self.module.ssd_step(
            state,
            _rows(hidden_states),
            dt[..., 0],
            A[:, 0, 0],
            _rows(B),
            _rows(C),
            D=D,
            z=z,
            dt_bias=None if dt_bias is None else dt_bias[:, 0],
            dt_limit=self.dt_limit,
        )


def _rows(x: Tensor) -> Tensor:
    """Rows in one piece: PyTorch's convolution gives channels that are apart."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _refuse(dt_softplus: bool, others: dict[str, Any]) -> None:
    if not dt_softplus:
        raise TensorError("dt_softplus is False: the generated module applies it")
    for name in PACKED:
        if others.get(name) is not None:
            raise TensorError(f"{name}: packed sequences are not told apart by the mixer's convolution here")
