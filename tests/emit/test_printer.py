"""What expressions become in a kernel, where the text of one operator is easy to get wrong."""

from __future__ import annotations

import re

import pytest
import torch

import attngen
from attngen import errors
from attngen.generate import generate

SPEC = {"attngen": 1, "name": "printed", "heads": {"q": 2, "kv": 1}, "head_dim": 16, "dtype": "float32"}


def worst(changes, captured):
    spec = attngen.load_spec({**SPEC, **changes})
    torch.manual_seed(0)
    inputs = {
        n: torch.randn(1, s, h, 16) for n, s, h in (("q", 45, 2), ("k", 33, 1), ("v", 33, 1))
    } | captured
    expected, expected_lse = attngen.reference(spec, **inputs, return_lse=True)
    out, lse = attngen.build(spec).attention(**inputs, return_lse=True)
    finite = expected_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    error = max((out - expected).abs().max().item(), (lse - expected_lse)[finite].abs().max().item())
    return error / (1 + expected_lse[finite].abs().max().item())  # rounding grows with the scores


def test_64_bit_integers_in_bounds_of_tiles():
    changes = {"mask": "i - j < widths[h]", "captured": {"widths": {"dtype": "int64", "axes": ["Hq"]}}}
    assert worst(changes, {"widths": torch.tensor([5, 1 << 40])}) < 2e-6


def test_booleans_under_and():
    changes = {
        "mask": "not (keep[b, j] and j < 9)",
        "captured": {"keep": {"dtype": "bool", "axes": ["B", "Sk"]}},
    }
    assert worst(changes, {"keep": torch.arange(33)[None] % 2 == 0}) < 2e-6


@pytest.mark.parametrize(
    "mask",
    [
        "(i - 7) // 3 == (j - 7) // 3",
        "(i - j) % 5 != 2",
        "i ** 2 < 300 or j <= i",
        "not (j <= i and i - j < 4)",
        "h < 1 or j <= i",
        "(j if i > 3 else -j) < 6",
    ],
)
def test_integer_operators_at_negative_positions(mask):
    assert worst({"mask": mask}, {}) < 2e-6


@pytest.mark.parametrize(
    "score",
    [
        "s ** 3",
        "-s",
        "s / (1 + h)",
        "tanh(s) * sigmoid(s)",
        "where(j < 3, log(0.0 * s), s)",
        "float(i // 2) * s",
        "max(s, -1) + min(s, 1)",
    ],
)
def test_scores(score):
    assert worst({"score": score}, {}) < 2e-6


def test_gqa_symbols_and_half_precision_captured():
    changes = {"score": "s + t[hk, b]", "captured": {"t": {"dtype": "bfloat16", "axes": ["Hkv", "B"]}}}
    assert worst(changes, {"t": torch.randn(1, 1).bfloat16()}) < 2e-6


def test_the_same_term_is_computed_once():
    text = generate(attngen.load_spec({**SPEC, "score": "s + exp(float(row))", "mask": "j <= i"}))
    assert text.count("tl.math.exp2((row)") == 1
    assert text.count("per_row_1[:, None]") == 2


@pytest.mark.parametrize(
    "score",
    [
        "s + sqrt(2) + exp(1) * h",
        "s + sqrt(abs(i - j)) + log(j + 1)",
        "s * (1 + tanh(h))",
        "s + int(2.7) + float(2)",
        "1",
        "2.5",
        "i",
        "j * 0.01",
    ],
)
def test_functions_of_integers_and_scores_without_s(score):
    assert worst({"score": score}, {}) < 2e-6


@pytest.mark.parametrize(
    "mask", ["(i - j) ** 2 < 100", "j * 40000 % 7 == 0", "i - j < w + w + w", "j * w <= i * 3"]
)
def test_products_of_integers_do_not_overflow(mask):
    keys = {"mask": mask} | ({"params": {"w": "int"}} if "w" in mask else {})
    spec = attngen.load_spec({**SPEC, **keys})
    inputs = {n: torch.randn(1, s, h, 16) for n, s, h in (("q", 1, 2), ("k", 70_000, 1), ("v", 70_000, 1))}
    inputs |= {"w": 2**28} if "w" in mask else {}
    out, lse = attngen.build(spec).attention(**inputs, return_lse=True)
    expected, expected_lse = attngen.reference(spec, **inputs, return_lse=True)
    assert (out - expected).abs().max() < 2e-6
    assert (lse - expected_lse).abs().max() < 4e-6


def test_a_score_of_large_distances_does_not_overflow():
    spec = attngen.load_spec({**SPEC, "score": "s - 0.001 * (i - j) * (i - j)"})
    inputs = {n: torch.randn(1, s, h, 16) for n, s, h in (("q", 1, 2), ("k", 70_000, 1), ("v", 70_000, 1))}
    assert (attngen.build(spec).attention(**inputs) - attngen.reference(spec, **inputs)).abs().max() < 2e-6


