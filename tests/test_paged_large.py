"""Caches of more than 2^31 elements. Memory that nobody touches costs nothing: a test reads and writes a few pages of it."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from paged import build, draw, run, same, spec_of

CACHES: list[dict[str, Any]] = [{}, {"layout": "hnd"}, {"dtype": "int8"}, {"dtype": "int4", "table": "csr"}]
LIMIT = 2 << 30  # bytes more than the process had


def far(inputs: Any, elements: int) -> tuple[Any, torch.Tensor]:
    """The same call with its pages at the end of caches of more than so many elements; and where each page went."""
    count = inputs["k_cache"].shape[0]
    pages = elements // inputs["k_cache"][0].numel() + count
    places = pages - 1 - torch.arange(count)
    found: dict[str, Any] = {}
    for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
        if name in inputs and inputs[name].dim() > 2:
            found[name] = torch.empty([pages, *inputs[name].shape[1:]], dtype=inputs[name].dtype)
            found[name][places] = inputs[name]
    table = "page_table" if "page_table" in inputs else "page_indices"
    inside = (inputs[table] >= 0) & (inputs[table] < count)
    found[table] = torch.where(inside, places[inputs[table].clamp(0, count - 1).long()].int(), inputs[table])
    return {**inputs, **found}, places


@pytest.mark.parametrize("cache", CACHES)
def test_pages_past_two_to_the_31_elements(cache: Any) -> None:
    """The bits are those of the same pages in small caches."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spec = spec_of(16, cache=cache, splits="auto")
    inputs = draw(spec, ((1, 70), (5, 33)), dtype=torch.bfloat16)
    moved, places = far(inputs, 2**31)
    page = moved["k_cache"].stride(0)
    assert int(places.min()) * page >= 2**31
    assert same(run(spec, moved), run(spec, inputs))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < LIMIT


@pytest.mark.parametrize("cache", CACHES[:3])
def test_slots_past_two_to_the_31_elements(cache: Any) -> None:
    spec = spec_of(16, cache=cache)
    inputs = draw(spec, ((1, 70), (5, 33)), dtype=torch.bfloat16)
    moved, places = far(inputs, 2**31)
    k, v = (torch.randn(3, 2, 16).bfloat16() for _ in "kv")
    last, near = int(places.max()), torch.tensor([3, -1, 2 * 16 + 5])  # pages 0 and 2 of the small caches
    assert last == int(places[0])
    scales = {} if not cache.get("dtype") else {n: n for n in ("k_scale", "v_scale")}
    module = build(spec)
    for given, slots in (
        (inputs, near),
        (moved, torch.where(near < 0, near, places[near // 16] * 16 + near % 16)),
    ):
        module.append_kv(k, v, given["k_cache"], given["v_cache"], slots, **{n: given[n] for n in scales})
    for name in ("k_cache", "v_cache", *scales):
        assert torch.equal(moved[name][places].view(torch.uint8), inputs[name].view(torch.uint8))
