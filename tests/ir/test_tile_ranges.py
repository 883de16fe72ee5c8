"""Ranges of tiles: ordered and disjoint whatever the intervals, short for common masks; counts and pictures."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngen.ir.expr import Expr, Symbol, apply, const
from attngen.ir.tile_counts import EMPTY, FULL, PARTIAL, TileCounts, count, tile_map
from attngen.ir.tile_ranges import tile_ranges
from attngen.ir.tiles import Interval, Tiles
from attngen.passes.intervals import plan
from tests.ir.predicates import Case, formula, visits

SIZE = Symbol("seqlen_k")


def tiles_of(may: list[Interval], must: list[Interval]) -> Tiles:
    return Tiles(may=tuple(may), must=tuple(must), row=Interval(const(0), SIZE))


# ---- any intervals at all

POINTS = st.integers(-6, 40)


@st.composite
def unions(draw: st.DrawFn, name: str, most: int) -> tuple[list[Interval], dict[str, int]]:
    """Intervals within [0, seqlen_k), some of them empty, reversed, nested or touching."""
    intervals: list[Interval] = []
    values: dict[str, int] = {}
    for k in range(draw(st.integers(0, most))):
        lo, hi = f"{name}_{k}_lo", f"{name}_{k}_hi"
        values |= {lo: draw(POINTS), hi: draw(POINTS)}
        intervals.append(Interval(apply("max", Symbol(lo), const(0)), apply("min", Symbol(hi), SIZE)))
    return intervals, values


def covered(union: list[Interval], values: dict[str, int], length: int) -> np.ndarray:
    inside = np.zeros(length, bool)
    for interval in union:
        lo, hi = (values[next(iter(_names(end)))] for end in (interval.lo, interval.hi))
        inside[max(lo, 0) : max(min(hi, length), 0)] = True
    return inside


def _names(end: Expr) -> list[str]:
    return [e.name for e in end.args if isinstance(e, Symbol) and e != SIZE]  # pyright: ignore[reportAttributeAccessIssue]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(unions("may", 4), unions("must", 4), st.integers(0, 40), st.sampled_from([1, 2, 3, 5, 8, 64]))
def test_any_intervals_become_disjoint_ranges(
    may: tuple[list[Interval], dict[str, int]],
    must: tuple[list[Interval], dict[str, int]],
    length: int,
    block: int,
) -> None:
    tiles = tiles_of(may[0] + must[0], must[0])  # what must be met may be met
    case = Case(1, length, 1, block, may[1] | must[1])
    must_be = covered(must[0], case.values, length)
    may_be = covered(may[0], case.values, length) | must_be
    (visit,) = visits(tiles, case)
    blocks = [slice(n * block, (n + 1) * block) for n in range(-(-length // block))]
    whole = [n for n, b in enumerate(blocks) if must_be[b].all() and b.stop <= length]
    met = [n for n, b in enumerate(blocks) if may_be[b].any()]
    assert visit.full == whole
    assert sorted(visit.full + visit.partial) == met


# ---- what they look like


def lines(source: str, **known_least: int) -> list[str]:
    return str(tile_ranges(plan(formula(source), known_least=known_least), known_least=known_least)).split(
        "\n"
    )


def test_ranges_of_no_mask() -> None:
    assert lines("0 <= j") == [
        "end_tile = (seqlen_k + BLOCK_N - 1) // BLOCK_N",
        "end_full = seqlen_k // BLOCK_N",
        "full    [0, end_full)",
        "partial [end_full, end_tile)",
    ]


def test_ranges_of_causal() -> None:
    assert lines("j <= i") == [
        "end_tile = (max(min(i_hi + 1, seqlen_k), 0) + BLOCK_N - 1) // BLOCK_N",
        "end_full = max(min(i_lo + 1, seqlen_k), 0) // BLOCK_N",
        "full    [0, end_full)",
        "partial [end_full, end_tile)",
    ]


def test_ranges_of_causal_with_a_residual() -> None:
    assert lines("j <= i and (i - j) % 2 == 0") == [
        "end_tile = (max(min(i_hi + 1, seqlen_k), 0) + BLOCK_N - 1) // BLOCK_N",
        "full    none",
        "partial [0, end_tile)",
    ]


def test_ranges_of_window() -> None:
    assert lines("j <= i and i - j < 4096") == [
        "first_tile = max(i_lo - 4095, 0) // BLOCK_N",
        "end_tile = (max(min(i_hi + 1, seqlen_k), max(i_lo - 4095, 0)) + BLOCK_N - 1) // BLOCK_N",
        "first_full = (max(i_hi - 4095, 0) + BLOCK_N - 1) // BLOCK_N",
        "end_full = max(max(min(i_lo + 1, seqlen_k), 0) // BLOCK_N, first_full)",
        "full    [first_full, end_full)",
        "partial [first_tile, first_full) [end_full, end_tile)",
    ]


def test_ranges_of_sinks_and_window_sort_little() -> None:
    ranges = tile_ranges(
        plan(formula("j <= i and (j < 4 or i - j < 128)")), known_least={"BLOCK_N": 16, "seqlen_q": 0}
    )
    assert (len(ranges.full), len(ranges.partial), len(ranges.bindings)) == (1, 3, 14)


def test_a_mask_of_nothing_has_no_ranges() -> None:
    ranges = tile_ranges(plan(formula("j < i and j > i")))
    assert (ranges.bindings, ranges.full, ranges.partial) == ((), (), ())


def test_bindings_keep_clear_of_parameters() -> None:
    ranges = tile_ranges(plan(formula("j <= i and j < end_tile")))
    assert "end_tile" not in dict(ranges.bindings)
    assert "end_tile_" in dict(ranges.bindings)


# ---- counts and pictures

MASKS = [
    "j <= i",
    "j <= i and i - j < 9",
    "j <= i and (j < 3 or i - j < 9)",
    "i // 8 == j // 8",
    "i != j",
    "j < 0",
]


def dense_classes(case: Case, predicate: Expr) -> np.ndarray:
    dense = case.elements(predicate).astype(bool)
    shape = -(-case.seqlen_q // case.block_m), -(-case.seqlen_k // case.block_n)
    classes = np.full(shape, EMPTY)
    for m, n in np.ndindex(*shape):
        keys = slice(n * case.block_n, (n + 1) * case.block_n)
        inside = dense[m * case.block_m : (m + 1) * case.block_m, keys]
        whole = inside.all() and keys.stop <= case.seqlen_k
        classes[m, n] = FULL if whole else PARTIAL if inside.any() else EMPTY
    return classes


@pytest.mark.parametrize("source", MASKS)
@pytest.mark.parametrize("lengths", [(30, 30), (17, 40), (40, 17), (0, 5), (5, 0)])
def test_map_and_count_are_those_of_the_dense_mask(source: str, lengths: tuple[int, int]) -> None:
    case = Case(*lengths, 4, 5)
    tiles = plan(formula(source))
    expected = dense_classes(case, formula(source))
    sizes = {"seqlen_q": case.seqlen_q, "seqlen_k": case.seqlen_k, "block_m": 4, "block_n": 5}
    np.testing.assert_array_equal(tile_map(tiles, **sizes).classes, expected)
    assert count(tiles, **sizes) == TileCounts(
        *(int((expected == kind).sum()) for kind in (FULL, PARTIAL, EMPTY))
    )


def test_a_large_map_is_drawn_with_larger_tiles() -> None:
    found = tile_map(plan(formula("j <= i")), seqlen_q=10**6, seqlen_k=10**6, block_m=64, block_n=128)
    assert (found.block_m, found.block_n) == (64 * 256, 128 * 128)
    assert found.classes.shape == (62, 62)
    assert (found.classes.diagonal() == PARTIAL).all()
    assert (np.tril(found.classes, -1) == np.tril(np.full((62, 62), FULL), -1)).all()


def test_counts_of_packed_documents_are_the_sum_of_each() -> None:
    tiles = plan(formula("j <= i and i - j < w"))
    q, k, w = np.array([5, 0, 33, 7]), np.array([5, 9, 40, 0]), np.array([3, 4, 50, 1])
    found = count(tiles, seqlen_q=q, seqlen_k=k, block_m=4, block_n=4, env={"w": w})
    single = [
        count(tiles, seqlen_q=a, seqlen_k=b, block_m=4, block_n=4, env={"w": c})
        for a, b, c in zip(q, k, w, strict=True)
    ]
    assert found == TileCounts(*(sum(getattr(s, f) for s in single) for f in ("full", "partial", "empty")))


def test_counts_with_document_ids_read_the_tensors() -> None:
    ids = np.repeat(np.arange(5), [7, 1, 12, 3, 9])
    tiles = plan(formula("doc[i] == doc[j] and j <= i"), sorted_tensors={"doc": SIZE})
    found = count(tiles, seqlen_q=32, seqlen_k=32, block_m=4, block_n=4, env={"doc": ids})
    case = Case(32, 32, 4, 4, {"doc": ids})
    expected = dense_classes(case, formula("doc[i] == doc[j] and j <= i"))
    assert (found.full, found.partial) == ((expected == FULL).sum(), (expected == PARTIAL).sum())


# ---- limits: three times what is promised, for machines busy with other tests


def seconds(work: Callable[[], Any], rounds: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(rounds))


def test_a_million_by_a_million_is_planned_and_counted_in_10_ms_and_1_mb() -> None:
    length = 1_048_576

    def work() -> TileCounts:
        tiles = plan(formula("j <= i and i - j < 4096"))
        return count(tiles, seqlen_q=length, seqlen_k=length, block_m=128, block_n=128)

    assert work() == TileCounts(full=253456, partial=16352, empty=8192**2 - 253456 - 16352)
    assert seconds(work) < 0.030
    tracemalloc.start()
    try:
        ranges = tile_ranges(plan(formula("j <= i and i - j < 4096")))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        del ranges
    finally:
        tracemalloc.stop()


def test_ten_thousand_documents_are_counted_in_50_ms() -> None:
    lengths = np.random.default_rng(0).integers(1, 4096, 10_000)

    def work() -> TileCounts:
        tiles = plan(formula("j <= i"))
        return count(tiles, seqlen_q=lengths, seqlen_k=lengths, block_m=128, block_n=128)

    tiles = -(-lengths // 128)
    assert work() == TileCounts(
        full=int((tiles * (tiles - 1) // 2).sum()),
        partial=int(tiles.sum()),
        empty=int((tiles * (tiles - 1) // 2).sum()),
    )
    assert seconds(work) < 0.150
