"""Decode of recurrences: a state changes in place, token by token, as the oracle says; indices, padding, strides, misuse."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch
from recurrence_steps import (
    KINDS,
    assert_close,
    decode_of,
    eager,
    inputs_of,
    is_mamba,
    module_of,
    oracle,
    spec_of,
    step_of,
    token,
    token_graph,
)

from attngen import build, load_spec
from attngen.check.budget import max_error
from attngen.emit.decode import decode_context
from attngen.emit.records_recurrence import Decode, DecodeChunk
from attngen.emit.render import templates
from attngen.errors import InternalError
from attngen.generate import generate
from attngen.ir import expr as ex
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter_recurrence import interpret_recurrence
from attngen.target.compile import compile_many
from attngen.target.requests import requests


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_decodes_what_the_oracle_does(kind):
    spec = spec_of(kind)
    inputs, state = inputs_of(spec, 7)
    out, after = oracle(spec, inputs, state)
    found = interpret_recurrence(token_graph(spec), {**inputs, start_name(spec): state})
    assert max_error(found["token_out"], out) < 1e-12
    assert max_error(found["token_states"], after) < 1e-12


def start_name(spec):
    return "initial_states" if is_mamba(spec) else "initial_state"


@pytest.mark.parametrize("kind", KINDS)
def test_the_scheduled_graph_decodes_what_it_prefills(kind):
    spec = spec_of(kind)
    inputs, state = inputs_of(spec, 20)
    found = interpret_recurrence(schedule(spec_of(kind)), {**inputs, start_name(spec): state})
    assert max_error(found["token_out"], found["out"]) < 1e-12
    assert max_error(found["token_states"], found["states"]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_the_oracle(kind, tokens, dtype):
    spec = spec_of(kind)
    inputs, state = inputs_of(spec, tokens, dtype=dtype)
    truths, sames = oracle(spec, inputs, state), eager(spec, inputs, state)
    out = step_of(kind)(state, **inputs)
    assert out.dtype == dtype
    for found, truth, same in zip((out, state), truths, sames, strict=True):
        assert_close(found, truth, same)


@pytest.mark.parametrize("kind", KINDS)
def test_several_tokens_are_one_after_the_other_to_the_bit(kind):
    inputs, state = inputs_of(spec_of(kind), 3)
    together, apart = state.clone(), state.clone()
    out = step_of(kind)(together, **inputs)
    outs = [step_of(kind)(apart, **token(inputs, t)) for t in range(3)]
    assert torch.equal(out, torch.stack(outs, 1))
    assert torch.equal(together, apart)


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", ["ssd", "normalised", "gated_delta"])
def test_indices_name_states_and_padding_touches_none(kind, integers):
    inputs, state = inputs_of(spec_of(kind), 2, batch=4)
    plain = state.clone()
    out = step_of(kind)(plain, **inputs)
    pool = torch.full((6, *state.shape[1:]), float("nan"))
    owners = torch.tensor([4, -1, 0, -7], dtype=integers)
    pool[[4, 0]] = state[[0, 2]]
    inputs = {n: x.clone() for n, x in inputs.items()}
    for x in inputs.values():
        if x.dim() > 2:
            x[[1, 3]] = float("nan")  # what padding rows bring must not matter
    before = pool.clone()
    found = step_of(kind)(pool, **inputs, state_indices=owners)
    assert torch.equal(found[[0, 2]], out[[0, 2]])
    assert (found[[1, 3]] == 0).all()
    assert torch.equal(pool[[4, 0]], plain[[0, 2]])
    assert torch.equal(pool[[1, 2, 3, 5]].view(torch.int32), before[[1, 2, 3, 5]].view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_then_steps_is_prefill_of_more(kind):

    spec = spec_of(kind)
    inputs, start = inputs_of(spec, 23, full=False)
    truth, after = oracle(spec, inputs, start)
    module = module_of(kind)
    prefill = module.ssd if is_mamba(spec) else module.recurrence
    flag = "return_final_states" if is_mamba(spec) else "return_final_state"
    first, rest = (
        {n: x[:, part] if x.dim() > 2 else x for n, x in inputs.items()}
        for part in (slice(17), slice(17, None))
    )
    same, same_after = oracle(spec, first, start, "same")
    more, same_after = eager(spec, rest, same_after)
    out, state = prefill(**first, **{start_name(spec): start, flag: True})
    outs = [step_of(kind)(state, **token(inputs, t)) for t in range(17, 23)]
    assert_close(torch.cat([out, torch.stack(outs, 1)], 1), truth, torch.cat([same, more], 1))
    assert_close(state, after, same_after)


@pytest.mark.parametrize("kind", ["ssd", "retnet"])
def test_states_and_tensors_of_any_strides(kind):
    spec = spec_of(kind)
    inputs, state = inputs_of(spec, 2)
    plain = state.clone()
    out = step_of(kind)(plain, **inputs)
    cut = torch.full((*state.shape[1:3], 3, state.shape[3] + 5), 7.0).permute(2, 0, 1, 3)
    cache = cut[:2, ..., 2:-3]
    cache.copy_(state)
    strided = {n: strange(x) if x.dim() == 4 else x for n, x in inputs.items()}
    assert torch.equal(step_of(kind)(cache, **strided), out)
    assert torch.equal(cache, plain)
    assert (cut[2] == 7).all()
    assert (cut[..., :2] == 7).all()
    assert (cut[..., -3:] == 7).all()


def strange(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, heads before tokens and rows apart."""
    wide = torch.full((x.shape[0], x.shape[2], x.shape[1], x.shape[3] + 3), float("nan"), dtype=x.dtype)
    view = wide.transpose(1, 2)[..., : x.shape[3]]
    view.copy_(x)
    return view


