"""The plan of a mask against the dense predicate."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attngen.ir.expr import Element, Expr, Symbol, apply, const
from attngen.passes.intervals import plan
from tests.ir.predicates import ROW, Case, check_plan, formula

SORTED = {"doc_q": Symbol("seqlen_q"), "doc_k": Symbol("seqlen_k")}
AT_LEAST_ONE = {"w": 1}

# ---- random predicates

SMALL = st.integers(-6, 6)
KEYS = [Element("doc_k", (Symbol("j"),), "int"), Element("bag_k", (Symbol("j"),), "int")]
ROWS = [Element("doc_q", (ROW,), "int"), Element("bag_q", (ROW,), "int")]
LEAVES = st.one_of(
    st.sampled_from([Symbol("i"), Symbol("j")]),
    st.sampled_from([Symbol("i"), Symbol("j"), Symbol("p"), Symbol("w"), *KEYS, *ROWS]),
    SMALL.map(const),
)
DIVISORS = st.one_of(st.sampled_from([2, 3, 5, 7, -3]).map(const), st.just(Symbol("w")))


def _two(op: str, parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.builds(lambda a, b: apply(op, a, b), parts, parts)


def _integers(parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    divided = st.builds(apply, st.sampled_from(["floordiv", "mod"]), parts, DIVISORS)
    chosen = st.builds(lambda a, b, x, y: apply("where", apply("lt", a, b), x, y), parts, parts, parts, parts)
    scaled = st.builds(lambda a, k: apply("mul", a, const(k)), parts, SMALL)
    sums = st.one_of(_two("add", parts), _two("sub", parts), scaled)
    return st.one_of(
        sums,
        sums,
        _two("min", parts),
        _two("max", parts),
        parts.map(lambda a: apply("abs", a)),
        divided,
        chosen,
    )


INTEGERS = st.recursive(LEAVES, _integers, max_leaves=5)
ATOMS = st.builds(apply, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), INTEGERS, INTEGERS)


def _booleans(parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(_two("and", parts), _two("or", parts), parts.map(lambda a: apply("not", a)))


NAMED = {
    "causal": "j <= i",
    "window": "i - j < 7",
    "right": "j - i <= 3",
    "band": "abs(i - j) <= 5",
    "prefix": "j < 9",
    "chunk": "i // 8 == j // 8",
    "natten": "j >= max(0, min(i - 3, seqlen_k - 7)) and j < max(0, min(i - 3, seqlen_k - 7)) + 7",
    "sinks": "j < 3",
    "documents": "doc_q[row] == doc_k[j]",
    "dilated": "(i - j) % 2 == 0",
}
MASKS = st.sampled_from(sorted(NAMED)).map(lambda name: formula(NAMED[name]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Lengths, tiles, parameters and tensors; documents start anywhere, and some never end."""
    seqlen_q, seqlen_k = draw(st.integers(0, 24)), draw(st.integers(0, 24))
    ids = st.integers(-4, 12)

    def tensor(size: int) -> np.ndarray:
        return np.array(draw(st.lists(ids, min_size=size, max_size=size)), np.int64)

    values = {"p": draw(st.integers(-4, 20)), "w": draw(st.integers(1, 9))}
    tensors = {"doc_q": np.sort(tensor(seqlen_q)), "doc_k": np.sort(tensor(seqlen_k))}
    tensors |= {"bag_q": tensor(seqlen_q), "bag_k": tensor(seqlen_k)}
    blocks = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16])
    return Case(seqlen_q, seqlen_k, draw(blocks), draw(blocks), values | tensors)


def planned_and_checked(predicate: Expr, case: Case) -> None:
    tiles = plan(predicate, sorted_tensors=SORTED, known_least=AT_LEAST_ONE)
    check_plan(predicate, tiles, case, AT_LEAST_ONE)


@settings(max_examples=300, deadline=None)
@given(st.recursive(ATOMS, _booleans, max_leaves=4), cases())
def test_any_predicate_is_planned_soundly(predicate: Expr, case: Case) -> None:
    planned_and_checked(predicate, case)


@settings(max_examples=300, deadline=None)
@given(st.recursive(MASKS, _booleans, max_leaves=5), cases())
def test_combinations_of_masks_are_planned_soundly(predicate: Expr, case: Case) -> None:
    planned_and_checked(predicate, case)
