"""The forward of softmax attention at the edges that broke other systems, each against the float64 oracle.

Every call runs with pointers and with descriptors, in tiles of 16, and under a watch that fails on any read of an
address that holds no element of an argument, and on any write outside the results.
"""

from __future__ import annotations

import functools
import json
import math
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import attngen
from attngen.runtime.cpu import overflow_checks, reversed_grid

TILE = 16
NAN = float("nan")
NONE = -math.inf
CAUSAL = "j <= i"


@functools.cache
def _built(text: str) -> ModuleType:
    return attngen.build(json.loads(text))


def build(**keys: Any) -> ModuleType:
    spec = {"attngen": 1, "name": "edge", "heads": 2, "head_dim": 16, "dtype": ["float32", "bfloat16"]}
    return _built(json.dumps(spec | keys))


def draw(
    module: ModuleType, seqlen_q: int, seqlen_k: int, *, batch: int = 2, kv: int = 2, seed: int = 0
) -> Any:
    """q, k and v of a dense module, or of a packed one with all tokens in a row."""
    heads, dims = module.SPEC["heads"], module.SPEC["head_dim"]
    generator = torch.Generator().manual_seed(seed)

    def tensor(length: int, count: int, columns: int) -> Tensor:
        shapes = {"bshd": (batch, length, count, columns), "bhsd": (batch, count, length, columns)}
        shape = shapes.get(module.SPEC["layout"], (length, count, columns))
        return torch.randn(shape, generator=generator)

    q_heads = kv * heads["q"] // heads["kv"]
    sizes = {"q": (seqlen_q, q_heads, "qk"), "k": (seqlen_k, kv, "qk"), "v": (seqlen_k, kv, "v")}
    return {name: tensor(length, count, dims[dim]) for name, (length, count, dim) in sizes.items()}


