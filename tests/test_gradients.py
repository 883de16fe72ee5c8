"""The backward kernels in Triton's interpreter: every gradient against the float64 oracle, and the edges that broke others.

All launches run under a watch: a read that no argument covers, a write outside the results and a place that is written
twice fail; memory that nobody has written holds NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from torch import Tensor

pytest.importorskip("triton")

import attngen
from attngen.check.problem import Problem
from attngen.errors import CheckError, PlanError
from attngen.runtime.cpu import overflow_checks, reversed_grid
from attngen.spec import Spec, load_spec
from tests.kernel_gradients import (
    EPS32,
    OTHERS,
    SMALL,
    Schedule,
    attend,
    check,
    incoming,
    inputs_of,
    kernel_gradients,
    largest,
    norm_ratios,
    scheduled,
    watched,
)
from tests.passes.gradients import NAMES as COMMITTED
from tests.passes.gradients import SPECS
from tests.passes.test_differentiate import SMALL as NUMBERS

NAN = float("nan")
DTYPES = ["float32", "bfloat16", "float16"]
CAUSAL = "j <= i"
RAGGED = Problem(name="ragged", lengths=((37, 53),), kv_heads=2)
PACKED = Problem(name="packed", lengths=((5, 9), (0, 4), (7, 0), (20, 33), (33, 20), (1, 17)), kv_heads=2)
UNUSED = replace(PACKED, name="unused keys", used_k=(6, 0, 0, 33, 1, 9), spare=3)


def make(**changes: Any) -> Spec:
    small = {"attngen": 1, "name": "gradients", "heads": 1, "head_dim": 16, "dtype": DTYPES, "grad": True}
    return load_spec({**small, **changes})


def committed(name: str, **changes: Any) -> Spec:
    """A spec of ``specs/`` with a gradient, and numbers that matter at small lengths."""
    data = {**yaml.safe_load((SPECS / f"{name}.yaml").read_text()), **NUMBERS.get(name, {})}
    if "head_dim" in changes and "v_from_k" in str(data["head_dim"]):
        changes["head_dim"] = {"qk": 48, "v_from_k": 32}
    data |= {"grad": True, "dtype": DTYPES, **changes}
    if name == "alibi":
        data["captured"]["slopes"]["grad"] = True
    return load_spec(data)


def few_heads(spec: Spec, problem: Problem) -> Problem:
    return replace(problem, kv_heads=1) if spec.heads.group > 3 else problem


def slow(*values: Any) -> list[Any]:
    """Values of a parameter for the long tier."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# ---- every spec of specs/


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_specs(name):
    spec = committed(name, head_dim=16)
    problem = few_heads(spec, PACKED if spec.layout == "thd" else RAGGED)
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", COMMITTED)
def test_committed_specs_as_they_are(name, dtype):
    spec = committed(name)
    lengths = Problem(name="", lengths=((70, 130),) * 2)
    problem = few_heads(spec, PACKED if spec.layout == "thd" else lengths)
    check(spec, inputs_of(spec, problem, getattr(torch, dtype)), OTHERS[:2])


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(53, 37), (1, 40), (40, 1), (17, 16), (64, 64), (5, 200), (200, 5)])
@pytest.mark.parametrize("name", [n for n in COMMITTED if n != "document_packed"])
def test_committed_specs_at_other_lengths(name, lengths):
    spec = committed(name, head_dim=16)
    problem = few_heads(spec, Problem(name="", lengths=(lengths,) * 2))
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, OTHERS[0], OTHERS[1]))


FAST = ("alibi", "gpt_oss_sinks", "gpt2_dropout", "document_packed")


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float16")])
@pytest.mark.parametrize(
    ("name", "seeds"),
    [*((n, 4) for n in FAST), *(pytest.param(n, 20, marks=pytest.mark.slow) for n in COMMITTED)],
)
def test_errors_are_at_most_twice_those_of_eager_models(name, seeds, dtype):
    """By the norm of a gradient's error, without any allowance. Single elements have more, in one of some hundred gradients."""
    spec = committed(name, head_dim=16)
    for seed in range(seeds):
        lengths = ((37, 53), (20, 70), (53, 37), (64, 64), (33, 40))[seed % 5]
        problem = PACKED if spec.layout == "thd" else Problem(name="", lengths=(lengths,), kv_heads=2)
        inputs = inputs_of(spec, replace(few_heads(spec, problem), seed=seed), getattr(torch, dtype))
        ratios = norm_ratios(spec, inputs, Schedule(dq=(64, 64), dkdv=(64, 64), captured=32), seed)
        assert max(ratios.values()) <= 2, f"seed {seed}: {ratios}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["alibi", "gpt_oss_sinks"])
def test_kernels_after_that_of_dq_have_delta_without_the_error_of_out(name, seed):
    """Out in 16 bits spoils sum(out * dout), by less than what the gradient of k may be off; p and dp in fp32 do not."""
    spec = committed(name, head_dim=16, heads=2)
    inputs = inputs_of(spec, replace(RAGGED, seed=seed), torch.bfloat16)
    module, kept = attngen.build(spec), list[Tensor]()

    class Kept:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            return lambda **given: (kept.append(given["delta"].clone()), self.kernel[grid](**given))

    wide = {n: x.double() if isinstance(x, Tensor) else x for n, x in inputs.items()}
    exact, lse = attngen.reference(spec, **wide, return_lse=True)
    dout, dlse = incoming(exact.bfloat16(), lse.float())
    for given in (dlse, None):
        with patch.object(module, "_backward_dkdv", Kept(module._backward_dkdv)):
            kernel_gradients(spec, module, inputs, dout, given, OTHERS[0])
        right = (exact * dout.double()).sum(-1).transpose(1, 2) - (0 if given is None else given.double())
        products = dout.double().abs().sum(-1).max() * inputs["v"].double().abs().max()  # dp is no larger
        found = kept[-1][:, :, : right.shape[-1]]
        # fp32 tells weights as exactly as lse, and their sum with dlse
        assert (found - right).abs().max() <= 2 * EPS32 * max(1.0, largest(lse)) * (products + largest(dlse))


# ---- dtypes, layouts, heads, head dims

MASKS = {
    "causal": CAUSAL,
    "none": "",
    "window": "j <= i and i - j < 9",
    "both sides": "abs(i - j) <= 6",
    "chunk": "j <= i and i // 10 == j // 10",
    "sink columns": "j <= i and (i - j < 9 or j < 4)",
    "residual": "j <= i and (j * 7 + i) % 3 == 0",
    "future": "j + 4 <= i",
    "rows": "i % 3 != 0",
    "head": "j <= i + 3 * h",
}
SCORES = {
    "plain": "",
    "softcap": "2 * tanh(s / 2)",
    "square": "s * s / 4 + s",
    "distance": "s - 0.1 * abs(i - j)",
}


