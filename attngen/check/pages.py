"""Keys and values of a problem in pages: scattered over the cache, NaN where no key lies, tables with garbage at their ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from attngen.check.problem import Problem
from attngen.check.stored import quantised, scales_of
from attngen.spec import Cache

SPARE: Final = 3
"""Pages of a cache that belong to nobody, and columns of a table after the last page."""
GARBAGE: Final = (-1, 2**31 - 1, -7)


def unused(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that nobody may read: NaN, or as far from zero as integers go (bytes hold two of 4 bits)."""
    if dtype.is_floating_point:
        return torch.full(shape, float("nan")).to(dtype)
    return torch.full(shape, 0x88 if dtype == torch.uint8 else -128, dtype=dtype)


def as_bytes(tensor: Tensor) -> Tensor:
    """8-bit floats as what torch can index."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


@dataclass(frozen=True)
class Places:
    """The pages of each sequence of a problem, in a random order, as they would be after a while of serving."""

    cache: Cache
    lengths: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    num_pages: int

    @classmethod
    def of(cls, cache: Cache, problem: Problem) -> Places:
        """Give every sequence its pages."""
        lengths = tuple(keys for _, keys in problem.lengths)
        counts = [-(-keys // cache.page_size) for keys in lengths]
        total = sum(counts) + SPARE
        order = iter(torch.randperm(total, generator=torch.Generator().manual_seed(problem.seed)).tolist())
        return cls(cache, lengths, tuple(tuple(next(order) for _ in range(n)) for n in counts), total)

    def slots(self) -> Tensor:
        """Return where each key of all sequences lies, [keys] int64: page * page_size + place in the page."""
        size = self.cache.page_size
        found = [
            torch.tensor(pages, dtype=torch.long)[torch.arange(keys) // size] * size
            + torch.arange(keys) % size
            for keys, pages in zip(self.lengths, self.pages, strict=True)
        ]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def filled(self, rows: Tensor) -> Tensor:
        """Return the cache that holds the rows of all sequences, [keys, Hkv, D]; nothing else is a number."""
        size = self.cache.page_size
        slots = unused((self.num_pages, size, *rows.shape[1:]), rows.dtype)
        first = 0
        for keys, pages in zip(self.lengths, self.pages, strict=True):
            j = torch.arange(keys)
            place = torch.tensor(pages, dtype=torch.long)[j // size], j % size
            as_bytes(slots)[place] = as_bytes(rows)[first : first + keys]
            first += keys
        return slots if self.cache.layout == "nhd" else slots.transpose(1, 2).contiguous()

    def stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cache and the scales of rows that are stored in 8 or 4 bits; scales of unused slots are NaN."""
        scales = scales_of(rows, self.cache)
        cache = self.filled(quantised(rows, scales, self.cache))
        if self.cache.scales == "per_token_head":
            return cache, self.filled(scales)
        return cache, scales

    def tables(self) -> dict[str, Any]:
        """Return the tables of a call by name."""
        size, batch = self.cache.page_size, len(self.pages)
        if self.cache.table == "csr":
            counts = [0, *(len(pages) for pages in self.pages)]
            ids = [page for pages in self.pages for page in pages]
            last = [(keys - 1) % size + 1 if keys else GARBAGE[1] for keys in self.lengths]
            return {
                "page_indptr": torch.tensor(counts, dtype=torch.int32).cumsum(0).int(),
                "page_indices": torch.tensor([*ids, *GARBAGE], dtype=torch.int32),
                "last_page_len": torch.tensor(last, dtype=torch.int32),
            }
        columns = max((len(pages) for pages in self.pages), default=0) + SPARE
        table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(batch, columns)[:, : columns + 2]
        for row, pages in zip(table, self.pages, strict=True):
            row[: len(pages)] = torch.tensor(pages, dtype=torch.int32)
        return {
            "page_table": table[:, :columns],
            "cache_seqlens": torch.tensor(self.lengths, dtype=torch.int32),
        }
