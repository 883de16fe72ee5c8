"""Dropout: which weights fall out is the same in every kernel, schedule, layout and machine, and looks random."""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import attngen
from attngen.check.problem import Problem
from attngen.reference.interpreter_random import philox, random_bits
from attngen.reference.oracle_dropout import dropout_factors
from attngen.runtime.cpu import overflow_checks
from attngen.runtime.load import load_module
from attngen.spec import load_spec
from tests.kernel_gradients import OTHERS, SMALL, Schedule, check, inputs_of, kernel_gradients

P, SEED = 0.3, torch.tensor([-(2**62) - 5, 2**33 + 1])
THRESHOLD = round(P * 65536)
DTYPES = ["float32", "bfloat16", "float16"]


@functools.cache
def _built(text: str) -> Any:
    return attngen.build(json.loads(text))


def spec(**keys: Any) -> dict[str, Any]:
    data = {"attngen": 1, "name": "dropped", "heads": {"q": 4, "kv": 2}, "head_dim": 64, "dtype": DTYPES}
    return data | {"dropout": True, "grad": True} | keys


def build(**keys: Any) -> Any:
    return _built(json.dumps(spec(**keys)))


def expected_bits(*size: int, seed: Tensor = SEED, first_b: int = 0) -> Tensor:
    return random_bits((int(seed[0]), int(seed[1])), first_b, size)  # type: ignore[arg-type]


# ---- the generator

TESTS_OF_RANDOM123 = [
    ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("key", "counter", "words"), TESTS_OF_RANDOM123)
def test_philox_is_that_of_random123(key, counter, words):
    """Known answers of Random123's own tests (kat_vectors, philox4x32 10)."""
    found = philox(key, tuple(np.array(c, np.uint64) for c in counter))
    assert " ".join(f"{int(word):08x}" for word in found) == words


KERNEL = """
import triton
import triton.language as tl


@triton.jit
def by_triton(o_ptr, seed, N: tl.constexpr):
    i = tl.arange(0, N)
    words = tl.philox(seed, i * 77777777, i - 3, i * i, i)
    for n in tl.static_range(4):
        tl.store(o_ptr + n * N + i, words[n].to(tl.int64))
"""


