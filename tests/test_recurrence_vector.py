"""Decays per column of keys (GLA): secondary chunking keeps every exponent at or below 0, however strong the decay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from recurrent import (
    DTYPES,
    STARTS,
    cast,
    check,
    check_edited,
    check_graphs,
    check_packed,
    check_split,
    draw,
    fill_with_nan,
    module_of,
    run,
    spec_of,
    with_schedules_of,
)

from attngen.check.budget import max_error, size
from attngen.check.recurrence import Call, check_call, check_inputs, make_inputs
from attngen.emit.render import render
from attngen.errors import InternalError
from attngen.generate import generate
from attngen.ir import expr as ex
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter_recurrence import interpret_recurrence
from attngen.runtime.load import load_module
from attngen.target.requests import requests

NORMALISED: dict[str, Any] = {"feature": "elu(x) + 1", "normalise": True}


def gla(chunk: int = 64, keys: int = 16, values: int = 16, **more: Any):
    return spec_of(keys=keys, values=values, decay="vector", chunk=chunk, **more)


@pytest.mark.parametrize("chunk", [16, 64, 256])
@pytest.mark.parametrize("more", [{}, NORMALISED], ids=["plain", "normalised"])
def test_graphs_compute_what_the_oracle_does(chunk, more):
    spec = gla(chunk, keys=8, values=12, **more)
    for call in (draw(spec, 0), draw(spec, 1), draw(spec, 37), draw(spec, starts=[0, 5, 5, 37, 38])):
        check_graphs(spec, call)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_at_lengths_around_a_chunk(dtype):
    spec = gla()
    check(spec, cast(draw(spec, starts=STARTS), dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalised_with_head_dims_that_fill_no_tile(dtype):
    spec = gla(keys=40, values=24, **NORMALISED)
    check(spec, cast(draw(spec, 70), dtype))


def test_packed_sequences_are_as_if_alone():
    spec = gla(32)
    check_packed(spec, cast(draw(spec, starts=[0, 1, 1, 33, 65]), "bfloat16"))


@pytest.mark.parametrize("cut", [0, 20, 32])
def test_a_call_cut_in_two_that_hands_its_state_on(cut):
    spec = gla(32)
    check_split(spec, draw(spec, 50), cut)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [64, 256])
def test_strong_decays(chunk, dtype):
    """Logarithms reach -410 in a chunk of 256; other columns keep everything, or forget all at single tokens."""
    spec = gla(chunk, keys=16)
    call = draw(spec, 270, batch=1)
    call["g"][..., :8] = -16 * 0.1
    call["g"][..., 8:12] = 0.0
    call["g"][:, ::7, :, 12:] = -1000.0
    check(spec, cast(call, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunk_sizes_agree(dtype):
    """Within rounding, however long the sums of decays are: those of fp32 tensors are fp64."""
    results = []
    for chunk in (16, 64, 256):
        spec = gla(chunk)
        results.append(check(spec, cast(draw(spec, 100), dtype)))
    for found in results[1:]:
        for value, first in zip(found, results[0], strict=True):
            allowed = 8 * torch.finfo(getattr(torch, dtype)).eps
            assert max_error(value, first) <= allowed * first.abs().max()


def test_strides_dtype_and_missing_states():
    spec = gla(16)
    call = cast(draw(spec, 20), "bfloat16")
    del call["initial_state"]
    half = call["g"][:, :, :1].bfloat16().expand(-1, -1, 2, -1)  # heads that share their decays
    turned = {n: call[n].transpose(1, 2).contiguous().transpose(1, 2) for n in "qkv"}
    want = run(spec, call | {"g": half.float().contiguous()})
    for found, expected in zip(run(spec, {**turned, "g": half}), want, strict=True):
        assert torch.equal(found, expected)


def test_an_edited_node_changes_graph_and_kernels(tmp_path):
    spec = gla(16)

    def edit(graph):
        total = graph.nodes["total"]
        return graph.with_nodes({"total": replace(total, factor=ex.Const(0.2))})

    check_edited(spec, draw(spec, 37), edit, tmp_path)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "*fp64"), ("bfloat16", "*fp32")])
def test_sums_of_decays_are_compiled_as_they_are_launched(dtype, kind, tmp_path):
    path = tmp_path / "recurrent.py"
    path.write_text(generate(gla(16, grad=True)))
    kinds = {r.kernel: r.signature["total"] for r in requests(path, "sm_90", dtype) if "total" in r.signature}
    assert {"_totals", "_pairs", "_backward_queries", "_backward_tokens"} <= set(kinds)
    assert set(kinds.values()) == {kind}


def test_the_shape_of_g_is_checked():
    spec = gla(16)
    call = draw(spec, 20)
    with pytest.raises(ValueError, match=r"g: expected shape \(2, 20, 2, 16\), got \(2, 20, 2\)"):
        module_of(spec).recurrence(**call | {"g": call["g"][..., 0]})


# ---- gradients


AROUND = Call(name="around a chunk", lengths=(0, 1, 63, 65, 200), packed=True)
BARE = Call(name="no optional tensors", lengths=(70, 70), whole=False)
NOTHING = Call(name="nothing", lengths=(0,))


def gradients(spec, inputs: dict[str, Any], dout=None) -> dict[str, torch.Tensor]:
    names = [n for n, x in inputs.items() if x.is_floating_point()]
    leaves = {n: inputs[n].detach().requires_grad_() for n in names}
    out = module_of(spec).recurrence(**inputs | leaves)
    dout = torch.ones_like(out) if dout is None else dout
    return dict(zip(names, torch.autograd.grad(out, list(leaves.values()), dout), strict=True))


@pytest.mark.parametrize(
    ("dims", "more", "dtype"),
    [((16, 16), {}, "float16"), ((16, 16), {}, "float32"), *(((24, 40), NORMALISED, d) for d in DTYPES[:2])],
    ids=["plain-half", "plain", "normalised", "normalised-bfloat16"],
)
def test_gradients_of_graphs_and_kernels(dims, more, dtype, monkeypatch):
    """Of all tensors, the final states' gradient given too; no memory is read that no kernel wrote."""
    spec = gla(64, *dims, grad=True, **more)
    fill_with_nan(monkeypatch)
    for call in (AROUND, BARE, NOTHING):
        compared = check_call(spec, module_of(spec), call, dtype)
        wanted = {"out", "states", "dq", "dk", "dv", "dg", *(["dinitial_state"] if call.whole else [])}
        assert {c.tensor for c in compared} == wanted
        assert {c.layer for c in compared} == {"build", "passes", "emission"}


