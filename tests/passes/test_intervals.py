"""The plan of a mask against the dense predicate."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngen.ir.expr import TRUE, Element, Expr, Symbol, apply, const, substitute, symbols, text
from attngen.passes.intervals import plan
from tests.ir.predicates import COMBINATIONS, NAMED, PREDICATES, Case, cases, check_plan, formula

SORTED = {"doc_q": Symbol("seqlen_q"), "doc_k": Symbol("seqlen_k")}
AT_LEAST_ONE = {"w": 1}
POSITION = apply("add", Symbol("row"), apply("sub", Symbol("seqlen_k"), Symbol("seqlen_q")))


def planned_and_checked(predicate: Expr, case: Case) -> None:
    tiles = plan(predicate, sorted_tensors=SORTED, known_least=AT_LEAST_ONE)
    check_plan(predicate, tiles, case, AT_LEAST_ONE)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PREDICATES, cases())
def test_any_predicate_is_planned_soundly(predicate: Expr, case: Case) -> None:
    planned_and_checked(predicate, case)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(COMBINATIONS, cases())
def test_combinations_of_masks_are_planned_soundly(predicate: Expr, case: Case) -> None:
    planned_and_checked(predicate, case)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(PREDICATES, COMBINATIONS), cases())
def test_tiles_of_keys_that_walk_the_queries_are_planned_soundly(predicate: Expr, case: Case) -> None:
    predicate = substitute(predicate, {"i": POSITION})
    known = {**AT_LEAST_ONE, "j_lo": 0, "j_hi": 0}
    tiles = plan(
        predicate,
        key="row",
        tile="j",
        key_size=Symbol("seqlen_q"),
        sorted_tensors=SORTED,
        known_least=known,
    )
    check_plan(predicate, tiles, case, known, transposed=True)


# what random predicates have found
FOUND = [
    "j < i or i < p and where(i < j, i, p) >= j",
    "j > abs(abs(where(i < j, 0, 0)))",
    "not j < j + where(i < j, j, j)",
]


@pytest.mark.parametrize("source", FOUND)
def test_predicates_that_were_planned_wrongly(source: str) -> None:
    for seqlen_q, seqlen_k, p in product(range(4), range(4), (-1, 0, 2)):
        planned_and_checked(formula(source), Case(seqlen_q, seqlen_k, 2, 1, {"p": p}))


# ---- named masks are exact

EXACT = {
    "full": "0 <= j",
    "nothing": "j < 0",
    "causal": "j <= i",
    "strictly causal": "j < i",
    "diagonal": "i == j",
    "not diagonal": "i != j",
    "window": "j <= i and i - j < 7",
    "run-time window": "j <= i and i - j < w",
    "both sides": "abs(i - j) <= 5",
    "left and right": "-3 <= j - i <= w",
    "outside a window": "not (j <= i and i - j < 7)",
    "outside a band": "abs(i - j) >= 4",
    "prefix": "j <= i or j < p",
    "chunk": "i // 8 == j // 8",
    "causal chunk": "i // 8 == j // 8 and j <= i",
    "run-time chunk": "i // w == j // w and j <= i",
    "chunk by remainder": "i - i % 8 <= j <= i",
    "other chunks": "i // 8 != j // 8",
    "natten": NAMED["natten"],
    "sinks and window": "j <= i and (j < 3 or i - j < 7)",
    "window less sinks": "j >= 3 and j <= i and i - j < 7",
    "two windows": "j <= i and (i - j < 4 or 12 <= i - j < 15)",
    "windows per head": "j <= i and where(h < 2, i - j < 4, i - j < 11)",
    "valid length": "j <= i and j < p",
    "chunk or window": "i // 8 == j // 8 or i - j < 7",
    "block rows": "j // 4 <= i // 4",
    "stretched": "2 * j <= i",
    "contradiction": "j <= i and j > i",
    "tautology": "j <= i or j > i",
}
LENGTHS = [(0, 9), (9, 0), (1, 1), (1, 30), (17, 17), (31, 31), (20, 33), (33, 20)]
PARAMETERS = {"p": (-2, 9), "w": (1, 6), "h": (0, 3)}
BLOCKS = [(1, 1), (4, 4), (5, 3), (16, 8), (3, 16), (64, 64)]


@pytest.mark.parametrize("name", EXACT)
def test_named_mask_is_exact(name: str) -> None:
    predicate = formula(EXACT[name])
    tiles = plan(predicate, known_least=AT_LEAST_ONE)
    assert tiles.exact
    assert tiles.notes == ()
    values = [[(n, v) for v in vs] for n, vs in PARAMETERS.items() if n in symbols(predicate)]
    for (seqlen_q, seqlen_k), (block_m, block_n), *chosen in product(LENGTHS, BLOCKS, *values):
        check_plan(predicate, tiles, Case(seqlen_q, seqlen_k, block_m, block_n, dict(chosen)), AT_LEAST_ONE)


@pytest.mark.parametrize("name", ["causal", "window", "prefix", "causal chunk", "natten", "windows per head"])
def test_common_mask_stays_one_interval_with_no_residual(name: str) -> None:
    tiles = plan(formula(EXACT[name]), known_least=AT_LEAST_ONE)
    assert len(tiles.may) == len(tiles.must) == 1
    assert tiles.residual == TRUE


def test_packed_documents_find_every_full_and_every_empty_tile() -> None:
    predicate = formula("doc_q[row] == doc_k[j] and j <= i")
    tiles = plan(predicate, sorted_tensors=SORTED)
    ids = np.repeat(np.arange(6), [5, 1, 9, 3, 8, 6])
    for block_m, block_n in BLOCKS:
        case = Case(32, 32, block_m, block_n, {"doc_q": ids, "doc_k": ids})
        check_plan(predicate, replace(tiles, exact=True), case)


# ---- what the plan says


def said(source: str, **known_least: int) -> list[str]:
    tiles = plan(formula(source), sorted_tensors=SORTED, known_least=known_least)
    return [
        f"may {' '.join(map(str, tiles.may))}",
        f"must {' '.join(map(str, tiles.must))}",
        f"row {tiles.row} and {text(tiles.residual)}",
        *tiles.notes,
    ]


def test_text_of_causal() -> None:
    assert said("j <= i") == [
        "may [0, min(i_hi + 1, seqlen_k))",
        "must [0, min(i_lo + 1, seqlen_k))",
        "row [0, min(i + 1, seqlen_k)) and True",
    ]


def test_text_of_window() -> None:
    assert said("j <= i and i - j < window") == [
        "may [max(i_lo - window + 1, 0), min(i_hi + 1, seqlen_k))",
        "must [max(i_hi - window + 1, 0), min(i_lo + 1, seqlen_k))",
        "row [i - window + 1, min(i + 1, seqlen_k)) and True",
    ]


def test_text_of_prefix() -> None:
    assert said("j <= i or j < prefix") == [
        "may [0, min(max(i_hi + 1, prefix), seqlen_k))",
        "must [0, min(max(i_lo + 1, prefix), seqlen_k))",
        "row [0, min(max(i + 1, prefix), seqlen_k)) and True",
    ]


def test_text_of_documents() -> None:
    first, last = (
        f"doc_q[max(min({end} + seqlen_q - seqlen_k, seqlen_q - 1), 0)]" for end in ("i_lo", "i_hi")
    )
    at_least, above = (
        "search_left(doc_k[:], {}, seqlen_k)",
        "min(search_right(doc_k[:], {}, seqlen_k), seqlen_k)",
    )
    assert said("doc_q[row] == doc_k[j]") == [
        f"may [{at_least.format(first)}, {above.format(last)})",
        f"must [{at_least.format(last)}, {above.format(first)})",
        "row [0, seqlen_k) and doc_q[i - (seqlen_k - seqlen_q)] == doc_k[j]",
    ]


RESIDUALS = {
    "(i - j) % 2 == 0": "it takes a remainder of j",
    "bag_k[j] == 1": "bag_k is read at j and is not declared sorted",
    "i * j < 9": "i * j cannot be solved for j",
    "j < i / 2": "it computes with floats",
    "i // chunk == j // chunk": "the sign of chunk is not known",
}


@pytest.mark.parametrize("source", RESIDUALS)
def test_residual_and_its_reason(source: str) -> None:
    assert said(f"j <= i and {source}") == [
        "may [0, min(i_hi + 1, seqlen_k))",
        "must ",
        f"row [0, min(i + 1, seqlen_k)) and {source}",
        f"{source} stays in the residual: {RESIDUALS[source]}",
    ]


def test_more_than_four_intervals_become_a_hull_and_a_subset() -> None:
    predicate = formula(" or ".join(f"{10 * k} <= i - j < {10 * k + 3}" for k in range(6)))
    tiles = plan(predicate)
    assert (len(tiles.may), len(tiles.must), tiles.exact) == (4, 4, False)
    assert [note.split(":")[0] for note in tiles.notes] == [
        "more than 4 intervals may be met",
        "more than 4 intervals must be met",
    ]
    for block in (1, 4, 16):
        check_plan(predicate, tiles, Case(70, 70, block, block))


def test_a_comparison_of_floats_is_not_flipped() -> None:
    below = apply("lt", Element("f", (Symbol("j"),), "float"), const(0.5))
    predicate = apply("not", below)
    tiles = plan(predicate)
    assert tiles.residual == predicate
    check_plan(predicate, tiles, Case(3, 3, 2, 2, {"f": np.array([0.0, np.nan, 1.0])}))


def test_a_plan_does_not_depend_on_the_length() -> None:
    assert all(size < 2**20 for size in _traced(lambda: plan(formula("j <= i and i - j < 4096"))))


def _traced(work: Callable[[], object]) -> tuple[int, int]:
    tracemalloc.start()
    try:
        result = work()
        sizes = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return sizes
