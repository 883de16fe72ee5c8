"""Caches of 4-bit numbers: which bits hold which column, what every byte means, and head dims that fill no chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from paged import BASE, MIXED, build, check, draw, spec_of

import attngen
from attngen.errors import InternalError, PlanError, SpecError, TensorError

INT4 = {"dtype": "int4"}


def test_the_even_column_lies_in_the_low_half_of_its_byte() -> None:
    """The largest number of a row is 7 scales, in two's complement; rounding is to the nearest."""
    numbers = [7, -7, 0, 1, -1, 2, 3.4, -3.6, 0, 0, 0, 0, 0, 0, 0, 5]
    k = torch.tensor(numbers)[None, None] * 0.25
    caches = [torch.full((1, 4, 1, 8), 0x88, dtype=torch.uint8) for _ in range(2)]
    scales = [torch.full((1, 4, 1), float("nan")) for _ in range(2)]
    module = build(spec_of(4, cache=INT4, heads=1))
    module.append_kv(k, -k, *caches, torch.tensor([2]), k_scale=scales[0], v_scale=scales[1])
    assert caches[0][0, 2, 0].tolist() == [0x97, 0x10, 0x2F, 0xC3, 0, 0, 0, 0x50]
    assert caches[1][0, 2, 0].tolist() == [0x79, 0xF0, 0xE1, 0x4D, 0, 0, 0, 0xB0]
    for cache, scale in zip(caches, scales, strict=True):
        torch.testing.assert_close(scale[0, 2, 0], torch.tensor(0.25), rtol=1e-6, atol=0)
        assert (cache[0, [0, 1, 3]] == 0x88).all()
        assert scale[0, [0, 1, 3]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_each_byte_means(dtype: torch.dtype) -> None:
    """One key: out is its value. All 256 bytes, so -8 too, which `append_kv` never writes."""
    spec = spec_of(4, cache=INT4, heads=1, head_dim={"qk": 16, "v": 512}, dtype=str(dtype)[6:])
    v_cache = torch.full((1, 4, 1, 256), 0x88, dtype=torch.uint8)
    v_cache[0, 0, 0] = torch.arange(256)
    given: dict[str, Any] = {
        "q": torch.ones(1, 1, 16, dtype=dtype),
        "k_cache": torch.zeros(1, 4, 1, 8, dtype=torch.uint8),
        "v_cache": v_cache,
        "page_table": torch.tensor([[0]], dtype=torch.int32),
        "cache_seqlens": torch.tensor([1], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32),
        "max_seqlen_q": 1,
        "k_scale": torch.ones(1, 4, 1),
        "v_scale": torch.full((1, 4, 1), 0.5),
    }
    signed = [*range(8), *range(-8, 0)]
    expected = torch.tensor([[signed[byte % 16], signed[byte // 16]] for byte in range(256)]).flatten() * 0.5
    assert torch.equal(build(spec).attention(**given)[0, 0].float(), expected)
    assert torch.equal(attngen.reference(spec, **given)[0, 0].float(), expected)


@pytest.mark.parametrize(
    "keys",
    [
        {"head_dim": 24},
        {"head_dim": {"qk": 2, "v": 66}, "sinks": True},
        {"head_dim": 48, "splits": 3, "cache": {**INT4, "layout": "hnd", "table": "csr"}},
        {"head_dim": {"qk": 72, "v": 40}, "mask": "j <= i and i - j < 4 + 3 * h"},
        {"head_dim": {"qk": 80, "v_from_k": 64}},
        {"heads": {"q": 6, "kv": 2}, "mask": "j <= i and (j < 4 or i - j < 16)"},
    ],
)
def test_head_dims_that_fill_no_chunk(keys: Any) -> None:
    spec = spec_of(8, **{"cache": INT4, **keys})
    check(spec, draw(spec, MIXED), tolerance=4e-6)
    check(spec, draw(spec, ((1, 70), (1, 0), (1, 33))), tolerance=4e-6)


def test_a_view_of_both_caches_in_one_tensor() -> None:
    """Pages of keys and values interleaved, as vLLM lays them."""
    spec = spec_of(16, cache=INT4)
    inputs = draw(spec)
    both = torch.stack([inputs["k_cache"], inputs["v_cache"]], 1)
    check(spec, {**inputs, "k_cache": both[:, 0], "v_cache": both[:, 1]}, tolerance=4e-6)


# ---- mistakes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head_dim": 17}, "head_dim.qk: int4 keeps two columns in a byte: an even number is needed, got 17"),
        ({"head_dim": {"qk": 16, "v": 9}}, "head_dim.v: int4 keeps two columns in a byte"),
        (
            {"cache": {**INT4, "scales": "per_head"}},
            "cache.scales: int4 has one scale per key and head; write per_token_head, or leave scales out",
        ),
    ],
)
def test_wrong_specs(keys: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(16, **{"cache": INT4, **keys})
    assert message in str(caught.value)


def test_a_view_that_cuts_a_chunk() -> None:
    with pytest.raises(PlanError, match="v_from_k is 48; a view of K needs a multiple of 32 columns"):
        build(spec_of(16, cache=INT4, head_dim={"qk": 64, "v_from_k": 48}))


def test_wrong_tensors() -> None:
    spec = spec_of(16, cache=INT4)
    module, inputs = build(spec), draw(spec)
    signed = {**inputs, "k_cache": inputs["k_cache"].view(torch.int8)}
    with pytest.raises(ValueError, match=r"k_cache: expected dtype torch\.uint8, got torch\.int8"):
        module.attention(**signed)
    with pytest.raises(
        TensorError, match=r"k_cache must be uint8, two 4-bit numbers in a byte, got torch\.int8"
    ):
        attngen.reference(spec, **signed)
    unpacked = torch.cat([inputs["v_cache"], inputs["v_cache"]], -1)
    with pytest.raises(ValueError, match=r"v_cache: expected 8 in its last dimension, got shape \(.*16\)"):
        module.attention(**{**inputs, "v_cache": unpacked})
    caches = [inputs[name] for name in ("k_cache", "v_cache")]
    scales = {name: inputs[name] for name in ("k_scale", "v_scale")}
    half = torch.zeros(1, 2, 8)
    with pytest.raises(ValueError, match=r"k: expected shape \(1, 2, 16\), got \(1, 2, 8\)"):
        module.append_kv(half, half, *caches, torch.tensor([0]), **scales)


def test_emission_refuses_halves_that_are_not_those_of_bytes() -> None:
    from attngen.emit.render import render
    from attngen.passes.pipeline import schedule

    for spec in (spec_of(16, cache=INT4, head_dim=32), spec_of(16, head_dim=32)):
        graph = schedule(spec)
        load: Any = graph.nodes["v_tile"]
        with pytest.raises(InternalError, match="columns come in halves where a cache stores two to a byte"):
            render(graph.with_nodes({"v_tile": replace(load, halves=not load.halves)}))
    with pytest.raises(InternalError, match="load: bad chunks"):
        replace(load, halves=True, columns=16, chunks=((0, 16),)).verify()


def test_a_spec_without_scales_has_those_of_int4() -> None:
    spec = attngen.load_spec({**BASE, "cache": {"kind": "paged", "page_size": 16, "dtype": "int4"}})
    assert spec.canonical()["cache"]["scales"] == "per_token_head"