def run(
    module: ModuleType, *, descriptors: bool = False, tile: int = TILE, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """(out, lse) in small tiles, watched."""
    config = {
        "BLOCK_M": tile,
        "BLOCK_N": tile,
        "num_warps": 4,
        "num_stages": 1,
        "USE_DESCRIPTORS": descriptors,
    }
    with patch.dict(module.CONFIGS, cpu=[config]), watched(module, inputs):
        return module.attention(**inputs, return_lse=True)


def check(
    module: ModuleType, inputs: Any, *, exact: Any = None, rtol: float = 1e-5, **more: Any
) -> tuple[Tensor, Tensor]:
    """Compare with the oracle on the same inputs, or on `exact`; return (out, lse) of the kernel with pointers."""
    want = attngen.reference(module.SPEC, **{**inputs, **(exact or {})}, return_lse=True)
    results = [run(module, descriptors=descriptors, **inputs, **more) for descriptors in (False, True)]
    for out, lse in results:
        torch.testing.assert_close(
            out.double(), want[0], rtol=rtol, atol=rtol * float(want[0].abs().amax()) if out.numel() else 0
        )
        torch.testing.assert_close(lse.double(), want[1], rtol=rtol, atol=1e-5)
    return results[0]


# ---- the watch


def _addresses(tensor: Tensor) -> np.ndarray:
    """The address of every element."""
    offsets = np.zeros((), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + np.arange(size, dtype=np.int64) * stride
    return np.unique(tensor.data_ptr() + offsets * tensor.element_size())


@contextmanager
def watched(module: ModuleType, inputs: Any):
    """Fail on a load that no argument covers and on a store outside out and lse."""
    from triton.runtime import interpreter

    original = interpreter._interpreter
    tensors = [t for t in inputs.values() if isinstance(t, Tensor)]
    readable = np.unique(np.concatenate([_addresses(t) for t in tensors]))
    writable: list[Tensor] = []
    allocate = module._outputs

    def outputs(*args: Any) -> Any:
        writable.extend(allocate(*args))
        return tuple(writable[-2:])

    class Watch:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
            touched = np.broadcast_to(pointers, mask.shape)[mask].astype(np.int64)
            assert np.isin(touched, readable).all(), "a load reads outside every argument"
            return original.load(pointers, mask, *rest)

        def store(self, pointers: Any, value: Any, mask: Any) -> Any:
            touched = np.broadcast_to(pointers, mask.shape)[mask].astype(np.int64)
            inside = np.concatenate([_addresses(t) for t in writable])
            assert np.isin(touched, inside).all(), "a store writes outside the results"
            return original.store(pointers, value, mask)

    with patch.object(interpreter, "_interpreter", Watch()), patch.object(module, "_outputs", outputs):
        yield


def test_the_watch_sees_a_read_past_the_end():
    """The kernel is told of more keys than the tensor has: without the watch this reads foreign memory."""
    module = build(mask=CAUSAL)
    inputs = draw(module, 4, 20)
    short = inputs["k"].clone()[:, :12]
    claimed = torch.empty(0).set_(short.untyped_storage(), 0, (2, 20, 2, 16), short.stride())
    with pytest.raises(Exception, match="outside every argument"), watched(module, {**inputs, "k": short}):
        module.attention(inputs["q"], claimed, inputs["v"])


# ---- slots that are not used hold NaN


def surrounded(tensor: Tensor, before: int = 3, after: int = 5) -> Tensor:
    """The same values inside a larger buffer of NaN, with spare slots on all sides of every dimension."""
    buffer = torch.full([n + before + after for n in tensor.shape], NAN, dtype=tensor.dtype)
    inside = buffer[tuple(slice(before, before + n) for n in tensor.shape)]
    inside.copy_(tensor)
    return inside


@pytest.mark.parametrize("head_dim", [16, 24])
@pytest.mark.parametrize("mask", [CAUSAL, None, "j <= i and i - j < 5"])
def test_nan_around_padded_tensors(mask, head_dim):
    module = build(head_dim=head_dim, **({"mask": mask} if mask else {}))
    inputs = draw(module, 19, 37)
    padded = {name: surrounded(t) for name, t in inputs.items()}
    out, lse = check(module, padded, exact=inputs)
    assert not out.isnan().any()
    assert not lse.isnan().any()


def test_nan_in_slots_past_seqused_k():
    module = build(layout="thd", mask=CAUSAL)
    inputs = draw(module, 30, 90)
    lengths = {
        "cu_seqlens_q": torch.tensor([0, 7, 7, 30], dtype=torch.int32),
        "cu_seqlens_k": torch.tensor([0, 40, 60, 90], dtype=torch.int32),
        "max_seqlen_q": 23,
        "max_seqlen_k": 40,
        "seqused_k": torch.tensor([33, 0, 25], dtype=torch.int32),
    }
    dirty = {name: t.clone() for name, t in inputs.items()}
    for start, end in ((33, 60), (85, 90)):
        dirty["k"][start:end] = dirty["v"][start:end] = NAN
    check(module, {**dirty, **lengths}, exact=inputs)


@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_nan_of_a_packed_sequence_stays_there(spoiled):
    """Tiles reach over the end of a sequence; the neighbour's keys and queries are not this sequence's."""
    module = build(layout="thd", mask=CAUSAL)
    starts = [0, 9, 30, 41]
    inputs = draw(module, 41, 41)
    dirty = {name: t.clone() for name, t in inputs.items()}
    own = slice(starts[spoiled], starts[spoiled + 1])
    for tensor in dirty.values():
        tensor[own] = NAN
    cu = torch.tensor(starts, dtype=torch.int32)
    lengths: Any = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 21, "max_seqlen_k": 21}
    want, want_lse = attngen.reference(module.SPEC, **inputs, **lengths, return_lse=True)
    others = torch.ones(41, dtype=torch.bool)
    others[own] = False
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **dirty, **lengths)
        torch.testing.assert_close(out[others].double(), want[others], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[:, others].double(), want_lse[:, others], rtol=1e-5, atol=1e-5)