def test_philox_is_that_of_triton(tmp_path):
    path = tmp_path / "by_triton.py"
    path.write_text(KERNEL)
    seed, found = -(2**61) + 12345, torch.empty(4, 64, dtype=torch.int64)
    load_module(path, interpret=True).by_triton[(1,)](found, seed, 64)
    i = np.arange(64)
    counter = tuple((c % 2**32).astype(np.uint64) for c in (i * 77777777, i - 3, i * i, i))
    own = philox((seed % 2**32, seed // 2**32 % 2**32), counter)
    assert torch.equal(found, torch.from_numpy(np.stack(own).astype(np.int64)))


def test_oracle_and_interpreter_draw_the_same():
    bits = expected_bits(2, 3, 37, 53, first_b=5)
    symbols = {"b": torch.arange(5, 7)[:, None, None, None], "h": torch.arange(3)[:, None, None]}
    symbols |= {"row": torch.arange(37)[:, None], "j": torch.arange(53)}
    for threshold in (1, 20000, 65534):
        factors = dropout_factors(threshold, (int(SEED[0]), int(SEED[1])), symbols)
        kept = 65536 / (65536 - threshold)
        assert torch.equal(factors, (bits >= threshold).double() * kept)


def test_numbers_depend_on_their_place_alone():
    """Other lengths, heads and batches; and the first words, worked out by hand as the layout says."""
    bits = expected_bits(3, 4, 50, 70)
    assert torch.equal(expected_bits(3, 2, 19, 33), bits[:, :2, :19, :33])
    assert torch.equal(expected_bits(1, 4, 50, 70, first_b=2), bits[2:])
    low, high = (int(n) % 2**32 for n in (SEED[0], SEED[0] >> 32))
    offset = [int(n) % 2**32 for n in (SEED[1], SEED[1] >> 32)]
    first = philox((low, high), tuple(np.array(n, np.uint64) for n in (*offset, 0, 0)))
    b, h, row, j = 2, 3, 41, 29
    counter = (1 * 4 + 13 % 8 // 2, 2 * 8 + 9 % 8, h, b)  # row is 32 + 9, j is 16 + 13
    words = philox((int(first[0]), int(first[1])), tuple(np.array(n, np.uint64) for n in counter))
    assert int(bits[b, h, row, j]) == int(words[1 * 2 + 1]) % 2**16


# ---- statistics, of half a million numbers

DRAWN = random_bits((1, 0), 0, (2, 4, 256, 256))
SIGMAS = 5.0


@pytest.mark.parametrize("p", [2**-16, 0.001, 0.1, 0.3, 0.5, 0.9, 1 - 2**-15])
def test_the_rate_is_the_one_asked_for(p):
    n, rate = DRAWN.numel(), round(p * 65536) / 65536
    dropped = int((round(p * 65536) > DRAWN).sum())
    assert abs(dropped - n * rate) <= SIGMAS * math.sqrt(n * rate * (1 - rate)) + 1


@pytest.mark.parametrize("byte", [0, 8])
def test_all_numbers_are_equally_frequent(byte):
    counts = torch.bincount((DRAWN >> byte & 255).flatten(), minlength=256).double()
    mean = DRAWN.numel() / 256
    assert abs(float(((counts - mean) ** 2 / mean).sum()) - 255) <= SIGMAS * math.sqrt(2 * 255)


def correlation(a: Tensor, b: Tensor) -> float:
    """In units of what independent numbers have."""
    x, y = (t.double().flatten() - t.double().mean() for t in (a, b))
    return float((x * y).sum() / (x.norm() * y.norm())) * math.sqrt(x.numel())


@pytest.mark.parametrize("axis", range(4), ids=["b", "h", "row", "j"])
@pytest.mark.parametrize("values", ["numbers", "masks"])
def test_neighbours_are_independent(axis, values):
    drawn = DRAWN if values == "numbers" else DRAWN < 6554
    length = drawn.shape[axis]
    for distance in {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 32} & set(range(length)):
        near, far = (drawn.narrow(axis, start, length - distance) for start in (0, distance))
        assert abs(correlation(near, far)) <= SIGMAS, distance


def test_rows_and_columns_have_no_pattern_together():
    for rows, keys in ((1, 1), (8, 8), (1, -1), (8, -1), (16, 16), (-8, 8)):
        assert abs(correlation(DRAWN, DRAWN.roll((rows, keys), (2, 3)))) <= SIGMAS, (rows, keys)
    assert abs(correlation(DRAWN, DRAWN.transpose(2, 3))) <= SIGMAS


@pytest.mark.parametrize(
    "seed", [(2, 0), (1, 1), (0, 1), (-1, 0), (1, 2**32), (1 + 2**32, 0), (1, -1), (2**62, 0)]
)
def test_another_seed_or_offset_gives_other_numbers(seed):
    assert abs(correlation(DRAWN, random_bits(seed, 0, tuple(DRAWN.shape)))) <= SIGMAS  # type: ignore[arg-type]


# ---- kernels: the mask, read off probes

Q, K = 37, 53


def eye(rows: int, heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.eye(64, dtype=dtype)[:rows, None].repeat(2, 1, heads, 1).reshape(2, rows, heads, 64)


def forward_mask(module: Any, config: dict[str, Any] | None, **how: Any) -> Tensor:
    """What the forward keeps: with equal weights and an identity as values, a row of out is a row of the mask."""
    given = {"q": torch.zeros(2, Q, 4, 64), "k": eye(K, 2), "v": eye(K, 2)}
    how = {"dropout_p": P, "seed": SEED} | how
    out, lse = module.launch(**given, softmax_scale=0.125, **how, config=config)
    assert torch.allclose(lse, torch.full_like(lse, math.log(K)))
    assert torch.allclose(out[out != 0], torch.tensor(65536 / (65536 - THRESHOLD) / K))
    return out.transpose(1, 2)[..., :K] != 0


def backward_masks(module: Any, schedule: Schedule) -> dict[str, Tensor]:
    """What dq, dk and dv take to be kept: all scores are 0, delta is 0, and dp is 1 for one query head of each group."""
    zero, one = torch.zeros(2, Q, 4, 64), torch.ones(2, K, 2, 64)
    lse = torch.full((2, 4, Q), math.log(K))
    shared = {"dlse": None, "out": zero, "lse": lse, "softmax_scale": 0.125, "dropout_p": P, "seed": SEED}
    configs = schedule.configs(module)
    first = torch.nn.functional.one_hot(torch.zeros(2, Q, 4, dtype=torch.long), 64).float()
    dq, _, _ = module.launch_backward(dout=first, q=zero, k=eye(K, 2), v=one, **shared, configs=configs)
    masks = {"dq": dq.transpose(1, 2)[..., :K] != 0}
    for head in (0, 1):
        own = (torch.arange(4) % 2 == head)[:, None] * eye(Q, 4)
        _, dk, dv = module.launch_backward(dout=own, q=eye(Q, 4), k=0 * one, v=one, **shared, configs=configs)
        for name, found in (("dk", dk), ("dv", dv)):
            mask = masks.setdefault(name, torch.empty(2, 4, Q, K, dtype=torch.bool))
            mask[:, head::2] = found.permute(0, 2, 3, 1)[:, :, :Q] != 0
    return masks


@pytest.mark.parametrize(
    ("m", "n", "descriptors"),
    [(16, 16, False), (32, 64, True), (64, 16, False), (128, 32, True), (16, 128, False)],
)
def test_the_forward_drops_what_the_layout_says(m, n, descriptors):
    config = {"BLOCK_M": m, "BLOCK_N": n, "num_warps": 4, "num_stages": 1, "USE_DESCRIPTORS": descriptors}
    assert torch.equal(forward_mask(build(), config), expected_bits(2, 4, Q, K) >= THRESHOLD)


@pytest.mark.parametrize("row", [2, 9])
def test_a_number_that_equals_the_threshold_is_kept(row):
    """In the high half of a word (rows 0 to 7 of 16) and in its low one; and the next probability drops it."""
    number = int(expected_bits(2, 4, Q, K)[0, 0, row, 5])
    for threshold, kept in ((number, True), (number + 1, False)):
        given = tensors(q=torch.zeros(2, Q, 4, 64), k=eye(K, 2), v=eye(K, 2))
        out = build().attention(**given, dropout_p=threshold / 65536, seed=SEED)
        assert bool(out[0, row, 0, 5] != 0) == kept


SCHEDULES = [SMALL, *OTHERS[:3], *(pytest.param(s, marks=pytest.mark.slow) for s in OTHERS[3:])]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_all_backward_kernels_drop_the_same(schedule):
    expected = expected_bits(2, 4, Q, K) >= THRESHOLD
    for name, found in backward_masks(build(), schedule).items():
        assert torch.equal(found, expected), name


def test_no_32_bit_integer_overflows():
    config = {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1, "USE_DESCRIPTORS": False}
    with overflow_checks(True):
        assert torch.equal(forward_mask(build(), config), expected_bits(2, 4, Q, K) >= THRESHOLD)
        assert torch.equal(backward_masks(build(), SMALL)["dk"], expected_bits(2, 4, Q, K) >= THRESHOLD)


def test_a_mask_table_does_not_change_the_mask():
    table = build(mask="(i + 2 * j) % 3 != 0", mask_table=True, grad=False)
    q, v = torch.zeros(2, Q, 4, 64), eye(K, 2)
    out = table.attention(q, 0 * v, v, dropout_p=P, seed=SEED).transpose(1, 2)[..., :K]
    i, j = torch.arange(Q)[:, None] + K - Q, torch.arange(K)
    allowed = (i + 2 * j) % 3 != 0
    assert torch.equal(out != 0, (expected_bits(2, 4, Q, K) >= THRESHOLD) & allowed)


def test_packed_sequences_drop_as_batch_entries_do():
    """Sequence b, query row and key j of a packed call are those of a dense one."""
    dense, packed = build(mask="j <= i"), build(mask="j <= i", layout="thd")
    tensors = [torch.randn(3, n, h, 64) for n, h in ((Q, 4), (K, 2), (K, 2))]
    out = dense.attention(*tensors, dropout_p=P, seed=SEED)
    lengths = {"q": Q, "k": K}
    starts = {f"cu_seqlens_{s}": torch.arange(4, dtype=torch.int32) * n for s, n in lengths.items()}
    longest = {f"max_seqlen_{s}": n for s, n in lengths.items()}
    flat = [t.flatten(0, 1) for t in tensors]
    found = packed.attention(*flat, **starts, **longest, dropout_p=P, seed=SEED)
    assert torch.equal(found, out.flatten(0, 1))


# ---- calls


def tensors(dtype: torch.dtype = torch.float32, **more: Any) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 20, 4, 64), "k": (2, 33, 2, 64), "v": (2, 33, 2, 64)}
    return {n: torch.randn(s, generator=source).to(dtype) for n, s in shapes.items()} | more


def test_without_probability_nothing_changes():
    """Not a bit, whatever the seed; gradients too."""
    plain, dropped = build(dropout=False, mask="j <= i"), build(mask="j <= i")
    for seed in (None, 5, SEED):
        given = {n: t.requires_grad_() for n, t in tensors(torch.bfloat16).items()}
        results = []
        for out, lse in (
            plain.attention(**given, return_lse=True),
            dropped.attention(**given, dropout_p=0.0, seed=seed, return_lse=True),
        ):
            grads = torch.autograd.grad((out.float().square().sum() + lse.sum()), list(given.values()))
            results.append((out, lse, *grads))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_lse_is_that_of_all_weights():
    module = build()
    _, plain = module.attention(**tensors(), return_lse=True)
    _, dropped = module.attention(**tensors(), dropout_p=0.5, seed=1, return_lse=True)
    assert torch.equal(plain, dropped)


def test_the_mean_over_seeds_is_the_undropped_result():
    module, given = build(), tensors()
    outs = torch.stack([module.attention(**given, dropout_p=0.4, seed=n) for n in range(30)]).double()
    error = (outs.mean(0) - module.attention(**given)) / (outs.std(0) / math.sqrt(30))
    assert float(error.square().mean()) == pytest.approx(29 / 27, abs=0.5)  # some 160 independent rows


def test_seeds():
    module, given = build(), tensors()
    call = functools.partial(module.attention, **given, dropout_p=0.5)
    assert torch.equal(call(seed=7), call(seed=torch.tensor([7, 0])))
    assert torch.equal(call(seed=-7), call(seed=torch.tensor([-7, 0])))
    assert not torch.equal(call(seed=7), call(seed=8))
    assert not torch.equal(call(seed=7), call(seed=torch.tensor([7, 1])))


def test_without_a_seed_torch_draws_one():
    module, given = build(), tensors()
    call = functools.partial(module.attention, **given, dropout_p=0.5)
    torch.manual_seed(3)
    first, second = call(), call()
    torch.manual_seed(3)
    assert torch.equal(call(), first)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    module.attention(**given)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn where nothing is dropped


def test_small_probabilities_drop_something():
    """A threshold of 8 bits would make 0 of 0.001, and one of 16 bits of 0.000001."""
    assert build()._dropout_threshold(0.001) == 66
    assert [build()._dropout_threshold(p) for p in (0.0, 1e-9, 2**-16, 1 - 1e-9)] == [0, 1, 1, 65534]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nearly_everything_dropped_stays_finite(dtype):
    """What is kept is worth up to 32768 times as much, which float16 can hold."""
    given = tensors(dtype)
    given["v"] = torch.rand(2, 33, 2, 64).to(dtype)
    out = build().attention(**given, dropout_p=1 - 1e-9, seed=1)
    assert out.isfinite().all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"dropout_p": -0.1}, "dropout_p: must lie in [0, 1), got -0.1"),
    "one": ({"dropout_p": 1.0}, "dropout_p: must lie in [0, 1), got 1.0"),
    "nan": ({"dropout_p": float("nan")}, "dropout_p: must lie in [0, 1), got nan"),
    "text": ({"dropout_p": "0.1"}, "dropout_p: expected a number, got str"),
    "bool": ({"dropout_p": True}, "dropout_p: expected a number, got bool"),
    "tensor": ({"dropout_p": torch.tensor(0.1)}, "dropout_p: expected a number, got Tensor"),
    "float seed": ({"seed": 1.5}, "seed: expected an int or an int64 tensor [2], got float"),
    "bool seed": ({"seed": True}, "seed: expected an int or an int64 tensor [2], got bool"),
    "large seed": ({"seed": 2**63}, f"seed: must fit 64 bits, got {2**63}"),
    "small seed": ({"seed": -(2**63) - 1}, f"seed: must fit 64 bits, got {-(2**63) - 1}"),
    "seed dtype": ({"seed": torch.tensor([1, 2]).int()}, "int64 [2] (seed, offset), got torch.int32 (2,)"),
    "seed shape": ({"seed": torch.tensor([1, 2, 3])}, "int64 [2] (seed, offset), got torch.int64 (3,)"),
    "seed scalar": ({"seed": torch.tensor(1)}, "int64 [2] (seed, offset), got torch.int64 ()"),
    "seed strides": ({"seed": torch.tensor([1, 2, 3])[::2]}, "seed: expected a contiguous int64 [2]"),
    "seed device": ({"seed": torch.empty(2, dtype=torch.int64, device="meta")}, "seed: is on meta, q is on cpu"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    changes, message = WRONG[name]
    for more in ({}, {"dropout_p": 0.5}):
        with pytest.raises((ValueError, TypeError), match=re.escape("dropped: ") + ".*" + re.escape(message)):
            build().attention(**tensors(), **(more | changes))


@pytest.mark.parametrize("given", [{"dropout_p": 0.1}, {"seed": 1}, {"seed": SEED}])
def test_a_spec_without_dropout_says_how_to_get_it(given):
    message = "dropped: dropout_p, seed: the spec has none; add `dropout: true` and generate again"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(dropout=False, grad=False).attention(**tensors(), **given)


# ---- gradients, against autograd through the oracle

RAGGED = Problem(name="ragged", lengths=((37, 53),) * 2, kv_heads=2)
PACKED = Problem(
    name="packed",
    lengths=((5, 9), (0, 4), (7, 0), (20, 33), (33, 20), (1, 17)),
    kv_heads=2,
    used_k=(6, 0, 0, 33, 1, 9),
)
CAUSAL = {"mask": "j <= i"}
VARIANTS: dict[str, dict[str, Any]] = {
    "causal": CAUSAL,
    "bidirectional": {},
    "sinks": CAUSAL | {"sinks": True},
    "window and softcap": {"mask": "j <= i and i - j < 9", "score": "20 * tanh(s / 20)"},
    "per head": CAUSAL | {
        "score": "s + x[h] * (j - i)", "captured": {"x": {"dtype": "float32", "axes": ["Hq"], "grad": True}}
    },
    "rows": CAUSAL | {
        "score": "s * y[b, h, row]",
        "captured": {"y": {"dtype": "float32", "axes": ["B", "Hq", "Sq"], "grad": True}},
    },
    "other head dims": CAUSAL | {"head_dim": {"qk": 24, "v": 40}, "layout": "bhsd"},
    "packed": CAUSAL | {"layout": "thd", "sinks": True},
}  # fmt: skip


FAST = ("causal", "sinks", "packed")
TIERS = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]


