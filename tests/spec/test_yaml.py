"""YAML that is refused as such, and what bombs and broken text give: one clear message."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngen.errors import SpecError
from attngen.spec import load_text
from attngen.spec.yaml_tree import read_yaml

REFUSED = [
    ("a: 1\nb: 2\na: 3\n", "3:1: a: duplicate key; it is on line 1 already"),
    ("a: {x: 1, x: 2}", "1:11: a.x: duplicate key; it is on line 1 already"),
    ("a: &x 1\nb: *x\n", "1:4: a: YAML anchors (&x) are not part of specs; write the value out"),
    ("a: *x\n", "1:4: a: YAML aliases (*x) are not part of specs; write the value out"),
    ("&x a: 1\n", "1:1: YAML anchors (&x) are not part of specs; write the value out"),
    ("a: !!int 1\n", "1:4: a: YAML tags (tag:yaml.org,2002:int) are not part of specs"),
    ("a: !!python/object:os.system ls\n", "1:4: a: YAML tags (tag:yaml.org,2002:python/object:os.system) are not part of specs"),
    ("a: !x [1]\n", "1:4: a: YAML tags (!x) are not part of specs"),
    ("<<: {a: 1}\n", "1:1: YAML merge keys (<<) are not part of specs; write the keys out"),
    ("a: 1\n---\nb: 2\n", "2:1: one spec per file; a second YAML document starts here"),
    ("[a, b]: 1\n", "1:1: a key must be a name, not a list or a mapping"),
    ("? {a: 1}\n: 1\n", "1:3: a key must be a name, not a list or a mapping"),
    ("a: " + "9" * 5000, "1:4: a: a number has at most 18 digits"),
    ("a: [1\n", "2:1: not YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"),
    ("a: b: c\n", "1:5: not YAML: mapping values are not allowed here"),
    ("a: 1\n b: 2\n", "2:3: not YAML: mapping values are not allowed here"),
    ("a:\n\t- 1\n", "2:1: not YAML: while scanning for the next token found character '\\t' that cannot start any token"),
    ("a: 'x\n", "2:1: not YAML: while scanning a quoted scalar found unexpected end of stream"),
    ("a: \x07\n", "1:4: character U+0007 is not allowed in YAML"),
    ("a: \ud800\n", "1:4: character U+D800 is not allowed in YAML"),
    ("a: @b\n", "1:4: not YAML: while scanning for the next token found character '@' that cannot start any token"),
    ("%YAML 3.0\n---\na: 1\n", "1:1: not YAML: found incompatible YAML document (version 1.* is required)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_yaml(text, "t.yaml")
    assert str(caught.value) == f"t.yaml:{message}"


def test_scalars() -> None:
    text = "[1, -1, 1.5, 1e3, 1e-5, true, false, null, ~, '', '1', \"true\", on, 16:30, 0x10, 1_0, 012, .5, 5., e5, 1.2.3]"
    expected = [
        1, -1, 1.5, 1e3, 1e-5, True, False, None, None, "", "1", "true", "on", "16:30", "0x10", "1_0", "012", 0.5, 5.0,
        "e5", "1.2.3",
    ]  # fmt: skip
    data = read_yaml(text, "t.yaml").data
    assert data == expected
    assert [type(value) for value in data] == [type(value) for value in expected]


def test_keys_are_text() -> None:
    assert read_yaml("1: a\ntrue: b\non: c\nnull: d\n", "t.yaml").data == {
        "1": "a",
        "true": "b",
        "on": "c",
        "null": "d",
    }


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "a: " + "[" * 13 + "]" * 13])
def test_deep_nesting_is_refused_before_recursion(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SpecError, match=r"a spec is nested at most 12 deep|not YAML"):
        read_yaml(text, "t.yaml")
    assert time.perf_counter() - start < 5


def test_billion_laughs() -> None:
    text = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    with pytest.raises(SpecError, match="anchors"):
        read_yaml(text, "t.yaml")


@given(st.text(max_size=80))
def test_any_text_is_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError):
        load_text(text, "t.yaml")


PIECES = [
    "a",
    ":",
    " ",
    "\n",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "'",
    '"',
    "|",
    ">",
    "#",
    "&",
    "*",
    "!",
    "%",
    "---",
    "...",
    "? ",
    "1",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_yaml_is_data_or_a_spec_error(text: str) -> None:
    try:
        places = list(read_yaml(text, "t.yaml").values.values())
    except SpecError as error:
        places = [(error.line, error.column)]
    assert all(line >= 1 and column >= 1 for line, column in places)
