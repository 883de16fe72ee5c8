"""Caches of 8-bit numbers, and the kernel that writes new keys and values into their slots."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from paged import BASE, build, check, draw, run, same, spec_of
from torch import Tensor

import attngen
from attngen.check.stored import quantised, scales_of
from attngen.errors import SpecError

STORED = [
    {"dtype": "float8_e4m3", "scales": "per_tensor"},
    {"dtype": "float8_e4m3", "scales": "per_head"},
    {"dtype": "float8_e5m2", "scales": "per_token_head", "layout": "hnd"},
    {"dtype": "int8"},
    {"dtype": "int4"},
]
TORCH = {
    None: torch.float32,
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int4": torch.uint8,
}
UNUSED = {torch.int8: -128, torch.uint8: 0x88}  # as far from zero as numbers go


@pytest.mark.parametrize("cache", STORED)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"splits": 3, "sinks": True},
        {"head_dim": {"qk": 48, "v_from_k": 32}},
        {"score": "30 * tanh(s / 30)", "mask": "j <= i and i - j < 20"},
    ],
)
def test_stored_numbers_mean_themselves_times_their_scales(cache: Any, keys: Any) -> None:
    spec = spec_of(16, cache=cache, **keys)
    check(spec, draw(spec), tolerance=4e-6)
    check(spec, draw(spec, ((1, 70), (1, 0), (1, 33))), tolerance=4e-6)


# ---- append


def empty(cache: Any, pages: int, heads: int, columns: int) -> tuple[Tensor, Tensor | None]:
    """A cache of pages of 4 and its scales, all NaN (or what is as far from zero)."""
    shape = (pages, 4, heads) if cache.get("layout", "nhd") == "nhd" else (pages, heads, 4)
    dtype = TORCH[cache.get("dtype")]
    columns = columns // 2 if cache.get("dtype") == "int4" else columns
    whole = torch.full((*shape, columns), UNUSED.get(dtype, float("nan")), dtype=torch.float32).to(dtype)
    scales = {"per_tensor": (), "per_head": (heads,), "per_token_head": shape, None: None}
    kind = "per_token_head" if cache.get("dtype") in ("int8", "int4") else cache.get("scales")
    size = scales[kind]
    return whole, None if size is None else torch.full(
        size, 0.01 if kind != "per_token_head" else float("nan")
    )


def by_slot(cache: Any, x: Tensor) -> Tensor:
    x = numbers(x) if x.dtype == torch.uint8 else x
    return (x if cache.get("layout", "nhd") == "nhd" else x.transpose(1, 2)).double()


def numbers(packed: Tensor) -> Tensor:
    """4-bit numbers of bytes, by looking them up: the low half of a byte first, 8 to 15 stand for -8 to -1."""
    table = torch.tensor([*range(8), *range(-8, 0)])
    return torch.stack([table[packed.int() % 16], table[packed.int() // 16]], -1).flatten(-2)


@pytest.mark.parametrize("cache", [{}, {"layout": "hnd"}, *STORED])
def test_rows_come_back_from_their_slots(cache: Any) -> None:
    """Round trips: exact where nothing is quantised; else half a step of the stored numbers. Slots below 0 are left out."""
    spec = spec_of(4, cache=cache, head_dim={"qk": 24, "v": 16})
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(5, 2, n, generator=generator) for n in (24, 16))
    slots = torch.tensor([7, -1, 0, 13, 2])
    (k_cache, k_scale), (v_cache, v_scale) = (empty(cache, 4, 2, n) for n in (24, 16))
    scales = {} if k_scale is None else {"k_scale": k_scale, "v_scale": v_scale}
    build(spec).append_kv(k, v, k_cache, v_cache, slots, **scales)
    for rows, whole, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        stored = by_slot(cache, whole)
        kept = slots >= 0
        found = stored[slots[kept] // 4, slots[kept] % 4]
        factor = torch.ones(1, dtype=torch.float64)
        if scale is not None:
            per_key = (
                by_slot(cache, scale)[slots[kept] // 4, slots[kept] % 4]
                if scale.dim() == 3
                else scale.double()
            )
            factor = per_key[..., None] if per_key.dim() else per_key
        error = (found * factor - rows[kept].double()).abs()
        assert (error <= bound(cache.get("dtype"), rows[kept].double().abs(), factor)).all()
        touched = torch.zeros(4, 4, dtype=torch.bool)
        touched[slots[kept] // 4, slots[kept] % 4] = True
        rest = stored[~touched]
        least = {"int8": -128.0, "int4": -8.0}.get(cache.get("dtype"), float("nan"))
        assert torch.equal(rest.nan_to_num(nan=99.0), torch.full_like(rest, least).nan_to_num(nan=99.0))


def bound(dtype: str | None, size: Tensor, scale: Tensor) -> Tensor:
    """Half a step between stored numbers, and what fp32 adds to it."""
    if dtype is None:
        return torch.zeros_like(size)
    if dtype in ("int8", "int4"):
        return (0.5 + 1e-4) * scale
    relative, least = {"float8_e4m3": (2.0**-4, 2.0**-10), "float8_e5m2": (2.0**-3, 2.0**-17)}[dtype]
    return torch.maximum(size * relative, scale * least) * (1 + 1e-5)


def test_too_large_numbers_saturate() -> None:
    spec = spec_of(4, cache={"dtype": "float8_e4m3", "scales": "per_tensor"})
    k = torch.full((1, 2, 16), 1e6)
    caches = [torch.zeros(1, 4, 2, 16).to(torch.float8_e4m3fn) for _ in range(2)]
    scale = torch.tensor(2.0)
    build(spec).append_kv(k, -k, *caches, torch.tensor([3]), k_scale=scale, v_scale=scale)
    assert (caches[0][0, 3].float() == 448).all()
    assert (caches[1][0, 3].float() == -448).all()


PER_KEY = [
    {"dtype": name, "scales": "per_token_head"} for name in ("float8_e4m3", "float8_e5m2", "int8", "int4")
]


@pytest.mark.parametrize("cache", PER_KEY)
def test_a_key_of_zeros_has_a_scale(cache: Any) -> None:
    """Zeros divided by their largest would be NaN: they are stored as zeros, with the scale of numbers up to 1e-6."""
    spec = spec_of(4, cache=cache)
    (k_cache, k_scale), (v_cache, v_scale) = (empty(cache, 1, 2, 16) for _ in "kv")
    rows = torch.zeros(1, 2, 16)
    build(spec).append_kv(rows, rows, k_cache, v_cache, torch.tensor([2]), k_scale=k_scale, v_scale=v_scale)
    largest = {"float8_e4m3": 448, "float8_e5m2": 57344, "int8": 127, "int4": 7}[cache["dtype"]]
    for whole, scale in ((k_cache, k_scale), (v_cache, v_scale)):
        assert scale is not None
        torch.testing.assert_close(scale[0, 2], torch.full((2,), 1e-6 / largest), rtol=1e-6, atol=0)
        assert not by_slot(cache, whole)[0, 2].any()


@pytest.mark.parametrize("cache", [*STORED, *PER_KEY])
def test_stored_numbers_hold_no_nan(cache: Any) -> None:
    """A NaN becomes some finite number, and spoils neither its scale nor its neighbours."""
    spec = spec_of(4, cache=cache)
    (k_cache, k_scale), (v_cache, v_scale) = (empty(cache, 1, 2, 16) for _ in "kv")
    rows = torch.linspace(-1, 1, 32).reshape(1, 2, 16).repeat(2, 1, 1)
    rows[1, :, 3] = float("nan")
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    build(spec).append_kv(rows, rows, k_cache, v_cache, torch.tensor([0, 1]), **scales)
    others = torch.arange(16) != 3
    for whole, scale in ((k_cache, k_scale), (v_cache, v_scale)):
        assert scale is not None
        stored = by_slot(cache, whole)[0, :2]
        assert stored.isfinite().all()
        assert torch.equal(stored[1, :, others], stored[0, :, others])
        assert scale.dim() < 3 or by_slot(cache, scale)[0, :2].isfinite().all()


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding by complex numbers (arXiv:2104.09864), in float64."""
    turning, rest = x[..., : 2 * cos.shape[-1]].double(), x[..., 2 * cos.shape[-1] :].double()
    pairs = (
        turning.unflatten(-1, (-1, 2)) if interleaved else turning.unflatten(-1, (2, -1)).transpose(-1, -2)
    )
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos.double(), sin.double())[:, None]
    found = torch.view_as_real(turned)
    flat = found.flatten(-2) if interleaved else found.transpose(-1, -2).flatten(-2)
    return torch.cat([flat, rest], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("columns", [16, 10])
def test_keys_are_rotated_and_values_are_not(columns: int, interleaved: bool) -> None:
    spec = spec_of(4)
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(3, 2, 16, generator=generator) for _ in range(2))
    angles = torch.arange(9)[:, None] * 10.0 ** -torch.arange(columns // 2)
    positions = torch.tensor([8, 0, 3])
    k_cache, v_cache = torch.zeros(1, 4, 2, 16), torch.zeros(1, 4, 2, 16)
    rotary: Any = {
        "cos": angles.cos(),
        "sin": angles.sin(),
        "positions": positions,
        "interleaved": interleaved,
    }
    build(spec).append_kv(k, v, k_cache, v_cache, torch.tensor([0, 1, 2]), **rotary)
    expected = rotated(k, angles.cos()[positions], angles.sin()[positions], interleaved)
    torch.testing.assert_close(k_cache[0, :3].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(v_cache[0, :3], v)


def test_appended_keys_are_attended_to() -> None:
    """Write, then read: the same as attention over keys in a row."""
    spec = spec_of(4)
    module = build(spec)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, n, 16, generator=generator) for n in (4, 2, 2))
    k_cache, v_cache = (torch.full((6, 4, 2, 16), float("nan")) for _ in range(2))
    table = torch.tensor([[4, 1, 5]], dtype=torch.int32)
    place = torch.arange(9)
    module.append_kv(k, v, k_cache, v_cache, table[0, place // 4].long() * 4 + place % 4)
    lengths, ends = torch.tensor([9], dtype=torch.int32), torch.tensor([0, 9], dtype=torch.int32)
    out = module.attention(q, k_cache, v_cache, table, lengths, ends, 9)
    packed = attngen.load_spec({**BASE, "layout": "thd"})
    ends_k = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": 9, "max_seqlen_k": 9}
    torch.testing.assert_close(
        out.double(), attngen.reference(packed, q=q, k=k, v=v, **ends_k), rtol=0, atol=2e-6
    )


def test_append_is_traced_whole() -> None:
    spec = spec_of(4)
    module = build(spec)
    k = torch.randn(2, 2, 16)
    caches = [torch.zeros(1, 4, 2, 16) for _ in range(2)]
    torch.compile(module.append_kv, fullgraph=True, backend="eager")(k, k, *caches, torch.tensor([1, -1]))
    assert torch.equal(caches[0][0, 1], k[0])
    assert (caches[0][0, [0, 2, 3]] == 0).all()


# ---- mistakes

WRONG: dict[str, tuple[Any, str]] = {
    "slot_mapping": (torch.tensor([1.0, 2.0]), "slot_mapping: expected a contiguous int32 or int64"),
    "slot_mapping ": (torch.tensor([1, 99]), "slot_mapping: a slot lies outside the cache's 1 pages of 4"),
    "k": (torch.zeros(2, 3, 16), "k: expected shape"),
    "v": (torch.zeros(2, 2, 16, dtype=torch.bfloat16), "v: dtype torch.bfloat16 differs from k's"),
    "k_cache": (
        torch.zeros(1, 8, 2, 16),
        "k_cache: pages hold 8 keys, the kernel was generated for page_size 4",
    ),
    "cos": (torch.zeros(4, 8), "cos, sin, positions: rotary needs all three, or none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_of_append(name: str) -> None:
    value, message = WRONG[name]
    given: Any = {
        "k": torch.zeros(2, 2, 16),
        "v": torch.zeros(2, 2, 16),
        "k_cache": torch.zeros(1, 4, 2, 16),
        "v_cache": torch.zeros(1, 4, 2, 16),
        "slot_mapping": torch.tensor([0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        build(spec_of(4)).append_kv(**{**given, name.strip(): value})


ROTARY: dict[str, tuple[dict[str, Any], str]] = {
    "spread": ({"positions": torch.arange(4)[::2]}, "positions: must be contiguous"),
    "beyond": ({"positions": torch.tensor([0, 9])}, "positions: must lie within the 4 rows of cos and sin"),
    "negative": ({"positions": torch.tensor([-1, 0])}, "positions: must lie within the 4 rows"),
    "few": ({"positions": torch.tensor([0])}, "positions: expected int32 or int64"),
    "integers": (
        {"sin": torch.zeros(4, 8, dtype=torch.int32)},
        "cos, sin: expected one floating-point dtype",
    ),
    "wide": ({"cos": torch.zeros(4, 9), "sin": torch.zeros(4, 9)}, "cos: 18 columns to rotate, keys have 16"),
    "pair": ({"sin": torch.zeros(4, 6)}, "cos, sin: expected two contiguous"),
    "elsewhere": (
        {"positions": torch.zeros(2, dtype=torch.int64, device="meta")},
        "positions: is on meta, k is on cpu",
    ),
}


@pytest.mark.parametrize("name", ROTARY)
def test_wrong_rotary(name: str) -> None:
    change, message = ROTARY[name]
    rows, cache = torch.zeros(2, 2, 16), torch.zeros(1, 4, 2, 16)
    given = {"cos": torch.zeros(4, 8), "sin": torch.zeros(4, 8), "positions": torch.arange(2)} | change
    with pytest.raises(ValueError, match=message):
        build(spec_of(4)).append_kv(rows, rows, cache, cache.clone(), torch.tensor([0, 1]), **given)


def test_positions_of_rows_that_are_left_out_may_be_anything() -> None:
    rows, cache = torch.ones(2, 2, 16), torch.zeros(1, 4, 2, 16)
    given: Any = {"cos": torch.ones(4, 8), "sin": torch.zeros(4, 8), "positions": torch.tensor([99, 0])}
    build(spec_of(4)).append_kv(rows, rows, cache, cache.clone(), torch.tensor([-1, 1]), **given)
    assert cache[0, 1].eq(1).all()
    assert cache[0, 0].eq(0).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_of_all_keys_are_positive(scale: float) -> None:
    """A scale of 0 would make scores of -inf times 0."""
    spec = spec_of(16, cache={"dtype": "float8_e4m3", "scales": "per_head"})
    inputs = draw(spec)
    with pytest.raises(ValueError, match="k_scale: must be positive and finite"):
        build(spec).attention(**{**inputs, "k_scale": torch.full_like(inputs["k_scale"], scale)})


def test_a_scale_of_zero_on_a_device_hides_no_key() -> None:
    """There nobody reads it before the launch: a head whose keys are all zeros has equal weights, not NaN."""
    spec = spec_of(16, cache={"dtype": "float8_e4m3", "scales": "per_head"})
    inputs = draw(spec, ((3, 40),))
    inputs["k_cache"] = torch.zeros_like(inputs["k_cache"].float()).to(torch.float8_e4m3fn)
    module = build(spec)
    want = run(spec, inputs)
    with patch.object(module, "_check_scale"):
        found = run(spec, {**inputs, "k_scale": torch.zeros_like(inputs["k_scale"])})
    assert same(found, want)


def test_wrong_scales() -> None:
    spec = spec_of(16, cache={"dtype": "int8"})
    inputs = draw(spec)
    with pytest.raises(ValueError, match="k_scale: expected shape"):
        build(spec).attention(**{**inputs, "k_scale": inputs["k_scale"][:, :4]})
    with pytest.raises(ValueError, match=r"k_cache: expected dtype torch\.int8, got torch\.float32"):
        build(spec).attention(**{**inputs, "k_cache": inputs["k_cache"].float()})


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"dtype": "float8_e3m4"}, "cache.dtype: 'float8_e3m4' is not allowed; did you mean 'float8_e5m2'?"),
        ({"dtype": "bfloat16"}, "cache.dtype: bfloat16 is no dtype of stored numbers; leave dtype out"),
        ({"scales": "per_head"}, "cache.scales: scales multiply numbers of a dtype of their own; add dtype"),
        ({"dtype": "int8", "scales": "per_head"}, "cache.scales: int8 has one scale per key and head"),
    ],
)
def test_wrong_caches(cache: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(16, cache=cache)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("cache", STORED)
def test_a_cache_of_stored_numbers_keeps_its_form(cache: Any) -> None:
    spec = spec_of(16, cache=cache)
    assert attngen.load_spec(spec.canonical()) == spec


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["int8", "int4", "float8_e4m3"])
def test_small_values_beside_a_key_that_takes_most_weight(stored: str, dtype: str) -> None:
    """A weight times a scale is of the size 1e-3 * 1e-4: half precision has no such numbers."""
    spec = spec_of(16, cache={"dtype": stored, "scales": "per_token_head"}, dtype=dtype, heads=1)
    assert spec.cache is not None
    keys, values = torch.zeros(512, 1, 16), 0.02 + 0.01 * torch.rand(512, 1, 16)
    keys[0], values[0] = 9 / 4, 0
    rows: dict[str, Tensor] = {}
    for name, x in (("k", keys), ("v", values)):
        scale = scales_of(x, spec.cache)
        held = quantised(x, scale, spec.cache)
        rows |= {f"{name}_cache": held.unflatten(0, (32, 16)), f"{name}_scale": scale.unflatten(0, (32, 16))}
    call: Any = {
        "q": torch.ones(1, 1, 16, dtype=getattr(torch, dtype)),
        "page_table": torch.arange(32, dtype=torch.int32)[None],
        "cache_seqlens": torch.tensor([512], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32),
        "max_seqlen_q": 1,
    }
    found = build(spec).attention(**call, **rows).double()
    right = attngen.reference(spec, **call, **rows)
    assert (found - right).norm() < 2 * torch.finfo(getattr(torch, dtype)).eps * right.norm()


def test_caches_are_compared_with_the_rows_that_are_written() -> None:
    module = build(spec_of(4))
    rows, slots = torch.ones(2, 2, 16), torch.tensor([0, 5])
    cache = torch.zeros(3, 4, 2, 16)
    for wrong, message in (
        (cache.half(), "k_cache: dtype torch.float16 differs from k's torch.float32"),
        (cache.to("meta"), "k_cache: is on meta, k is on cpu"),
        (cache[:1].expand(3, -1, -1, -1), "k_cache: written in place, its slots must not share memory"),
    ):
        with pytest.raises(ValueError, match=message):
            module.append_kv(rows, rows, wrong, wrong, slots)
    with pytest.raises(TypeError, match="interleaved: expected True or False, got 'no'"):
        module.append_kv(rows, rows, cache, cache.clone(), slots, interleaved="no")