@pytest.mark.parametrize("name", TIERS)
def test_gradients(name):
    given = load_spec(spec(**({"head_dim": 32} | VARIANTS[name])))
    problem = PACKED if name == "packed" else RAGGED
    inputs = inputs_of(given, problem, torch.float32)
    check(given, inputs, (SMALL, OTHERS[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_gradients_of_16_bit_tensors(dtype, p):
    given = load_spec(spec(head_dim=32, **CAUSAL))
    check(given, inputs_of(given, RAGGED, dtype, dropout_p=p), (OTHERS[1],))


@pytest.mark.parametrize("lengths", [(1, 1), (1, 70), (33, 1), (40, 20), (0, 7), (5, 0)])
def test_gradients_of_odd_lengths(lengths):
    given = load_spec(spec(head_dim=16, **CAUSAL))
    check(given, inputs_of(given, Problem(name="odd", lengths=(lengths,) * 2, kv_heads=2), torch.float32))


def test_values_that_nobody_keeps_get_no_gradient():
    """And those that are kept get one: dv is 0 exactly where the mask is, for one query."""
    given = load_spec(spec(head_dim=64, heads=2))
    q, k, v = (torch.randn(1, n, 2, 64) for n in (1, K, K))
    inputs = {"q": q, "k": k, "v": v, "dropout_p": P, "seed": SEED}
    out = attngen.build(given).attention(**inputs)
    _, found = kernel_gradients(given, attngen.build(given), inputs, torch.ones_like(out))
    kept = expected_bits(1, 2, 1, K) >= THRESHOLD
    assert torch.equal((found["v"] != 0).all(-1), kept[0, :, 0].T[None])
    assert torch.equal((found["v"] == 0).all(-1), ~kept[0, :, 0].T[None])


def test_the_same_bits_each_time():
    given = load_spec(spec(head_dim=16, **CAUSAL))
    inputs = inputs_of(given, RAGGED, torch.bfloat16)
    module = attngen.build(given)
    out = module.attention(**inputs)
    runs = [kernel_gradients(given, module, inputs, torch.ones_like(out)) for _ in range(3)]
    assert all(torch.equal(run[1][n], runs[0][1][n]) for run in runs for n in "qkv")


# ---- torch


def test_checkpointing_draws_the_same_again():
    from torch.utils.checkpoint import checkpoint

    attention = functools.partial(build(**CAUSAL).attention, dropout_p=0.5)
    found = []
    for function in (attention, lambda *x: checkpoint(attention, *x, use_reentrant=False)):
        torch.manual_seed(0)
        leaves = [t.requires_grad_() for t in tensors().values()]
        found.append(torch.autograd.grad(function(*leaves).square().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("seed", [5, SEED, None], ids=["int", "tensor", "drawn"])
def test_compile_gives_the_same_in_one_graph(seed):
    torch._dynamo.reset()
    attention = build(**CAUSAL).attention

    def function(seed: Any, **given: Tensor) -> Tensor:
        return attention(**given, dropout_p=0.5, seed=seed).square().sum()

    found = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        given = {n: t.requires_grad_() for n, t in tensors().items()}
        result = call(seed, **given)
        found.append((result, *torch.autograd.grad(result, list(given.values()))))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled)


@pytest.mark.parametrize("seeds", [(SEED, SEED + 1, SEED * 2), (5, 6, -7)], ids=["tensors", "ints"])
def test_another_seed_does_not_compile_again(seeds):
    torch._dynamo.reset()
    attention = build(**CAUSAL).attention

    def function(seed: Any, **given: Tensor) -> Tensor:
        return attention(**given, dropout_p=0.5, seed=seed)

    fast = torch.compile(function, backend="eager", fullgraph=True, dynamic=True)
    for n, seed in enumerate(seeds):
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            assert torch.equal(fast(seed, **tensors()), function(seed, **tensors()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED, None], ids=["tensor", "drawn"])
def test_inductor(seed):
    """What it draws itself is its own; forward and backward agree on it: the gradient of a sum over v is the sum of weights."""
    torch._dynamo.reset()
    attention = build(**CAUSAL).attention
    given = {n: t.requires_grad_() for n, t in tensors().items()}
    fast = torch.compile(lambda **g: attention(**g, dropout_p=0.5, seed=seed), fullgraph=True)
    out = fast(**given)
    if seed is not None:
        torch.testing.assert_close(out, attention(**given, dropout_p=0.5, seed=seed))
    [dv] = torch.autograd.grad(out.sum(), [given["v"]])
    torch.testing.assert_close((dv * given["v"]).sum(), out.sum(), rtol=1e-4, atol=1e-3)
