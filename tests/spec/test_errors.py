"""The exact words of errors."""

import pytest

from attngen.errors import AttngenError, InternalError, SpecError, TensorError, UserError, did_you_mean


def test_did_you_mean() -> None:
    assert did_you_mean("wndow", ["window", "i"]) == "did you mean 'window'? known: i, window"
    assert did_you_mean("zzz", ["b", "a", "b"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "none are known"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({"path": "x.yaml", "line": 12, "column": 3, "key": "mask"}, "x.yaml:12:3: mask: wrong"),
        ({"path": "x.yaml"}, "x.yaml: wrong"),
        ({"key": "mask", "column": 4}, "mask: wrong"),
        ({}, "wrong"),
    ],
)
def test_place_comes_first(place: dict, text: str) -> None:
    assert str(SpecError("wrong", **place)) == text


def test_all_problems_in_file_order() -> None:
    late, early = (
        SpecError(name, path="x.yaml", line=line, column=1) for name, line in (("late", 9), ("early", 2))
    )
    error = SpecError.of_all([late, early])
    assert str(error) == "x.yaml:2:1: early\nx.yaml:9:1: late"
    assert (error.line, error.message, error.more) == (2, "early", (late,))


def test_kinds() -> None:
    assert issubclass(TensorError, UserError)
    assert issubclass(TensorError, ValueError)
    assert issubclass(InternalError, AttngenError)
    assert not issubclass(InternalError, UserError)
