"""Recurrences with a decay per head (Mamba-2, RetNet, linear attention), forward and backward: oracle = graphs = kernels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recurrent import fill_with_nan, with_schedules_of

from attngen.check.budget import max_error, size
from attngen.check.recurrence import Call, calls, check_call, make_inputs
from attngen.generate import generate
from attngen.inspect.report import KernelReport, inspect_modules
from attngen.reference.oracle import reference
from attngen.runtime.build import build
from attngen.spec import Spec, load_spec

Fields = dict[str, Any]
MAMBA: Fields = {
    "heads": 4,
    "head_dim": 16,
    "recurrence": {"kind": "ssd", "state": 32, "groups": 2, "chunk": 16},
}
RETNET: Fields = {
    "heads": 2,
    "head_dim": {"qk": 16, "v": 24},
    "recurrence": {"kind": "linear", "chunk": 16, "decay": "log(1 - exp2(-5.0 - h))"},
}
KINDS: dict[str, Fields] = {
    "mamba": MAMBA | {"recurrence": {**MAMBA["recurrence"], "dt_softplus": True}},
    "mamba without softplus": MAMBA,
    "retnet": RETNET,
    "scalar": {"heads": 2, "head_dim": 16, "recurrence": {"kind": "linear", "chunk": 32, "decay": "scalar"}},
    "normalised": {
        "heads": 2,
        "head_dim": 24,
        "recurrence": {"kind": "linear", "chunk": 16, "feature": "elu(x) + 1", "normalise": True},
    },
}


def spec_of(fields: Fields, *, grad: bool = True, dtype: str = "float32") -> Spec:
    return load_spec({"attngen": 1, "name": "recurrent", "dtype": [dtype], "grad": grad, **fields})


def run(module: ModuleType, inputs: Fields, **more: Any) -> Any:
    return getattr(module, module.MANIFEST["mechanism"])(**inputs, **more)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_and_graphs_compute_what_the_oracle_does(kind, dtype):
    spec = spec_of(KINDS[kind], dtype=dtype)
    module = build(spec, interpret=True)
    for call in calls(spec):
        compared = check_call(spec, module, call, dtype)
        assert {c.layer for c in compared} == {"build", "passes", "emission"}
        assert "dout" not in {c.tensor for c in compared}
        assert len({c.tensor for c in compared}) > 4, "gradients are compared too"


def test_memory_that_no_kernel_wrote_is_never_read(monkeypatch):
    recurrence = {**MAMBA["recurrence"], "dt_softplus": True, "chunk": 128}
    spec = spec_of(MAMBA | {"recurrence": recurrence})
    module = build(spec, interpret=True)
    call = Call(name="packed", lengths=(3, 0, 150, 1, 65), packed=True, heads=2)
    fill_with_nan(monkeypatch)
    with_schedules_of(module, "sm_90/16", monkeypatch)
    check_call(spec, module, call, "float32")


def test_tiles_that_no_kernel_of_pairs_filled_are_refused():
    spec = spec_of(MAMBA | {"recurrence": {**MAMBA["recurrence"], "chunk": 64}}, grad=False)
    module = build(spec, interpret=True)
    inputs = make_inputs(spec, Call(name="small", lengths=(64,), whole=False, heads=2), torch.float32)
    given = [inputs.get(n) for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")]
    small = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
    with pytest.raises(ValueError, match="BLOCK_M must be a multiple of that of _read"):
        module.launch(*given, None, 0.0, float("inf"), configs={"_pairs": small})


@pytest.mark.parametrize("chunk", [16, 64, 128, 256])
def test_chunks_of_any_size_give_the_same(chunk):
    fields = MAMBA | {"recurrence": {**MAMBA["recurrence"], "dt_softplus": True, "chunk": chunk}}
    spec = spec_of(fields, grad=False)
    inputs = make_inputs(spec, Call(name="long", lengths=(200,), heads=2), torch.float32)
    expected = run(build(spec_of(KINDS["mamba"], grad=False), interpret=True), inputs)
    assert max_error(run(build(spec, interpret=True), inputs), expected.double()) < 2e-6 * size(expected)


@pytest.mark.parametrize(
    "more",
    [
        {"feature": "1 / x"},
        {"feature": "1 / x", "decay": "scalar"},
        {"feature": "1 / x", "decay": "vector"},
        {"feature": "0.05 * log(x * x)", "decay": "scalar", "transition": "delta"},
        {"feature": "tanh(x) + 1.5", "normalise": True},
        {"decay": "-0.1 * tanh(h + 1)"},
        {"decay": "-1"},
    ],
)
def test_formulas_of_any_kind(more):
    """A map that is infinite at 0, where columns fill a tile up; tanh; a decay that is a lone number."""
    spec = spec_of({"heads": 2, "head_dim": 24, "recurrence": {"kind": "linear", "chunk": 16, **more}})
    check_call(spec, build(spec, interpret=True), Call(name="formula", lengths=(21, 21)), "float32")


@pytest.mark.parametrize("target", ["cpu", "sm_90/16"])
def test_products_of_queries_and_of_keys_round_alike(target, monkeypatch):
    """Before the first token there is nothing that its decay could fade: in its gradient all products cancel, which two
    kernels add up. In bf16 they would leave 0.1 of 52 if each rounded in its own way."""
    recurrence = {"kind": "linear", "decay": "scalar", "chunk": 256}
    spec = spec_of({"heads": 2, "head_dim": 16, "recurrence": recurrence}, dtype="bfloat16")
    module = build(spec, interpret=True)
    with_schedules_of(module, target, monkeypatch)
    inputs = make_inputs(spec, Call(name="alike", lengths=(256,), whole=False), torch.bfloat16)
    inputs["g"] = (inputs["g"] * 0.1).requires_grad_()
    out = run(module, inputs)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    (dg,) = torch.autograd.grad(out, [inputs["g"]], [dout])
    assert dg[:, 0].abs().max() < 1e-5 * dg.abs().max()


def test_the_backward_repeats_its_bits():
    spec = spec_of(KINDS["mamba"], dtype="bfloat16")
    module = build(spec, interpret=True)
    inputs = make_inputs(spec, Call(name="repeated", lengths=(21, 21), heads=4), torch.bfloat16)
    names = [n for n, x in inputs.items() if x.is_floating_point()]

    def gradients() -> tuple[torch.Tensor, ...]:
        leaves = {n: inputs[n].detach().requires_grad_() for n in names}
        return torch.autograd.grad(
            run(module, inputs | leaves).float().sum(), list(leaves.values()), allow_unused=True
        )

    first = gradients()
    for _ in range(2):
        assert all(a is b or torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
    assert "atomic" not in generate(spec)


def test_autograd_keeps_the_arguments_alone():
    spec = spec_of(KINDS["mamba"])
    inputs = make_inputs(spec, Call(name="kept", lengths=(40,), heads=2), torch.float32)
    inputs["x"].requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        run(build(spec, interpret=True), inputs)
    given = {x.data_ptr() for x in inputs.values()}
    assert len(kept) >= len(inputs) - 1
    assert set(kept) <= given | {inputs["D"].data_ptr()}


def test_compiles_whole_and_passes_opcheck():
    spec = spec_of(KINDS["scalar"])
    module = build(spec, interpret=True)
    inputs = make_inputs(spec, Call(name="compiled", lengths=(37,), heads=2), torch.float32)
    expected = run(module, inputs)
    compiled = torch.compile(module.recurrence, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs), expected)
    q, k, v, g, initial_state = (inputs[n] for n in ("q", "k", "v", "g", "initial_state"))
    torch.library.opcheck(module._forward, (q, k, v, g, initial_state, None, 0.25))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dt": torch.zeros(1, 5, 3)}, r"dt: expected shape \(1, 5, 4\)"),
        ({"x": torch.zeros(1, 5, 3, 16)}, "x: 3 heads cannot share"),
        ({"B": torch.zeros(1, 5, 4, 32)}, r"B: expected shape \(1, 5, 2, 32\)"),
        ({"cu_seqlens": torch.tensor([0, 4, 2, 5], dtype=torch.int32)}, "must not decrease"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "expected dtype torch.int32"),
        ({"dt_limit": (2.0, 1.0)}, "dt_limit"),
        ({"dt_limit": ("0", 1.0)}, "dt_limit: expected two numbers"),
        ({"initial_states": torch.zeros(1, 4, 32, 16)}, "initial_states: expected shape"),
        ({"A": torch.zeros(4, dtype=torch.int32)}, "A: expected floating-point"),
        ({"cu_seqlens": torch.tensor([0, 4], dtype=torch.int32)}, r"goes from 0 to 5, got \[0, 4\]"),
        ({"cu_seqlens": torch.tensor([1, 5], dtype=torch.int32)}, r"goes from 0 to 5, got \[1, 5\]"),
        ({"cu_seqlens": torch.tensor([[0, 5]], dtype=torch.int32)}, r"contiguous \[sequences \+ 1\]"),
        (
            {"x": torch.zeros(2, 5, 4, 16), "cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)},
            "a batch of one",
        ),
        ({"x": torch.zeros(5, 4, 16)}, "x: expected 4 dimensions"),
        ({"x": torch.zeros(1, 5, 4, 16, dtype=torch.float64)}, r"x: dtype torch.float64 is not one of"),
        ({"x": torch.zeros(1, 5, 4, 24)}, r"x: expected shape \(1, 5, 4, 16\)"),
        ({"x": torch.zeros(1, 5, 16, 4).transpose(2, 3)}, "x: the last dimension must be contiguous"),
        ({"C": torch.zeros(1, 5, 2, 32, dtype=torch.bfloat16)}, "C: dtype torch.bfloat16 differs from x's"),
        ({"B": torch.zeros(1, 5, 2, 32, device="meta")}, "B: is on meta, x is on cpu"),
        ({"dt": torch.zeros(1, 5, 4, device="meta")}, "dt: is on meta, x is on cpu"),
        ({"A": torch.zeros(3)}, r"A: expected shape \(4,\)"),
        ({"D": torch.zeros(3)}, r"D: expected shape \(4, 16\) or \(4,\), got \(3,\)"),
        ({"D": torch.zeros(4, 8)}, r"D: expected shape \(4, 16\), got \(4, 8\)"),
        ({"z": torch.zeros(1, 5, 4, 8)}, r"z: expected shape \(1, 5, 4, 16\)"),
        ({"z": torch.zeros(1, 5, 4, 16, dtype=torch.float16)}, "z: dtype torch.float16 differs from x's"),
        ({"dt_bias": torch.zeros(1, 4)}, r"dt_bias: expected shape \(4,\)"),
        ({"dt_limit": 3.0}, "dt_limit: expected"),
        ({"initial_states": torch.zeros(2, 4, 16, 32)}, r"initial_states: expected shape \(1, 4, 16, 32\)"),
    ],
)
def test_wrong_arguments_are_named(change, said):
    spec = spec_of(KINDS["mamba"], grad=False)
    inputs = make_inputs(spec, Call(name="small", lengths=(5,), whole=False, heads=4), torch.float32)
    with pytest.raises(ValueError, match=said):
        run(build(spec, interpret=True), inputs | change)


def test_without_grad_a_gradient_is_refused():
    spec = spec_of(KINDS["retnet"], grad=False)
    inputs = make_inputs(spec, Call(name="small", lengths=(5,), whole=False), torch.float32)
    inputs["q"].requires_grad_()
    with pytest.raises(RuntimeError, match="add `grad: true`"):
        run(build(spec, interpret=True), inputs).sum().backward()


PARAMS = {"params": {"slope": "float", "shift": "int"}}
FEATURE = {"chunk": 16, "feature": "exp(slope * min(x, 3)) + shift"}


@pytest.mark.parametrize(
    ("more", "grad"),
    [
        ({}, True),
        ({"decay": "scalar", "normalise": True}, True),
        ({"decay": "-slope * (h + 1)"}, True),
        ({"decay": "vector"}, True),
        ({"decay": "scalar", "transition": "delta"}, True),  # states grow to 1e28
        ({"transition": "delta", "feature": "slope * x + 0.1 * shift"}, True),
    ],
)
def test_feature_maps_read_run_time_parameters(more, grad):
    fields = {"heads": 2, "head_dim": 16, **PARAMS}
    spec = spec_of(fields | {"recurrence": {"kind": "linear", **FEATURE, **more}}, grad=grad)
    module = build(spec, interpret=True)
    call = Call(name="params", lengths=(21, 21), heads=2)
    check_call(spec, module, call, "float32")
    inputs = make_inputs(spec, call, torch.float32)
    other = inputs | {"slope": 0.5, "shift": 0}
    expected = reference(spec, **other)
    assert max_error(run(module, inputs), expected) > 0.1 * size(expected)
    assert max_error(run(module, other), expected) < 1e-5 * size(expected)


@pytest.mark.parametrize("decay", [float("-inf"), -1000.0])
def test_a_decay_that_leaves_nothing_begins_anew(decay):
    spec = spec_of(KINDS["scalar"], grad=False)
    module = build(spec, interpret=True)
    inputs = make_inputs(spec, Call(name="reset", lengths=(50,), heads=2), torch.float32)
    inputs["g"][:, 20] = decay
    rest = {n: x[:, 20:] for n, x in inputs.items() if n != "initial_state"}
    assert max_error(run(module, inputs)[:, 20:], run(module, rest).double()) < 1e-5


# ---- what the compiler makes of it: headdim 64, state 128, chunk 256


def reports(target: str, folder: Path) -> list[KernelReport]:
    recurrence = {"kind": "ssd", "state": 128, "groups": 1, "chunk": 256, "dt_softplus": True}
    fields = {"heads": 24, "head_dim": 64, "recurrence": recurrence}
    module = folder / "mamba2.py"
    module.write_text(generate(spec_of(fields, dtype="bfloat16")))
    return inspect_modules([(module, "bfloat16")], [target])


def test_instructions_of_mamba2_on_sm_90(tmp_path):
    """At most what issue's prototypes took; mamba_ssm takes 4441, 2008, and 7898 backward."""
    found = reports("sm_90", tmp_path)
    assert [(r.name, r.compiled.error, r.compiled.spill_bytes) for r in found if r.compiled.spill_bytes] == []
    issued = {(r.name, x.role): x.prediction.issue_per_1k_tensor for r in found for x in r.loops}
    assert issued["_read", "below"] <= 871
    assert issued["_read", "diagonal"] <= 2031
    assert issued["_chunk_states", "chunk state"] <= 1200
    assert max(n for (name, _), n in issued.items() if "backward" in name or "adjoint" in name) <= 2500
    assert all(x.found_flops == x.planned_flops for r in found for x in r.loops)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_mamba2_has_no_spills_elsewhere(target, tmp_path):
    assert [
        (r.name, r.compiled.spill_bytes) for r in reports(target, tmp_path) if r.compiled.spill_bytes
    ] == []
