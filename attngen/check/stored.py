"""Numbers as a cache stores them: 8 or 4 bits each, and the scales that make them what they were."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attngen.spec import Cache

LARGEST: Final = {"float8_e4m3": 448.0, "float8_e5m2": 57344.0, "int8": 127.0, "int4": 7.0}
TORCH: Final = {
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int4": torch.uint8,
}
LEAST: Final = 1e-6
"""The smallest number that a scale of its own is made for."""


def scales_of(rows: Tensor, cache: Cache) -> Tensor:
    """Return scales for rows [keys, Hkv, D] that use the whole range: [], [Hkv] or [keys, Hkv]."""
    assert cache.dtype is not None
    amount = (
        rows.abs().amax(-1)
        if rows.shape[0] or cache.scales == "per_token_head"
        else rows.new_ones(1, rows.shape[1])
    )
    if cache.scales != "per_token_head":
        amount = amount.amax(0)
    if cache.scales == "per_tensor":
        amount = amount.amax()
    return amount.clamp(min=LEAST) / LARGEST[cache.dtype]


def quantised(rows: Tensor, scales: Tensor, cache: Cache) -> Tensor:
    """Return what a cache stores of rows [keys, Hkv, D]; of int4 [keys, Hkv, D / 2], even columns in the low halves."""
    assert cache.dtype is not None
    per_row = scales[..., None] if scales.dim() else scales
    largest = LARGEST[cache.dtype]
    wanted = (rows / per_row).clamp(-largest, largest)
    if cache.dtype == "int4":
        low, high = wanted.round().int().unflatten(-1, (-1, 2)).unbind(-1)
        return (low % 16 + high % 16 * 16).to(torch.uint8)
    return (wanted.round() if cache.dtype == "int8" else wanted).to(TORCH[cache.dtype])


def numbers(stored: Tensor) -> Tensor:
    """Return what a cache holds as float64 [..., D]; of bytes each half is a number."""
    if stored.dtype != torch.uint8:
        return stored.double()
    signed = torch.tensor([*range(8), *range(-8, 0)], dtype=torch.float64)
    halves = torch.stack([stored % 16, stored // 16], -1).flatten(-2)
    return signed[halves.long()]
