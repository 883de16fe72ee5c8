"""The oracle's dropout: what multiplies each weight, element by element, as `ir/nodes.py` lays out random numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROUNDS = 10


def dropout_threshold(p: float) -> int:
    """Of 65536 random numbers those that drop: the nearest to p, but some if p is not 0, and not nearly all."""
    return 0 if p == 0 else min(max(int(p * 65536 + 0.5), 1), 65534)


def dropout_factors(threshold: int, seed: tuple[int, int], symbols: Mapping[str, Tensor]) -> Tensor:
    """0 where an element is dropped, 65536 / (65536 - threshold) elsewhere; float64, of the shape of b, h, row and j."""
    row, j = symbols["row"], symbols["j"]
    place = [j // 16 * 4 + j % 8 // 2, row // 16 * 8 + row % 8, symbols["h"], symbols["b"]]
    own_key = _philox(_words(seed[0]), [torch.tensor(n) for n in (*_words(seed[1]), 0, 0)])[:2]
    words = _philox([int(word) for word in own_key], place)
    low_pair = torch.where(j // 8 % 2 == 0, words[0], words[1])
    high_pair = torch.where(j // 8 % 2 == 0, words[2], words[3])
    word = torch.where(j % 2 == 0, low_pair, high_pair)
    number = torch.where(row // 8 % 2 == 0, word // 65536, word % 65536)
    return (number >= threshold).double() * (65536 / (65536 - threshold))


def _words(number: int) -> list[int]:
    """A 64-bit integer as two words of 32 bits, the low one first."""
    return [number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF]


def _philox(key: list[int], counter: list[Tensor]) -> list[Tensor]:
    """Philox4x32-10, as in the paper: two multiplications a round, and a key that grows by Weyl constants."""
    left, right = key
    for _ in range(ROUNDS):
        (high_a, low_a), (high_b, low_b) = _product(counter[0], 0xD2511F53), _product(counter[2], 0xCD9E8D57)
        counter = [high_b ^ counter[1] ^ left, low_b, high_a ^ counter[3] ^ right, low_a]
        left, right = (left + 0x9E3779B9) & 0xFFFFFFFF, (right + 0xBB67AE85) & 0xFFFFFFFF
    return counter


def _product(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a product of 32-bit numbers; no intermediate passes 63 bits."""
    small = word * (constant & 0xFFFF)
    large = word * (constant >> 16) + (small >> 16)
    return large >> 16, (large & 0xFFFF) << 16 | small & 0xFFFF