@pytest.mark.parametrize("kind", ["ssd", "delta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_half_precision_are_rounded_once(kind, dtype):
    inputs, state = inputs_of(spec_of(kind), 3)
    half = state.to(dtype)
    wide = half.float()
    assert torch.equal(step_of(kind)(half, **inputs), step_of(kind)(wide, **inputs))
    assert torch.equal(half, wide.to(dtype))


@pytest.mark.parametrize("axis", ["states", "heads"])
def test_offsets_beyond_32_bits(axis):
    inputs, state = inputs_of(spec_of("ssd"), 1)
    far = 2**31 + 8  # elements, of which only those in use are ever touched
    heads, rows, columns = state.shape[1:]
    own = rows * columns
    strides = (far, own) if axis == "states" else (own, far // (heads - 1) + 1)
    room = torch.empty(far + heads * own * 2, dtype=torch.bfloat16)
    cache = room.as_strided((2, heads, rows, columns), (*strides, columns, 1))
    cache.copy_(state)
    near = cache.contiguous()
    assert torch.equal(step_of("ssd")(cache, **inputs), step_of("ssd")(near, **inputs))
    assert torch.equal(cache[1], near[1])


def test_d_per_column_limits_of_dt_and_what_a_call_leaves_out():
    spec = spec_of("ssd")
    inputs, state = inputs_of(spec, 2, full=False)
    for more in ({}, {"D": torch.randn(4, 16)}, {"dt_bias": torch.randn(4), "dt_limit": (0.3, 0.6)}):
        given = {**inputs, **more}
        tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
        rest = {n: x for n, x in given.items() if n not in tensors}
        truth, after = oracle(spec, given, state)
        same, same_after = oracle(spec, given, state, "same")
        own = state.clone()
        assert_close(step_of("ssd")(own, **tensors, **rest), truth, same)
        assert_close(own, after, same_after)


def test_a_scale_and_run_time_parameters():
    spec = {"attngen": 1, "name": "stepped_rate", "heads": 2, "head_dim": 16, "dtype": "float32"}
    spec |= {"params": {"rate": "float"}, "recurrence": {"kind": "linear", "decay": "-rate * (h + 1)"}}
    loaded, module = load_spec(spec), build(spec)
    inputs, state = inputs_of(spec_of("none"), 2)
    more = {"rate": 0.25, "scale": 0.5}
    truths, sames = (oracle(loaded, {**inputs, **more}, state, p) for p in ("float64", "same"))
    out = module.recurrence_step(state, **inputs, **more)
    for found, truth, same in zip((out, state), truths, sames, strict=True):
        assert_close(found, truth, same)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 1), (2, 0)])
