"""What `append_kv` writes, against the rows in float64: rotated, then each number within half a step of what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from attngen.check.pages import Places, unused
from attngen.check.problem import Problem
from attngen.check.stored import LARGEST, LEAST, TORCH, numbers
from attngen.errors import CheckError
from attngen.spec import Cache, Spec

MOST: Final = 40
"""Rows of a call: a program writes one head of one row, and programs are slow here."""
FP32: Final = 2.0**-22
"""What a few operations in fp32 may be off by, relative to the largest number of a row."""
RELATIVE_STEP: Final = {"float8_e4m3": 2.0**-3, "float8_e5m2": 2.0**-2, "int8": 0.0, "int4": 0.0}
LEAST_STEP: Final = {"float8_e4m3": 2.0**-9, "float8_e5m2": 2.0**-16, "int8": 1.0, "int4": 1.0}


@dataclass(frozen=True)
class Append:
    """One call: rows of the last keys of a problem, some of which are left out, and empty caches.

    Attributes:
        rows: by cache, k [T, Hkv, D] and v.
        slots: [T] int64; every fifth is -1.
        rotary: cos, sin, positions and interleaved, or nothing.
        caches: by argument; nothing in them is a number but scales that the caller gives.
    """

    rows: dict[str, Tensor]
    slots: Tensor
    rotary: dict[str, Any]
    caches: dict[str, Tensor]

    @classmethod
    def of(cls, spec: Spec, cache: Cache, problem: Problem, dtype: torch.dtype, number: int) -> Append:
        """Draw a call: without rotary, in NeoX's style and interleaved in turns, of all columns or of half."""
        source = torch.Generator().manual_seed(problem.seed)
        places = Places.of(cache, problem)
        slots = places.slots()[-MOST:]
        slots[3::5] = -1
        columns = {"k": spec.head_dim.qk} | ({} if spec.head_dim.v_from_k else {"v": spec.head_dim.v})
        heads = problem.kv_heads
        size = 1000.0 if problem.values == "large" else 1.0
        rows = {
            n: (torch.randn(len(slots), heads, c, generator=source) * size).to(dtype)
            for n, c in columns.items()
        }
        caches: dict[str, Tensor] = {}
        for name, columns_of in columns.items():
            caches |= _empty(cache, places.num_pages, heads, columns_of, name, rows[name])
        turned = spec.head_dim.qk // (2 if number % 2 else 4) * 2
        rotary = _rotary(problem, turned, interleaved=number % 3 == 2) if number % 3 and turned else {}
        return cls(rows, slots, rotary, caches)


