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
    module_of,
    run,
    spec_of,
)

from attngen.check.budget import EPS32, max_error
from attngen.ir import expr as ex

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
    """Within rounding: of numbers, and of fp32 sums of decays, which are as large as a chunk is long."""
    results = []
    for chunk in (16, 64, 256):
        spec = gla(chunk)
        call = draw(spec, 100)
        results.append(check(spec, cast(call, dtype)))
    largest = call["g"].cumsum(1).abs().max()
    for found in results[1:]:
        for value, first in zip(found, results[0], strict=True):
            allowed = 8 * torch.finfo(getattr(torch, dtype)).eps + EPS32 * largest
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


def test_the_shape_of_g_is_checked():
    spec = gla(16)
    call = draw(spec, 20)
    with pytest.raises(ValueError, match=r"g: expected shape \(2, 20, 2, 16\), got \(2, 20, 2\)"):
        module_of(spec).recurrence(**call | {"g": call["g"][..., 0]})
