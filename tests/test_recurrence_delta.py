"""Delta rules: chunks in WY form compute what one token after the other does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
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
    module_of,
    one_of,
    oracle,
    run,
    spec_of,
)

from attngen.check.budget import max_error, size
from attngen.check.recurrence import Call, check_call
from attngen.emit.render import render
from attngen.errors import InternalError, PlanError
from attngen.generate import generate
from attngen.ir import expr as ex
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter_recurrence import interpret_recurrence
from attngen.reference.oracle import reference
from attngen.runtime.load import load_module
from attngen.spec import load_spec

DECAYS: dict[str, dict[str, Any]] = {
    "deltanet": {},
    "gated": {"decay": "scalar"},
    "by head": {"decay": "log(1 - exp2(-5 - h))"},
}


def delta(kind: str = "gated", chunk: int = 64, keys: int = 16, values: int = 16, **more: Any):
    return spec_of(keys=keys, values=values, transition="delta", chunk=chunk, **DECAYS[kind], **more)


@pytest.mark.parametrize("chunk", [16, 32, 64])
@pytest.mark.parametrize("kind", DECAYS)
def test_graphs_compute_what_the_oracle_does(kind, chunk):
    spec = delta(kind, chunk, keys=8, values=12)
    for call in (draw(spec, 0), draw(spec, 1), draw(spec, 37), draw(spec, starts=[0, 5, 5, 37, 38])):
        check_graphs(spec, call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["deltanet", "gated"])
def test_kernels_at_lengths_around_a_chunk(kind, dtype):
    spec = delta(kind)
    check(spec, cast(draw(spec, starts=STARTS), dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_and_head_dims_that_fill_no_tile(dtype):
    """The map of 0 is not 0: what fills a tile up must not be taken for keys."""
    spec = delta("by head", 32, keys=40, values=24, feature="(elu(x) + 1) / 6")
    check(spec, cast(draw(spec, 70), dtype))


@pytest.mark.parametrize("chunk", [16, 64])
def test_packed_sequences_are_as_if_alone(chunk):
    spec = delta(chunk=chunk)
    check_packed(spec, cast(draw(spec, starts=[0, 1, 1, 33, 65]), "bfloat16"))


@pytest.mark.parametrize("cut", [0, 20, 32])
def test_a_call_cut_in_two_that_hands_its_state_on(cut):
    spec = delta(chunk=32)
    check_split(spec, draw(spec, 50), cut)


def test_the_same_key_again_and_again():
    """With beta 1 each token overwrites what the one before it wrote: rows of A are all ones."""
    spec = delta("deltanet")
    call = draw(spec, 64)
    call |= {"k": call["k"][:, :1].expand_as(call["k"]), "beta": torch.ones_like(call["beta"])}
    call |= {"q": call["k"], "scale": 1.0}
    out, _ = run(spec, call)
    assert max_error(out, call["v"]) < 1e-5
    check(spec, call)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strong_decays(dtype):
    """A chunk's logarithms reach -102; single tokens forget all."""
    spec = delta()
    call = draw(spec, 130, batch=1)
    call["g"][:] = -16 * 0.1
    call["g"][:, ::7, 1] = -1000.0
    check(spec, cast(call, dtype))


def test_chunk_sizes_agree():
    results = []
    for chunk in (16, 32, 64):
        spec = delta(chunk=chunk)
        results.append(check(spec, draw(spec, 100)))
    for found in results[1:]:
        for value, first in zip(found, results[0], strict=True):
            assert max_error(value, first) <= 8 * torch.finfo(torch.float32).eps * first.abs().max()


def test_strides_dtype_and_missing_states():
    spec = delta(chunk=16)
    call = cast(draw(spec, 20), "bfloat16")
    del call["initial_state"]
    small = {n: call[n][..., :1].bfloat16().expand(-1, -1, 2) for n in ("g", "beta")}
    turned = {n: call[n].transpose(1, 2).contiguous().transpose(1, 2) for n in "qkv"}
    want = run(spec, call | {n: x.float().contiguous() for n, x in small.items()})
    for found, expected in zip(run(spec, {**turned, **small}), want, strict=True):
        assert torch.equal(found, expected)


def test_values_of_one_token_do_not_reach_earlier_ones():
    spec = delta()
    call, other = draw(spec, 60), draw(spec, 60, seed=1)
    changed = call | {n: torch.cat([call[n][:, :20], other[n][:, 20:]], 1) for n in ("k", "v", "g", "beta")}
    assert torch.equal(run(spec, call)[0][:, :20], run(spec, changed)[0][:, :20])
    assert max_error(oracle(spec, call)[0][:, 20:], oracle(spec, changed)[0][:, 20:]) > 0.1


def test_an_edited_node_changes_graph_and_kernels(tmp_path):
    spec = delta(chunk=16)

    def edit(graph):
        node = graph.nodes["faded"]
        return graph.with_nodes({"faded": replace(node, expr=ex.apply("mul", node.expr, ex.Const(0.5)))})

    check_edited(spec, draw(spec, 37), edit, tmp_path)