@pytest.mark.parametrize("target", ["default", "sm_80/16", "sm_90/16"])
def test_gradients_by_the_tiles_of_a_gpu(target, monkeypatch):
    spec = gla(128, keys=40, values=24, grad=True)
    module = module_of(spec)
    fill_with_nan(monkeypatch)
    with_schedules_of(module, target, monkeypatch)
    check_call(spec, module, Call(name="packed", lengths=(150, 0, 33), packed=True), "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [64, 256])
def test_gradients_of_strong_decays(chunk, dtype):
    """Logarithms reach -410 in a chunk of 256; other columns keep everything, or forget all at single tokens."""
    spec = gla(chunk, keys=16, grad=True)
    inputs = make_inputs(spec, Call(name="strong", lengths=(270,)), getattr(torch, dtype))
    inputs["g"][..., :8] = -16 * 0.1
    inputs["g"][..., 8:12] = 0.0
    inputs["g"][:, ::7, :, 12:] = -1000.0
    check_inputs(spec, module_of(spec), inputs, "strong", dtype)


def test_gradients_repeat_their_bits():
    spec = gla(64, grad=True)
    inputs = make_inputs(spec, Call(name="repeated", lengths=(70,)), torch.bfloat16)
    first = gradients(spec, inputs)
    for name, again in gradients(spec, inputs).items():
        assert torch.equal(first[name], again), name
    assert "atomic" not in generate(spec)


def test_gradients_of_shared_decays_and_of_any_strides():
    """Heads that share their decays get the sum of their gradients; q, k, v and dout need no order of their axes."""
    spec = gla(16, grad=True)
    inputs = make_inputs(spec, Call(name="shared", lengths=(40,)), torch.float32)
    shared = inputs["g"][:, :, :1].clone()
    dout = torch.randn(inputs["v"].shape)
    whole = gradients(spec, inputs | {"g": shared.expand(-1, -1, 2, -1).contiguous()}, dout)
    turned = {n: inputs[n].transpose(1, 2).contiguous().transpose(1, 2) for n in "qkv"}
    leaf = shared.requires_grad_()
    out = module_of(spec).recurrence(**inputs | turned | {"g": leaf.expand(-1, -1, 2, -1)})
    (found,) = torch.autograd.grad(out, [leaf], dout.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(found, whole["g"].sum(2, keepdim=True))


def halved(graph, name: str):
    node = graph.nodes[name]
    return graph.with_nodes({name: replace(node, expr=ex.apply("mul", ex.Const(0.5), node.expr))})


@pytest.mark.parametrize("name", ["of_states", "dread"])
def test_an_edited_node_changes_gradients_of_graph_and_kernels(name, tmp_path):
    spec = gla(16, grad=True)
    graph = schedule(spec)
    inputs = make_inputs(spec, Call(name="edited", lengths=(37,)), torch.float32)
    dout = torch.randn(inputs["v"].shape)
    edited = halved(graph, name)
    before, after = (interpret_recurrence(g, inputs | {"dout": dout})["dg"] for g in (graph, edited))
    path = tmp_path / "edited.py"
    path.write_text(render(edited), encoding="utf-8")
    leaf = inputs["g"].requires_grad_()
    out = load_module(path, interpret=True).recurrence(**inputs | {"g": leaf})
    (found,) = torch.autograd.grad(out, [leaf], dout)
    assert max_error(before, after) > 1e-2 * size(before)
    assert max_error(found, after) < 1e-5 * size(after)


@pytest.mark.parametrize("name", ["of_queries", "of_keys", "of_both"])
def test_edits_that_kernels_cannot_follow_are_refused(name):
    with pytest.raises(InternalError, match=f"the templates need: {name} is s"):
        render(halved(schedule(gla(16, grad=True)), name))
