"""Calls with keys in pages for tests: built modules, drawn problems, a watch on what a kernel touches."""

from __future__ import annotations

import functools
import json
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import attngen
from attngen.check.inputs import make_inputs
from attngen.check.problem import Problem
from attngen.spec import Spec, load_spec

MIXED = ((1, 40), (20, 31), (0, 9), (5, 5), (1, 1), (3, 0), (7, 4), (33, 70))
BASE: dict[str, Any] = {
    "attngen": 1,
    "name": "paged",
    "heads": {"q": 4, "kv": 2},
    "head_dim": 16,
    "dtype": ["float32", "bfloat16"],
    "mask": "j <= i",
}
TILES = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}


def committed(name: str, **keys: Any) -> Spec:
    """A spec of the repository with some keys changed."""
    path = Path(__file__).parents[1] / "specs" / f"{name}.yaml"
    return load_spec({**load_spec(path).canonical(), **keys})


def spec_of(page_size: int = 16, *, cache: Any = (), **keys: Any) -> Spec:
    paged = {"kind": "paged", "page_size": page_size} | dict(cache)
    return load_spec({**BASE, "cache": paged, **keys})


@functools.cache
def _built(canonical: str) -> ModuleType:
    return attngen.build(json.loads(canonical))


def build(spec: Spec) -> ModuleType:
    return _built(json.dumps(spec.canonical(), sort_keys=True))


def draw(
    spec: Spec,
    lengths: Any = MIXED,
    *,
    kv_heads: int = 2,
    seed: int = 0,
    dtype: Any = torch.float32,
    **params: int,
) -> Any:
    """The arguments of a call: queries and keys of each sequence, keys in random pages, NaN in all other slots."""
    problem = Problem(
        name="drawn",
        lengths=tuple(lengths),
        kv_heads=kv_heads,
        params=tuple(params.items()),
        seed=seed,
    )
    return make_inputs(spec, problem, dtype)


def run(spec: Spec, inputs: Any, **config: int) -> tuple[Tensor, Tensor]:
    """(out, lse) of the kernel in small tiles."""
    module = build(spec)
    small = {"cpu": [TILES | config]}
    few = getattr(module, "DECODE_CONFIGS", {})
    with patch.dict(module.CONFIGS, small), patch.dict(few, small):
        return module.attention(**inputs, return_lse=True)


def check(spec: Spec, inputs: Any, *, tolerance: float = 2e-6, **config: int) -> tuple[Tensor, Tensor]:
    """Compare a kernel with the oracle, relative to the largest values."""
    out, lse = run(spec, inputs, **config)
    want, want_lse = attngen.reference(spec, **inputs, return_lse=True)
    size = max(1.0, float(want.abs().max()) if want.numel() else 0.0)
    torch.testing.assert_close(out.double(), want, rtol=0, atol=tolerance * size)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=2e-6)
    return out, lse


def moved(inputs: Any, seed: int = 1) -> Any:
    """The same call with its pages elsewhere in the caches (dense table)."""
    count = inputs["k_cache"].shape[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    found = {name: torch.empty_like(x) for name, x in inputs.items() if name.endswith("_cache")}
    for name, cache in found.items():
        cache[order] = inputs[name]
    table = inputs["page_table"].clone()
    inside = (table >= 0) & (table < count)
    table[inside] = order.int()[table[inside].long()]
    return {**inputs, **found, "page_table": table}


def same(one: Any, other: Any) -> bool:
    """Whether two results have the same bits."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def addresses(tensor: Tensor) -> np.ndarray:
    """The address of every element."""
    offsets = np.zeros((), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + np.arange(size, dtype=np.int64) * stride
    return np.unique(tensor.data_ptr() + offsets * tensor.element_size())


@contextmanager
def watched(readable: np.ndarray):
    """Fail on a load from any other address."""
    from triton.runtime import interpreter

    original = interpreter._interpreter

    class Watch:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
            touched = np.broadcast_to(pointers, mask.shape)[mask].astype(np.int64)
            assert np.isin(touched, readable).all(), "a load outside what may be read"
            return original.load(pointers, mask, *rest)

    with patch.object(interpreter, "_interpreter", Watch()):
        yield


def slots(spec: Spec, cache: Tensor, inputs: Any, seen: Any) -> list[Tensor]:
    """Views of the slots of a cache (dense table) that hold keys (sequence, j) of `seen`."""
    assert spec.cache is not None
    size, by_slot = spec.cache.page_size, cache if spec.cache.layout == "nhd" else cache.transpose(1, 2)
    return [by_slot[int(inputs["page_table"][b, j // size]), j % size] for b, j in seen]
