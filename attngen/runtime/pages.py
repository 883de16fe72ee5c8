"""Which pages of a paged cache belong to which sequence: allocate, append, fork with copy-on-write, free.

The allocator moves no data. It hands out what kernels take: slots for `append_kv`, a page table and lengths for `attention`,
and the pages to copy before a shared one is written (PagedAttention, arXiv:2309.06180, section 4.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from attngen.errors import UserError

Tensor = torch.Tensor


class OutOfPages(UserError):
    """No page is free. The pool is as it was before the call: free a sequence and try again."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Where new tokens go, and what must be copied before they are written.

    ``slot_mapping`` [n] int64: page * page_size + place in the page, in the order of the tokens. ``copies``: (from, to) pages.
    """

    slot_mapping: Tensor
    copies: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Sequence:
    pages: list[int]
    length: int


class PageAllocator:
    """A pool of pages. Sequences are named by numbers that are never used twice.

    Args:
        num_pages: pages of the cache, as in its shape [num_pages, page_size, ...].
        page_size: tokens of a page.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 0 or page_size < 1:
            raise UserError(f"PageAllocator: {num_pages} pages of {page_size} tokens: need >= 0 and >= 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages))[::-1]  # the lowest is taken first
        self._owners = [0] * num_pages
        self._sequences: dict[int, _Sequence] = {}
        self._next = 0

    # ---- sequences

    def allocate(self) -> int:
        """Begin a sequence without tokens and return its number."""
        return self._begin(_Sequence([], 0))

    def append(self, sequence: int, tokens: int) -> Appended:
        """Make room for more tokens of a sequence.

        A page that others share and that would be written is replaced by a page of its own, listed in ``copies``:
        copy it (`copy_pages`) before writing. Raises OutOfPages, and changes nothing then.
        """
        own = self._get(sequence)
        needed = self.pages_needed({sequence: tokens})
        if needed > len(self._free):
            raise OutOfPages(
                f"append: sequence {sequence} needs {needed} pages for {tokens} tokens, {len(self._free)} are free"
            )
        first, end = own.length, own.length + tokens
        new = self._pages(end) - len(own.pages)
        shared = needed > new
        copies: list[tuple[int, int]] = []
        if shared:
            copies.append((own.pages[-1], self._take()))
            self._release(own.pages[-1])
            own.pages[-1] = copies[0][1]
        own.pages += [self._take() for _ in range(new)]
        own.length = end
        slots = [
            own.pages[place // self.page_size] * self.page_size + place % self.page_size
            for place in range(first, end)
        ]
        return Appended(torch.tensor(slots, dtype=torch.int64), tuple(copies))

    def pages_needed(self, tokens: Mapping[int, int]) -> int:
        """How many free pages it takes to `append` to some sequences, one after the other, copies of shared ones included.

        Args:
            tokens: per sequence how many.
        """
        needed = 0
        writers: Counter[int] = Counter()
        for sequence, count in tokens.items():
            own = self._get(sequence)
            if count < 0:
                raise UserError(f"append: {count} tokens: cannot be negative")
            needed += self._pages(own.length + count) - len(own.pages)
            if count and own.length % self.page_size:
                writers[own.pages[-1]] += 1
        return needed + sum(
            min(n, self._owners[page] - 1) for page, n in writers.items()
        )  # the last owner keeps it

    def fork(self, sequence: int) -> int:
        """Return a new sequence with the same tokens; they share all pages until one of them is written."""
        own = self._get(sequence)
        for page in own.pages:
            self._owners[page] += 1
        return self._begin(_Sequence([*own.pages], own.length))

    def free(self, sequence: int) -> None:
        """End a sequence; its pages are free again when nobody shares them."""
        own = self._get(sequence)
        del self._sequences[sequence]
        for page in reversed(own.pages):
            self._release(page)

    # ---- what kernels take

    def page_table(self, sequences: Sequence[int], *, max_pages: int | None = None) -> Tensor:
        """Return the pages of some sequences, [len(sequences), max_pages] int32; columns past the last page hold -1.

        ``max_pages`` fixes the width (for CUDA graphs); by default it is that of the longest.
        """
        rows = [self._get(sequence).pages for sequence in sequences]
        longest = max((len(row) for row in rows), default=0)
        width = longest if max_pages is None else max_pages
        if longest > width:
            raise UserError(f"page_table: max_pages is {width}, the longest sequence has {longest}")
        table = torch.full((len(rows), width), -1, dtype=torch.int32)
        for n, row in enumerate(rows):
            table[n, : len(row)] = torch.tensor(row, dtype=torch.int32)
        return table

    def cache_seqlens(self, sequences: Sequence[int]) -> Tensor:
        """Return the tokens of some sequences, [len(sequences)] int32."""
        return torch.tensor([self._get(sequence).length for sequence in sequences], dtype=torch.int32)

    # ---- reports

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequences that are not freed, in order of their numbers."""
        return tuple(self._sequences)

    @property
    def num_free_pages(self) -> int:
        """Pages that belong to nobody."""
        return len(self._free)

    def owners(self, page: int) -> int:
        """How many sequences hold a page."""
        return self._owners[page]

    def pages(self, sequence: int) -> tuple[int, ...]:
        """The pages of a sequence, in order."""
        return tuple(self._get(sequence).pages)

    @property
    def waste(self) -> float:
        """The share of slots in pages that are taken and hold no token; 0 where none is taken."""
        held: dict[int, int] = {}
        for own in self._sequences.values():
            for n, page in enumerate(own.pages):
                held[page] = max(held.get(page, 0), min(self.page_size, own.length - n * self.page_size))
        slots = len(held) * self.page_size
        return 1 - sum(held.values()) / slots if slots else 0.0

    # ---- pages

    def _pages(self, length: int) -> int:
        return -(-length // self.page_size)

    def _get(self, sequence: int) -> _Sequence:
        if sequence not in self._sequences:
            known = "was freed" if 0 <= sequence < self._next else "was never allocated"
            raise UserError(f"sequence {sequence} {known}")
        return self._sequences[sequence]

    def _begin(self, own: _Sequence) -> int:
        number = self._next
        self._next += 1
        self._sequences[number] = own
        return number

    def _take(self) -> int:
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if not self._owners[page]:
            self._free.append(page)


def copy_pages(copies: Sequence[tuple[int, int]], *caches: Tensor) -> None:
    """Copy whole pages (from, to) within each cache [num_pages, ...] and each tensor of scales, in place."""
    if not copies:
        return
    source, target = torch.tensor(copies, dtype=torch.int64).T
    for cache in caches:
        cache[target.to(cache.device)] = cache[source.to(cache.device)]