def test_nan_after_the_last_packed_sequence():
    module = build(layout="thd", mask=CAUSAL)
    inputs = draw(module, 20, 50)
    lengths: Any = {
        "cu_seqlens_q": torch.tensor([0, 5, 18], dtype=torch.int32),
        "cu_seqlens_k": torch.tensor([0, 17, 45], dtype=torch.int32),
        "max_seqlen_q": 13,
        "max_seqlen_k": 28,
    }
    want, want_lse = attngen.reference(
        module.SPEC, q=inputs["q"][:18], k=inputs["k"][:45], v=inputs["v"][:45], **lengths, return_lse=True
    )
    for name, end in (("q", 18), ("k", 45), ("v", 45)):
        inputs[name][end:] = NAN
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **inputs, **lengths)
        torch.testing.assert_close(out[:18].double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[:, :18].double(), want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", ["k", "v", "kv"])
def test_nan_in_whole_tiles_outside_the_window(names):
    module = build(mask="j <= i and i - j < 9")
    inputs = draw(module, 5, 80)
    dirty = {name: t.clone() for name, t in inputs.items()}
    for name in names:
        dirty[name][:, :64] = NAN
    check(module, dirty, exact=inputs)


UNUSED = {
    "window": ("j <= i and i - j < 9", slice(0, 67)),
    "chunk": ("j <= i and i // 10 == j // 10", slice(0, 70)),
    "future": ("j + 4 <= i", slice(76, 80)),
    "middle": ("j <= i and (i - j < 9 or j < 4)", slice(4, 67)),
    "residual": ("j <= i and (j * 7 + i // 100) % 3 == 0", [j for j in range(80) if j * 7 % 3]),
}


# V of a key that only a residual predicate excludes is loaded with its tile (the README says so): K may still be NaN
@pytest.mark.parametrize(
    ("name", "names"), [(n, t) for n in UNUSED for t in "kv" if (n, t) != ("residual", "v")]
)
def test_nan_in_keys_of_a_tile_that_no_query_may_see(name, names):
    """Part of a tile is used, the rest is freed or never written: 0 * NaN must not reach the result."""
    mask, unused = UNUSED[name]
    module = build(mask=mask)
    inputs = draw(module, 5, 80)
    dirty = {n: t.clone() for n, t in inputs.items()}
    dirty[names][:, unused] = NAN
    check(module, dirty, exact=inputs)


def test_nan_of_one_query_stays_in_its_row():
    module = build(mask=CAUSAL)
    inputs = draw(module, 20, 20)
    want, want_lse = attngen.reference(module.SPEC, **inputs, return_lse=True)
    inputs["q"][1, 4, 0] = NAN
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **inputs)
        assert out[1, 4, 0].isnan().all()
        assert lse[1, 0, 4].isnan()
        out[1, 4, 0], lse[1, 0, 4] = want[1, 4, 0].float(), want_lse[1, 0, 4].float()
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


# ---- rows without keys, empty tensors


