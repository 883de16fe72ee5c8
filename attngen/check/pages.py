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
    runs: tuple[
        tuple[int, int], ...
    ]  # of keys that lie together: the first among the rows of all sequences, and how many
    pages: tuple[tuple[int, ...], ...]  # of each run
    num_pages: int
    num_seqs: int  # whose own keys are the first runs; prefixes of groups follow
    cu_groups: tuple[int, ...]
    num_keys: int  # of all sequences, shared ones once for each

    @classmethod
    def of(cls, cache: Cache, problem: Problem) -> Places:
        """Give every sequence its pages, and every group those of its prefix."""
        lengths = tuple(keys for _, keys in problem.lengths)
        groups = _groups(problem) if cache.prefix else ()
        prefixes = [keys for first, end, keys in groups for _ in range(first, end)] or [0] * len(lengths)
        starts = problem.starts("k")
        own = [(start + p, n - p) for start, p, n in zip(starts, prefixes, lengths, strict=False)]
        runs = (*own, *((starts[first], keys) for first, _, keys in groups))
        counts = [-(-keys // cache.page_size) for _, keys in runs]
        total = sum(counts) + SPARE
        order = iter(torch.randperm(total, generator=torch.Generator().manual_seed(problem.seed)).tolist())
        pages = tuple(tuple(next(order) for _ in range(n)) for n in counts)
        return cls(cache, runs, pages, total, len(own), (0, *(end for _, end, _ in groups)), starts[-1])

    def slots(self) -> Tensor:
        """Return where each key of all sequences lies, [keys] int64: page * page_size + place in the page; -1 for keys that
        another sequence of the group brings."""
        size = self.cache.page_size
        found = torch.full((self.num_keys,), -1)
        for (first, keys), pages in zip(self.runs, self.pages, strict=True):
            j = torch.arange(keys)
            found[first : first + keys] = torch.tensor(pages, dtype=torch.long)[j // size] * size + j % size
        return found

    def filled(self, rows: Tensor) -> Tensor:
        """Return the cache that holds the rows of all sequences, [keys, Hkv, D]; nothing else is a number."""
        size = self.cache.page_size
        slots = unused((self.num_pages, size, *rows.shape[1:]), rows.dtype)
        for (first, keys), pages in zip(self.runs, self.pages, strict=True):
            j = torch.arange(keys)
            place = torch.tensor(pages, dtype=torch.long)[j // size], j % size
            as_bytes(slots)[place] = as_bytes(rows)[first : first + keys]
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
        size = self.cache.page_size
        if self.cache.table == "csr":
            counts = [0, *(len(pages) for pages in self.pages)]
            ids = [page for pages in self.pages for page in pages]
            last = [(keys - 1) % size + 1 if keys else GARBAGE[1] for _, keys in self.runs]
            return {
                "page_indptr": torch.tensor(counts, dtype=torch.int32).cumsum(0).int(),
                "page_indices": torch.tensor([*ids, *GARBAGE], dtype=torch.int32),
                "last_page_len": torch.tensor(last, dtype=torch.int32),
            }
        table, lengths = self._dense(slice(0, self.num_seqs))
        tables = {"page_table": table, "cache_seqlens": lengths}
        if not self.cache.prefix:
            return tables
        table, lengths = self._dense(slice(self.num_seqs, None))
        groups = torch.tensor(self.cu_groups, dtype=torch.int32)
        return tables | {"prefix_table": table, "prefix_seqlens": lengths, "cu_groups": groups}

    def _dense(self, which: slice) -> tuple[Tensor, Tensor]:
        """A row of pages, and a number of keys, for each of some runs."""
        found = self.pages[which]
        columns = max((len(pages) for pages in found), default=0) + SPARE
        table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(len(found), columns)[:, : columns + 2]
        for row, pages in zip(table, found, strict=True):
            row[: len(pages)] = torch.tensor(pages, dtype=torch.int32)
        return table[:, :columns], torch.tensor([keys for _, keys in self.runs[which]], dtype=torch.int32)


def _groups(problem: Problem) -> list[tuple[int, int, int]]:
    """Groups of neighbours as (first, end, keys of the prefix): one, two or three of them, and no prefix, most of what the
    shortest has (more than is before its queries, where there are many), or all of it."""
    found: list[tuple[int, int, int]] = []
    first = 0
    while first < problem.batch:
        turn = problem.seed + len(found)
        end = min(first + (2, 3, 1)[turn % 3], problem.batch)
        shortest = min(keys for _, keys in problem.lengths[first:end])
        found.append((first, end, (shortest * 2 // 3, shortest, 0)[turn // 2 % 3]))
        first = end
    return found