def test_nothing_to_do(batch, tokens):
    inputs, state = inputs_of(spec_of("scalar"), tokens, batch=batch)
    before = state.clone()
    assert step_of("scalar")(state, **inputs).shape == inputs["v"].shape
    assert torch.equal(state, before)


@pytest.mark.parametrize("kind", ["ssd", "gated_delta"])
def test_an_edited_node_changes_interpreter_and_kernel_alike(kind):
    spec = spec_of(kind)
    graph = token_graph(spec)
    name = "token_out"
    node = graph.nodes[name]
    changed = graph.with_nodes({name: replace(node, expr=ex.apply("mul", node.expr, ex.Const(2.0)))})
    inputs, state = inputs_of(spec, 2)
    before = interpret_recurrence(graph, {**inputs, start_name(spec): state})["token_out"]
    after = interpret_recurrence(changed, {**inputs, start_name(spec): state})["token_out"]
    prefill = spec if is_mamba(spec) else spec_of(kind, transition="diagonal")
    module = decode_of(changed, prefill)
    out = (module.ssd_step if is_mamba(spec) else module.recurrence_step)(state, **inputs)
    assert max_error(after, before) > 0.1
    assert max_error(out, after) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("token_fold", {"level": "tile"}),
        ("token_fold", {"base": "e"}),
        ("token_fold", {"prefix": True}),
        ("token_read", {"decay": "decay"}),
        ("token_states", {"result": "out"}),
        ("store_token_states", {"dtype": "float32"}),
        ("decode_kernel", {"rows": "grid"}),
    ],
)
def test_what_the_kernel_does_not_do_is_refused(name, changes):
    graph = token_graph(spec_of("ssd"))
    with pytest.raises(InternalError, match=f"decode need: {name}.{next(iter(changes))} is"):
        decode_context(graph.with_nodes({name: replace(graph.nodes[name], **changes)}))


def test_every_field_of_the_context_is_printed():
    text = "".join(
        (templates() / "triton/parts" / f"recurrence_decode{end}.jinja").read_text()
        for end in ("", "_public")
    )
    for owner, record in (("decode", Decode), ("chunk", DecodeChunk)):
        assert set(re.findall(rf"\b{owner}\.(\w+)", text)) == {f.name for f in fields(record)}


