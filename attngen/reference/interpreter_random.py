"""The interpreter's random numbers: `attngen.ir.nodes.Random` by numpy, a call of the generator per block of elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[np.uint64]]
Words = tuple[Array, Array, Array, Array]
LOW = np.uint64(2**32 - 1)
HALF = np.uint64(32)


def philox(key: tuple[int, int], counter: Words) -> Words:
    """Philox4x32-10 of 32-bit words, which arrays of uint64 hold."""
    c0, c1, c2, c3 = counter
    for n in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        own, other = ((k + n * step) % 2**32 for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        c0, c1 = (second >> HALF) ^ c1 ^ np.uint64(own), second & LOW
        c2, c3 = (first >> HALF) ^ c3 ^ np.uint64(other), first & LOW
    return c0, c1, c2, c3


def random_bits(seed: tuple[int, int], first_b: int, size: tuple[int, int, int, int]) -> torch.Tensor:
    """Random integers below 65536 for batch entries from `first_b` on, heads, rows and keys: int64 [B, Hq, Sq, Sk]."""
    batch, heads, rows, keys = size
    b, h, blocks_m, blocks_n = (
        np.arange(n, dtype=np.uint64) for n in (batch, heads, (rows + 15) // 16 * 8, (keys + 15) // 16 * 4)
    )
    offset_low, offset_high = map(_array, _halves(seed[1]))
    low, high, _, _ = philox(_halves(seed[0]), (offset_low, offset_high, _array(0), _array(0)))
    counter = (blocks_n, blocks_m[:, None], h[:, None, None], b[:, None, None, None] + np.uint64(first_b))
    words = np.stack(np.broadcast_arrays(*philox((int(low), int(high)), counter)), -1)
    row, j = np.arange(rows)[:, None], np.arange(keys)
    chosen = words[:, :, row // 16 * 8 + row % 8, j // 16 * 4 + j % 8 // 2, j % 2 * 2 + j // 8 % 2]
    halves = np.where(row // 8 % 2 == 0, chosen >> np.uint64(16), chosen & np.uint64(0xFFFF))
    return torch.from_numpy(halves.astype(np.int64))


def _halves(number: int) -> tuple[int, int]:
    """The low and the high 32 bits of a 64-bit integer of any sign."""
    return number % 2**32, number // 2**32 % 2**32


def _array(number: int) -> Array:
    return np.array(number, dtype=np.uint64)
