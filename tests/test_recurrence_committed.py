"""The committed specs of recurrences, with small heads: oracle = graphs = kernels, and steps; real sizes are the long tier's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attngen.check.budget import max_error, size
from attngen.check.recurrence import Call, check_call, make_inputs
from attngen.reference.oracle import reference
from attngen.runtime.build import build
from attngen.spec import Spec, load_spec

SPECS = Path(__file__).parents[1] / "specs"
NAMES = sorted(p.stem for p in SPECS.glob("*.yaml") if "recurrence:" in p.read_text())
CALLS = [
    Call(name="ragged", lengths=(37, 37)),
    Call(name="packed", lengths=(3, 0, 33, 1), packed=True, whole=False),
]


def small(name: str) -> Spec:
    """The spec with few heads of few columns, half as many of keys where keys are narrower, and short chunks."""
    data: dict[str, Any] = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
    recurrence, dims = data["recurrence"], load_spec(SPECS / f"{name}.yaml").head_dim
    groups = min(2, recurrence.get("groups", 1))
    recurrence |= {"chunk": 16}
    recurrence |= {"state": 32, "groups": groups} if recurrence["kind"] == "ssd" else {}
    sizes = {"qk": 16, "v": 32 if dims.v > dims.qk else 16}
    return load_spec(data | {"heads": 2 * groups, "head_dim": sizes})


@pytest.mark.parametrize("name", NAMES)
def test_small_heads_compute_what_the_oracle_does(name):
    spec = small(name)
    for call in CALLS:
        compared = check_call(spec, build(spec, interpret=True), call, "bfloat16")
        assert {c.layer for c in compared} == {"build", "passes", "emission"}
        assert any(c.tensor.startswith("d") for c in compared) == spec.grad


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_real_heads_is_a_token_of_the_oracle(name):
    """Decode has no loop over chunks, so that real sizes are cheap: one token, two heads of a group."""
    spec = load_spec(SPECS / f"{name}.yaml")
    assert spec.recurrence is not None
    ssd = spec.recurrence.kind == "ssd"
    start = "initial_states" if ssd else "initial_state"
    inputs = make_inputs(spec, Call(name="step", lengths=(1,), heads=1 if ssd else 2), torch.bfloat16)
    state = inputs.pop(start)
    asked = {start: state, f"return_final_state{'s' if ssd else ''}": True}
    out, after = reference(spec, **inputs, **asked)
    same, _ = reference(spec, precision="same", **inputs, **asked)
    module = build(spec, interpret=True)
    one = {n: x[:, 0] if isinstance(x, torch.Tensor) and x.dim() > 2 else x for n, x in inputs.items()}
    found = (module.ssd_step if ssd else module.recurrence_step)(state, **one)
    half_an_ulp = torch.finfo(torch.bfloat16).eps / 2
    assert max_error(found, out[:, 0]) <= 2 * max_error(same, out) + half_an_ulp * size(out)
    assert max_error(state, after) <= 1e-6 * size(after)
