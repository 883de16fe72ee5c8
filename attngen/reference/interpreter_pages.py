"""Keys in pages, one sequence at a time: where the interpreter finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attngen.ir.nodes import Input, Pages

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Sequence:
    """The pages of one sequence, and how many keys they hold."""

    pages: Tensor  # the numbers of its pages, then whatever the table holds
    keys: int  # those of the prefix included
    prefix: Tensor | None = None  # the pages of the prefix that it shares with its group
    prefix_keys: int = 0


def sequence(pages: Pages, inputs: Mapping[str, Any], b: int) -> Sequence:
    """Look a sequence up in the tables of a call."""
    if pages.prefix:
        group = int(
            torch.searchsorted(inputs["cu_groups"][1:], torch.tensor(b, dtype=torch.int32), right=True)
        )
        shared = int(inputs["prefix_seqlens"][group])
        own = int(inputs["cache_seqlens"][b])
        return Sequence(inputs["page_table"][b], shared + own, inputs["prefix_table"][group], shared)
    if pages.table == "dense":
        return Sequence(inputs["page_table"][b], int(inputs["cache_seqlens"][b]))
    first, end = (int(n) for n in inputs["page_indptr"][b : b + 2])
    keys = (end - first - 1) * pages.size + int(inputs["last_page_len"][b]) if end > first else 0
    return Sequence(inputs["page_indices"][first:], keys)


@dataclass(frozen=True, slots=True)
class Cached:
    """A cache as a call brings it, with the scales of what it stores."""

    stored: Tensor
    scale: Tensor | None
    sequence: Sequence


def gathered(cached: Cached, node: Input, pages: Pages) -> Tensor:
    """The keys of a sequence as [1, H, keys, D]: key j from slot j % size of its page j // size."""
    sequence = cached.sequence
    j = torch.arange(sequence.keys - sequence.prefix_keys)
    page, slot = sequence.pages[j // pages.size].long(), j % pages.size
    if sequence.prefix is not None:
        j = torch.arange(sequence.prefix_keys)
        page = torch.cat([sequence.prefix[j // pages.size].long(), page])
        slot = torch.cat([j % pages.size, slot])
    by_slot = _numbers(cached.stored, node).permute([node.layout.index(c) for c in "pshd"])
    rows = by_slot[page, slot]
    if cached.scale is not None:
        rows = rows * _scales(cached.scale.double(), node, page, slot)
    return rows.permute(1, 0, 2)[None]


def _numbers(stored: Tensor, node: Input) -> Tensor:
    """What a cache stores, a number per column; a byte of int4 holds columns 2 c and 2 c + 1."""
    if node.dtype != "int4":
        return stored.double()
    column = torch.arange(2 * stored.shape[-1])
    bits = stored.long()[..., column // 2] // 16 ** (column % 2) % 16
    return ((bits + 8) % 16 - 8).double()


def _scales(scale: Tensor, node: Input, page: Tensor, slot: Tensor) -> Tensor:
    """The scale of each key and head, [keys, H, 1] or what is broadcast to it."""
    if node.scales == "token_head":
        by_slot = scale.permute([node.layout.index(c) for c in "psh"])
        return by_slot[page, slot][..., None]
    return scale.reshape(-1)[:, None]
