"""Kernels against implementations that are not ours: torch's scaled dot product attention and FlexAttention.

Both are given float64 (FlexAttention in eager mode), so that what remains is the error of the kernel: in fp32 a few
units of rounding, in bf16 at most twice that of torch's own bf16 attention.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

pytest.importorskip("triton")

import attngen

LENGTHS = [(65, 65), (1, 77), (37, 130), (70, 64)]
FP32 = 2e-6
"""Relative error in the Frobenius norm: a few roundings of fp32 (6e-8) over sums of up to 130 terms."""


@functools.cache
def _built(text: str) -> Any:
    return attngen.build(json.loads(text))


def build(**keys: Any) -> Any:
    spec = {"attngen": 1, "name": "witness", "heads": {"q": 4, "kv": 2}, "head_dim": 32, "layout": "bhsd"}
    return _built(json.dumps(spec | {"dtype": ["float32", "bfloat16", "float16"]} | keys))


def draw(
    seqlen_q: int, seqlen_k: int, *, heads: int = 4, kv: int = 2, head_dim: int = 32, seed: int = 0
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"q": (heads, seqlen_q), "k": (kv, seqlen_k), "v": (kv, seqlen_k)}
    return {name: torch.randn(2, *size, head_dim, generator=generator) for name, size in sizes.items()}


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def agree(module: Any, inputs: Any, witness: Any, dtype: torch.dtype, **more: Any) -> None:
    """`witness` maps q, k and v, in any dtype, to out."""
    inputs = {name: t.to(dtype) for name, t in inputs.items()}
    expected = witness(*(t.double() for t in inputs.values()))
    bound = FP32 if dtype == torch.float32 else 2 * distance(witness(*inputs.values()), expected)
    assert distance(module.attention(**inputs, **more), expected) <= bound


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sdpa_bidirectional_with_grouped_heads(seqlen_q, seqlen_k, dtype):
    agree(build(), draw(seqlen_q, seqlen_k), lambda q, k, v: sdpa(q, k, v, enable_gqa=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sdpa_causal(dtype):
    def witness(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, is_causal=True, enable_gqa=True)

    agree(build(mask="j <= i"), draw(70, 70), witness, dtype)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 77), (37, 130)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sdpa_causal_aligned_to_the_last_key(seqlen_q, seqlen_k, dtype):
    """torch's own flag aligns to the first key; its bias class for the last one is the witness here."""
    from torch.nn.attention.bias import causal_lower_right

    def witness(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return sdpa(q, k, v, attn_mask=causal_lower_right(seqlen_q, seqlen_k))

    agree(build(mask="j <= i"), draw(seqlen_q, seqlen_k), witness, dtype)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_sdpa_with_an_additive_bias_and_a_scale(seqlen_q, seqlen_k, scale):
    module = build(
        score="s + bias[b, h, row, j]",
        captured={"bias": {"dtype": "float32", "axes": ["B", "Hq", "Sq", "Sk"]}},
    )
    bias = torch.randn(2, 4, seqlen_q, seqlen_k, generator=torch.Generator().manual_seed(1))
    bias[..., ::7] = -torch.inf

    def witness(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, attn_mask=bias.to(q.dtype), scale=scale, enable_gqa=True)

    agree(module, draw(seqlen_q, seqlen_k), witness, torch.float32, bias=bias, softmax_scale=scale)


def test_sdpa_with_a_boolean_mask():
    module = build(mask="allow[b, row, j]", captured={"allow": {"dtype": "bool", "axes": ["B", "Sq", "Sk"]}})
    allow = torch.rand(2, 37, 70, generator=torch.Generator().manual_seed(1)) < 0.2

    def witness(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, attn_mask=allow[:, None], enable_gqa=True)

    agree(module, draw(37, 70), witness, torch.float32, allow=allow)


@dataclass(frozen=True)
class Flex:
    """One variant as a spec and as the functions of FlexAttention; `i` is the query's place on the key axis."""

    keys: dict[str, Any]
    mask: Any = None
    score: Any = None


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
PREFIX = torch.tensor([5, 40])
TABLE = torch.randn(4, 33, generator=torch.Generator().manual_seed(2))
CAPTURED: dict[str, Any] = {"slopes": SLOPES, "prefix": PREFIX.int(), "table": TABLE}
FLEX = {
    "causal": Flex({"mask": "j <= i"}, lambda b, h, i, j: j <= i),
    "window": Flex({"mask": "j <= i and i - j < 20"}, lambda b, h, i, j: (j <= i) & (i - j < 20)),
    "both sides": Flex({"mask": "abs(i - j) <= 9"}, lambda b, h, i, j: (i - j).abs() <= 9),
    "chunk": Flex(
        {"mask": "j <= i and i // 24 == j // 24"}, lambda b, h, i, j: (j <= i) & (i // 24 == j // 24)
    ),
    "dilated": Flex(
        {"mask": "j <= i and (i - j) % 3 == 0"}, lambda b, h, i, j: (j <= i) & ((i - j) % 3 == 0)
    ),
    "sink columns": Flex(
        {"mask": "j <= i and (i - j < 12 or j < 4)"}, lambda b, h, i, j: (j <= i) & ((i - j < 12) | (j < 4))
    ),
    "prefix": Flex(
        {"mask": "j <= i or j < prefix[b]", "captured": {"prefix": {"dtype": "int32", "axes": ["B"]}}},
        lambda b, h, i, j: (j <= i) | (j < PREFIX[b]),
    ),
    "by head": Flex(
        {"mask": "j <= i and (h % 2 == 0 or i - j < 8)"},
        lambda b, h, i, j: (j <= i) & ((h % 2 == 0) | (i - j < 8)),
    ),
    "not": Flex({"mask": "not (j > i or i - j == 3)"}, lambda b, h, i, j: ~((j > i) | (i - j == 3))),
    "softcap": Flex(
        {"mask": "j <= i", "score": "2 * tanh(s / 2)"},
        lambda b, h, i, j: j <= i,
        lambda s, b, h, i, j: 2 * torch.tanh(s / 2),
    ),
    "alibi": Flex(
        {
            "mask": "j <= i",
            "score": "s + slopes[h] * (j - i)",
            "captured": {"slopes": {"dtype": "float32", "axes": ["Hq"]}},
        },
        lambda b, h, i, j: j <= i,
        lambda s, b, h, i, j: s + SLOPES[h].double() * (j - i),
    ),
    "relative table": Flex(
        {
            "score": "s + table[h, max(-16, min(j - i, 16)) + 16]",
            "captured": {"table": {"dtype": "float32", "axes": ["Hq", 33]}},
        },
        None,
        lambda s, b, h, i, j: s + TABLE[h, (j - i).clamp(-16, 16) + 16].double(),
    ),
    "formula": Flex(
        {"score": "where(j % 2 == 0, s * s, exp(-abs(s))) - 0.01 * h"},
        None,
        lambda s, b, h, i, j: torch.where(j % 2 == 0, s * s, torch.exp(-s.abs())) - 0.01 * h,
    ),
}


def flex(case: Flex, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) of FlexAttention in eager mode; it counts queries from 0, so positions are shifted."""
    shift = k.shape[2] - q.shape[2]
    mask = case.mask and (lambda b, h, i, j: case.mask(b, h, i + shift, j))
    score = case.score and (lambda s, b, h, i, j: case.score(s, b, h, i + shift, j))
    blocks = create_block_mask(mask, 2, 4, q.shape[2], k.shape[2], device="cpu") if mask else None
    lse = AuxRequest(lse=True)
    out, aux = flex_attention(q, k, v, score_mod=score, block_mask=blocks, enable_gqa=True, return_aux=lse)
    return out, aux.lse


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
@pytest.mark.parametrize(
    ("seqlen_q", "seqlen_k"),
    [(70, 70), *(pytest.param(*n, marks=pytest.mark.slow) for n in [(1, 77), (37, 130), (80, 64)])],
)
@pytest.mark.parametrize("name", FLEX)
def test_flex_attention(name, seqlen_q, seqlen_k):
    case = FLEX[name]
    module, inputs = build(**case.keys), draw(seqlen_q, seqlen_k)
    out, lse = flex(case, *(t.double() for t in inputs.values()))
    captured = {name: CAPTURED[name] for name in case.keys.get("captured", {})}
    found, found_lse = module.attention(**inputs, **captured, return_lse=True)
    rows = lse.isfinite()
    assert distance(found[rows], out[rows]) <= FP32
    torch.testing.assert_close(found_lse[rows].double(), lse[rows], rtol=1e-6, atol=1e-6)
    assert (found_lse[~rows] == -torch.inf).all()
    assert (found[~rows] == 0).all()


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
def test_flex_attention_of_packed_documents():
    """The packed layout against a document mask over the whole row of tokens."""
    lengths = [23, 0, 1, 40, 6]
    ids = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    total = len(ids)
    module = build(mask="j <= i", layout="thd")
    inputs = {name: t[0].transpose(0, 1).contiguous() for name, t in draw(total, total).items()}
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    found = module.attention(**inputs, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=40, max_seqlen_k=40)

    documents = Flex({}, lambda b, h, i, j: (ids[i] == ids[j]) & (j <= i))
    q, k, v = (t.transpose(0, 1)[None].double().expand(2, -1, -1, -1) for t in inputs.values())
    out, _ = flex(documents, q, k, v)
    assert distance(found, out[0].transpose(0, 1)) <= FP32