def formulas(mask: str, score: str = "plain") -> dict[str, str]:
    found = {"mask": MASKS.get(mask, mask), "score": SCORES.get(score, score)}
    return {key: text for key, text in found.items() if text}


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float16")])
@pytest.mark.parametrize("mask", ["causal", "window", *slow("sink columns", "none")])
def test_16_bit(mask, dtype):
    spec = make(**formulas(mask, "softcap" if mask == "window" else "plain"), sinks=mask == "causal")
    check(spec, inputs_of(spec, RAGGED, getattr(torch, dtype)), (SMALL, OTHERS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_scores(mask, score, dtype):
    spec = make(heads={"q": 2, "kv": 1}, **formulas(mask, score))
    check(spec, inputs_of(spec, RAGGED, getattr(torch, dtype)), (SMALL, *OTHERS[:3]))


@pytest.mark.parametrize("head_dim", [64, 72, 128, {"qk": 192, "v": 128}, {"qk": 24, "v": 8}])
@pytest.mark.parametrize("strides", ["padded", *slow("contiguous")])
def test_head_dims(head_dim, strides):
    spec = make(head_dim=head_dim, mask=CAUSAL)
    problem = Problem(name="", lengths=((18, 37),), strides=strides)
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("head_dim", [64, 72, 128, {"qk": 192, "v": 128}, {"qk": 24, "v": 8}, 40, 256])
def test_head_dims_16_bit(head_dim, dtype):
    spec = make(head_dim=head_dim, mask=CAUSAL, score="5 * tanh(s / 5)")
    problem = Problem(name="", lengths=((40, 37),))
    check(spec, inputs_of(spec, problem, getattr(torch, dtype)), (SMALL, OTHERS[0]))


@pytest.mark.parametrize("group", [*slow(1, 4), 7])
@pytest.mark.parametrize("layout", ["bshd", "thd", *slow("bhsd")])
@pytest.mark.parametrize("formula", ["mask", "h"])
def test_groups_of_heads(layout, group, formula):
    """With `h` in a formula, programs own query heads, and a sum over the group follows."""
    more = formulas("causal") if formula == "mask" else formulas("causal", "s * (1 + h) / 4")
    spec = make(heads={"q": group, "kv": 1}, layout=layout, **more)
    problem = Problem(name="", lengths=((9, 20), (20, 5)) if layout == "thd" else ((9, 20),) * 2, kv_heads=2)
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *slow("float16")])
@pytest.mark.parametrize("problem", [UNUSED, *slow(PACKED)], ids=lambda p: p.name)
def test_packed(problem, dtype):
    """Sequences without queries, without keys, with more queries than keys; starts that are multiples of nothing."""
    spec = make(layout="thd", heads={"q": 2, "kv": 1}, mask=CAUSAL, sinks=True)
    found = check(spec, inputs_of(spec, problem, getattr(torch, dtype)), (SMALL, OTHERS[0]))
    used = problem.used_k or tuple(n for _, n in problem.lengths)
    for start, (_, length), count in zip(problem.starts("k"), problem.lengths, used, strict=False):
        for name in "kv":
            assert not found[name][start + count : start + length].any()


@pytest.mark.slow
@pytest.mark.parametrize("problem", [PACKED, UNUSED], ids=lambda p: p.name)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", MASKS)
def test_packed_masks_and_scores(mask, score, problem):
    spec = make(layout="thd", heads={"q": 2, "kv": 1}, **formulas(mask, score))
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, *OTHERS[:3]))


def test_tokens_of_no_sequence_have_no_gradient():
    spec = make(layout="thd", mask=CAUSAL)
    problem = Problem(name="", lengths=((5, 17), (13, 28)), kv_heads=2)
    inputs = inputs_of(spec, problem, torch.float32)
    longer = {n: torch.cat([inputs[n], torch.full((5, 2, 16), NAN)]) for n in "qkv"}
    module, names = attngen.build(spec), list("qkv")
    for schedule in (SMALL, OTHERS[0]):
        with scheduled(module, schedule), watched(module):
            out, lse, leaves = attend(module, {**inputs, **longer}, names)
            dout, dlse = incoming(out, lse)
            dout[18:], dlse[:, 18:] = NAN, NAN
            found = torch.autograd.grad([out, lse], list(leaves.values()), [dout, dlse])
            out, lse, leaves = attend(module, inputs, names)
            right = torch.autograd.grad([out, lse], list(leaves.values()), [dout[:18], dlse[:, :18]])
        for got, want in zip(found, right, strict=True):
            assert torch.equal(got[: len(want)], want)
            assert not got[len(want) :].any()


# ---- lengths

EDGES = [(40, 17), (17, 40), (33, 1), (1, 33), (16, 16), (31, 32), (129, 5), (5, 0), (0, 7), (0, 0)]


@pytest.mark.parametrize("lengths", EDGES, ids=str)
@pytest.mark.parametrize("mask", ["window", *slow("causal")])
def test_lengths(mask, lengths):
    """Rows without keys have gradient 0, never NaN; so have keys that no row sees."""
    spec = make(sinks=mask == "window", **formulas(mask))
    inputs = inputs_of(spec, Problem(name="", lengths=(lengths,) * 2), torch.float32)
    found = check(spec, inputs, (SMALL, OTHERS[0]))
    assert not found["q"][:, : max(lengths[0] - lengths[1], 0)].any()


@pytest.mark.parametrize(
    "mask", ["j <= i - 20", "j <= i and j >= 6 and i >= 11", "j > row + 100", "i >= 3 and j <= i"]
)
@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16")])
def test_rows_without_keys(mask, dtype):
    spec = make(mask=mask, sinks=True, score="s * 0.5 + j * 0.01")
    inputs = inputs_of(spec, Problem(name="", lengths=((40, 40),)), getattr(torch, dtype))
    check(spec, inputs, (SMALL, OTHERS[0]))


@pytest.mark.parametrize("shape", [(0, 9, 2), (2, 9, 0), (0, 0, 0)])
def test_no_batch_and_no_heads(shape):
    batch, length, heads = shape
    spec = make(mask=CAUSAL, sinks=True)
    module = attngen.build(spec)
    inputs = {n: torch.zeros(batch, length, heads, 16) for n in "qkv"} | {"sinks": torch.zeros(heads)}
    out, lse, leaves = attend(module, inputs, [*"qkv", "sinks"])
    for name, found in zip(
        leaves, torch.autograd.grad(out.sum() + lse.sum(), list(leaves.values())), strict=True
    ):
        assert found.shape == inputs[name].shape
        assert not found.any()


@pytest.mark.parametrize("starts", [([0], [0]), ([0, 0, 0], [0, 0, 0]), ([0, 5], [0, 0]), ([0, 0], [0, 5])])
def test_empty_packed_sequences(starts):
    spec = make(layout="thd", mask=CAUSAL)
    module = attngen.build(spec)
    cu = [torch.tensor(s, dtype=torch.int32) for s in starts]
    inputs = {
        n: torch.randn(s[-1], 2, 16) for n, s in zip("qkv", (starts[0], starts[1], starts[1]), strict=True)
    }
    inputs |= {"cu_seqlens_q": cu[0], "cu_seqlens_k": cu[1], "max_seqlen_q": 5, "max_seqlen_k": 5}
    out, _, leaves = attend(module, inputs, list("qkv"))
    for found in torch.autograd.grad(out.sum(), list(leaves.values())):
        assert not found.any()


# ---- slots that are not used hold NaN


def dirty(inputs: dict[str, Any], places: Any, names: Iterable[str] = "kv") -> dict[str, Any]:
    found = {n: inputs[n].clone() for n in names}
    for tensor in found.values():
        tensor[places] = NAN
    return {**inputs, **found}


HIDDEN = {
    "window": ("j <= i and i - j < 9", slice(0, 67)),
    "chunk": ("j <= i and i // 10 == j // 10", slice(0, 70)),
    "future": ("j + 4 <= i", slice(76, 80)),
    "middle": ("j <= i and (i - j < 9 or j < 4)", slice(4, 67)),
    "keys": ("j <= i and j % 7 != 3", slice(3, 80, 7)),
}


@pytest.mark.parametrize("score", ["plain", *slow("softcap")])
@pytest.mark.parametrize("name", HIDDEN)
def test_nan_in_keys_that_no_query_may_see(name, score):
    mask, unused = HIDDEN[name]
    spec = make(**formulas(mask, score))
    inputs = inputs_of(spec, Problem(name="", lengths=((5, 80),)), torch.float32)
    found = check(spec, dirty(inputs, (slice(None), unused)), (SMALL, OTHERS[0], OTHERS[3]), exact=inputs)
    assert not found["k"][:, unused].any()
    assert not found["v"][:, unused].any()