@pytest.mark.parametrize(("mask", "empty"), [("j <= i - 20", 20), ("j <= i and j >= 6 and i >= 11", 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_keys(mask, empty, dtype):
    module = build(mask=mask)
    inputs = {name: t.to(dtype) for name, t in draw(module, 40, 40).items()}
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **inputs)
        assert (out[:, :empty] == 0).all()
        assert (lse[..., :empty] == NONE).all()
        assert lse[..., empty:].isfinite().all()
        assert (out[:, empty:] != 0).any(-1).all()


def test_rows_that_a_captured_tensor_masks():
    """Nothing in the plan says that these rows are empty."""
    module = build(mask="allow[b, row, j]", captured={"allow": {"dtype": "bool", "axes": ["B", "Sq", "Sk"]}})
    inputs = draw(module, 21, 35)
    allow = torch.rand(2, 21, 35, generator=torch.Generator().manual_seed(1)) < 0.3
    allow[:, 3] = allow[:, 20] = False
    out, lse = check(module, {**inputs, "allow": allow})
    assert (out[:, [3, 20]] == 0).all()
    assert (lse[..., [3, 20]] == NONE).all()


def test_a_score_of_minus_infinity_means_masked():
    """An additive bias of -inf, also for whole rows, and in tiles that the plan calls full."""
    module = build(score="s + bias[row, j]", captured={"bias": {"dtype": "float32", "axes": ["Sq", "Sk"]}})
    inputs = draw(module, 20, 48)
    bias = torch.randn(20, 48, generator=torch.Generator().manual_seed(1))
    bias[:, :20] = bias[7] = NONE
    out, lse = check(module, {**inputs, "bias": bias})
    assert (out[:, 7] == 0).all()
    assert (lse[..., 7] == NONE).all()


SHAPES = {
    "no queries": (0, 9, 2, 2),
    "no keys": (9, 0, 2, 2),
    "nothing": (0, 0, 2, 2),
    "no batch": (9, 9, 0, 2),
    "no heads": (9, 9, 2, 0),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("mask", [CAUSAL, None])
def test_empty_tensors(name, sinks, mask):
    module = build(sinks=sinks, **({"mask": mask} if mask else {}))
    seqlen_q, seqlen_k, batch, kv = SHAPES[name]
    inputs = draw(module, seqlen_q, seqlen_k, batch=batch, kv=kv)
    if sinks:
        inputs["sinks"] = torch.tensor([0.5, -2.0])[:kv]
    out, lse = module.attention(**inputs, return_lse=True)
    assert out.shape == (batch, seqlen_q, kv, 16)
    assert lse.shape == (batch, kv, seqlen_q)
    if lse.numel():
        assert (out == 0).all()
        want = torch.tensor([0.5, -2.0]) if sinks else torch.full((2,), NONE)
        torch.testing.assert_close(lse, want[None, :, None].expand(batch, kv, seqlen_q))


@pytest.mark.parametrize(
    "starts", [([0], [0]), ([0, 0, 0], [0, 0, 0]), ([0, 0, 5, 5], [0, 9, 9, 30]), ([0, 5], [0, 0])]
)
def test_empty_packed_sequences(starts):
    module = build(layout="thd", mask=CAUSAL)
    cu_q, cu_k = (torch.tensor(s, dtype=torch.int32) for s in starts)
    inputs = draw(module, int(cu_q[-1]), int(cu_k[-1]))
    lengths = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": 5, "max_seqlen_k": 30}
    check(module, {**inputs, **lengths})


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(40, 17), (17, 40), (33, 1), (1, 33), (16, 16), (31, 32)])
@pytest.mark.parametrize("mask", [CAUSAL, "j <= i and i - j < 6"])
def test_causal_is_aligned_to_the_last_key(seqlen_q, seqlen_k, mask):
    module = build(mask=mask)
    out, lse = check(module, draw(module, seqlen_q, seqlen_k))
    empty = max(seqlen_q - seqlen_k, 0)
    assert (lse[..., :empty] == NONE).all()
    assert lse[..., empty:].isfinite().all()
    assert (out[:, :empty] == 0).all()


# ---- extreme logits


def unit(level: float) -> float:
    """How far apart fp32 logits of this size are: the kernel holds them times log2(e)."""
    return float(np.spacing(np.float32(abs(level) * math.log2(math.e)))) * math.log(2)


@pytest.mark.parametrize("level", [-2.5e5, 2.5e5, -3.0e8])
def test_very_large_logits_are_not_masked(level):
    """All logits of a row lie near -2.5e5: a finite stand-in for -inf would turn the row into zeros or a mean of v."""
    module = build(score="s + offset", params={"offset": level}, mask=CAUSAL)
    inputs = draw(module, 24, 40)
    out, lse = run(module, **inputs)
    want, want_lse = attngen.reference(module.SPEC, **inputs, return_lse=True)
    assert (lse - want_lse).abs().amax() <= 2 * unit(level)
    if unit(level) < 0.1:
        assert (out - want).abs().amax() <= 4 * unit(level) * float(inputs["v"].abs().amax())
    assert out.isfinite().all()
    assert (out != 0).any(-1).all()


def test_equal_logits_near_minus_2e5_give_the_mean():
    module = build(mask=CAUSAL)
    inputs = draw(module, 20, 20)
    inputs["q"], inputs["k"] = torch.full_like(inputs["q"], -1000.0), torch.full_like(inputs["k"], 62.5)
    out, lse = check(module, inputs)
    counts = torch.arange(1, 21)[:, None, None]
    torch.testing.assert_close(out, inputs["v"].cumsum(1) / counts)
    torch.testing.assert_close(lse[0, 0], -250000.0 + counts[:, 0, 0].log(), rtol=0, atol=0.05)


@pytest.mark.parametrize("level", [0.0, -150.0, -1e4])
def test_first_tiles_are_masked_and_later_logits_are_small(level):
    """A running max clamped to 0 or to a finite number loses all weights below about -104."""
    module = build(
        mask="allow[b, row, j]", score="s + offset", params={"offset": level},
        captured={"allow": {"dtype": "bool", "axes": ["B", "Sq", "Sk"]}},
    )  # fmt: skip
    inputs = draw(module, 20, 70)
    allow = torch.zeros(2, 20, 70, dtype=torch.bool)
    allow[:, :10, 50:] = allow[:, 10:15, 5:7] = allow[:, 15:, 34:40] = True
    out, _ = check(module, {**inputs, "allow": allow}, rtol=2 * unit(level) + 1e-5)
    assert (out != 0).any(-1).all()


@pytest.mark.parametrize("level", [-150.0, -1e4])
def test_a_window_whose_first_tiles_are_empty_for_late_rows(level):
    module = build(mask="j <= i and i - j < 3", score="s + offset", params={"offset": level})
    check(module, draw(module, 40, 40), rtol=2 * unit(level) + 1e-5)


@pytest.mark.parametrize("magnitude", [1e2, 1e4, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softcap_far_beyond_the_cap(magnitude, dtype):
    """tanh through exp overflows at |s / cap| = 88; the cap comes before the mask, so masked stays masked."""
    module = build(score="5 * tanh(s / 5)", mask=CAUSAL)
    inputs = {name: t.to(dtype) for name, t in draw(module, 20, 33).items()}
    inputs["q"] = inputs["q"] * magnitude
    want, want_lse = attngen.reference(module.SPEC, **inputs, return_lse=True)
    eager = attngen.reference(module.SPEC, **inputs, precision="same")
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **inputs)
        assert (out - want).abs().amax() <= 2 * (eager - want).abs().amax() + 1e-5
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cap", [1e-3, 50.0, 1e6])
def test_softcap_of_any_size(cap):
    module = build(score="softcap * tanh(s / softcap)", params={"softcap": "float"}, mask=CAUSAL)
    check(module, {**draw(module, 20, 33), "softcap": cap})


# ---- which keys


@pytest.mark.parametrize("window", [1, 15, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("mask", ["j <= i and i - j < window", "i - window < j <= i"])
def test_every_key_of_the_window_and_no_other(window, mask):
    """With q = 0 all seen keys weigh the same, and v = identity shows which they are."""
    module = build(mask=mask, params={"window": "int"}, heads=1, head_dim={"qk": 16, "v": 64})
    seqlen_q, seqlen_k = 50, 64
    q, k = torch.zeros(1, seqlen_q, 1, 16), torch.randn(1, seqlen_k, 1, 16)
    v = torch.eye(64)[None, :, None]
    i, j = torch.arange(14, 64)[:, None], torch.arange(64)
    seen = (j <= i) & (i - j < window)
    for descriptors in (False, True):
        out, lse = run(module, q=q, k=k, v=v, window=window, descriptors=descriptors)
        assert torch.equal(out[0, :, 0] > 0, seen)
        torch.testing.assert_close(lse[0, 0], seen.sum(-1).float().log())


@pytest.mark.parametrize("window", [0, -1, -(2**28), 2**28])
def test_windows_of_any_size(window):
    module = build(mask="j <= i and i - j < window", params={"window": "int"})
    with overflow_checks(True):
        _, lse = check(module, {**draw(module, 40, 20), "window": window})
    assert (lse[..., 20:].isfinite() == (window > 0)).all()


@pytest.mark.parametrize("seqlen_k", [1, 15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("seqlen_q", [1, 16, 17])
def test_ragged_tails_with_mask_and_score(seqlen_q, seqlen_k):
    module = build(
        mask="j <= i or j < prefix[b]", score="3 * tanh(s / 3) + slopes[h] * (j - i)",
        captured={"prefix": {"dtype": "int32", "axes": ["B"]}, "slopes": {"dtype": "float32", "axes": ["Hq"]}},
    )  # fmt: skip
    inputs = draw(module, seqlen_q, seqlen_k)
    check(
        module,
        {**inputs, "prefix": torch.tensor([0, 19], dtype=torch.int32), "slopes": torch.tensor([0.5, -0.1])},
    )


# ---- heads and head dims


@pytest.mark.parametrize("group", [3, 5, 7])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_groups_of_heads_that_are_no_power_of_two(group, layout):
    module = build(heads={"q": 2 * group, "kv": 2}, layout=layout, mask=CAUSAL)
    check(module, draw(module, 9, 20, kv=3))


def test_query_heads_that_no_group_divides_are_refused():
    module = build(heads={"q": 6, "kv": 2}, mask=CAUSAL)
    q, k = torch.zeros(1, 4, 7, 16), torch.zeros(1, 4, 2, 16)
    with pytest.raises(ValueError, match="q has 7 heads and k 2: expected 3 query heads per kv head"):
        module.attention(q, k, k)
    with pytest.raises(attngen.errors.SpecError, match="heads"):
        build(heads={"q": 7, "kv": 2})


@pytest.mark.parametrize("head_dim", [72, 80, 96, 40, 8, {"qk": 96, "v": 72}, {"qk": 24, "v": 8}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dims_that_are_no_power_of_two(head_dim, dtype):
    module = build(head_dim=head_dim, mask=CAUSAL)
    inputs = {name: surrounded(t.to(dtype)) for name, t in draw(module, 9, 20).items()}
    want, want_lse = attngen.reference(module.SPEC, **inputs, return_lse=True)
    eager = attngen.reference(module.SPEC, **inputs, precision="same")
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **inputs)
        assert (out - want).abs().amax() <= 2 * (eager - want).abs().amax() + 1e-6
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


# ---- strides


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same values with other strides; the last dimension stays contiguous."""
    match kind:
        case "transposed":
            return tensor.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
        case "padded":
            return torch.nn.functional.pad(tensor, (0, 8, 0, 1, 0, 3), value=NAN)[
                :, : tensor.shape[1], : tensor.shape[2], :16
            ]
        case "every other token":
            return tensor.repeat_interleave(2, 1)[:, ::2]
        case "fused":
            return torch.stack([tensor, tensor * NAN], 2)[:, :, 0]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["transposed", "padded", "every other token", "fused"])
def test_other_strides_same_bits(kind):
    module = build(mask=CAUSAL)
    inputs = draw(module, 18, 37)
    expected, expected_lse = run(module, **inputs)
    views = {name: strided(t, kind) for name, t in inputs.items()}
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **views)
        assert torch.equal(out, expected)
        assert torch.equal(lse, expected_lse)


@pytest.mark.parametrize("dimension", [0, 1, 2])
@pytest.mark.parametrize("names", ["q", "kv", "qkv"])
def test_expanded_tensors(dimension, names):
    module = build(mask=CAUSAL)
    inputs = draw(module, 18, 37)
    for name in names:
        sizes = inputs[name].shape
        inputs[name] = inputs[name].narrow(dimension, 0, 1).expand(sizes)
        assert inputs[name].stride(dimension) == 0
    check(module, inputs)


def test_expanded_and_strided_captured_tensors():
    module = build(
        score="s + bias[b, h, row, j]",
        captured={"bias": {"dtype": "float32", "axes": ["B", "Hq", "Sq", "Sk"]}},
    )
    inputs = draw(module, 18, 37)
    bias = torch.randn(2, 2, 37, 18, generator=torch.Generator().manual_seed(1)).transpose(-1, -2)
    check(module, {**inputs, "bias": bias})
    check(module, {**inputs, "bias": bias[:1, :, :1].expand(2, 2, 18, 37)})
    whole = bias[:1, :, :, :1].expand(2, 2, 18, 37)
    expected = attngen.reference(module.SPEC, **inputs, bias=whole)
    for descriptors in (False, True):
        out, _ = run(module, **inputs, bias=bias[:1, :, :, :1], descriptors=descriptors)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_last_dimension_that_is_not_contiguous_is_refused(name):
    module = build(mask=CAUSAL)
    inputs = draw(module, 5, 5)
    inputs[name] = inputs[name].repeat_interleave(2, -1)[..., ::2]
    with pytest.raises(ValueError, match=f"{name}: the last dimension must be contiguous"):
        module.attention(**inputs)


# ---- offsets past 2**31 elements, in memory that is never touched


@pytest.fixture
def vast():
    """A tensor of 2**31 + 2**28 elements; the system gives pages only to what a test writes."""
    try:
        return torch.empty(2**31 + 2**28, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("this machine does not give out address space for 5 GB")


VAST = {
    "batch": (2, 3, 2, (2**31 + 64, 64, 16)),
    "head": (1, 3, 2, (64, 64, 2**31 + 64)),
    "token": (1, 34, 2, (0, 2**26, 16)),
    "far tile": (1, 1088, 1, (0, 2**21, 16)),
}


@pytest.mark.parametrize(
    ("name", "which"),
    [*((name, "kv") for name in VAST), *((name, "q") for name in VAST if name != "far tile")],
)
def test_offsets_past_2_to_the_31(vast, name, which):
    batch, length, heads, strides = VAST[name]
    module = build(mask=CAUSAL, heads=1)
    other = 5 if length > 40 else length
    inputs = draw(
        module, length if which == "q" else other, length if which != "q" else other, batch=batch, kv=heads
    )
    inputs = {n: t.bfloat16() for n, t in inputs.items()}
    expected, expected_lse = run(module, **inputs)
    far = dict(inputs)
    for n, start in (("q", 0),) if which == "q" else (("k", 0), ("v", 32)):
        far[n] = vast.as_strided(inputs[n].shape, (*strides, 1), start)
        far[n].copy_(inputs[n])
    last = far[which[0]]
    assert sum((n - 1) * s for n, s in zip(last.shape, last.stride(), strict=True)) > 2**31
    for descriptors in (False, True):
        out, lse = run(module, descriptors=descriptors, **far)
        assert torch.equal(out, expected)
        assert torch.equal(lse, expected_lse)


def test_packed_offsets_past_2_to_the_31(vast):
    module = build(mask=CAUSAL, heads=1, layout="thd")
    inputs = {n: t.bfloat16() for n, t in draw(module, 34, 34, kv=1).items()}
    cu = torch.tensor([0, 3, 34], dtype=torch.int32)
    lengths: Any = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 31, "max_seqlen_k": 31}
    expected, _ = run(module, **inputs, **lengths)
    far = {}
    for start, (name, tensor) in enumerate(inputs.items()):
        far[name] = vast.as_strided(tensor.shape, (2**26, 16, 1), 16 * start).copy_(tensor)
    for descriptors in (False, True):
        assert torch.equal(run(module, descriptors=descriptors, **far, **lengths)[0], expected)


CAPTURED_STRIDES = {
    "head": (2**31 + 64, 64, 1),
    "row": (64, 2**27, 1),
    "key": (8, 32, 2**26),
    "all": (3 * 2**29, 2**25, 2**19),
}


@pytest.mark.parametrize("name", CAPTURED_STRIDES)
def test_captured_offsets_past_2_to_the_31(vast, name):
    module = build(
        score="s + bias[h, row, j]", captured={"bias": {"dtype": "bfloat16", "axes": ["Hq", "Sq", "Sk"]}}
    )
    inputs = draw(module, 18, 34)
    bias = torch.randn(2, 18, 34, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected, _ = run(module, **inputs, bias=bias)
    far = vast.as_strided(bias.shape, CAPTURED_STRIDES[name]).copy_(bias)
    for descriptors in (False, True):
        assert torch.equal(run(module, descriptors=descriptors, **inputs, bias=far)[0], expected)


# ---- captured tensors under masked lanes: the watch fails on any read outside them


TABLES = {
    "distance": ("s + table[i - j]", "j <= i and i - j < 20", {"dtype": "float32", "axes": [20]}),
    "key": ("s + table[j - 7]", "j >= 7", {"dtype": "float32", "axes": [30]}),
    "row": ("s + table[row - 3]", "row >= 3", {"dtype": "float32", "axes": [20]}),
    "mask": ("s", "j >= 5 and table[j - 5] > 0", {"dtype": "int32", "axes": [40]}),
    "head": ("s + table[h, i - j]", "0 <= i - j < 20", {"dtype": "float32", "axes": ["Hq", 20]}),
}


@pytest.mark.parametrize("name", TABLES)
def test_captured_tensors_are_not_read_where_the_mask_is_false(name):
    score, mask, captured = TABLES[name]
    module = build(mask=mask, captured={"table": captured}, **({} if score == "s" else {"score": score}))
    shape = [2 if n == "Hq" else n for n in captured["axes"]]
    table = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    table = (table * 3).int() if captured["dtype"] == "int32" else table
    check(module, {**draw(module, 23, 37), "table": table})


def test_document_ids_of_keys_before_the_first_query():
    module = build(
        mask="j <= i and doc[b, i] == doc[b, j]",
        captured={"doc": {"dtype": "int32", "axes": ["B", "Sk"], "sorted": True}},
    )
    doc = torch.tensor([[0] * 5 + [1] * 20 + [4] * 8, [2] * 33], dtype=torch.int32)
    check(module, {**draw(module, 33, 33), "doc": doc})
    out, lse = check(module, {**draw(module, 40, 33), "doc": doc})
    assert (lse[..., :7] == NONE).all()
    assert (out[:, :7] == 0).all()


# ---- lse, sinks, scale


def test_lse_is_a_natural_logarithm():
    module = build(mask=CAUSAL)
    inputs = draw(module, 12, 20)
    _, lse = run(module, **inputs)
    scores = torch.einsum("bihd,bjhd->bhij", inputs["q"].double(), inputs["k"].double()) / 4
    hidden = torch.arange(20) > torch.arange(8, 20)[:, None]
    torch.testing.assert_close(
        lse.double(), scores.masked_fill(hidden, NONE).logsumexp(-1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("sink", [NONE, -1e4, 0.0, 3.0, 1e4, 1e30])
@pytest.mark.parametrize("mask", [CAUSAL, "j <= i - 5"])
def test_sinks_of_any_size(sink, mask):
    """A sink counts once in l and lse; -inf is no sink; a row without keys has the sink's value as lse."""
    module = build(mask=mask, sinks=True)
    inputs = draw(module, 20, 37)
    out, lse = check(module, {**inputs, "sinks": torch.tensor([sink, 0.5])})
    assert not out.isnan().any()
    assert not lse.isnan().any()
    if sink == NONE:
        plain, plain_lse = run(build(mask=mask), **inputs)
        torch.testing.assert_close(out[:, :, 0], plain[:, :, 0])
        torch.testing.assert_close(lse[:, 0], plain_lse[:, 0])
    if sink >= 1e4:
        assert (out[:, :, 0] == 0).all()
        torch.testing.assert_close(lse[:, 0], torch.full_like(lse[:, 0], sink))


@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-30, 30.0])
def test_a_given_scale(scale):
    module = build(mask=CAUSAL)
    check(module, {**draw(module, 12, 20), "softmax_scale": scale})


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, math.inf, -math.inf])
def test_a_scale_that_is_not_positive_is_refused(scale):
    module = build(mask=CAUSAL)
    with pytest.raises(ValueError, match="softmax_scale: must be positive and finite"):
        module.attention(**draw(module, 4, 4), softmax_scale=scale)


# ---- the same numbers whatever else runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_alone_and_in_a_batch_and_backwards(dtype):
    module = build(mask="j <= i and i - j < 30", heads={"q": 4, "kv": 2})
    inputs = {name: t.to(dtype) for name, t in draw(module, 20, 37, batch=3).items()}
    out, lse = run(module, **inputs)
    for b in range(3):
        alone, alone_lse = run(module, **{name: t[b : b + 1] for name, t in inputs.items()})
        assert torch.equal(alone[0], out[b])
        assert torch.equal(alone_lse[0], lse[b])
    with reversed_grid():
        again, again_lse = run(module, **inputs)
    assert torch.equal(again, out)
    assert torch.equal(again_lse, lse)


OVERFLOW = {
    "causal": {"mask": CAUSAL},
    "window": {"mask": "j <= i and i - j < 5"},
    "chunk": {"mask": "j <= i and i // 7 == j // 7"},
    "neighbours": {
        "mask": "max(0, min(i - 3, seqlen_k - 7)) <= j and j < max(0, min(i - 3, seqlen_k - 7)) + 7"
    },
    "packed": {"mask": CAUSAL, "layout": "thd"},
}


@pytest.mark.parametrize("name", OVERFLOW)
def test_no_integer_overflows(name):
    module = build(**OVERFLOW[name])
    inputs = draw(module, 20, 37)
    if name == "packed":
        cu = {
            "cu_seqlens_q": [0, 4, 4, 20],
            "cu_seqlens_k": [0, 9, 20, 37],
            "max_seqlen_q": 16,
            "max_seqlen_k": 17,
        }
        inputs |= {n: torch.tensor(x, dtype=torch.int32) if isinstance(x, list) else x for n, x in cu.items()}
    with overflow_checks(True):
        check(module, inputs)


# ---- what tells two modules apart


DIFFERENT = {
    "score": {"score": "2 * s"},
    "score's constant": {"score": "3 * s"},
    "mask": {"mask": "j < i"},
    "param": {"mask": "j <= i and i - j < window", "params": {"window": 4}},
    "param's value": {"mask": "j <= i and i - j < window", "params": {"window": 5}},
    "run-time param": {"mask": "j <= i and i - j < window", "params": {"window": "int"}},
    "dtypes": {"dtype": ["float32"]},
    "layout": {"layout": "bhsd"},
    "group": {"heads": {"q": 4, "kv": 2}},
    "head dim": {"head_dim": 32},
    "sinks": {"sinks": True},
    "precision": {"precision": "tf32"},
}


def test_specs_that_differ_in_one_key_have_modules_of_their_own():
    modules = [build(mask=CAUSAL), *(build(**{"mask": CAUSAL, **keys}) for keys in DIFFERENT.values())]
    for tell in (id, lambda m: m.DIGEST, lambda m: m.__name__, lambda m: m._forward._qualname):
        assert len({tell(m) for m in modules}) == len(modules)
    assert attngen.build(modules[0].SPEC) is modules[0]


def test_modules_of_one_name_keep_their_own_results():
    """Loaded one after the other, each still computes its own formula through its own custom op."""
    inputs = draw(build(mask=CAUSAL), 5, 9)
    modules = [build(mask=CAUSAL, score=f"{n} * s") for n in (2, 3, 4)]
    for module in modules:
        check(module, inputs)
