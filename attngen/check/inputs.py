"""From a problem to tensors: the arguments of the generated function, by name."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from attngen.check.pages import Places, unused
from attngen.check.problem import Problem, Strides
from attngen.check.uses import integer_use
from attngen.spec import Cache, Captured, Spec

Inputs = dict[str, Any]
LARGE_SCORE = 2.5e5
DROPOUT = (0.25, 0.5, 0.02, 0.9, 0.0)


def make_inputs(spec: Spec, problem: Problem, dtype: torch.dtype) -> Inputs:
    """Return q, k, v and all else that a call needs; a problem gives the same values in every dtype."""
    source = torch.Generator().manual_seed(problem.seed)
    inputs = _qkv(spec, problem, dtype, source)
    if spec.layout == "thd":
        inputs |= _packed(problem, ("q",) if spec.cache else ("q", "k"))
    if spec.cache is not None:
        inputs |= Places.of(spec.cache, problem).tables()
    inputs |= dict(problem.params)
    sizes = _sizes(spec, problem)
    for captured in spec.captured:
        inputs[captured.name] = _captured(spec, captured, sizes, problem, source)
    if spec.sinks:
        inputs["sinks"] = torch.randn(sizes["Hq"], generator=source)
    if spec.dropout:
        inputs["dropout_p"] = DROPOUT[problem.seed % len(DROPOUT)]
        inputs["seed"] = torch.randint(-(2**63), 2**63 - 1, (2,), generator=source)
    return inputs


def _sizes(spec: Spec, problem: Problem) -> dict[str, int]:
    seqlen_q, seqlen_k = problem.seqlens
    sizes = {"B": problem.batch, "Hkv": problem.kv_heads, "Hq": problem.kv_heads * spec.heads.group}
    sizes |= {"Sq": seqlen_q, "Sk": seqlen_k}
    sizes |= {"Tq": problem.starts("q")[-1], "Tk": problem.starts("k")[-1]}
    sizes |= {p.name: int(p.value) for p in spec.params if isinstance(p.value, int)}
    return sizes | {name: int(value) for name, value in problem.params if isinstance(value, int)}


# ---- q, k, v


def _qkv(spec: Spec, problem: Problem, dtype: torch.dtype, source: torch.Generator) -> Inputs:
    heads = {"q": problem.kv_heads * spec.heads.group, "k": problem.kv_heads, "v": problem.kv_heads}
    columns = {"q": spec.head_dim.qk, "k": spec.head_dim.qk, "v": spec.head_dim.v}
    made: Inputs = {}
    for name in ("q", "k", "v"):
        values = _values(spec, problem, name, (heads[name], columns[name]), source)
        if problem.used_k is not None and name != "q":
            values = _only_used(values, problem)
        if name == "v" and spec.head_dim.v_from_k:
            continue
        if spec.cache is not None and name != "q":
            made |= _cached(spec.cache, problem, name, values, dtype)
        else:
            made[name] = _placed(values.to(dtype), spec.layout, problem.strides, repeats=name != "q")
    return made


def _cached(cache: Cache, problem: Problem, name: str, values: Tensor, dtype: torch.dtype) -> Inputs:
    """Keys or values in pages; their scales, where what is stored has some."""
    places = Places.of(cache, problem)
    layout = "bshd" if cache.layout == "nhd" else "bhsd"
    if cache.dtype is None:
        whole, scale = places.filled(values.to(dtype)), None
    else:
        whole, scale = places.stored(values)
    placed = _placed(whole, layout, problem.strides, repeats=scale is None, axis=layout.index("h"))
    return {f"{name}_cache": placed, **({} if scale is None else {f"{name}_scale": scale})}


def _values(
    spec: Spec, problem: Problem, name: str, size: tuple[int, int], source: torch.Generator
) -> Tensor:
    """Random values in the spec's layout."""
    tokens = problem.seqlens["qkv".index(name) > 0]
    total = problem.starts("q" if name == "q" else "k")[-1]
    heads, columns = size
    shape = {
        "bshd": (problem.batch, tokens, heads, columns),
        "bhsd": (problem.batch, heads, tokens, columns),
        "thd": (total, heads, columns),
    }[spec.layout]
    if problem.values == "normal" or name == "v":
        return torch.randn(shape, generator=source)
    # One column makes all scores large and negative, small whole numbers in the others tell them apart.
    values = torch.randint(-2, 3, shape, generator=source).float()
    size_of_one = math.sqrt(LARGE_SCORE * math.sqrt(columns))
    values[..., 0] = torch.tensor(size_of_one).bfloat16().float() * (1 if name == "q" else -1)
    return values


def _only_used(values: Tensor, problem: Problem) -> Tensor:
    """NaN in the keys and values that seqused_k leaves out."""
    for start, (_, length), used in zip(
        problem.starts("k"), problem.lengths, problem.used_k or (), strict=False
    ):
        values[start + used : start + length] = float("nan")
    return values


def _placed(
    values: Tensor, layout: str, strides: Strides, *, repeats: bool, axis: int | None = None
) -> Tensor:
    """The same values in memory of another form; `axis` is the one that repeats."""
    if strides in ("padded", "odd"):
        extra = 8 if strides == "padded" else 3
        shape = [*values.shape[:-2], values.shape[-2] + 2, values.shape[-1] + extra]
        if layout != "bhsd":
            shape[-3] += 3  # rows after the last token
        buffer = unused(tuple(shape), values.dtype)
        placed = buffer[tuple(slice(0, n) for n in values.shape)]
        return placed.copy_(values)
    if strides == "swapped" and values.dim() > 2:
        return values.transpose(-2, -3).contiguous().transpose(-2, -3)
    if strides == "expanded" and repeats and values.shape[0]:
        # every batch entry (packed: every head) is the first one
        if axis is None:
            axis = 0 if layout != "thd" else 1
        return values.narrow(axis, 0, 1).expand(values.shape)
    return values


def _packed(problem: Problem, sides: tuple[Literal["q", "k"], ...]) -> Inputs:
    inputs: Inputs = {}
    for side in sides:
        inputs[f"cu_seqlens_{side}"] = torch.tensor(problem.starts(side), dtype=torch.int32)
        inputs[f"max_seqlen_{side}"] = problem.longest(side) + problem.spare
    if problem.used_k is not None:
        inputs["seqused_k"] = torch.tensor(problem.used_k, dtype=torch.int32)
    return inputs


# ---- captured tensors


def _captured(
    spec: Spec, captured: Captured, sizes: dict[str, int], problem: Problem, source: torch.Generator
) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in captured.axes]
    dtype: torch.dtype = getattr(torch, captured.dtype)
    if captured.type == "float":
        values = torch.randn(shape, generator=source).to(dtype)
    elif captured.type == "bool":
        values = torch.rand(shape, generator=source) < 0.7
    else:
        values = torch.randint(0, _stop(spec, captured, sizes, problem), shape, generator=source).to(dtype)
    if captured.sorted:
        values = values.sort(-1).values
    if problem.strides == "expanded" and shape[0]:
        return values.narrow(0, 0, 1).expand(shape)
    if problem.strides in ("padded", "odd", "swapped") and shape[-1]:
        return torch.stack([values, values], -1)[..., 0]
    return values


def _stop(spec: Spec, captured: Captured, sizes: dict[str, int], problem: Problem) -> int:
    stop = integer_use(spec, captured).stop
    if stop is None:
        return problem.longest("k") + 2
    return max(1, sizes[stop] if isinstance(stop, str) else stop)