@pytest.mark.parametrize("mask", ["keep[b, j]", "j <= i and keep[b, j]", "j < length[b] and j <= i"])
@pytest.mark.parametrize(
    "score", ["sqrt(abs(s) + x[b, h, j])", *slow("s + x[b, h, row, j]"), "bucket", *slow("plain", "softcap")]
)
def test_nan_in_padded_keys(mask, score):
    """Key padding: the slots of masked keys may hold anything."""
    captured = {"keep": {"dtype": "bool", "axes": ["B", "Sk"]}} if "keep" in mask else {}
    captured |= {"length": {"dtype": "int32", "axes": ["B"]}} if "length" in mask else {}
    axes = {"bucket": ["Hq", 17], "s + x[b, h, row, j]": ["B", "Hq", "Sq", "Sk"]}.get(
        score, ["B", "Hq", "Sk"]
    )
    score = "s + x[h, max(-8, min(i - j, 8)) + 8]" if score == "bucket" else score
    captured |= {"x": {"dtype": "float32", "axes": axes, "grad": True}} if "x[" in score else {}
    spec = make(captured=captured, heads={"q": 2, "kv": 1}, **formulas(mask, score))
    inputs = inputs_of(spec, Problem(name="", lengths=((19, 45),) * 3), torch.float32)
    keep = torch.rand(3, 45, generator=torch.Generator().manual_seed(3)) < 0.6
    keep[1] = False
    if "length" in captured:
        inputs["length"] = torch.tensor([4, 0, 45], dtype=torch.int32)
        keep = torch.arange(45) < inputs["length"][:, None]
    else:
        inputs["keep"] = keep
    if "x" in captured:
        inputs["x"] = inputs["x"].abs() + 0.5
    spoiled = dirty(inputs, ~keep)
    found = check(spec, spoiled, (SMALL, OTHERS[0]), exact=inputs)
    assert not found["k"][~keep].any()
    assert not found["v"][~keep].any()


@pytest.mark.parametrize("spoiled", [1, *slow(0, 2)])
def test_nan_of_a_packed_sequence_stays_there(spoiled):
    spec = make(layout="thd", mask=CAUSAL)
    problem = Problem(name="", lengths=((9, 9), (21, 21), (11, 11)), kv_heads=2)
    inputs = inputs_of(spec, problem, torch.float32)
    starts = problem.starts("q")
    own = slice(starts[spoiled], starts[spoiled + 1])
    module = attngen.build(spec)
    dout = torch.randn(41, 2, 16)
    others = torch.ones(41, dtype=torch.bool)
    others[own] = False
    for schedule in (SMALL, OTHERS[0]):
        _, clean = kernel_gradients(spec, module, inputs, dout, None, schedule)
        _, found = kernel_gradients(spec, module, dirty(inputs, own, "qkv"), dout, None, schedule)
        for name in "qkv":
            assert torch.equal(found[name][others], clean[name][others])


KEYLESS = {
    "causal": CAUSAL,
    "window": "j <= i and i - j < 9",
    "future": "j + 4 <= i",
    "two intervals": "j <= i and (i - j < 9 or j < 4)",
    "first rows": "j <= i and j >= 6 and i >= 11",
    "rows": "row % 3 != 1",
    "head": "j <= i + 3 * h",
    "captured": "keep[b, row] and j <= row",
}


@pytest.mark.parametrize("head_dim", [16, *slow({"qk": 48, "v_from_k": 32})], ids=str)
@pytest.mark.parametrize("layout", ["bshd", *slow("thd")])
@pytest.mark.parametrize("name", KEYLESS)
def test_nan_in_rows_without_keys(name, layout, head_dim):
    """Rows that see no key have gradient 0 and change nothing, whatever their q, dout and dlse hold."""
    keep = {"keep": {"dtype": "bool", "axes": ["B", "Sq"] if layout == "bshd" else ["Tq"]}}
    mask = KEYLESS[name] if layout == "bshd" else KEYLESS[name].replace("b, row", "row")
    captured = {"captured": keep} if name == "captured" else {}
    captured["score"] = "sqrt(abs(s)) - 0.1 * j" if name == "window" else "s"
    spec = make(mask=mask, layout=layout, head_dim=head_dim, **captured)
    module = attngen.build(spec)
    lengths = ((40, 17), (40, 17)) if layout == "bshd" else ((40, 17), (9, 0), (33, 20))
    inputs = inputs_of(spec, Problem(name="", lengths=lengths, kv_heads=2), torch.float32)
    out, lse = module.attention(**inputs, return_lse=True)
    dout, dlse = incoming(out, lse)
    keyless = (lse == -torch.inf).transpose(-1, -2)  # as out is laid out, for both layouts
    assert keyless.any()
    assert not keyless.all()
    assert inputs["q"][keyless].numel()
    q = torch.where(keyless[..., None], NAN, inputs["q"])
    spoiled = torch.where(keyless[..., None], NAN, dout), torch.where(lse == -torch.inf, NAN, dlse)
    for schedule in (SMALL, OTHERS[0], OTHERS[3]):
        _, want = kernel_gradients(spec, module, inputs, dout, dlse, schedule)
        _, found = kernel_gradients(spec, module, {**inputs, "q": q}, *spoiled, schedule)
        assert not found["q"][keyless].any()
        assert all(torch.equal(found[n], x) for n, x in want.items()), schedule


@pytest.mark.parametrize("score", ["plain", *slow("softcap", "square")])
@pytest.mark.parametrize("head_dim", [16, {"qk": 48, "v_from_k": 32}], ids=["", "values inside K"])
def test_nan_in_keys_of_documents_without_queries(head_dim, score):
    """No test of a key tells whether a query sees it; in full tiles all are seen, in partial ones the elements are tested."""
    captured = {"doc": {"dtype": "int32", "axes": ["B", "Sk"], "sorted": True}}
    spec = make(**formulas("j <= i and doc[b, i] == doc[b, j]", score), captured=captured, head_dim=head_dim)
    doc = (torch.arange(80, dtype=torch.int32)[None] >= torch.tensor([[37], [45]])).to(torch.int32)
    inputs = inputs_of(spec, Problem(name="", lengths=((30, 80),) * 2), torch.float32, doc=doc)
    unused = doc == 0
    names = [n for n in "kv" if n in inputs]
    found = check(spec, dirty(inputs, unused, names), (SMALL, OTHERS[0], OTHERS[3]), exact=inputs)
    for name in names:
        assert not found[name][unused].any()


# ---- values inside K

INSIDE = {"qk": 48, "v_from_k": 32}


@pytest.mark.parametrize(
    "head_dim",
    [
        INSIDE,
        {"qk": 32, "v_from_k": 32},
        {"qk": 40, "v_from_k": 16},
        *slow({"qk": 320, "v_from_k": 256}, {"qk": 336, "v_from_k": 272}),
    ],
    ids=str,
)
def test_values_inside_k(head_dim):
    """dk takes up both: what scores and what values give; V's columns are not read twice."""
    spec = make(head_dim=head_dim, heads={"q": 5, "kv": 1}, mask="j <= i and i - j < 30")
    inputs = inputs_of(spec, replace(RAGGED, kv_heads=1), torch.float32)
    check(spec, inputs, (SMALL, *OTHERS[:3]))


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float16")])
@pytest.mark.parametrize("mask", ["causal", *slow("sink columns", "residual", "head")])
def test_values_inside_k_in_16_bits(mask, dtype):
    more = {"head_dim": INSIDE, "heads": {"q": 16, "kv": 1}, "sinks": True}
    spec = make(**formulas(mask, "softcap"), **more)
    inputs = inputs_of(spec, Problem(name="", lengths=((21, 37),)), getattr(torch, dtype))
    check(spec, inputs, (SMALL, OTHERS[0]))


@pytest.mark.parametrize("formula", ["mask", "h"])
@pytest.mark.parametrize("layout", ["thd", *slow("bshd", "bhsd")])
def test_values_inside_k_of_packed_sequences_and_heads(layout, formula):
    more = formulas("causal") if formula == "mask" else formulas("causal", "s * (1 + h) / 4")
    spec = make(head_dim=INSIDE, heads={"q": 6, "kv": 2}, layout=layout, **more)
    problem = UNUSED if layout == "thd" else replace(RAGGED, strides="swapped")
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, OTHERS[0], OTHERS[5]))