def test_chunks_that_no_program_can_solve_are_refused():
    with pytest.raises(
        PlanError, match=r"recurrent: recurrence.chunk: .* at most 64 tokens at a time, got 128"
    ):
        generate(delta(chunk=128))


def test_a_chunk_is_made_of_whole_blocks():
    graph = schedule(delta(chunk=16))
    with pytest.raises(InternalError, match="16 tokens are no number of blocks of 32"):
        replace(graph.nodes["writes"], block=32).verify()


def test_the_shape_of_beta_is_checked():
    spec = delta(chunk=16)
    call = draw(spec, 20)
    with pytest.raises(ValueError, match=r"beta: expected shape \(2, 20, 2\), got \(2, 20, 1\)"):
        module_of(spec).recurrence(**call | {"beta": call["beta"][..., :1]})


# ---- gradients

LENGTHS = (0, 1, 63, 65, 200)


def with_grad(spec):
    return load_spec(spec.canonical() | {"grad": True})


def gradients(spec, call: dict[str, Any], *, run=None, states: float = 1.0) -> dict[str, torch.Tensor]:
    """Gradients of a fixed sum of out, and of the final states unless `states` is 0."""
    run = run or module_of(spec).recurrence
    names = [n for n, x in call.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    leaves = {n: call[n].detach().requires_grad_() for n in names}
    out, final = run(**call | leaves, return_final_state=True)
    source = torch.Generator().manual_seed(3)
    ends, weights = [out], [torch.randn(out.shape, generator=source).to(out.dtype)]
    if states:
        ends, weights = [out, final], [*weights, states * torch.randn(final.shape, generator=source)]
    return dict(zip(names, torch.autograd.grad(ends, list(leaves.values()), weights), strict=True))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*(("gated", dtype) for dtype in DTYPES), ("deltanet", "bfloat16"), ("by head", "float32")],
)
def test_gradients_are_those_of_the_oracle(kind, dtype):
    """Of both graphs in float64, of the kernels within twice the error of a reference in their dtype; K and V differ."""
    spec = with_grad(delta(kind, keys=32, values=16))
    packed = Call(name="packed", lengths=LENGTHS, packed=True)
    for call in (packed, Call(name="no optional tensors", lengths=(37,), whole=False)):
        compared = check_call(spec, module_of(spec), call, dtype)
        assert {c.layer for c in compared} == {"build", "passes", "emission"}
        assert {"dq", "dk", "dv", "dbeta"} <= {c.tensor for c in compared if c.layer == "emission"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_with_features_and_head_dims_that_fill_no_tile(dtype):
    spec = with_grad(delta("by head", 32, keys=40, values=24, feature="(elu(x) + 1) / 6"))
    check_call(spec, module_of(spec), Call(name="ragged", lengths=(70,)), dtype)


@pytest.mark.parametrize("length", LENGTHS[:4])
def test_gradients_of_sequences_of_one_length(length):
    spec = with_grad(delta())
    check_call(spec, module_of(spec), Call(name="batch", lengths=(length, length)), "float32")


@pytest.mark.parametrize(("dtype", "chunk"), [("float32", 16), ("bfloat16", 64)])
def test_gradients_with_strong_decays(dtype, chunk):
    spec = with_grad(delta(chunk=chunk))
    check_call(spec, module_of(spec), Call(name="strong", lengths=(130,), strong=True), dtype)


@pytest.mark.parametrize(("decay", "states"), [(-1000.0, 1.0), (float("-inf"), 0.0)])
def test_gradients_stop_where_a_token_forgets_all(decay, states):
    spec = with_grad(delta(chunk=32))
    call = draw(spec, 50)
    call["g"][:, 20] = decay
    found, expected = (
        gradients(spec, call, run=run, states=states) for run in (None, partial(reference, spec))
    )
    for name, value in found.items():
        assert max_error(value, expected[name].double()) <= 4e-6 * size(expected[name])


@pytest.mark.parametrize("target", ["default", "sm_80/16", "sm_90/16"])
def test_gradients_in_the_tiles_of_a_gpu_read_no_memory_that_nobody_wrote(target, monkeypatch):
    spec = with_grad(delta(keys=32))
    module = module_of(spec)
    empty, like = torch.empty, torch.empty_like

    def full_of_nan(*shape: Any, **more: Any) -> torch.Tensor:
        made = empty(*shape, **more)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    for kernel in module.MANIFEST["kernels"].values():
        configs = kernel["configs"]
        monkeypatch.setitem(configs, "cpu", configs.get(target, configs["default"]))
    monkeypatch.setattr(torch, "empty", full_of_nan)
    monkeypatch.setattr(torch, "empty_like", lambda t, **more: like(t, **more).fill_(float("nan")))
    check_call(spec, module, Call(name="packed", lengths=(3, 0, 130, 1), packed=True), "float32")
    check_call(spec, module, Call(name="packed", lengths=(64, 70), packed=True), "bfloat16")


def test_gradients_of_packed_sequences_are_as_if_alone_and_repeat_their_bits():
    spec = with_grad(delta(chunk=16))
    call = cast(draw(spec, starts=[0, 1, 1, 33, 50]), "bfloat16")

    def of_sum(call: dict[str, Any]) -> dict[str, torch.Tensor]:
        leaves = {n: x.detach().requires_grad_() for n, x in call.items() if x.is_floating_point()}
        out, states = module_of(spec).recurrence(**call | leaves, return_final_state=True)
        total = out.float().square().sum() + states.sum()
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    found = of_sum(call)
    assert all(torch.equal(found[n], again) for n, again in of_sum(call).items())
    for index, (start, end) in enumerate(pairwise(call["cu_seqlens"].tolist())):
        for name, alone in of_sum(one_of(call, index)).items():
            whole = found[name]
            own = whole[index : index + 1] if name == "initial_state" else whole[:, start:end]
            assert torch.equal(own, alone)
    assert "atomic" not in generate(spec)


def test_gradients_of_states_alone_and_of_a_call_cut_in_two():
    """The gradient of the state between two calls joins theirs to that of one."""
    spec = with_grad(delta(chunk=16))
    call = draw(spec, 40)
    names = ["q", "k", "v", "g", "beta", "initial_state"]

    def joined(cuts: list[int]) -> tuple[torch.Tensor, ...]:
        leaves = {n: call[n].detach().requires_grad_() for n in names}
        state = leaves["initial_state"]
        for start, end in pairwise(cuts):
            part = {n: leaves[n][:, start:end] for n in names[:-1]}
            _, state = module_of(spec).recurrence(**part, initial_state=state, return_final_state=True)
        return torch.autograd.grad(state.square().sum(), list(leaves.values()))

    for one, two in zip(joined([0, 40]), joined([0, 21, 40]), strict=True):
        assert max_error(two, one.double()) <= 4e-6 * size(one)


def test_gradients_of_a_compiled_call_are_the_same():
    spec = with_grad(delta(chunk=16))
    call = draw(spec, 20)
    compiled = torch.compile(module_of(spec).recurrence, fullgraph=True, backend="aot_eager")
    expected = gradients(spec, call)
    for name, found in gradients(spec, call, run=compiled).items():
        assert torch.equal(found, expected[name])


def test_gradients_with_strides_and_small_dtypes():
    spec = with_grad(delta(chunk=16))
    call = cast(draw(spec, 20), "bfloat16")
    expected = gradients(spec, call)
    turned = {n: call[n].transpose(1, 2).contiguous().transpose(1, 2) for n in "qkv"}
    turned |= {n: call[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("g", "beta")}
    for name, found in gradients(spec, call | turned).items():
        assert torch.equal(found, expected[name])
    small = {n: call[n].bfloat16() for n in ("g", "beta")}
    wide = {n: x.float() for n, x in small.items()}
    expected = gradients(spec, call | wide)
    for name, found in gradients(spec, call | small).items():
        assert torch.equal(found, expected[name].to(found.dtype))


@pytest.mark.parametrize(
    ("name", "shows"),
    [
        *(("dv", "dv"), ("weighed", "dv"), ("share", "dv"), ("dk", "dk")),
        *(("of_erased", "dg"), ("of_both", "dg"), ("dbeta", "dbeta")),
    ],
)
def test_an_edited_node_of_the_backward_changes_graph_and_kernels(name, shows, tmp_path):
    """Each formula is halved; the graph's gradients move, and the kernels' with them."""
    spec = with_grad(delta(chunk=16))
    graph, call = schedule(spec), draw(spec, 37)
    node = graph.nodes[name]
    edited = graph.with_nodes({name: replace(node, expr=ex.apply("mul", node.expr, ex.Const(0.5)))})
    source = torch.Generator().manual_seed(3)
    incoming = {"dout": torch.randn(call["v"].shape, generator=source)}
    incoming["dstates"] = torch.randn(call["initial_state"].shape, generator=source)
    path = tmp_path / "edited.py"
    path.write_text(render(edited), encoding="utf-8")
    before, after = (interpret_recurrence(g, call | incoming) for g in (graph, edited))
    found = gradients(spec, call, run=load_module(path, interpret=True).recurrence)
    assert max_error(before[shows], after[shows]) > 1e-2 * size(before[shows])
    for tensor, value in found.items():
        assert max_error(value, after[f"d{tensor}"]) < 1e-5 * size(after[f"d{tensor}"])


@pytest.mark.parametrize("name", ["dwritten", "dk_written_within"])
def test_formulas_that_products_add_themselves_by_are_not_edited(name):
    graph = schedule(with_grad(delta(chunk=16)))
    node = graph.nodes[name]
    with pytest.raises(InternalError, match=f"the templates need: {name} is"):
        render(graph.with_nodes({name: replace(node, expr=ex.apply("mul", node.expr, ex.Const(0.5)))}))


def test_what_erases_in_reverse_names_whose_keys():
    graph = schedule(with_grad(delta(chunk=16)))
    with pytest.raises(InternalError, match="erases in reverse does so along another's key"):
        replace(graph.nodes["chunk_adjoints"], along="").verify()
    with pytest.raises(InternalError, match="chunks alone have something taken"):
        replace(graph.nodes["chunk_states"], taken="writes").verify()
