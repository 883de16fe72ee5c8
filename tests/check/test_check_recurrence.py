"""Checking recurrences: what is compared, what a wrong decode is called, and the line that people read."""

from __future__ import annotations

import pytest

from attngen import load_spec
from attngen.check.recurrence import Call, check_call
from attngen.check.report import SpecReport
from attngen.check.triangle import Broken
from attngen.cli.checking import _row  # pyright: ignore[reportPrivateUsage]
from attngen.runtime.build import build

SPEC = load_spec(
    {
        "attngen": 1,
        "name": "checked",
        "heads": 2,
        "head_dim": 16,
        "dtype": ["float32"],
        "recurrence": {"kind": "linear", "decay": "scalar", "chunk": 16},
    }
)
CALL = Call(name="ragged", lengths=(21, 21))


def test_decode_goes_on_from_what_prefill_leaves():
    found = check_call(SPEC, build(SPEC, interpret=True), CALL, "float32")
    assert {(c.what, c.tensor) for c in found} == {
        (f"{what} = oracle", tensor)
        for what in (
            "interpreter(semantic)",
            "interpreter(scheduled)",
            "kernels",
            "kernels, then decode",
        )
        for tensor in ("out", "states")
    }
    report = SpecReport(name="checked", path="", dtypes=["float32"])
    report.add(found)
    assert [
        word.split()[0] for word in _row(report)[-1].removeprefix("of the error budget: ").split(", ")
    ] == [
        "out",
        "states",
    ]


def test_a_decode_that_keeps_old_states_is_found(monkeypatch):
    module = build(SPEC, interpret=True)
    step = module.recurrence_step
    monkeypatch.setattr(module, "recurrence_step", lambda state, **more: step(state.clone(), **more))
    with pytest.raises(Broken, match="kernels, then decode = oracle: states differs"):
        check_call(SPEC, module, CALL, "float32")