@pytest.mark.parametrize("lengths", [(5, 0), (0, 7), *slow((40, 17), (17, 40), (1, 33), (33, 1))])
def test_values_inside_k_at_other_lengths(lengths):
    spec = make(head_dim=INSIDE, mask=CAUSAL)
    check(spec, inputs_of(spec, Problem(name="", lengths=(lengths,) * 2), torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.parametrize("name", HIDDEN)
def test_nan_in_keys_that_hold_values(name):
    mask, unused = HIDDEN[name]
    spec = make(head_dim=INSIDE, **formulas(mask))
    inputs = inputs_of(spec, Problem(name="", lengths=((5, 80),)), torch.float32)
    spoiled = dirty(inputs, (slice(None), unused), "k")
    found = check(spec, spoiled, (SMALL, OTHERS[0], OTHERS[3]), exact=inputs)
    assert not found["k"][:, unused].any()


def test_values_inside_k_same_bits_again_and_backwards():
    spec = make(head_dim=INSIDE, heads={"q": 4, "kv": 2}, mask=CAUSAL)
    module = attngen.build(spec)
    inputs = inputs_of(spec, RAGGED, torch.bfloat16)
    dout = torch.randn(1, 37, 4, 32).bfloat16()
    for schedule in (SMALL, OTHERS[1]):
        _, want = kernel_gradients(spec, module, inputs, dout, schedule=schedule)
        with reversed_grid():
            _, again = kernel_gradients(spec, module, inputs, dout, schedule=schedule)
        assert all(torch.equal(again[n], x) for n, x in want.items())


# ---- scores at their limits


@pytest.mark.parametrize(
    "score",
    ["sqrt(abs(s))", "log(abs(s)) + s", "exp(s) / 4", "s / (abs(s) + 0.1)", "where(s > 0, log(s), s)"],
)
@pytest.mark.parametrize("mask", ["window", *slow("causal", "residual")])
def test_slopes_that_are_infinite_where_nothing_is(mask, score):
    """Rows and keys past the end are loaded as zeros, where these formulas have no slope."""
    spec = make(heads={"q": 2, "kv": 1}, **formulas(mask, score))
    inputs = inputs_of(spec, Problem(name="", lengths=((21, 37),)), torch.float32)
    check(spec, inputs, (SMALL, OTHERS[0], OTHERS[3]))


def test_large_negative_scores():
    spec = make(mask=CAUSAL, sinks=True)
    check(spec, inputs_of(spec, replace(RAGGED, values="large"), torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.parametrize("sink", [-float("inf"), -1e4, 40.0])
def test_sinks_of_any_size(sink):
    spec = make(mask="j <= i - 5", sinks=True)
    inputs = inputs_of(spec, RAGGED, torch.float32)
    check(spec, {**inputs, "sinks": torch.tensor([sink, 0.5])})


@pytest.mark.parametrize("sink", [1e4, 1e30])
def test_sinks_that_take_all_weight(sink):
    spec = make(mask="j <= i - 5", sinks=True)
    inputs = inputs_of(spec, RAGGED, torch.float32) | {"sinks": torch.tensor([sink, 0.5])}
    dout, dlse = torch.randn(1, 37, 2, 16), torch.randn(1, 2, 37)
    _, found = kernel_gradients(spec, attngen.build(spec), inputs, dout, dlse)
    assert all(x.isfinite().all() for x in found.values())
    assert all(not found[n][:, :, 0].any() for n in "qkv")
    torch.testing.assert_close(found["sinks"][0], dlse[0, 0].sum())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_sinks_in_16_bits(dtype):
    """Queries in half precision, where eager's gradient of a sink in fp32 is much closer than that of a rounded delta."""
    spec = make(mask=CAUSAL, sinks=True)
    inputs = inputs_of(spec, RAGGED, torch.float16)
    check(spec, {**inputs, "sinks": inputs["sinks"].to(getattr(torch, dtype))})


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_given_scale(scale):
    spec = make(**formulas("causal", "softcap"))
    check(spec, inputs_of(spec, RAGGED, torch.float32) | {"softmax_scale": scale})


# ---- captured tensors

READS = {
    "h": ("x[h]", ["Hq"]),
    "b h": ("x[b, h]", ["B", "Hq"]),
    "h b": ("x[h, b]", ["Hq", "B"]),
    "b h row": ("x[b, h, row]", ["B", "Hq", "Sq"]),
    "row": ("x[row]", ["Sq"]),
    "h row": ("x[h, row]", ["Hq", "Sq"]),
    "row b": ("x[row, b]", ["Sq", "B"]),
    "b": ("x[b]", ["B"]),
    "key": ("x[j]", ["Sk"]),
    "h key": ("x[h, j]", ["Hq", "Sk"]),
    "diagonal of keys": ("x[j, j]", ["Sk", "Sk"]),
    "key b": ("x[j, b]", ["Sk", "B"]),
    "b h key": ("x[b, h, j]", ["B", "Hq", "Sk"]),
    "element": ("x[row, j]", ["Sq", "Sk"]),
    "transposed": ("x[j, row]", ["Sk", "Sq"]),
    "h element": ("x[h, row, j]", ["Hq", "Sq", "Sk"]),
    "b h element": ("x[b, h, row, j]", ["B", "Hq", "Sq", "Sk"]),
    "position": ("x[h, i, j]", ["Hq", 64, 64]),
    "distance": ("x[i - j + 64]", [128]),
    "row distance": ("x[row - j + 64]", [128]),
    "h bucket": ("x[h, max(-8, min(i - j, 8)) + 8]", ["Hq", 17]),
    "bucket h": ("x[int(log(abs(row - j) + 1.0) * 2), h]", [16, "Hq"]),
    "b h distance": ("x[b, h, (i - j + 64) // 3]", ["B", "Hq", 50]),
    "chosen": ("x[h, i - j + 64 if i > j else 0]", ["Hq", 128]),
    "two": ("x[(i - j) % 3, (j - i) // 9 + 5]", [3, 12]),
}


def reading(element: str, axes: list[str], formula: str, **more: Any) -> Spec:
    captured = {"x": {"dtype": more.pop("captured_dtype", "float32"), "axes": axes, "grad": True}}
    score = formula.format(x=element)
    return make(heads={"q": 4, "kv": 2}, score=score, captured=captured, mask="j <= i + 2", **more)


@pytest.mark.parametrize("formula", ["s * {x}", *slow("s + {x} * (j - i)", "2 * tanh(s * {x} + 0.5)")])
@pytest.mark.parametrize("read", READS)
def test_captured_gradients(read, formula):
    element, axes = READS[read]
    spec = reading(element, axes, formula)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    check(spec, inputs, (SMALL, OTHERS[0]))


@pytest.mark.parametrize("read", ["h", "h row", "h key", *slow("element", "b h element", "h bucket")])
@pytest.mark.parametrize("formula", ["s + log({x})", *slow("log({x}) * 0.5 + s", "s - 1 / {x}")])
def test_weights_that_are_zero(read, formula):
    """A score of -inf means masked: its gradient is 0, though that of the formula is infinite there."""
    spec = reading(*READS[read], formula)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    x = inputs["x"].abs() + 0.5
    x.flatten()[::3] = 0.0
    found = check(spec, inputs | {"x": x}, (SMALL, OTHERS[0]))
    assert not found["x"].flatten()[::3].any()
    assert found["x"].any()


@pytest.mark.parametrize("mask", ["j <= i", *slow("none")])
def test_scores_that_hide_what_is_negative(mask):
    spec = make(score="log(max(tanh(s), 0.0))", **formulas(mask))
    check(spec, inputs_of(spec, RAGGED, torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.parametrize("function", ["exp", *slow("exp2")])
def test_scores_that_overflow_to_minus_infinity(function):
    """They are masked, though the slopes overflow with them: gradients are those of a score that only just does not."""
    spec = reading(*READS["h key"], f"s - {function}(s + {{x}})")
    inputs = inputs_of(spec, RAGGED, torch.float32)
    inputs["x"][:, ::3] = 80.0
    want = check(spec, inputs)
    inputs["x"][:, ::3] = 200.0
    module = attngen.build(spec)
    dout, dlse = incoming(*module.attention(**inputs, return_lse=True))
    _, found = kernel_gradients(spec, module, inputs, dout, dlse)
    assert all(torch.equal(found[name], x) for name, x in want.items())


@pytest.mark.parametrize("mask", ["j < 0", "j < 0 and i > 3", "j > i + 100"])
@pytest.mark.parametrize("read", ["", "h key", "h element", "h bucket"])
def test_masks_that_allow_nothing(mask, read):
    spec = make(heads={"q": 4, "kv": 2}, mask=mask)
    if read:
        spec = load_spec({**reading(*READS[read], "s * {x}").canonical(), "mask": mask})
    check(
        spec, inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32), (SMALL,)
    )


def test_tiles_of_diagonals_are_square():
    """Or positions of one diagonal would be stored as those of another."""
    spec = reading(*READS["h bucket"], "s + {x}")
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    module = attngen.build(spec)
    out, lse = module.attention(**inputs, return_lse=True)
    config = {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
    with pytest.raises(
        ValueError, match="gradients: _backward_captured_x_diagonals: BLOCK_M must be BLOCK_N"
    ):
        module.launch_backward(
            torch.ones_like(out),
            None,
            out,
            lse,
            *(inputs[n] for n in "qkv"),
            0.25,
            inputs["x"],
            configs={"_backward_captured_x_diagonals": config},
        )


PACKED_READS = {
    "h": ("x[h]", ["Hq"]),
    "row": ("x[row]", ["Tq"]),
    "h row": ("x[h, row]", ["Hq", "Tq"]),
    "row h": ("x[row, h]", ["Tq", "Hq"]),
    "b": ("x[b]", ["B"]),
    "b h": ("x[b, h]", ["B", "Hq"]),
    "h b": ("x[h, b]", ["Hq", "B"]),
    "token": ("x[j]", ["Tk"]),
    "h token": ("x[h, j]", ["Hq", "Tk"]),
    "key": ("x[j]", [64]),
    "b key": ("x[b, j]", ["B", 64]),
    "h element": ("x[h, row, j]", ["Hq", 64, 64]),
    "row of tokens": ("x[row, j]", ["Tq", 64]),
    "h distance": ("x[h, i - j + 64]", ["Hq", 128]),
    "b distance": ("x[b, i - j + 64]", ["B", 128]),
}


@pytest.mark.parametrize("problem", [UNUSED, *slow(PACKED)], ids=lambda p: p.name)
@pytest.mark.parametrize("read", PACKED_READS)
def test_captured_gradients_of_packed_tokens(read, problem):
    element, axes = PACKED_READS[read]
    spec = reading(element, axes, "s * {x}", layout="thd")
    check(spec, inputs_of(spec, replace(problem, kv_heads=2), torch.float32), (SMALL, OTHERS[0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_captured_gradients_in_16_bits(dtype):
    spec = reading("x[h]", ["Hq"], "s + {x} * (j - i) / 16", captured_dtype=dtype)
    check(spec, inputs_of(spec, replace(RAGGED, kv_heads=2), torch.bfloat16), (SMALL, OTHERS[0]))


ONES = {
    "h row": ["h"],
    "b h row": ["b", "h", "row", "b h row"],
    "h key": ["h", "key"],
    "b h key": ["b", "h", "b key", "b h key"],
    "transposed": ["row", "key"],
    "b h element": ["b", "h", "b h", "b h row", "key", "b h row key"],
    "position": ["h", "row", "key"],
    "h bucket": ["h", "place"],
    "bucket h": ["h"],
    "b h distance": ["b", "h", "b h", "b place", "b h place"],
    "two": ["0"],
}
PLACES = {"b": "b", "h": "h", "row": "row", "key": "j"}


def with_ones(inputs: dict[str, Any], element: str, ones: str) -> dict[str, Any]:
    """Size 1 for some axes of x: those of its indices, or the only one that is a formula."""
    indices = element[2:-1].split(", ")
    x = inputs["x"]
    for one in ones.split():
        found = [
            n for n, index in enumerate(indices) if index == PLACES.get(one) or (index, one) == ("i", "row")
        ]
        x = x.narrow(found[0] if found else [len(index) > 3 for index in indices].index(True), 0, 1)
    return inputs | {"x": x.clone()}


QUICK = {
    ("b h row", "h"), ("b h key", "h"), ("b h element", "b h"), ("b h element", "b h row key"),
    ("position", "row"), ("b h distance", "b h"), ("h bucket", "place"), ("h token", "h key"), ("h element", "h"),
}  # fmt: skip


def some_ones(table: dict[str, list[str]]) -> list[Any]:
    found = [(read, ones) for read, some in table.items() for ones in some]
    return [x if x in QUICK else pytest.param(*x, marks=pytest.mark.slow) for x in found]


@pytest.mark.parametrize(("read", "ones"), some_ones(ONES))
def test_captured_axes_of_size_one(read, ones):
    """An axis of size 1 stands for all: its gradient is the sum."""
    spec = reading(*READS[read], "s * {x}")
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    check(spec, with_ones(inputs, READS[read][0], ones), (SMALL, OTHERS[1]))


PACKED_ONES = {
    "row h": ["row", "h"],
    "b h": ["b", "h"],
    "h token": ["h", "key", "h key"],
    "b key": ["b", "key"],
    "h element": ["h", "h row"],
    "row of tokens": ["row", "key", "row key"],
    "b distance": ["b"],
}


@pytest.mark.parametrize(("read", "ones"), some_ones(PACKED_ONES))
def test_captured_axes_of_size_one_of_packed_tokens(read, ones):
    spec = reading(*PACKED_READS[read], "s * {x}", layout="thd")
    inputs = inputs_of(spec, replace(UNUSED, kv_heads=2), torch.float32)
    check(spec, with_ones(inputs, PACKED_READS[read][0], ones))


@pytest.mark.parametrize("shape", [(1, 64), (4, 1)])
def test_captured_axes_of_size_one_by_atomics(shape):
    spec = reading("x[h, j // 2]", ["Hq", 64], "s * {x}", deterministic=False)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    check(spec, inputs | {"x": torch.linspace(0.5, 2, torch.Size(shape).numel()).reshape(shape)})


FIXED = [
    ("x[0, j]", ["B", "Sk"]),
    ("x[1, j]", ["Hkv", "Sk"]),
    ("x[3, row, j]", ["Hq", "Sq", "Sk"]),
    ("x[1, i - j + 64]", ["B", 128]),
]


@pytest.mark.parametrize(("element", "axes"), FIXED)
def test_one_place_of_an_axis_that_programs_have_one_place_of(element, axes):
    spec = reading(element, axes, "s * {x}")
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    found, place = check(spec, inputs)["x"], int(element[2])
    assert found[place].any()
    assert not torch.cat([found[:place], found[place + 1 :]]).any()


@pytest.mark.parametrize(
    ("element", "axes"),
    [("x[b // 2, j]", ["B", "Sk"]), ("x[hk // 2, j]", ["Hkv", "Sk"]), ("x[h // 2, j]", ["Hkv", "Sk"])],
)
def test_other_places_of_such_axes_by_atomics(element, axes):
    spec = reading(element, axes, "s * {x}", deterministic=False)
    check(spec, inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32))


@pytest.mark.parametrize(
    ("element", "axes", "message"),
    [
        ("x[5, j]", ["B", "Sk"], "x: axis 0 is read at 5, so that it needs 6 places, and has 2"),
        ("x[row, 4]", ["Sq", "Hq"], "x: axis 1 is read at 4, so that it needs 5 places, and has 4"),
        ("x[h]", [3], "x: axis 0 is read at h, so that it needs 4 places, and has 3"),
        ("x[b, j]", ["Hkv", "Sk"], "x: axis 0 is read at b, so that it needs 3 places, and has 2"),
    ],
)
def test_places_that_a_captured_tensor_lacks_are_refused(element, axes, message):
    spec = reading(element, axes, "s * {x}", deterministic=False)
    lengths = ((18, 21),) * (3 if "x[b" in element else 2)
    inputs = inputs_of(spec, Problem(name="", lengths=lengths, kv_heads=2), torch.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        attngen.build(spec).attention(**inputs)
    with pytest.raises(CheckError, match="is outside axis"):
        attngen.reference(spec, **inputs)


@pytest.mark.parametrize(
    ("element", "axes"),
    [("x[h]", [8]), ("x[h, row]", [8, 64]), ("x[h, i - j + 64]", [8, 128]), ("x[b, row, j]", [5, 64, "Sk"])],
)
def test_captured_axes_that_are_longer_than_heads_or_batch(element, axes):
    """What lies past the last head or sequence has gradient 0, and no sums of its own."""
    spec = reading(element, axes, "s * {x}")
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    assert not check(spec, inputs)["x"][4 if axes[0] == 8 else 2 :].any()


@pytest.mark.parametrize("shape", [(1, 1, 40, 40), (2, 1, 40, 40), (1, 4, 1, 40)])
def test_gradients_of_captured_tensors_take_the_memory_of_what_is_given(shape):
    """Neither the kernels' buffers nor what autograd sees have the size that an axis of size 1 stands for."""
    spec = reading(*READS["b h element"], "s + {x}")
    inputs = inputs_of(spec, Problem(name="", lengths=((40, 40),) * 2, kv_heads=2), torch.float32)
    module, made = attngen.build(spec), list[torch.Size]()

    def noted(make: Any) -> Any:
        def allocate(*given: Any, **more: Any) -> torch.Tensor:
            made.append((found := make(*given, **more)).shape)
            return found

        return allocate

    leaf = torch.zeros(shape, requires_grad=True)
    out = module.attention(**inputs | {"x": leaf})
    with patch.object(torch, "zeros", noted(torch.zeros)), patch.object(torch, "empty", noted(torch.empty)):
        [found] = torch.autograd.grad(out.sum(), leaf)
    assert out.grad_fn.next_functions[-1][0].variable is leaf  # the op was given the tensor itself
    assert found.shape == shape
    assert made.count(torch.Size(shape)) == 1
    assert max(size.numel() for size in made) <= max(leaf.numel(), inputs["q"].numel())


def test_several_captured_tensors_with_axes_of_size_one():
    axes = {"x": ["B", "Hq", "Sq", "Sk"], "y": ["B", "Sk"], "w": ["Hq", 40], "z": ["B", "Hq", "Sq"]}
    captured = {n: {"dtype": "float32", "axes": a, "grad": True} for n, a in axes.items()}
    score = "s * z[b, h, row] + x[b, h, row, j] + y[b, j] * w[h, row - j + 20]"
    spec = make(heads={"q": 4, "kv": 2}, score=score, captured=captured, mask="j <= i")
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    given = {"x": inputs["x"][:1, :1], "y": inputs["y"][:1], "w": inputs["w"][:1], "z": inputs["z"][:, :1]}
    check(spec, inputs | given, (SMALL, OTHERS[1]))


def test_several_captured_tensors():
    captured: dict[str, Any] = {"x": {"dtype": "float32", "axes": ["Hq"], "grad": True}}
    captured["y"] = {"dtype": "float32", "axes": ["B", "Hq", "Sq"], "grad": True}
    captured["bias"] = {"dtype": "float32", "axes": ["B", "Hq", "Sq", "Sk"]}
    captured["table"] = {"dtype": "float32", "axes": [20]}
    score = "4 * tanh(s * y[b, h, row] / 4) + x[h] * (j - i) + bias[b, h, row, j] + table[i - j]"
    spec = make(
        heads={"q": 4, "kv": 2}, score=score, captured=captured, mask="j <= i and i - j < 20", sinks=True
    )
    check(spec, inputs_of(spec, replace(RAGGED, kv_heads=2), torch.float32), (SMALL, *OTHERS[:2]))


TABLES = {
    "distance": ("s + table[i - j]", "j <= i and i - j < 20", {"dtype": "float32", "axes": [20]}),
    "slope": ("s * table[i - j]", "j <= i and i - j < 20", {"dtype": "float32", "axes": [20]}),
    "key": ("s * table[j - 7]", "j >= 7", {"dtype": "float32", "axes": [30]}),
    "row": ("s * table[row - 3]", "row >= 3", {"dtype": "float32", "axes": [20]}),
    "mask": ("s", "j >= 5 and table[j - 5] > 0", {"dtype": "int32", "axes": [40]}),
    "head": ("s * table[h, i - j]", "0 <= i - j and i - j < 20", {"dtype": "float32", "axes": ["Hq", 20]}),
}


@pytest.mark.parametrize("name", TABLES)
def test_captured_tensors_are_not_read_where_the_mask_is_false(name):
    """The watch fails on a read outside."""
    score, mask, captured = TABLES[name]
    spec = make(
        captured={"table": captured}, heads={"q": 2, "kv": 1}, **formulas(mask, score if score != "s" else "")
    )
    inputs = inputs_of(spec, Problem(name="", lengths=((23, 37),)), torch.float32)
    check(spec, inputs, (SMALL, *OTHERS[:2]))


ANYWHERE = {
    "x[hk]": ["Hkv"],
    "x[0]": [1],
    "x[h, i]": ["Hq", 64],
    "x[h, j // 2]": ["Hq", 64],
    "x[i // 2, j // 3]": [40, 40],
    "x[h, i + j]": ["Hq", 128],
    "x[b, 0, j // 4]": ["B", 1, 50],
}


@pytest.mark.parametrize("element", ANYWHERE)
def test_captured_gradients_that_have_no_fixed_order(element):
    with pytest.raises(
        PlanError,
        match=r"captured: no gradient of x, read at .*, in a fixed order: .* 'deterministic: false'",
    ):
        attngen.build(reading(element, ANYWHERE[element], "s * {x}"))


@pytest.mark.parametrize("formula", ["s * {x}", *slow("s + {x}")])
@pytest.mark.parametrize("element", ANYWHERE)
def test_captured_gradients_by_atomics(element, formula):
    """Where a spec asks for no fixed order; the manifest says so."""
    spec = reading(element, ANYWHERE[element], formula, deterministic=False)
    assert attngen.build(spec).MANIFEST["deterministic"] is False
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    check(spec, inputs, (SMALL, OTHERS[0]))


def test_fixed_orders_need_no_atomics():
    spec = reading("x[h]", ["Hq"], "s * {x}", deterministic=False)
    assert attngen.build(spec).MANIFEST["deterministic"] is True


@pytest.mark.parametrize("formula", ["s + 2 * {x}", "(s + {x}) * 0.5", "s + {x} / 3"])
@pytest.mark.parametrize("read", ["h", "h key", "h bucket"])
def test_constant_factors_of_captured_tensors(read, formula):
    spec = reading(*READS[read], formula)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), torch.float32)
    check(spec, inputs)


@pytest.mark.parametrize("name", ["d_rows", "rows_rows", "x_diagonals"])
def test_names_that_end_as_those_of_partial_sums_do(name):
    captured = {name: {"dtype": "float32", "axes": ["Hq"], "grad": True}}
    spec = make(heads={"q": 4, "kv": 2}, score=f"s * {name}[h]", captured=captured)
    check(spec, inputs_of(spec, RAGGED, torch.float32))


@pytest.mark.parametrize("lengths", [(21, 18), (1, 40), (40, 1), (33, 70), (5, 0), (0, 5)])
@pytest.mark.parametrize("read", ["h key", "h element", "h bucket"])
def test_lengths_of_captured_gradients(read, lengths):
    element, axes = READS[read]
    spec = reading(element, axes, "s + {x}")
    inputs = inputs_of(spec, Problem(name="", lengths=(lengths,) * 2, kv_heads=2), torch.float32)
    check(spec, inputs, (SMALL, OTHERS[1]))


@pytest.mark.parametrize("read", ["h", "h key", "element", "h bucket"])
def test_captured_gradients_where_values_lie_inside_keys(read):
    element, axes = READS[read]
    captured = {"x": {"dtype": "float32", "axes": axes, "grad": True}}
    head_dim = {"qk": 48, "v_from_k": 32}
    spec = make(
        heads={"q": 4, "kv": 1}, head_dim=head_dim, score=f"s + 2 * {element}", captured=captured, mask=CAUSAL
    )
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=1), torch.float32)
    check(spec, inputs, (SMALL, OTHERS[0]))


DROPPED: dict[str, dict[str, Any]] = {
    "values inside keys": {"head_dim": {"qk": 48, "v_from_k": 32}},
    **{f"read at {name}": {"read": name} for name in ("h", "h key", "h element", "h bucket")},
    "atomics": {"deterministic": False, "read": "h pairs"},
}


@pytest.mark.parametrize("name", DROPPED)
def test_dropout_with_captured_gradients(name):
    keys = dict(DROPPED[name])
    if read := keys.pop("read", ""):
        element, axes = {**READS, "h pairs": ("x[h, j // 3]", ["Hq", 64])}[read]
        captured = {"x": {"dtype": "float32", "axes": axes, "grad": True}}
        keys |= {"score": f"s + {element}", "captured": captured}
    spec = make(heads={"q": 4, "kv": 1}, mask=CAUSAL, dropout=True, **keys)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=1), torch.float32)
    check(spec, inputs | {"dropout_p": 0.3, "seed": 7}, (SMALL, OTHERS[0]))


def test_places_that_two_tables_share():
    """Two tables of distances, and a bias whose gradient nobody asks for."""
    table = {"dtype": "float32", "axes": [80], "grad": True}
    captured = {
        "x": table,
        "y": {**table, "axes": ["Hq", 17]},
        "z": {"dtype": "float32", "axes": ["Hq", "Sk"]},
    }
    score = "s * y[h, max(-8, min(i - j, 8)) + 8] + x[row - j + 60] + z[h, j]"
    spec = make(
        heads={"q": 4, "kv": 2}, score=score, captured=captured, mask="j <= i and i - j < 12", sinks=True
    )
    check(spec, inputs_of(spec, replace(RAGGED, kv_heads=2), torch.float32), (SMALL, OTHERS[1]))


# ---- strides


def strided(tensor: Tensor, kind: str) -> Tensor:
    match kind:
        case "transposed":
            return tensor.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
        case "padded":
            return torch.nn.functional.pad(tensor, (0, 8, 0, 1, 0, 3), value=NAN)[
                :, : tensor.shape[1], : tensor.shape[2], :16
            ]
        case "every other token":
            return tensor.repeat_interleave(2, 1)[:, ::2]
        case "last":
            return tensor.repeat_interleave(2, -1)[..., ::2]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["padded", *slow("transposed", "every other token")])
def test_other_strides_same_bits(kind):
    spec = make(mask=CAUSAL, heads={"q": 2, "kv": 1})
    module = attngen.build(spec)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 37),) * 2, kv_heads=2), torch.float32)
    dout = torch.randn(inputs["q"].shape)
    views = inputs | {n: strided(inputs[n], kind) for n in "qkv"}
    for schedule in (SMALL, OTHERS[0]):
        _, want = kernel_gradients(spec, module, inputs, dout, None, schedule)
        _, found = kernel_gradients(spec, module, views, strided(dout, kind), None, schedule)
        for name in "qkv":
            assert torch.equal(found[name], want[name])
            assert found[name].is_contiguous()


