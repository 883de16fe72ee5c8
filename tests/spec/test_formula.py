"""Formulas: what is accepted, of which type, and the exact words and column of every refusal."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngen.errors import SpecError
from attngen.spec import Env, Formula, infer, parse_formula
from attngen.spec.model import Captured, Param, formula_env

PARAMS = (Param("window", "int", 4), Param("zero", "int", 0), Param("rate", "float"), Param("width", "int"))
CAPTURED = (
    Captured("bias", "float32", ("Hq", "Sq", "Sk")),
    Captured("doc", "int32", ("B", "Sk")),
    Captured("flag", "bool", ("B",)),
)
SCORE = formula_env("score", PARAMS, CAPTURED)
MASK = formula_env("mask", PARAMS, CAPTURED)
KNOWN = "b, bias, doc, flag, h, hk, i, j, rate, row, s, seqlen_k, seqlen_q, width, window, zero"
FUNCTIONS = "abs, cos, exp, exp2, float, floor, int, log, log2, max, min, sigmoid, sin, sqrt, tanh, where"


def score(text: str) -> Formula:
    return parse_formula(text, SCORE, key="score", want="float")


def mask(text: str) -> Formula:
    return parse_formula(text, MASK, key="mask", want="bool")


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("s", "float"),
        ("j - i", "int"),
        ("50 * tanh(s / 50)", "float"),
        ("s + bias[h, row, j]", "float"),
        ("i // window % 3", "int"),
        ("i / 2", "float"),
        ("floor(s)", "int"),
        ("int(j <= i)", "int"),
        ("float(3)", "float"),
        ("abs(j - i)", "int"),
        ("max(1, 2, s)", "float"),
        ("min(i, j)", "int"),
        ("s if j <= i else 0", "float"),
        ("where(flag[b], i, -j)", "int"),
        ("s ** 2", "float"),
        ("i ** 8", "int"),
        ("sqrt(4)", "float"),
        ("doc[b, doc[b, j]]", "int"),
        ("1e-5", "float"),
    ],
)
def test_scores(text: str, type_: str) -> None:
    assert score(text).type == type_


@pytest.mark.parametrize(
    "text",
    [
        "j <= i",
        "0 <= i - j < window",
        "not (j > i) or flag[b] and j != 3",
        "doc[b, i] == doc[b, j]",
        "flag[b] == (j <= i)",
        "True",
        "where(flag[b], j <= i, True)",
        "(j <= i) if i > 3 else False",
        "i < rate",
    ],
)
def test_masks(text: str) -> None:
    assert mask(text).type == "bool"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("s + wndow", 5, f"unknown symbol 'wndow'; did you mean 'window'? known: {KNOWN}"),
        ("s + q7", 5, f"unknown symbol 'q7'; known: {KNOWN}"),
        ("  s + wndow", 7, f"unknown symbol 'wndow'; did you mean 'window'? known: {KNOWN}"),
        ("s + true", 5, "unknown symbol 'true'; write True"),
        ("s + tanh", 5, "'tanh' is a function; call it, as in tanh(...)"),
        ("s + bias", 5, "'bias' is a captured tensor with 3 axes; index it, as in bias[...]"),
        ("bias[h, j]", 1, "bias has 3 axes, got 2 indices"),
        ("s + doc[b]", 5, "doc has 2 axes, got 1 index"),
        ("doc[b, s]", 8, "the index of doc takes integers, `s` is a float"),
        ("i[0]", 1, "'i' is a number, not a captured tensor"),
        ("dog[b, j]", 1, "unknown captured tensor 'dog'; did you mean 'doc'? known: bias, doc, flag"),
        ("doc[b, j][0]", 1, "only captured tensors can be indexed"),
        ("s // 2", 1, "`//` takes integers, `s` is a float"),
        ("i % rate", 5, "`%` takes integers, `rate` is a float"),
        ("i % 0", 5, "division by zero"),
        ("i // zero", 6, "division by zero"),
        ("s / 0.0", 5, "division by zero"),
        ("s ** i", 6, "the exponent of `**` must be a literal integer from 0 to 8"),
        ("s ** 9", 6, "the exponent of `**` must be a literal integer from 0 to 8"),
        ("s ** -1", 6, "the exponent of `**` must be a literal integer from 0 to 8"),
        ("s ** 2.0", 6, "the exponent of `**` must be a literal integer from 0 to 8"),
        ("2 ** 2 ** 8 ** 8", 6, "the exponent of `**` must be a literal integer from 0 to 8"),
        ("s + (j <= i)", 6, "`+` takes numbers, `j <= i` is a bool; write int(...) to count it as 0 or 1"),
        ("-flag[b]", 2, "`-` takes numbers, `flag[b]` is a bool; write int(...) to count it as 0 or 1"),
        (
            "tanh(flag[b])",
            6,
            "tanh() takes numbers, `flag[b]` is a bool; write int(...) to count it as 0 or 1",
        ),
        ("where(i, s, 0)", 7, "the condition of where() takes bools, `i` is an int"),
        ("s if i else 0", 6, "`if` takes bools, `i` is an int"),
        (
            "s if j <= i else flag[b]",
            18,
            "`if` and `else` give a float and a bool; both must be numbers or both bools",
        ),
        ("where(j <= i, s)", 1, "where() takes 3 arguments, got 2"),
        ("tanh(s, s)", 1, "tanh() takes 1 argument, got 2"),
        ("max(s)", 1, "max() takes at least 2 arguments, got 1"),
        ("max(s, key=3)", 12, "max() takes no keyword arguments"),
        ("tnah(s)", 1, f"unknown function 'tnah'; did you mean 'tanh'? known: {FUNCTIONS}"),
        ("eval(s)", 1, f"unknown function 'eval'; known: {FUNCTIONS}"),
        ("s + 2147483648", 5, "integers in formulas are at most 268435456"),
        ("s + 1e999", 5, "a number in a formula must be finite"),
        ("s + 1j", 5, "a complex literal is not part of formulas"),
        ("s + None", 5, "a NoneType literal is not part of formulas"),
        ("s + ...", 5, "a ellipsis literal is not part of formulas"),
        ("s.real", 1, "attribute access is not part of formulas"),
        ("s + [1][0]", 5, "list is not part of formulas"),
        ("s + (1, 2)", 5, "tuple is not part of formulas"),
        ("max(*doc[b, j])", 5, "star argument is not part of formulas"),
        ("max(j for j in b)", 4, "comprehension is not part of formulas"),
        ("[j for j in b]", 1, "comprehension is not part of formulas"),
        ("(yield)", 2, "yield is not part of formulas"),
        (
            "(lambda: 0)()",
            8,
            "character ':' is not part of formulas; slices and lambdas are not part of formulas",
        ),
        (
            "doc[b, 0:3]",
            9,
            "character ':' is not part of formulas; slices and lambdas are not part of formulas",
        ),
        ("(s := 3)", 4, "character ':' is not part of formulas; slices and lambdas are not part of formulas"),
        ("s + 'x'", 5, 'character "\'" is not part of formulas; text is not part of formulas'),
        ('s + "x"', 5, "character '\"' is not part of formulas; text is not part of formulas"),
        ("s @ s", 3, "character '@' is not part of formulas; matrix products are not part of formulas"),
        ("s ^ 2", 3, "character '^' is not part of formulas; write `**` for a power"),
        ("s # + 1", 3, "character '#' is not part of formulas"),
        ("s; s", 2, "character ';' is not part of formulas"),
        ("s + \u0131", 5, "character '\u0131' is not part of formulas"),
        ("s\u00a0+ 1", 2, "character '\\xa0' is not part of formulas"),
        ("\uff53", 1, "character '\uff53' is not part of formulas"),
        ("", None, "the formula is empty"),
        (" \n ", None, "the formula is empty"),
        ("s +", 3, "not a formula: invalid syntax"),
        ("(s", 1, "not a formula: '(' was never closed"),
        ("s) + (s", 2, "not a formula: unmatched ')'"),
        ("j <= i", 1, "the score must be a number (such as `s`), this formula is a bool"),
    ],
)
def test_refused_scores(text: str, column: int | None, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        score(text)
    assert (caught.value.message, caught.value.column, caught.value.key) == (message, column, "score")


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("s > 0", 1, "'s' is the score; a mask cannot depend on it"),
        ("j - i", 1, "the mask must be true or false (such as `j <= i`), this formula is a int"),
        ("j <= i & i < 3", 8, "character '&' is not part of formulas; write `and`"),
        ("j <= i | i < 3", 8, "character '|' is not part of formulas; write `or`"),
        ("~flag[b]", 1, "character '~' is not part of formulas; write `not`"),
        ("i and flag[b]", 1, "`and` takes bools, `i` is an int"),
        ("not i", 5, "`not` takes bools, `i` is an int"),
        ("flag[b] == 1", 12, "`==` compares a bool with an int"),
        ("flag[b] < flag[b]", 1, "`<` does not order bools; use ==, !=, and, or, not"),
        ("j in b", 1, "`is` and `in` are not part of formulas; write =="),
        ("j is i", 1, "`is` and `in` are not part of formulas; write =="),
    ],
)
def test_refused_masks(text: str, column: int, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        mask(text)
    assert (caught.value.message, caught.value.column) == (message, column)


def test_limits() -> None:
    cases = {
        "s" + " + s" * 500: "a formula has at most 2,000 characters, this one has 2,001",
        "max(" + "s," * 500 + "s)": "a formula has at most 400 operations and names",
        "abs(" * 150 + "s" + ")" * 150: "a formula is nested at most 64 deep",
        "(" * 900 + "s" + ")" * 900: "not a formula: too many nested parentheses",
        "-" * 1900 + "s": "a formula is nested at most 64 deep",
        "9" * 1999: "integers in formulas are at most 268435456",
    }
    for text, message in cases.items():
        with pytest.raises(SpecError) as caught:
            score(text)
        assert caught.value.message in (message, "the formula is nested too deeply"), text[:20]


def test_longest_sum_that_fits() -> None:
    assert score("s" + "+s" * 62).names == ("s",)


def test_names_are_sorted_and_apart() -> None:
    formula = score("s + bias[h, row, min(j, window)] * rate + doc[b, j]")
    assert formula.names == ("b", "h", "j", "rate", "row", "s", "window")
    assert formula.tensors == ("bias", "doc")


def test_text_is_canonical() -> None:
    assert score("( s )+  1") == score("s+1")
    assert str(score("( s )+  1")) == "s + 1"
    assert score("s +\n 1") == score("s + 1")
    assert score("s + 1") != score("1 + s")


def test_infer_works_on_parts() -> None:
    tree = mask("0 <= i - j < window").tree
    assert isinstance(tree, ast.Compare)
    assert [infer(part, MASK) for part in (tree, tree.left, tree.comparators[0])] == ["bool", "int", "int"]
    with pytest.raises(SpecError, match="unknown symbol 'i'; none are known"):
        infer(tree.comparators[0], Env(scalars={}))


@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_a_spec_error(text: str) -> None:
    key = "score"
    try:
        score(text)
    except SpecError as error:
        key = error.key
    assert key == "score"


TOKENS = [
    "s",
    "i",
    "doc",
    "[",
    "]",
    "(",
    ")",
    ",",
    "+",
    "**",
    "//",
    "if",
    "else",
    "not",
    "<",
    "8",
    ".",
    "lambda",
    "\n",
    "in",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=15).map(" ".join))
def test_any_tokens_are_a_formula_or_a_spec_error(text: str) -> None:
    column = None
    try:
        formula = score(text)
    except SpecError as error:
        column = error.column
    else:
        assert score(formula.text) == formula
    assert column is None or 1 <= column <= max(1, len(text))
