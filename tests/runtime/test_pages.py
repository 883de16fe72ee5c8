"""The page allocator: a state machine of random calls, edges, and the waste on lengths as servers see them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from attngen.errors import UserError
from attngen.runtime.pages import OutOfPages, PageAllocator, copy_pages


class Serving(RuleBasedStateMachine):
    """Random requests on a small pool; the cache holds one number per token, so that a lost or shared token shows."""

    alive = Bundle("alive")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PageAllocator(num_pages=12, page_size=4)
        self.cache = torch.full((12, 4), -1)
        self.texts: dict[int, list[int]] = {}
        self.written = 0

    @rule(target=alive)
    def begin(self):
        number = self.pool.allocate()
        self.texts[number] = []
        return number

    @rule(sequence=alive, tokens=st.integers(0, 11))
    def append(self, sequence, tokens):
        before = (self.pool.num_free_pages, [self.pool.pages(s) for s in self.pool.sequences])
        needed = self.pool.pages_needed({sequence: tokens})
        try:
            found = self.pool.append(sequence, tokens)
        except OutOfPages:
            assert (self.pool.num_free_pages, [self.pool.pages(s) for s in self.pool.sequences]) == before
            assert needed > before[0]
            return
        assert self.pool.num_free_pages == before[0] - needed
        copy_pages(found.copies, self.cache)
        new = list(range(self.written, self.written + tokens))
        self.written += tokens
        self.cache.view(-1)[found.slot_mapping] = torch.tensor(new, dtype=torch.int64)
        self.texts[sequence] = self.texts[sequence] + new

    @rule(target=alive, sequence=alive)
    def fork(self, sequence):
        number = self.pool.fork(sequence)
        self.texts[number] = self.texts[sequence]
        return number

    @rule(sequence=consumes(alive))
    def free(self, sequence):
        self.pool.free(sequence)
        del self.texts[sequence]

    @precondition(lambda self: self.texts)
    @rule()
    def tables(self):
        names = list(self.texts)
        table, lengths = self.pool.page_table(names), self.pool.cache_seqlens(names)
        assert (table.dtype, lengths.dtype) == (torch.int32, torch.int32)
        for row, length, name in zip(table, lengths.tolist(), names, strict=True):
            used = -(-length // 4)
            assert (row[used:] == -1).all()
            assert row[:used].tolist() == list(self.pool.pages(name))

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        for name, text in self.texts.items():
            pages = list(self.pool.pages(name))
            assert self.cache[pages].reshape(-1)[: len(text)].tolist() == text

    @invariant()
    def nothing_leaks_and_owners_are_counted(self):
        held = [page for name in self.texts for page in self.pool.pages(name)]
        assert [self.pool.owners(page) for page in range(12)] == [held.count(page) for page in range(12)]
        assert self.pool.num_free_pages == 12 - len(set(held))

    @invariant()
    def waste_is_what_is_empty(self):
        filled = {
            page * 4 + n % 4
            for name, text in self.texts.items()
            for n in range(len(text))
            for page in [self.pool.pages(name)[n // 4]]
        }
        slots = 4 * (12 - self.pool.num_free_pages)
        assert self.pool.waste == pytest.approx(1 - len(filled) / slots if slots else 0.0)


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_fork_writes_a_page_of_its_own():
    pool = PageAllocator(8, 4)
    a = pool.allocate()
    assert pool.append(a, 6).slot_mapping.tolist() == [0, 1, 2, 3, 4, 5]
    b = pool.fork(a)
    found = pool.append(b, 1)
    assert found.copies == ((1, 2),)
    assert found.slot_mapping.tolist() == [2 * 4 + 2]
    assert pool.pages(a) == (0, 1)
    assert pool.append(a, 1).copies == ()  # nobody shares it any more


def test_a_full_page_is_shared_for_good():
    pool = PageAllocator(8, 4)
    a = pool.allocate()
    pool.append(a, 4)
    b = pool.fork(a)
    assert pool.append(b, 1).copies == ()
    assert pool.pages(b) == (0, 1)
    pool.free(a)
    assert pool.owners(0) == 1


def test_out_of_pages_names_what_is_missing():
    pool = PageAllocator(2, 16)
    a = pool.allocate()
    with pytest.raises(OutOfPages, match="sequence 0 needs 3 pages for 33 tokens, 2 are free"):
        pool.append(a, 33)
    assert pool.append(a, 32).slot_mapping.shape == (32,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.append(7, 1), "sequence 7 was never allocated"),
        (lambda p: (p.free(p.allocate()), p.free(0)), "sequence 0 was freed"),
        (lambda p: p.append(p.allocate(), -1), "-1 tokens: cannot be negative"),
        (lambda p: PageAllocator(1, 0), "1 pages of 0 tokens: need >= 0 and >= 1"),
        (lambda p: (p.append(p.allocate(), 9), p.page_table([0], max_pages=2)), "max_pages is 2, the longest sequence has 3"),
    ],
)  # fmt: skip
def test_misuse(call, message):
    with pytest.raises(UserError, match=message):
        call(PageAllocator(8, 4))


def test_a_table_of_a_given_width():
    pool = PageAllocator(8, 4)
    a = pool.allocate()
    pool.append(a, 5)
    assert pool.page_table([a], max_pages=4).tolist() == [[0, 1, -1, -1]]
    assert pool.page_table([]).shape == (0, 0)


def test_waste_on_lengths_as_servers_see_them():
    """Prompts and answers as long as in ShareGPT (means 161 and 338 tokens, arXiv:2309.06180, figure 11), 64 at a time."""
    draw = random.Random(0)
    pool = PageAllocator(64 * 512, 16)
    left: dict[int, int] = {}
    waste = []
    for _ in range(1500):
        while len(left) < 64:
            name = pool.allocate()
            pool.append(name, 1 + int(draw.lognormvariate(4.5, 1.07)))
            left[name] = 1 + int(draw.lognormvariate(5.5, 0.8))
        for name in list(left):
            pool.append(name, 1)
            left[name] -= 1
            if not left[name]:
                pool.free(name)
                del left[name]
        waste.append(pool.waste)
    assert sum(waste) / len(waste) < 0.04
    assert max(waste[100:]) < 0.04


def test_the_last_owner_of_a_page_need_not_copy_it() -> None:
    """Two sequences that share a half-full page and write it in one step: one copy, not two."""
    pool = PageAllocator(2, 4)
    first = pool.allocate()
    pool.append(first, 2)
    second = pool.fork(first)
    assert pool.pages_needed({first: 1, second: 1}) == 1
    assert [len(pool.append(one, 1).copies) for one in (first, second)] == [1, 0]
    assert pool.num_free_pages == 0
