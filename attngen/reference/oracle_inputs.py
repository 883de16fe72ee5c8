"""The arguments of an oracle call, checked one by one and bound to the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from attngen.errors import TensorError, did_you_mean
from attngen.reference.oracle_dropout import dropout_threshold
from attngen.reference.oracle_pages import required as paged
from attngen.reference.oracle_pages import unpaged
from attngen.spec import Captured, Param, Spec

_COMMON: Final = ("softmax_scale", "dropout_p", "seed", "return_lse")
_PACKED: Final = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
_AXES: Final = {"bshd": ("B", "S", "H", "D"), "bhsd": ("B", "H", "S", "D"), "thd": ("T", "H", "D")}


@dataclass(frozen=True)
class Call:
    """A checked call; q, k, v, sinks and floating captured tensors have the dtype to compute in.

    Attributes:
        params: every param, compiled in or given, as a 0-d tensor.
        floats: what integers of formulas become where floats are needed.
        dropout_threshold: how many of 65536 random numbers drop a weight; 0 drops none.
        seed: seed and offset of the random numbers.
        sequences: packed only: per sequence (first query, end of queries, first key, end of used keys).
    """

    spec: Spec
    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None
    softmax_scale: float
    return_lse: bool
    params: dict[str, Tensor]
    captured: dict[str, Tensor]
    floats: torch.dtype
    softmax_dtype: torch.dtype
    dropout_threshold: int = 0
    seed: tuple[int, int] = (0, 0)
    sequences: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def num_q_heads(self) -> int:
        return self.q.shape[2 if self.spec.layout == "bshd" else 1]


def bind(spec: Spec, inputs: Mapping[str, Any], *, same: bool) -> Call:
    """The call that `inputs` make on `spec`; `same` computes in the dtype of q instead of float64."""
    _check_names(spec, inputs)
    if spec.cache is not None:
        inputs = unpaged(spec, spec.cache, inputs, same=same)
    q, k, v = _qkv(spec, inputs)
    sizes = _sizes(spec, q, k)
    sequences: tuple[tuple[int, int, int, int], ...] = ()
    if spec.layout == "thd":
        sequences = _sequences(inputs, q.shape[0], k.shape[0])
        sizes["B"] = len(sequences)
    params = {p.name: param(p, inputs) for p in spec.params}
    sizes |= {name: value for name, value in params.items() if isinstance(value, int)}
    captured = {c.name: _captured(c, inputs, sizes) for c in spec.captured}
    sinks = tensor("sinks", inputs["sinks"], (sizes["Hq"],), "[Hq]") if spec.sinks else None
    threshold, seed = _dropout(spec, inputs)
    wide = q.dtype if same else torch.float64
    scale = inputs.get("softmax_scale")
    return Call(
        spec=spec,
        q=q.to(wide),
        k=k.to(wide),
        v=v.to(wide),
        sinks=sinks if sinks is None or same else sinks.to(wide),
        softmax_scale=spec.head_dim.qk**-0.5 if scale is None else float(scale),
        return_lse=bool(inputs.get("return_lse", False)),
        params={name: number(value, q.device) for name, value in params.items()},
        captured={name: _widened(tensor, same) for name, tensor in captured.items()},
        floats=torch.promote_types(wide, torch.float32),
        softmax_dtype=torch.promote_types(wide, torch.float32),
        dropout_threshold=threshold,
        seed=seed,
        sequences=sequences,
    )


def number(value: int | float, device: torch.device) -> Tensor:
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    return torch.tensor(value, dtype=dtype, device=device)


def _widened(tensor: Tensor, same: bool) -> Tensor:
    """Captured values as formulas see them: integers as int64, floats as float64 (or as they are)."""
    if tensor.is_floating_point():
        return tensor if same else tensor.to(torch.float64)
    return tensor if tensor.dtype == torch.bool else tensor.to(torch.int64)


def _check_names(spec: Spec, inputs: Mapping[str, Any]) -> None:
    required = ["q", "k", *([] if spec.head_dim.v_from_k else ["v"])]
    required += _PACKED if spec.layout == "thd" else ()
    if spec.cache is not None:
        required = paged(spec, spec.cache)
    required += ["sinks"] if spec.sinks else []
    required += [p.name for p in spec.params if p.runtime]
    required += [captured.name for captured in spec.captured]
    known = {*required, *_COMMON, *(["seqused_k"] if spec.layout == "thd" and spec.cache is None else [])}
    for name in required:
        if inputs.get(name) is None:
            raise TensorError(f"missing argument '{name}'; {spec.name} takes {', '.join(required)}")
    for name, value in inputs.items():
        if name == "v" and spec.head_dim.v_from_k and value is not None:
            columns = spec.head_dim.v_from_k
            raise TensorError(f"v must be left out: in {spec.name} it is the first {columns} columns of k")
        if name not in known and value is not None:
            raise TensorError(f"unknown argument '{name}' for {spec.name}; {did_you_mean(name, known)}")


def tensor(name: str, value: Any, shape: Sequence[int | None], written: str) -> Tensor:
    """`value` as a tensor of `shape`, where None is any size; `written` is the shape for people."""
    if not isinstance(value, Tensor):
        raise TensorError(f"{name} must be a tensor {written}, got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        want is None or size == want for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        numbers = ", ".join("any" if size is None else str(size) for size in shape)
        raise TensorError(f"{name} has shape {list(value.shape)}, expected {written} = [{numbers}]")
    return value


def _qkv(spec: Spec, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    axes = _AXES[spec.layout]
    head = axes.index("H")

    def get(name: str, columns: int, like: Tensor | None) -> Tensor:
        letter = "q" if name == "q" else "k"
        names = {"S": f"S{letter}", "T": f"T{letter}", "H": "Hq" if name == "q" else "Hkv"}
        written = f"[{', '.join(names.get(axis, str(columns) if axis == 'D' else axis) for axis in axes)}]"
        shape: list[int | None] = [None] * (len(axes) - 1) + [columns]
        if like is not None and axes[0] == "B":
            shape[0] = like.shape[0]
        if name == "v" and like is not None:
            shape[:-1] = like.shape[:-1]
        value = tensor(name, inputs[name], shape, written)
        if not value.is_floating_point():
            raise TensorError(f"{name} must have a floating-point dtype, got {value.dtype}")
        if like is not None and value.dtype != like.dtype:
            raise TensorError(
                f"q, k and v must have one dtype, got {like.dtype} and {value.dtype} for {name}"
            )
        return value

    q = get("q", spec.head_dim.qk, None)
    k = get("k", spec.head_dim.qk, q)
    v = k[..., : spec.head_dim.v] if spec.head_dim.v_from_k else get("v", spec.head_dim.v, k)
    if q.shape[head] != spec.heads.group * k.shape[head]:
        raise TensorError(
            f"q has {q.shape[head]} heads and k has {k.shape[head]}; "
            f"{spec.name} has {spec.heads.group} query heads per key/value head"
        )
    return q, k, v


def _sizes(spec: Spec, q: Tensor, k: Tensor) -> dict[str, int]:
    """The sizes of the named axes of captured tensors, without B of packed layouts."""
    axes = _AXES[spec.layout]
    token, head = (axes.index("T") if "T" in axes else axes.index("S")), axes.index("H")
    letter = axes[token]
    sizes = {f"{letter}q": q.shape[token], f"{letter}k": k.shape[token]}
    sizes |= {"Hq": q.shape[head], "Hkv": k.shape[head]}
    return sizes if letter == "T" else sizes | {"B": q.shape[0]}


def param(param: Param, inputs: Mapping[str, Any]) -> int | float:
    if param.value is not None:
        return param.value
    value = inputs[param.name]
    if isinstance(value, bool) or not isinstance(value, int if param.type == "int" else int | float):
        raise TensorError(f"{param.name} must be {param.type}, got {value!r}")
    return int(value) if param.type == "int" else float(value)


def _dropout(spec: Spec, inputs: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    """The threshold of random numbers that drop a weight, and their seed and offset."""
    p, seed = inputs.get("dropout_p", 0.0), inputs.get("seed")
    if not spec.dropout:
        if p != 0 or seed is not None:
            raise TensorError(f"dropout_p, seed: {spec.name} has no dropout; add `dropout: true` to the spec")
        return 0, (0, 0)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise TensorError(f"dropout_p must lie in [0, 1), got {p!r}")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.shape != (2,):
            raise TensorError(f"seed must be int64 [2], got {seed.dtype} {list(seed.shape)}")
        number, offset = (int(n) for n in seed)
    elif (isinstance(seed, int) and not isinstance(seed, bool)) or (seed is None and p == 0):
        number, offset = seed or 0, 0
    else:
        raise TensorError(f"seed must be an int or an int64 tensor [2]: the oracle draws none; got {seed!r}")
    return dropout_threshold(p), (number, offset)


def _broadcast(value: Any, shape: Sequence[int]) -> Any:
    """An axis of size 1 stands for any size."""
    if not isinstance(value, Tensor) or value.dim() != len(shape):
        return value
    return value.expand([want if have == 1 else have for have, want in zip(value.shape, shape, strict=True)])


def _captured(captured: Captured, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in captured.axes]
    written = f"[{', '.join(str(axis) for axis in captured.axes)}]"
    value = tensor(captured.name, _broadcast(inputs[captured.name], shape), shape, written)
    kind = "float" if value.is_floating_point() else "bool" if value.dtype == torch.bool else "int"
    if kind != captured.type:
        raise TensorError(f"{captured.name} must be {captured.dtype}, got {value.dtype}")
    return value


def _sequences(
    inputs: Mapping[str, Any], tokens_q: int, tokens_k: int
) -> tuple[tuple[int, int, int, int], ...]:
    q = _cumulative("cu_seqlens_q", inputs, tokens_q)
    k = _cumulative("cu_seqlens_k", inputs, tokens_k)
    if len(q) != len(k):
        raise TensorError(
            f"cu_seqlens_q has {len(q)} entries and cu_seqlens_k has {len(k)}; give one per sequence"
        )
    lengths_k = [end - start for start, end in pairwise(k)]
    used = lengths_k
    if inputs.get("seqused_k") is not None:
        value = tensor("seqused_k", inputs["seqused_k"], (len(lengths_k),), "[B]")
        used = [int(length) for length in value]
        for index, (want, have) in enumerate(zip(used, lengths_k, strict=True)):
            if not 0 <= want <= have:
                raise TensorError(f"seqused_k[{index}] is {want}, sequence {index} has {have} keys")
    for name, lengths in (
        ("max_seqlen_q", [end - start for start, end in pairwise(q)]),
        ("max_seqlen_k", used),
    ):
        if inputs[name] < max(lengths, default=0):
            raise TensorError(f"{name} is {inputs[name]}, the longest sequence has {max(lengths)} tokens")
    return tuple((q[n], q[n + 1], k[n], k[n] + used[n]) for n in range(len(used)))


def _cumulative(name: str, inputs: Mapping[str, Any], tokens: int) -> list[int]:
    value = tensor(name, inputs[name], (None,), "[B + 1]")
    if value.dtype not in (torch.int32, torch.int64):
        raise TensorError(f"{name} must be int32, got {value.dtype}")
    starts = [int(start) for start in value]
    if not starts or starts[0] != 0 or starts[-1] != tokens or starts != sorted(starts):
        raise TensorError(f"{name} must rise from 0 to {tokens} (the tokens given), got {starts[:8]}")
    return starts