def _empty(cache: Cache, pages: int, heads: int, columns: int, name: str, rows: Tensor) -> dict[str, Tensor]:
    slots = (pages, cache.page_size, heads) if cache.layout == "nhd" else (pages, heads, cache.page_size)
    if cache.dtype is None:
        return {f"{name}_cache": unused((*slots, columns), rows.dtype)}
    whole = unused((*slots, columns // 2 if cache.dtype == "int4" else columns), TORCH[cache.dtype])
    if cache.scales == "per_token_head":
        return {f"{name}_cache": whole, f"{name}_scale": unused(slots, torch.float32)}
    # three quarters of what would hold the largest number: some saturate
    given = 0.75 * float(rows.abs().max() if rows.numel() else 1.0) / LARGEST[cache.dtype]
    return {
        f"{name}_cache": whole,
        f"{name}_scale": torch.full((heads,) * (cache.scales == "per_head"), given),
    }


def _rotary(problem: Problem, turned: int, *, interleaved: bool) -> dict[str, Any]:
    positions = torch.cat([torch.arange(keys) for _, keys in problem.lengths] or [torch.arange(0)])
    longest = problem.longest("k") + 1
    angles = torch.arange(longest)[:, None] * 10000.0 ** (-2.0 / turned * torch.arange(turned // 2))
    place = positions[-MOST:]
    return {"cos": angles.cos(), "sin": angles.sin(), "positions": place, "interleaved": interleaved}


def append_errors(
    spec: Spec, module: ModuleType, problem: Problem, dtype: torch.dtype, number: int
) -> Iterator[tuple[str, float]]:
    """Call `append_kv` and yield, per cache and per tensor of scales that it writes, the largest error; 1 is what is allowed.

    Raises:
        CheckError: something else in a cache has changed.
    """
    cache = spec.cache
    assert cache is not None
    call = Append.of(spec, cache, problem, dtype, number)
    before = {name: tensor.clone() for name, tensor in call.caches.items()}
    caches = {name: tensor for name, tensor in call.caches.items() if "cache" in name}
    scales = {name: tensor for name, tensor in call.caches.items() if "scale" in name}
    module.append_kv(*call.rows.values(), *caches.values(), call.slots, **scales, **call.rotary)
    written = call.slots[call.slots >= 0]
    place = written // cache.page_size, written % cache.page_size
    for name, tensor in call.caches.items():
        _refuse_other_changes(cache, name, before[name], tensor, place)
    for name, rows in call.rows.items():
        wanted = rows.double()
        slack = FP32 * wanted.abs().amax(-1, keepdim=True) if wanted.numel() else wanted[..., :1]
        if name == "k" and call.rotary:
            wanted = rotated(wanted, **call.rotary)
        kept = call.slots >= 0
        yield from _errors(cache, name, call.caches, place, wanted[kept], slack[kept] * bool(call.rotary))


def _errors(
    cache: Cache, name: str, caches: dict[str, Tensor], place: Any, wanted: Tensor, slack: Tensor
) -> Iterator[tuple[str, float]]:
    """Errors of rows [T, Hkv, D]; `slack` [T, Hkv, 1] is what their rotation in fp32 may add."""
    whole = caches[f"{name}_cache"]
    found = numbers(_by_slot(cache, whole))[place]
    if cache.dtype is None:
        info = torch.finfo(whole.dtype)
        step = (wanted.abs() * info.eps).clamp(min=info.smallest_normal * info.eps)
        yield f"{name}_cache", _share(found - wanted, (step / 2 + slack) * bool(slack.any()) + step / 2)
        return
    largest, scale = LARGEST[cache.dtype], caches[f"{name}_scale"].double()
    if cache.scales == "per_token_head":
        scale = _by_slot(cache, scale)[place]
        right = wanted.abs().amax(-1).clamp(min=LEAST) / largest if wanted.numel() else scale
        yield f"{name}_scale", _share(scale - right, right * FP32 + slack[..., 0] / largest)
    scale = scale[..., None] if scale.dim() else scale
    held = wanted.clamp(-scale * largest, scale * largest)
    step = torch.maximum(held.abs() * RELATIVE_STEP[cache.dtype], scale * LEAST_STEP[cache.dtype])
    yield f"{name}_cache", _share(found * scale - held, step / 2 + slack + held.abs() * FP32)


def rotated(rows: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, interleaved: bool) -> Tensor:
    """Rotary embedding (arXiv:2104.09864) of the first columns of rows [T, Hkv, D], as products of complex numbers."""
    turning, rest = rows[..., : 2 * cos.shape[-1]], rows[..., 2 * cos.shape[-1] :]
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, -1)
    turn = torch.complex(cos.double(), sin.double())[positions][:, None]
    turned = torch.complex(first.contiguous(), second.contiguous()) * turn
    pair = [turned.real, turned.imag]
    flat = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([flat, rest], -1)


def _by_slot(cache: Cache, tensor: Tensor) -> Tensor:
    return tensor if cache.layout == "nhd" else tensor.transpose(1, 2)


def _share(difference: Tensor, allowed: Tensor) -> float:
    """The largest difference, in units of what is allowed; NaN counts as infinite."""
    shares = torch.where(difference == 0, 0.0, difference.abs() / allowed)
    return float(shares.nan_to_num(nan=torch.inf, posinf=torch.inf).max()) if shares.numel() else 0.0


def _refuse_other_changes(cache: Cache, name: str, before: Tensor, after: Tensor, place: Any) -> None:
    """Slots that no row has keep their bits, and so do scales that the caller gives."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[before.element_size()]
    changed = before.view(bits) != after.view(bits)
    if before.dim() >= 3:
        changed = _by_slot(cache, changed).clone()
        changed[place] = False
    if changed.any():
        raise CheckError(f"append_kv: {name}: changed where no row of the call has a slot")