@pytest.mark.parametrize("kind", ["last", "sum", "batch", *slow("token", "head", "transposed dims")])
def test_strides_of_dout(kind):
    spec = make(mask=CAUSAL)
    module = attngen.build(spec)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 37),) * 2, kv_heads=2), torch.float32)
    full = torch.randn(2, 18, 2, 16)
    dout = {
        "last": strided(full, "last"),
        "sum": torch.ones(()).expand(full.shape),
        "batch": full[:1].expand(full.shape),
        "token": full[:, :1].expand(full.shape),
        "head": full[:, :, :1].expand(full.shape),
        "transposed dims": full.transpose(1, 3).contiguous().transpose(1, 3),
    }[kind]
    for schedule in (SMALL, OTHERS[0]):
        _, found = kernel_gradients(spec, module, inputs, dout, None, schedule)
        _, want = kernel_gradients(spec, module, inputs, dout.contiguous(), None, schedule)
        for name in "qkv":
            assert torch.equal(found[name], want[name])


def test_strides_of_dlse():
    spec = make(mask=CAUSAL)
    module = attngen.build(spec)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 37),) * 2, kv_heads=2), torch.float32)
    dlse = torch.randn(18, 2, 2).permute(2, 1, 0)
    _, found = kernel_gradients(spec, module, inputs, None, dlse)
    _, want = kernel_gradients(spec, module, inputs, None, dlse.contiguous())
    assert all(torch.equal(found[name], want[name]) for name in "qkv")


