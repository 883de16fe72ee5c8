"""What expressions become in a kernel, where the text of one operator is easy to get wrong."""

from __future__ import annotations

import pytest
import torch

import attngen
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