def ssd_call(**changes):
    inputs, state = inputs_of(spec_of("ssd"), 1)
    given = {"state": state, **token(inputs, 0), **changes}
    return step_of("ssd")(given.pop("state"), **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"state": torch.zeros(3, 4, 16, 32)}, ValueError, r"state: expected shape \(2, 4, 16, 32\)"),
        ({"state": torch.zeros(2, 4, 32, 16)}, ValueError, r"state: expected shape \(2, 4, 16, 32\)"),
        ({"state": torch.zeros(2, 4, 32, 16).mT}, ValueError, "state: the last dimension must be contiguous"),
        ({"state": torch.zeros(1, 4, 16, 32).expand(2, -1, -1, -1)}, ValueError, "state: changes in place"),
        ({"state": torch.zeros(2, 4, 16, 32, dtype=torch.int32)}, ValueError, "state: expected floating-point"),
        ({"state": None}, TypeError, "state: expected a tensor"),
        ({"x": torch.zeros(2, 16)}, ValueError, "x: expected 3 dimensions, or 4 with several tokens"),
        ({"dt": torch.zeros(2, 1, 4)}, ValueError, r"dt: expected shape \(2, 4\), got \(2, 1, 4\)"),
        ({"B": torch.zeros(2, 4, 32)}, ValueError, r"B: expected shape \(2, 2, 32\)"),
        ({"C": torch.zeros(2, 2, 32, dtype=torch.bfloat16)}, ValueError, "C: dtype torch.bfloat16 differs"),
        ({"state_indices": torch.tensor([0, 0])}, ValueError, "two rows cannot change the same state"),
        ({"state_indices": torch.tensor([0, 2])}, ValueError, r"there are 2 states, got \[0, 2\]"),
        ({"state_indices": torch.tensor([0])}, ValueError, r"state_indices: expected shape \(2,\)"),
        ({"state_indices": torch.tensor([0.0, 1.0])}, ValueError, "expected contiguous torch.int32 or torch.int64"),
        ({"state_indices": [0, 1]}, TypeError, "state_indices: expected a tensor of integers"),
        ({"dt_limit": (1, 0)}, ValueError, "dt_limit: expected"),
        ({"A": torch.ones(4, requires_grad=True)}, RuntimeError, "has no gradients: use ssd for training"),
    ],
)  # fmt: skip
def test_misuse_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        ssd_call(**changes)


def test_parameters_that_require_gradients_decode_without_them():
    with torch.no_grad():
        assert ssd_call(A=-torch.ones(4, requires_grad=True)).shape == (2, 4, 16)


@pytest.mark.parametrize("tokens", [0, 2])
def test_torch_compile_of_the_whole_graph(tokens):
    inputs, state = inputs_of(spec_of("ssd"), max(tokens, 1))
    inputs = inputs if tokens else token(inputs, 0)
    indices = torch.tensor([1, 0])
    step = step_of("ssd")

    def decode(state, inputs, indices):
        return step(state, **inputs, state_indices=indices) + 1

    eager_state, compiled_state = state.clone(), state.clone()
    expected = decode(eager_state, inputs, indices)
    found = torch.compile(decode, fullgraph=True, backend="aot_eager")(compiled_state, inputs, indices)
    assert torch.equal(found, expected)
    assert torch.equal(compiled_state, eager_state)


@pytest.mark.parametrize("kind", ["ssd", "normalised"])
def test_a_module_with_gradients_decodes_as_one_without(kind):
    spec = spec_of(kind)
    module = build(spec.canonical() | {"name": f"{kind}_trained", "grad": True})
    inputs, state = inputs_of(spec, 2)
    own = state.clone()
    step = module.ssd_step if is_mamba(spec) else module.recurrence_step
    assert torch.equal(step(own, **inputs), step_of(kind)(state, **inputs))
    assert torch.equal(own, state)


def test_the_custom_op_says_what_it_changes():
    inputs, state = inputs_of(spec_of("scalar"), 2)
    op = module_of("scalar")._step
    given = (state, inputs["q"], inputs["k"], inputs["v"], inputs["g"], None, 0.25)
    torch.library.opcheck(op, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("kind", ["ssd", "normalised"])
def test_decode_compiles_without_spills(kind, target, tmp_path):
    recurrence = {"ssd": {"kind": "ssd", "state": 128, "dt_softplus": True}}
    recurrence["normalised"] = {"kind": "linear", "feature": "elu(x) + 1", "normalise": True}
    spec = {"attngen": 1, "name": kind, "heads": 8, "head_dim": 64, "dtype": "bfloat16"}
    path = tmp_path / f"{kind}.py"
    path.write_text(generate(load_spec({**spec, "recurrence": recurrence[kind]})))
    [report] = compile_many([r for r in requests(path, target, "bfloat16") if r.kernel == "_decode"])
    assert (report.ok, report.spill_bytes) == (True, 0), report.error