@pytest.mark.parametrize("dimension", [1, *slow(0, 2)])
@pytest.mark.parametrize("names", ["qkv", *slow("q", "kv")])
def test_expanded_tensors(dimension, names):
    spec = make(mask=CAUSAL)
    inputs = inputs_of(spec, Problem(name="", lengths=((18, 37),) * 2, kv_heads=2), torch.float32)
    for name in names:
        inputs[name] = inputs[name].narrow(dimension, 0, 1).expand(inputs[name].shape)
    check(spec, inputs, (SMALL, OTHERS[0]))


@pytest.mark.parametrize("layout", ["bhsd", "thd", *slow("bshd")])
@pytest.mark.parametrize("strides", ["odd", *slow("padded", "swapped", "expanded")])
def test_layouts_in_other_memory(layout, strides):
    spec = make(mask=CAUSAL, layout=layout, heads={"q": 2, "kv": 1}, score="s * 0.7 + (j - i) * 0.01")
    lengths = ((9, 20), (20, 5)) if layout == "thd" else ((18, 21),) * 2
    problem = Problem(name="", lengths=lengths, strides=strides, kv_heads=2)
    check(spec, inputs_of(spec, problem, torch.float32), (SMALL, OTHERS[0]))


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
}


@pytest.mark.parametrize("name", ["token", *slow("batch", "head")])
@pytest.mark.parametrize("which", ["q", "kv", "dout"])
def test_offsets_past_2_to_the_31(vast, name, which):
    batch, length, heads, strides = VAST[name]
    spec = make(mask=CAUSAL)
    module = attngen.build(spec)
    inputs = inputs_of(
        spec, Problem(name="", lengths=((length, length),) * batch, kv_heads=heads), torch.bfloat16
    )
    dout = torch.randn(inputs["q"].shape).bfloat16()
    far, far_dout = dict(inputs), dout
    for start, n in ((0, "q"),) if which == "q" else ((0, "k"), (32, "v")) if which == "kv" else ():
        far[n] = vast.as_strided(inputs[n].shape, (*strides, 1), start).copy_(inputs[n])
    if which == "dout":
        far_dout = vast.as_strided(dout.shape, (*strides, 1)).copy_(dout)
    for schedule in (SMALL, OTHERS[0], OTHERS[1]):
        _, want = kernel_gradients(spec, module, inputs, dout, None, schedule)
        _, found = kernel_gradients(spec, module, far, far_dout, None, schedule)
        assert all(torch.equal(found[n], want[n]) for n in "qkv")


