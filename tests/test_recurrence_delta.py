"""Delta rules: chunks in WY form compute what one token after the other does."""

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
    module_of,
    oracle,
    run,
    spec_of,
)

from attngen.check.budget import max_error
from attngen.errors import InternalError, PlanError
from attngen.generate import generate
from attngen.ir import expr as ex
from attngen.passes.pipeline import schedule

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
