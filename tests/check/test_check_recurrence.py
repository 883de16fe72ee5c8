"""Checking recurrences: what is compared, what a wrong decode is called, and the line that people read."""

from __future__ import annotations

import pytest
import torch

from attngen import load_spec
from attngen.check.recurrence import Call, check_call, check_inputs, make_inputs, smaller
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


def test_an_eager_model_that_overflows_excuses_no_kernel():
    """States past 65504 are infinite in float16, in the kernels as in an eager model; the check says so."""
    recurrence = {"kind": "linear", "feature": "elu(x) + 1", "normalise": True, "chunk": 16}
    spec = load_spec({**SPEC.canonical(), "name": "large", "dtype": ["float16"], "recurrence": recurrence})
    inputs = make_inputs(spec, CALL, torch.float16)
    inputs["initial_state"] = torch.full_like(inputs["initial_state"], 8e4)
    with pytest.raises(Broken, match="kernels = oracle: out differs by inf"):
        check_inputs(spec, build(spec, interpret=True), inputs, "large", "float16")


def test_groups_of_many_heads_are_checked_with_16():
    mamba = {"kind": "ssd", "state": 16, "groups": 2}
    fields = {"attngen": 1, "name": "many", "head_dim": 16, "dtype": "float32", "recurrence": mamba}
    assert smaller(load_spec(fields | {"heads": 64})).heads.q == 32
    few = load_spec(fields | {"heads": 8})
    assert smaller(few) is few