# ---- which results, which inputs


@pytest.mark.parametrize("which", ["out", "lse"])
@pytest.mark.parametrize("layout", ["bshd", "thd"])
def test_only_one_result_is_used(which, layout):
    spec = make(mask=CAUSAL, sinks=True, layout=layout)
    problem = PACKED if layout == "thd" else RAGGED
    inputs = inputs_of(spec, problem, torch.float32)
    check(spec, inputs, (SMALL, OTHERS[0]), with_out=which == "out", with_lse=which == "lse")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_out_sum_backward(dtype):
    """dout is expanded: all its strides are 0."""
    spec = make(mask=CAUSAL, heads={"q": 2, "kv": 1})
    inputs = inputs_of(spec, RAGGED, getattr(torch, dtype))
    leaves = {n: inputs[n].requires_grad_() for n in "qkv"}
    attngen.build(spec).attention(**leaves).sum().backward()
    wide = {n: x.detach().double().requires_grad_() for n, x in leaves.items()}
    attngen.reference(spec, **wide).sum().backward()
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for name, leaf in leaves.items():
        want = wide[name].grad
        assert leaf.grad is not None
        error = (leaf.grad.double() - want).abs().max()
        assert error <= tolerance * want.abs().max() + tolerance


@pytest.mark.parametrize("name", ["q", "k", "v", "sinks", "x"])
def test_only_one_input_needs_a_gradient(name):
    spec = make(
        mask=CAUSAL,
        sinks=True,
        score="s * x[h]",
        captured={"x": {"dtype": "float32", "axes": ["Hq"], "grad": True}},
    )
    module = attngen.build(spec)
    inputs = inputs_of(spec, RAGGED, torch.float32)
    dout = torch.randn(inputs["q"].shape)
    _, everything = kernel_gradients(spec, module, inputs, dout)
    with scheduled(module, SMALL):
        out, _, leaves = attend(module, inputs, [name])
        out.backward(dout)
    assert torch.equal(leaves[name].grad, everything[name])
    assert all(inputs[n].grad is None for n in inputs if n != name and isinstance(inputs[n], Tensor))