PACKED = {"hi": ["Tq"], "w": ["Tk"], "seg": ["Tk"]}


@pytest.mark.parametrize(
    "mask",
    [
        "j < hi[row]",
        "hi[row] <= j and j <= i",
        "hi[row] > 3 or j <= i",
        "j < w[0]",
        "seg[0] != seg[j] or j <= i",
    ],
)
def test_packed_captured_tensors_as_bounds_gates_and_constants(mask):
    used = {n: {"dtype": "int32", "axes": axes} for n, axes in PACKED.items() if f"{n}[" in mask}
    spec = attngen.load_spec({**SPEC, "layout": "thd", "mask": mask, "captured": used})
    torch.manual_seed(0)
    inputs = {n: torch.randn(s, h, 16) for n, s, h in (("q", 45, 2), ("k", 81, 1), ("v", 81, 1))}
    inputs |= {n: torch.randint(0, 9, (45 if n == "hi" else 81,), dtype=torch.int32) for n in used}
    inputs |= {"cu_seqlens_q": torch.tensor([0, 20, 20, 45], dtype=torch.int32), "max_seqlen_q": 25}
    inputs |= {"cu_seqlens_k": torch.tensor([0, 31, 40, 81], dtype=torch.int32), "max_seqlen_k": 41}
    out, lse = attngen.build(spec).attention(**inputs, return_lse=True)
    expected, expected_lse = attngen.reference(spec, **inputs, return_lse=True)
    assert (out - expected).abs().max() < 2e-6
    assert torch.equal(lse.isfinite(), expected_lse.isfinite())


def test_padding_by_a_captured_mask_may_hide_nan():
    captured = {"keep": {"dtype": "bool", "axes": ["B", "Sk"]}}
    spec = attngen.load_spec({**SPEC, "mask": "keep[b, j] and j <= i", "captured": captured})
    keep = torch.arange(50)[None] % 3 != 1
    inputs = {n: torch.randn(1, 50, h, 16) for n, h in (("q", 2), ("k", 1), ("v", 1))} | {"keep": keep}
    expected = attngen.reference(spec, **inputs)
    inputs["v"] = inputs["v"].masked_fill(~keep[..., None, None], float("nan"))
    inputs["k"] = inputs["k"].masked_fill(~keep[..., None, None], float("nan"))
    module = attngen.build(spec)
    for config in module.CONFIGS["cpu"]:
        out, _ = module.launch(inputs["q"], inputs["k"], inputs["v"], 0.25, keep, config=config)
        assert (out - expected).abs().max() < 2e-6


def test_axes_of_size_one_are_broadcast():
    captured = {"bias": {"dtype": "float32", "axes": ["Hq", "Sq", "Sk"]}}
    changes = {"score": "s + bias[h, row, j]", "captured": captured}
    assert worst(changes, {"bias": torch.randn(1, 1, 33)}) < 2e-6
    assert worst(changes, {"bias": torch.randn(2, 45, 1)}) < 2e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "j // (1 - 1) < 3"}, "division by zero"),
        (
            {"score": "s + w[4]", "captured": {"w": {"dtype": "float32", "axes": [4]}}},
            "index 4 is outside axis 4",
        ),
        ({"score": "s + log(0)"}, "log(0)"),
        ({"dtype": "float16", "precision": "tf32"}, "no float32"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(errors.AttngenError, match=re.escape(message)):
        generate(attngen.load_spec({**SPEC, **changes}))


def test_an_axis_given_at_run_time_has_a_size():
    captured = {"w": {"dtype": "float32", "axes": ["n"]}}
    spec = attngen.load_spec(
        {**SPEC, "score": "s + w[min(j, n - 1)]", "params": {"n": "int"}, "captured": captured}
    )
    inputs = {n: torch.randn(1, 5, h, 16) for n, h in (("q", 2), ("k", 1), ("v", 1))}
    with pytest.raises(ValueError, match="n: the size of an axis is at least 1, got 0"):
        attngen.build(spec).attention(**inputs, n=0, w=torch.randn(0))
    out = attngen.build(spec).attention(**inputs, n=3, w=torch.arange(3.0))
    assert (out - attngen.reference(spec, **inputs, n=3, w=torch.arange(3.0))).abs().max() < 2e-6


def test_a_tensor_declared_sorted_is_looked_at():
    captured = {"doc": {"dtype": "int32", "axes": ["B", "Sk"], "sorted": True}}
    spec = attngen.load_spec({**SPEC, "mask": "doc[b, i] == doc[b, j]", "captured": captured})
    inputs = {n: torch.randn(1, 5, h, 16) for n, h in (("q", 2), ("k", 1), ("v", 1))}
    with pytest.raises(ValueError, match="doc: is declared sorted and must ascend"):
        attngen.build(spec).attention(**inputs, doc=torch.tensor([[0, 0, 2, 1, 1]], dtype=torch.int32))
