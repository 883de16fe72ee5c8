"""Expressions: their text means what they mean, folding keeps values, types follow the operators."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import (
    FALSE,
    TRUE,
    Apply,
    Const,
    Element,
    Expr,
    Search,
    Symbol,
    apply,
    children,
    conjunction,
    const,
    evaluate,
    rebuild,
    substitute,
    symbols,
    tensors,
    text,
    type_of,
    walk,
)

PYTHON_OPS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": operator.not_,
    "where": lambda c, a, b: a if c else b,
    "min": min,
    "max": max,
    "abs": abs,
}
VALUES: dict[str, Any] = {"i": 5, "j": -3, "n": 0, "yes": True, "no": False, "t": lambda *at: sum(at) - 2}


def op(name: str, *args: Expr) -> Expr:
    """The operator as it stands, not folded."""
    return Apply(name, args)


def value(expr: Expr) -> Any:
    try:
        return evaluate(expr, VALUES, PYTHON_OPS)
    except ZeroDivisionError:
        return "division by zero"


class _Indexed:
    def __getitem__(self, at: Any) -> int:
        return VALUES["t"](*(at if isinstance(at, tuple) else (at,)))


def value_of_text(source: str) -> Any:
    names = {**VALUES, "t": _Indexed(), "min": min, "max": max, "abs": abs, "where": PYTHON_OPS["where"]}
    try:
        return eval(source, {"__builtins__": {}}, names)
    except ZeroDivisionError:
        return "division by zero"


# ---- trees of integers and booleans, folded by apply or not

INTEGERS = ["add", "sub", "mul", "floordiv", "mod", "min", "max"]
COMPARISONS = ["lt", "le", "gt", "ge", "eq", "ne"]
LEAVES = st.one_of(st.sampled_from([Symbol("i"), Symbol("j"), Symbol("n")]), st.integers(-9, 9).map(const))
FLAGS = st.sampled_from([Symbol("yes", "bool"), Symbol("no", "bool"), TRUE, FALSE])


def trees(
    build: Callable[..., Expr], depth: int = 3
) -> tuple[st.SearchStrategy[Expr], st.SearchStrategy[Expr]]:
    """Integer expressions and conditions made by ``build``."""
    integers, flags = LEAVES, FLAGS
    for _ in range(depth):
        integers, flags = (
            st.one_of(
                integers,
                st.builds(build, st.sampled_from(INTEGERS), integers, integers),
                st.builds(build, st.sampled_from(["neg", "abs"]), integers),
                st.builds(build, st.just("where"), flags, integers, integers),
                st.builds(lambda a, b: Element("t", (a, b), "int"), integers, integers),
            ),
            st.one_of(
                flags,
                st.builds(build, st.sampled_from(COMPARISONS), integers, integers),
                st.builds(build, st.sampled_from(["and", "or"]), flags, flags),
                st.builds(build, st.just("not"), flags),
            ),
        )
    return integers, flags


PLAIN, FOLDED = trees(op), trees(apply)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(*PLAIN, *FOLDED))
def test_text_means_the_same_to_python(expr: Expr) -> None:
    assert value_of_text(text(expr)) == value(expr)


def folded(expr: Expr) -> Expr:
    """The same expression, every operator built by apply."""
    return rebuild(expr, tuple(folded(c) for c in children(expr)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(*PLAIN))
def test_folding_keeps_value_and_type(expr: Expr) -> None:
    if "division by zero" not in [value(e) for e in walk(expr)]:
        assert value(folded(expr)) == value(expr)
        assert type_of(folded(expr)) == type_of(expr)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(*FOLDED), FOLDED[0])
def test_substituting_a_symbol_is_evaluating_with_its_value(expr: Expr, other: Expr) -> None:
    if "division by zero" not in [value(e) for e in (*walk(expr), *walk(other))]:
        replaced = evaluate_with(expr, {"i": value(other)})
        assert value(substitute(expr, {"i": other})) in (replaced, "division by zero")


def evaluate_with(expr: Expr, more: dict[str, Any]) -> Any:
    try:
        return evaluate(expr, {**VALUES, **more}, PYTHON_OPS)
    except ZeroDivisionError:
        return "division by zero"


# ---- one by one

I, J, S = Symbol("i"), Symbol("j"), Symbol("s", "float")  # noqa: E741


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (op("sub", I, op("sub", J, I)), "i - (j - i)"),
        (op("sub", op("sub", I, J), I), "i - j - i"),
        (op("mul", op("add", I, J), I), "(i + j) * i"),
        (op("floordiv", op("mul", I, J), op("mul", I, J)), "i * j // (i * j)"),
        (op("neg", op("mod", I, J)), "-(i % j)"),
        (op("pow", op("neg", I), const(2)), "(-i) ** 2"),
        (op("neg", op("pow", I, const(2))), "-i ** 2"),
        (op("pow", const(-2), const(2)), "(-2) ** 2"),
        (op("pow", op("pow", I, J), I), "(i ** j) ** i"),
        (op("mul", const(-2), I), "-2 * i"),
        (op("sub", I, const(-2)), "i - -2"),
        (op("not", op("lt", I, J)), "not i < j"),
        (op("lt", op("lt", I, J), TRUE), "(i < j) < True"),
        (op("and", op("or", TRUE, FALSE), op("not", TRUE)), "(True or False) and not True"),
        (op("where", op("lt", I, J), I, op("min", I, J)), "where(i < j, i, min(i, j))"),
        (Element("t", (I, op("add", J, const(1))), "int"), "t[i, j + 1]"),
        (Search("t", (I,), op("add", J, const(1)), "right", I), "search_right(t[i, :], j + 1, i)"),
        (op("exp", op("mul", const(1e-05), S)), "exp(1e-05 * s)"),
    ],
)
def test_text(expr: Expr, expected: str) -> None:
    assert text(expr) == expected


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (apply("add", apply("sub", I, const(2)), const(3)), "i + 1"),
        (apply("add", I, const(-2)), "i - 2"),
        (apply("sub", I, I), "0"),
        (apply("mul", const(1), I), "i"),
        (apply("max", I, I), "i"),
        (apply("and", TRUE, apply("lt", I, J)), "i < j"),
        (apply("or", TRUE, apply("lt", I, J)), "True"),
        (apply("not", apply("not", apply("lt", I, J))), "i < j"),
        (apply("where", TRUE, I, J), "i"),
        (apply("floordiv", const(-7), const(2)), "-4"),
        (apply("mod", const(-7), const(2)), "1"),
        (apply("floordiv", const(1), const(0)), "1 // 0"),
        (apply("mul", const(0.0), S), "0.0 * s"),
        (apply("add", S, const(0)), "s + 0"),
        (apply("add", const(0.5), const(0.25)), "0.5 + 0.25"),
        (apply("sub", S, S), "s - s"),
        (apply("log", apply("exp", S)), "log(exp(s))"),
        (conjunction([]), "True"),
        (conjunction([apply("lt", I, J), TRUE, apply("lt", J, I)]), "i < j and j < i"),
    ],
)
def test_folding(expr: Expr, expected: str) -> None:
    assert text(expr) == expected


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (const(True), "bool"),
        (const(1), "int"),
        (const(1.0), "float"),
        (op("add", I, J), "int"),
        (op("add", I, S), "float"),
        (op("div", I, J), "float"),
        (op("floordiv", I, J), "int"),
        (op("lt", S, S), "bool"),
        (op("where", op("lt", S, S), I, J), "int"),
        (op("where", TRUE, I, S), "float"),
        (op("int", S), "int"),
        (op("exp", I), "float"),
        (Element("t", (I,), "float"), "float"),
        (Search("t", (), I, "left", J), "int"),
    ],
)
def test_type(expr: Expr, expected: str) -> None:
    assert type_of(expr) == expected


def test_names_read() -> None:
    found = Search("b", (I,), Element("a", (J,), "int"), "left", Symbol("n"))
    assert symbols(op("add", found, S)) == {"i", "j", "n", "s"}
    assert tensors(op("add", found, S)) == ("a", "b")
    assert [text(e) for e in walk(found)][1:] == ["i", "a[j]", "j", "n"]
    assert rebuild(found, children(found)) == found


@pytest.mark.parametrize(("name", "args"), [("add", (I,)), ("not", (I, J)), ("shell", (I,))])
def test_an_unknown_operator_is_a_bug_of_ours(name: str, args: tuple[Expr, ...]) -> None:
    with pytest.raises(InternalError, match=f"no operator '{name}'"):
        apply(name, *args)


def test_constants_keep_their_python_values() -> None:
    assert isinstance(apply("lt", const(1), const(2)), Const)
    assert value(apply("lt", const(1), const(2))) is True


def test_constants_of_different_types_are_different():
    assert len({ex.Const(True), ex.Const(1), ex.Const(1.0)}) == 3
    assert ex.apply("add", ex.Const(0.0), ex.Symbol("i")) == ex.Apply("add", (ex.Const(0.0), ex.Symbol("i")))
    assert ex.apply("and", ex.TRUE, ex.FALSE) == ex.FALSE
    assert ex.text(ex.apply("sub", ex.apply("add", ex.Symbol("i"), ex.Const(2)), ex.Const(2))) == "i"


def test_a_float_is_not_left_unfloored():
    s = ex.Symbol("s", "float")
    assert ex.apply("floordiv", s, ex.Const(1)) == ex.Apply("floordiv", (s, ex.Const(1)))