# ---- schedules, order, bits


@pytest.mark.parametrize("schedule", [*OTHERS[2:5], *slow(*OTHERS[:2], OTHERS[5])], ids=str)
def test_schedules(schedule):
    spec = make(heads={"q": 2, "kv": 1}, mask="j <= i and i - j < 40", score="3 * tanh(s / 3)", sinks=True)
    inputs = inputs_of(spec, Problem(name="", lengths=((150, 170),)), torch.float32)
    check(spec, inputs, (schedule,))


ALL = [
    Schedule(dq=(m, n), dkdv=(m, n), descriptors=d, merged=g, apart=a)
    for m, n in ((16, 16), (16, 64), (64, 32), (128, 128))
    for d in (False, True)
    for g in (False, True)
    for a in (False, True)
]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("layout", ["bshd", "thd"])
@pytest.mark.parametrize("mask", ["causal", "window", "sink columns"])
def test_all_schedules(mask, layout, schedule):
    spec = make(heads={"q": 3, "kv": 1}, layout=layout, **formulas(mask))
    problem = PACKED if layout == "thd" else Problem(name="", lengths=((70, 90),))
    check(spec, inputs_of(spec, replace(problem, kv_heads=1), torch.float32), (schedule,))


def test_launch_backward_takes_configs():
    spec = make(mask=CAUSAL)
    module = attngen.build(spec)
    inputs = inputs_of(spec, RAGGED, torch.float32)
    out, lse = module.attention(**inputs, return_lse=True)
    dout, dlse = incoming(out, lse)
    arguments = (dout, dlse, out, lse, inputs["q"], inputs["k"], inputs["v"], 0.25)
    plain = module.launch_backward(*arguments)
    for schedule in (SMALL, *OTHERS):
        found = module.launch_backward(*arguments, configs=schedule.configs(module))
        for got, want in zip(found, plain, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


BITS = {
    "causal": {"mask": CAUSAL},
    "head": {"mask": CAUSAL, "score": "s * (h + 1)"},
    "window": {"mask": "j <= i and i - j < 9", "sinks": True},
    "packed": {"mask": CAUSAL, "layout": "thd"},
    "key": {"score": "s + x[j]", "captured": {"x": {"dtype": "float32", "axes": ["Sk"], "grad": True}}},
    "distance": {
        "score": "s + x[i - j + 99]",
        "captured": {"x": {"dtype": "float32", "axes": [200], "grad": True}},
    },
}


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float32")])
@pytest.mark.parametrize("name", ["head", *slow("causal", "window", "packed")])
def test_same_bits_again_and_backwards(name, dtype):
    spec = make(heads={"q": 4, "kv": 2}, **BITS[name])
    module = attngen.build(spec)
    inputs = inputs_of(spec, PACKED if name == "packed" else RAGGED, getattr(torch, dtype))
    dout = torch.randn(inputs["q"].shape).to(inputs["q"].dtype)
    _, want = kernel_gradients(spec, module, inputs, dout)
    with reversed_grid():
        _, again = kernel_gradients(spec, module, inputs, dout)
    assert all(torch.equal(again[n], x) for n, x in want.items())
    with scheduled(module, SMALL):
        for _ in range(20 if name == "window" else 1):
            out, _, leaves = attend(module, inputs, list(want))
            found = torch.autograd.grad(out, list(leaves.values()), dout)
            assert all(torch.equal(got, x) for got, x in zip(found, want.values(), strict=True))


def test_twenty_repetitions_give_the_same_bits():
    captured = {"x": {"dtype": "float32", "axes": ["Sk"], "grad": True}}
    spec = make(heads={"q": 2, "kv": 1}, mask="j <= i", score="s * x[j]", captured=captured)
    module = attngen.build(spec)
    inputs = inputs_of(spec, Problem(name="", lengths=((17, 18),)), torch.bfloat16)
    out, lse = module.launch(*(inputs[n] for n in "qkv"), 0.25, inputs["x"])
    arguments = (*incoming(out, lse), out, lse, *(inputs[n] for n in "qkv"), 0.25, inputs["x"])
    first = module.launch_backward(*arguments, configs=SMALL.configs(module))
    for _ in range(20):
        again = module.launch_backward(*arguments, configs=SMALL.configs(module))
        assert all(torch.equal(got, want) for got, want in zip(again, first, strict=True))


def test_same_bits_alone_and_in_a_batch():
    spec = make(mask="j <= i and i - j < 30", heads={"q": 4, "kv": 2})
    module = attngen.build(spec)
    inputs = inputs_of(spec, Problem(name="", lengths=((20, 37),) * 3), torch.float32)
    dout = torch.randn(inputs["q"].shape)
    _, whole = kernel_gradients(spec, module, inputs, dout)
    for b in range(3):
        _, alone = kernel_gradients(spec, module, {n: inputs[n][b : b + 1] for n in "qkv"}, dout[b : b + 1])
        assert all(torch.equal(alone[n][0], whole[n][b]) for n in "qkv")


FEW = ["additive_bias", "alibi", "t5_bias"]


@pytest.mark.parametrize("name", [*FEW, *slow(*(n for n in COMMITTED if n not in FEW))])
def test_no_atomics(name):
    text = Path(str(attngen.build(committed(name)).__file__)).read_text()
    assert "_backward_dkdv" in text
    assert "atomic" not in text.replace("No atomics", "")


@pytest.mark.parametrize(
    "mask",
    [
        "causal",
        "window",
        "chunk",
        "max(0, min(i - 3, seqlen_k - 7)) <= j and j < max(0, min(i - 3, seqlen_k - 7)) + 7",
    ],
)
@pytest.mark.parametrize("layout", ["bshd", *slow("thd")])
def test_no_integer_overflows(mask, layout):
    spec = make(layout=layout, **formulas(mask))
    problem = PACKED if layout == "thd" else Problem(name="", lengths=((20, 37),))
    with overflow_checks(True):
        check(spec, inputs_of(spec, problem, torch.float32))
