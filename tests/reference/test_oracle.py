# ruff: noqa: E501 - exact messages stand on one line
"""The oracle against independent witnesses: torch SDPA, FlexAttention, Hugging Face models, loops by hand."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from attngen.errors import CheckError, TensorError
from attngen.reference import oracle_attend
from attngen.reference.oracle import reference
from attngen.spec import Spec, load_spec

SPECS = Path(__file__).parents[2] / "specs"
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def make(**changes: Any) -> Spec:
    return load_spec({"attngen": 1, "name": "x", "heads": 2, "head_dim": 8, "dtype": "float32"} | changes)


def rand(*shape: int, grad: bool = False, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def qkv(spec: Spec, b: int = 2, sq: int = 13, sk: int = 13, grad: bool = False) -> dict[str, Tensor]:
    """Random inputs in the spec's dense layout."""
    shapes = {
        "q": (b, sq, spec.heads.q, spec.head_dim.qk),
        "k": (b, sk, spec.heads.kv, spec.head_dim.qk),
        "v": (b, sk, spec.heads.kv, spec.head_dim.v),
    }
    if spec.head_dim.v_from_k:
        del shapes["v"]
    if spec.layout == "bhsd":
        shapes = {name: (b, h, s, d) for name, (b, s, h, d) in shapes.items()}
    return {name: rand(*shape, grad=grad, seed=n) for n, (name, shape) in enumerate(shapes.items())}


def sdpa(inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    return scaled_dot_product_attention(q, k, v, enable_gqa=True, **kwargs).transpose(1, 2)


def flex(inputs: dict[str, Tensor], mask: Any = None, score: Any = None) -> tuple[Tensor, Tensor]:
    """FlexAttention without compiling, on bshd inputs; lse is natural."""
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    block = None
    if mask is not None:
        block = create_block_mask(mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2], device="cpu")
    aux = AuxRequest(lse=True)
    out, extra = flex_attention(q, k, v, score_mod=score, block_mask=block, enable_gqa=True, return_aux=aux)
    return out.transpose(1, 2), extra.lse


# --- torch SDPA


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_bidirectional(layout: str) -> None:
    spec = make(heads={"q": 6, "kv": 2}, layout=layout, head_dim={"qk": 8, "v": 5})
    inputs = qkv(spec, sq=7)
    out = reference(spec, **inputs)
    if layout == "bhsd":
        inputs, out = {name: x.transpose(1, 2) for name, x in inputs.items()}, out.transpose(1, 2)
    torch.testing.assert_close(out, sdpa(inputs), **EXACT)


def test_causal_square() -> None:
    spec = make(mask="j <= i", heads={"q": 6, "kv": 2})
    inputs = qkv(spec)
    torch.testing.assert_close(reference(spec, **inputs), sdpa(inputs, is_causal=True), **EXACT)


@pytest.mark.parametrize(("sq", "sk"), [(5, 13), (1, 9)])
def test_causal_is_aligned_bottom_right(sq: int, sk: int) -> None:
    spec = make(mask="j <= i")
    inputs = qkv(spec, sq=sq, sk=sk)
    allowed = torch.ones(sq, sk, dtype=torch.bool).tril(sk - sq)
    torch.testing.assert_close(reference(spec, **inputs), sdpa(inputs, attn_mask=allowed), **EXACT)


def test_scale() -> None:
    spec, scale = make(), 0.3
    inputs = qkv(spec)
    out = reference(spec, **inputs, softmax_scale=scale)
    torch.testing.assert_close(out, sdpa(inputs, scale=scale), **EXACT)


def test_additive_bias() -> None:
    spec = load_spec(SPECS / "additive_bias.yaml")
    inputs, bias = qkv(spec, sq=6, sk=9), rand(8, 6, 9)
    torch.testing.assert_close(reference(spec, **inputs, bias=bias), sdpa(inputs, attn_mask=bias), **EXACT)


def test_expanded_bias() -> None:
    spec = load_spec(SPECS / "additive_bias.yaml")
    inputs, bias = qkv(spec, sq=6, sk=9), rand(1, 1, 9).expand(8, 6, 9)
    torch.testing.assert_close(reference(spec, **inputs, bias=bias), sdpa(inputs, attn_mask=bias), **EXACT)


def test_latent_values_are_the_first_columns_of_keys() -> None:
    spec = make(heads={"q": 4, "kv": 1}, head_dim={"qk": 12, "v_from_k": 8}, mask="j <= i")
    inputs = qkv(spec)
    witness = sdpa(inputs | {"v": inputs["k"][..., :8]}, is_causal=True)
    torch.testing.assert_close(reference(spec, **inputs), witness, **EXACT)


def test_gradients_are_those_of_sdpa() -> None:
    spec = make(mask="j <= i", heads={"q": 6, "kv": 2})
    inputs = qkv(spec, grad=True)
    weight = rand(2, 13, 6, 8)
    ours = torch.autograd.grad((reference(spec, **inputs) * weight).sum(), list(inputs.values()))
    theirs = torch.autograd.grad((sdpa(inputs, is_causal=True) * weight).sum(), list(inputs.values()))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, **EXACT)


# --- FlexAttention


def check_flex(
    spec: Spec, mask: Any = None, score: Any = None, sq: int = 13, sk: int = 13, **given: Any
) -> None:
    inputs = qkv(spec, sq=sq, sk=sk)
    out, lse = reference(spec, **inputs, **given, return_lse=True)
    flex_out, flex_lse = flex(inputs, mask, score)
    torch.testing.assert_close(out, flex_out, **EXACT)
    torch.testing.assert_close(lse, flex_lse, rtol=1e-6, atol=1e-6)


def test_softcap() -> None:
    spec = make(score="5 * tanh(s / 5)", mask="j <= i and i - j < 4", heads={"q": 4, "kv": 2})
    check_flex(spec, lambda b, h, q, k: (k <= q) & (q - k < 4), lambda s, b, h, q, k: 5 * torch.tanh(s / 5))


def test_alibi() -> None:
    slopes = torch.tensor([2.0**-n for n in range(1, 33)], dtype=torch.float64)
    spec = load_spec(SPECS / "alibi.yaml")
    check_flex(spec, lambda b, h, q, k: k <= q, lambda s, b, h, q, k: s + slopes[h] * (k - q), slopes=slopes)


@pytest.mark.parametrize("window", [1, 4, 100])
def test_run_time_window(window: int) -> None:
    spec = load_spec(SPECS / "mistral_window.yaml")
    check_flex(spec, lambda b, h, q, k: (k <= q) & (q - k < window), window=window)


def test_prefix() -> None:
    prefix = torch.tensor([3, 9], dtype=torch.int32)
    spec = load_spec(SPECS / "prefix_lm.yaml")
    check_flex(spec, lambda b, h, q, k: (k <= q) | (k < prefix[b]), prefix=prefix)


def test_documents() -> None:
    doc = torch.tensor([[0, 0, 0, 1, 1, 4, 4, 4, 4, 5, 5, 6, 6], [2] * 13], dtype=torch.int32)
    spec = load_spec(SPECS / "document_ids.yaml")
    check_flex(spec, lambda b, h, q, k: (k <= q) & (doc[b, q] == doc[b, k]), doc=doc)


def test_chunks_dilation_and_first_tokens() -> None:
    check_flex(make(mask="j <= i and i // 4 == j // 4"), lambda b, h, q, k: (k <= q) & (q // 4 == k // 4))
    check_flex(make(mask="j <= i and (i - j) % 3 == 0"), lambda b, h, q, k: (k <= q) & ((q - k) % 3 == 0))
    check_flex(
        make(mask="j <= i and (i - j < 3 or j < 2)"), lambda b, h, q, k: (k <= q) & ((q - k < 3) | (k < 2))
    )


# --- loops by hand


def by_hand(inputs: dict[str, Tensor], allowed: Any, score: Any = lambda s, h, i, j: s) -> Tensor:
    """Softmax attention as loops over Python numbers, for bshd inputs with as many kv heads as q heads."""
    q, k, v = (inputs[name].tolist() for name in "qkv")
    out = torch.zeros(inputs["q"].shape[:3] + inputs["v"].shape[3:], dtype=torch.float64)
    shift = len(k[0]) - len(q[0])
    for b, row, h in torch.cartesian_prod(*(torch.arange(n) for n in inputs["q"].shape[:3])).tolist():
        seen = [j for j in range(len(k[b])) if allowed(row + shift, j)]
        scale = len(q[b][row][h]) ** -0.5
        dots = [sum(x * y for x, y in zip(q[b][row][h], k[b][j][h], strict=True)) for j in seen]
        scores = [score(scale * dot, h, row + shift, j) for dot, j in zip(dots, seen, strict=True)]
        weights = [math.exp(s) for s in scores]
        for j, weight in zip(seen, weights, strict=True):
            out[b, row, h] += weight / sum(weights) * torch.tensor(v[b][j][h], dtype=torch.float64)
    return out


def natten_neighbours(position: int, length: int, kernel: int) -> range:
    """The keys of one query: centred, and moved inward at the borders (NATTEN's get_window_start)."""
    start = max(position - kernel // 2, 0)
    if position + kernel // 2 >= length:
        start += length - position - kernel // 2 - 1
    return range(start, start + kernel)


def test_natten_1d() -> None:
    data = load_spec(SPECS / "natten_1d.yaml").canonical() | {"params": {"kernel": 5}, "heads": 2}
    inputs = qkv(load_spec(data), b=1, sq=17, sk=17)
    witness = by_hand(inputs, lambda i, j: j in natten_neighbours(i, 17, 5))
    torch.testing.assert_close(reference(load_spec(data), **inputs), witness, **EXACT)


@pytest.mark.parametrize(("height", "width", "kernel"), [(5, 7, 3), (6, 5, 5), (3, 3, 3)])
def test_natten_2d(height: int, width: int, kernel: int) -> None:
    params = {"height": height, "width": width, "kernel": kernel}
    spec = load_spec(load_spec(SPECS / "natten_2d.yaml").canonical() | {"params": params, "heads": 1})

    def neighbours(i: int, j: int) -> bool:
        rows = natten_neighbours(i // width, height, kernel)
        columns = natten_neighbours(i % width, width, kernel)
        return j // width in rows and j % width in columns

    inputs = qkv(spec, b=1, sq=height * width, sk=height * width)
    torch.testing.assert_close(reference(spec, **inputs), by_hand(inputs, neighbours), **EXACT)


def test_division_and_remainder_mean_floor() -> None:
    spec = make(
        mask="(i - j) // 3 % 2 == 0 and (j - i) % 3 != 1", score="s + 0.1 * ((i - j) // 4) - (j - i) % 5 / 7"
    )
    inputs = qkv(spec, b=1)
    witness = by_hand(
        inputs,
        lambda i, j: (i - j) // 3 % 2 == 0 and (j - i) % 3 != 1,
        lambda s, h, i, j: s + 0.1 * ((i - j) // 4) - (j - i) % 5 / 7,
    )
    torch.testing.assert_close(reference(spec, **inputs), witness, **EXACT)


FORMULAS = [
    ("abs(s) + abs(j - i)", lambda s, h, i, j: abs(s) + abs(j - i)),
    ("max(s, -0.5, 0) + min(i, j) / 9", lambda s, h, i, j: max(s, -0.5, 0) + min(i, j) / 9),
    ("exp(s) - exp2(s)", lambda s, h, i, j: math.exp(s) - 2**s),
    ("log(s * s + 1) + log2(j + 1)", lambda s, h, i, j: math.log(s * s + 1) + math.log2(j + 1)),
    ("sqrt(i + 1) * tanh(s)", lambda s, h, i, j: math.sqrt(i + 1) * math.tanh(s)),
    ("sigmoid(s) + sin(j) * cos(i)", lambda s, h, i, j: 1 / (1 + math.exp(-s)) + math.sin(j) * math.cos(i)),
    ("floor(3 * s) + int(3 * s) / 2", lambda s, h, i, j: math.floor(3 * s) + int(3 * s) / 2),
    ("s if j < i else -s", lambda s, h, i, j: s if j < i else -s),
    ("where(i % 2 == 0 and not j > 3, 1, s)", lambda s, h, i, j: 1 if i % 2 == 0 and not j > 3 else s),
    ("s * int(0 <= i - j < 3) + float(h)", lambda s, h, i, j: s * (0 <= i - j < 3) + h),
    ("s ** 3 - (-2) ** 3 + h ** 0", lambda s, h, i, j: s**3 + 8 + 1),
    ("s / (seqlen_k - row) + hk", lambda s, h, i, j: s / (13 - i) + h),
    ("j - i", lambda s, h, i, j: j - i),
    ("s + (1 if (j < i) == (h == 1) else 0)", lambda s, h, i, j: s + ((j < i) == (h == 1))),
]


@pytest.mark.parametrize(("text", "function"), FORMULAS, ids=[text for text, _ in FORMULAS])
def test_every_function(text: str, function: Any) -> None:
    spec = make(score=text)
    inputs = qkv(spec, b=1)
    witness = by_hand(inputs, lambda i, j: True, function)
    torch.testing.assert_close(reference(spec, **inputs), witness, **EXACT)


# --- sinks


def test_sinks_are_one_more_column() -> None:
    spec = make(heads={"q": 4, "kv": 2}, mask="j <= i and i - j < 3", sinks=True)
    inputs, sinks = qkv(spec, sq=9), rand(4)
    out, lse = reference(spec, **inputs, sinks=sinks, return_lse=True)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    scores = q @ k.repeat_interleave(2, dim=1).mT / math.sqrt(8)
    i, j = torch.arange(4, 13)[:, None], torch.arange(13)
    scores = scores.masked_fill(~((j <= i) & (i - j < 3)), -torch.inf)
    column = sinks[None, :, None, None].expand(2, 4, 9, 1)
    joined = torch.cat([scores, column], dim=-1)
    witness = joined.softmax(-1)[..., :-1] @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(out, witness.transpose(1, 2), **EXACT)
    torch.testing.assert_close(lse, joined.logsumexp(-1), **EXACT)


# --- Hugging Face


def test_t5_table_is_the_encoder_bias() -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    spec = load_spec(SPECS / "t5_bias.yaml")
    buckets, length = rand(32, 12), 300
    distances = torch.arange(-128, 129)
    table = buckets[t5.T5Attention._relative_position_bucket(distances, num_buckets=32, max_distance=128)].T
    i, j = torch.arange(length)[:, None], torch.arange(length)
    bias = buckets[t5.T5Attention._relative_position_bucket(j - i, num_buckets=32, max_distance=128)]
    inputs = qkv(spec, b=1, sq=length, sk=length)
    out = reference(spec, **inputs, rel_bias=table, softmax_scale=1.0)
    torch.testing.assert_close(out, sdpa(inputs, attn_mask=bias.permute(2, 0, 1), scale=1.0), **EXACT)


def test_gpt_oss_eager() -> None:
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    spec = make(heads={"q": 8, "kv": 2}, head_dim=16, mask="j <= i and i - j < 5", sinks=True)
    inputs, sinks = qkv(spec), rand(8)
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups = torch.nn.Parameter(sinks), 4
    i, j = torch.arange(13)[:, None], torch.arange(13)
    mask = torch.zeros(1, 1, 13, 13, dtype=torch.float64)
    mask = mask.masked_fill(~((j <= i) & (i - j < 5)), -torch.inf)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    witness, _ = gpt_oss.eager_attention_forward(module.eval(), q, k, v, mask, scaling=0.25)
    out = reference(spec, **inputs, sinks=sinks)
    torch.testing.assert_close(out, witness.detach(), rtol=1e-6, atol=1e-6)


def test_gemma2_eager() -> None:
    gemma2 = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    spec = load_spec(SPECS / "gemma2_global.yaml")
    inputs = {name: 4 * x for name, x in qkv(spec, b=1, sq=9, sk=9).items()}
    module = torch.nn.Module().eval()
    module.num_key_value_groups, module.head_dim = 2, 256
    mask = torch.full((1, 1, 9, 9), -torch.inf, dtype=torch.float64).triu(1)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    witness, _ = gemma2.eager_attention_forward(module, q, k, v, mask, scaling=1 / 16, softcap=50.0)
    torch.testing.assert_close(reference(spec, **inputs), witness, rtol=1e-5, atol=1e-5)


# --- empty rows, NaN, infinities


def test_rows_without_keys() -> None:
    spec = make(mask="j <= i")
    inputs = qkv(spec, sq=9, sk=4, grad=True)
    out, lse = reference(spec, **inputs, return_lse=True)
    assert (out[:, :5] == 0).all()
    assert (lse[:, :, :5] == -torch.inf).all()
    assert torch.isfinite(lse[:, :, 5:]).all()
    grads = torch.autograd.grad((out.sin() + out).sum() + lse[:, :, 5:].sum(), list(inputs.values()))
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert (grads[0][:, :5] == 0).all()
    assert (grads[0][:, 5:] != 0).any()


def test_rows_without_keys_have_the_sink() -> None:
    spec = make(mask="j <= i", sinks=True)
    inputs, sinks = qkv(spec, sq=9, sk=4, grad=True), rand(2, grad=True)
    out, lse = reference(spec, **inputs, sinks=sinks, return_lse=True)
    assert (out[:, :5] == 0).all()
    torch.testing.assert_close(lse[:, :, :5], sinks[None, :, None].expand(2, 2, 5), **EXACT)
    grads = torch.autograd.grad(out.sum() + lse.sum(), [*inputs.values(), sinks])
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_a_sink_of_minus_infinity_is_no_sink() -> None:
    spec, plain = make(mask="j <= i", sinks=True), make(mask="j <= i")
    inputs = qkv(spec, sq=9, sk=4)
    given = reference(
        spec, **inputs, sinks=torch.full((2,), -torch.inf, dtype=torch.float64), return_lse=True
    )
    for ours, theirs in zip(given, reference(plain, **inputs, return_lse=True), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize(("b", "sq", "sk"), [(0, 3, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
def test_empty_axes(b: int, sq: int, sk: int) -> None:
    spec = make(mask="j <= i", score="2 * s")
    out, lse = reference(spec, **qkv(spec, b=b, sq=sq, sk=sk), return_lse=True)
    assert out.shape == (b, sq, 2, 8)
    assert lse.shape == (b, 2, sq)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_masked_places_never_matter() -> None:
    """NaN and inf in keys and values that no row or only some rows may see, and in scores and biases there."""
    spec = make(
        mask="j <= i and j != 3",
        score="s / bias[j] + log(s * s)",
        captured={"bias": {"dtype": "float32", "axes": ["Sk"]}},
    )
    clean, bias = qkv(spec, grad=True), rand(13)
    dirty = {name: x.detach().clone() for name, x in clean.items()}
    dirty["k"][0, 3], dirty["v"][0, 3], dirty["v"][1, 3] = torch.nan, torch.nan, torch.inf
    dirty = {name: x.requires_grad_() for name, x in dirty.items()}
    dirty_bias = bias.clone()
    dirty_bias[3] = 0
    results = []
    for inputs, values in ((clean, bias), (dirty, dirty_bias)):
        out, lse = reference(spec, **inputs, bias=values, return_lse=True)
        results.append((out, lse, *torch.autograd.grad(out.sum() + lse.sum(), list(inputs.values()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_a_key_that_is_not_finite_reaches_only_rows_that_see_it() -> None:
    spec = make(mask="j <= i")
    clean = qkv(spec)
    dirty = {name: x.clone() for name, x in clean.items()}
    dirty["k"][0, 9], dirty["v"][1, 9] = torch.nan, torch.nan
    out, witness = reference(spec, **dirty), reference(spec, **clean)
    torch.testing.assert_close(out[:, :9], witness[:, :9], **EXACT)
    assert out[:, 9:].isnan().all()


def test_a_score_of_minus_infinity_is_masked() -> None:
    spec = make(score="s if j <= i and i != 4 else log(0.0)")
    masked = make(mask="j <= i and i != 4")
    inputs = qkv(spec, grad=True)
    results = []
    for each in (spec, masked):
        out, lse = reference(each, **inputs, return_lse=True)
        results.append((out, lse, *torch.autograd.grad(out.sum(), list(inputs.values()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_very_negative_scores_count() -> None:
    spec = make(score="s - 250000")
    inputs = qkv(spec)
    out, lse = reference(spec, **inputs, return_lse=True)
    plain_out, plain_lse = reference(make(), **inputs, return_lse=True)
    torch.testing.assert_close(out, plain_out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lse, plain_lse - 250000, **EXACT)


def test_softcap_does_not_overflow() -> None:
    spec = make(score="50 * tanh(s / 50)")
    inputs = qkv(spec)
    out, lse = reference(spec, **inputs, softmax_scale=1e6, return_lse=True)
    assert torch.isfinite(out).all()
    assert (lse <= 50 + math.log(13)).all()


# --- gradients


def test_gradcheck() -> None:
    spec = make(
        heads={"q": 4, "kv": 2},
        head_dim=3,
        score="2 * tanh(s / 2) + bias[h, max(-2, min(j - i, 2)) + 2] * rate",
        mask="j <= i and i - j < 4",
        sinks=True,
        params={"rate": "float"},
        captured={"bias": {"dtype": "float32", "axes": ["Hq", 5]}},
    )
    inputs = qkv(spec, b=1, sq=6, sk=4, grad=True)
    bias, sinks = rand(4, 5, grad=True), rand(4, grad=True)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sinks: Tensor) -> Any:
        return reference(spec, q=q, k=k, v=v, bias=bias, sinks=sinks, rate=0.7, return_lse=True)

    assert torch.autograd.gradcheck(call, (*inputs.values(), bias, sinks))


# --- packed


def packed(lengths_q: list[int], lengths_k: list[int], heads: int = 2) -> dict[str, Any]:
    def starts(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    return {
        "q": rand(sum(lengths_q), heads, 8),
        "k": rand(sum(lengths_k), heads, 8, seed=1),
        "v": rand(sum(lengths_k), heads, 8, seed=2),
        "cu_seqlens_q": starts(lengths_q),
        "cu_seqlens_k": starts(lengths_k),
        "max_seqlen_q": max(lengths_q, default=0),
        "max_seqlen_k": max(lengths_k, default=0),
    }


def test_packed_is_sequence_by_sequence() -> None:
    score, mask = "s * (b + 1) + w[j] + u[row]", "j <= i and i - j < 6"
    axes = {"w": ["Sk"], "u": ["Sq"]}
    captured = {name: {"dtype": "float32", "axes": axis} for name, axis in axes.items()}
    dense = make(score=score.replace("(b + 1)", "n"), mask=mask, captured=captured, params={"n": "int"})
    captured = {name: {"dtype": "float32", "axes": ["T" + axis[0][1]]} for name, axis in axes.items()}
    thd = make(score=score, mask=mask, captured=captured, layout="thd")
    lengths_q, lengths_k = [3, 0, 5, 1, 4], [3, 2, 7, 0, 2]
    inputs = packed(lengths_q, lengths_k)
    w, u = rand(14), rand(13)
    out, lse = reference(thd, **inputs, w=w, u=u, return_lse=True)
    assert out.shape == (13, 2, 8)
    assert lse.shape == (2, 13)
    start_q = start_k = 0
    for n, (sq, sk) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        rows, keys = slice(start_q, start_q + sq), slice(start_k, start_k + sk)
        part, part_lse = reference(
            dense,
            q=inputs["q"][None, rows],
            k=inputs["k"][None, keys],
            v=inputs["v"][None, keys],
            w=w[keys],
            u=u[rows],
            n=n + 1,
            return_lse=True,
        )
        torch.testing.assert_close(out[rows], part[0], **EXACT)
        torch.testing.assert_close(lse[:, rows], part_lse[0], **EXACT)
        start_q, start_k = start_q + sq, start_k + sk


def test_unused_keys_are_never_read() -> None:
    thd = make(layout="thd", mask="j <= i")
    inputs = packed([2, 2], [4, 6])
    inputs["k"][[3, 9]], inputs["v"][[3, 9]] = torch.nan, torch.inf
    out = reference(thd, **inputs, seqused_k=torch.tensor([3, 5], dtype=torch.int32))
    keep = [0, 1, 2, 4, 5, 6, 7, 8]
    short = packed([2, 2], [3, 5]) | {"q": inputs["q"], "k": inputs["k"][keep], "v": inputs["v"][keep]}
    torch.testing.assert_close(out, reference(thd, **short), **EXACT)


def test_packed_without_sequences() -> None:
    out, lse = reference(make(layout="thd"), **packed([], []), return_lse=True)
    assert out.shape == (0, 2, 8)
    assert lse.shape == (2, 0)


# --- captured tensors outside their bounds


def bias_spec(
    score: str, mask: str = "j <= i", axes: tuple[str | int, ...] = (5,), dtype: str = "float32"
) -> Spec:
    return make(score=score, mask=mask, captured={"t": {"dtype": dtype, "axes": list(axes)}})


def test_score_index_outside_at_an_allowed_place() -> None:
    spec = bias_spec("s + t[i - j]")
    with pytest.raises(CheckError) as caught:
        reference(spec, **qkv(spec, b=1, sq=7, sk=7), t=rand(5))
    assert str(caught.value) == (
        "score: index 5 is outside axis 0 of captured tensor 't' (extent 5) at b = 0, h = 0, row = 5, i = 5, j = 0"
    )


def test_score_index_outside_at_masked_places_only() -> None:
    spec = bias_spec("s + t[i - j]", mask="j <= i and i - j < 5")
    inputs, table = qkv(spec, b=1, sq=7, sk=7), rand(5)
    witness = by_hand(inputs, lambda i, j: 0 <= i - j < 5, lambda s, h, i, j: s + float(table[i - j]))
    torch.testing.assert_close(reference(spec, **inputs, t=table), witness, **EXACT)


def test_score_reads_both_branches() -> None:
    spec = bias_spec("s + (t[i - j] if i - j < 5 else 0.0)")
    with pytest.raises(
        CheckError, match=r"^score: index 5 is outside axis 0 of captured tensor 't' \(extent 5\)"
    ):
        reference(spec, **qkv(spec, b=1, sq=7, sk=7), t=rand(5))


def test_mask_index_outside_where_it_decides() -> None:
    mask = "t[i] == t[j]"
    spec = make(mask=mask, captured={"t": {"dtype": "int32", "axes": ["Sk"]}})
    with pytest.raises(CheckError) as caught:
        reference(spec, **qkv(spec, b=1, sq=7, sk=4), t=torch.zeros(4, dtype=torch.int32))
    assert str(caught.value) == (
        "mask: index -3 is outside axis 0 of captured tensor 't' (extent 4) at b = 0, h = 0, row = 0, i = -3, j = 0"
    )


@pytest.mark.parametrize(
    "mask",
    [
        "j <= i and t[i] == t[j]",
        "t[i] == t[j] and j <= i",
        "not (j > i or t[i] != t[j])",
        "t[i] == t[j] if i >= 0 and j <= i else False",
        "j <= i and 7 // i >= 0 and t[i] == t[j] or i == 0 and j == 0",
    ],
)
def test_mask_index_outside_where_it_does_not_decide(mask: str) -> None:
    spec = make(mask=mask, captured={"t": {"dtype": "int32", "axes": ["Sk"]}})
    inputs, doc = qkv(spec, b=1, sq=7, sk=4), torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    out = reference(spec, **inputs, t=doc)
    assert (out[:, :3] == 0).all()
    tail = inputs | {"q": inputs["q"][:, 3:]}
    witness = by_hand(tail, lambda i, j: j <= i and bool(doc[i] == doc[j]))
    torch.testing.assert_close(out[:, 3:], witness, **EXACT)


def test_division_by_zero_where_it_decides() -> None:
    spec = make(mask="i // n >= j", params={"n": "int"})
    with pytest.raises(CheckError) as caught:
        reference(spec, **qkv(spec, b=1), n=0)
    assert str(caught.value) == "mask: `i // n` divides by zero at b = 0, h = 0, row = 0, i = 0, j = 0"


def test_empty_captured_tensor() -> None:
    captured = {"t": {"dtype": "float32", "axes": ["n"]}}
    spec = make(score="s + t[j]", mask="j < 0", params={"n": "int"}, captured=captured)
    assert (reference(spec, **qkv(spec), n=0, t=rand(0)) == 0).all()


# --- blocks, dtypes


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(score="s + 0.1 * row + i", mask="j <= i")
    inputs = qkv(spec, sq=13, sk=9)
    whole = reference(spec, **inputs, return_lse=True)
    monkeypatch.setattr(oracle_attend, "MAX_ELEMENTS", 2 * 2 * 9 * 4)
    for ours, theirs in zip(reference(spec, **inputs, return_lse=True), whole, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_dropout_drops_weights_and_not_their_sum() -> None:
    """Off, the formula's own result; on, each weight is 0 or larger by 1 / 0.75, and lse stays."""
    spec = make(heads={"q": 4, "kv": 2}, mask="j <= i", dropout=True)
    inputs = qkv(spec)
    plain, lse = reference(spec, **inputs, return_lse=True)
    torch.testing.assert_close(plain, sdpa(inputs, is_causal=True), **EXACT)
    given = {"dropout_p": 0.25, "seed": torch.tensor([5, 2**40])}
    out, dropped_lse = reference(spec, **inputs, **given, return_lse=True)
    assert torch.equal(lse, dropped_lse)
    unit = {**inputs, "v": torch.eye(13, dtype=torch.float64)[None, :, None].expand(2, 13, 2, 13)}
    wide = make(heads={"q": 4, "kv": 2}, mask="j <= i", dropout=True, head_dim={"qk": 8, "v": 13})
    weights, kept = reference(wide, **unit), reference(wide, **unit, **given)
    allowed = torch.ones(13, 13).tril().bool()[None, :, None]
    factors = (kept / weights.where(allowed, 1.0)).where(allowed, 0.0).transpose(1, 2)
    near = torch.isclose(factors, torch.tensor(4 / 3, dtype=torch.float64), rtol=1e-12)
    assert ((factors == 0) | near).all()
    assert 0.6 < near[:, :, allowed[0, :, 0]].double().mean() < 0.9
    v = inputs["v"].repeat_interleave(2, 2).transpose(1, 2)
    torch.testing.assert_close(out, (kept.transpose(1, 2) @ v).transpose(1, 2), **EXACT)
    assert torch.equal(reference(spec, **inputs, dropout_p=0.0, seed=3), plain)
    number = {"dropout_p": 0.25, "seed": -4}
    pair = {"dropout_p": 0.25, "seed": torch.tensor([-4, 0])}
    assert torch.equal(reference(spec, **inputs, **number), reference(spec, **inputs, **pair))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_same_dtype_is_the_eager_model(dtype: torch.dtype) -> None:
    spec = make(heads={"q": 4, "kv": 2}, head_dim=32, score="5 * tanh(s / 5)", mask="j <= i", sinks=True)
    inputs = {name: x.to(dtype) for name, x in qkv(spec).items()}
    sinks = rand(4).float()
    out, lse = reference(spec, **inputs, sinks=sinks, precision="same", return_lse=True)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    scores = q @ k.repeat_interleave(2, dim=1).mT * 32**-0.5
    scores = (5 * torch.tanh(scores / 5)).float().masked_fill(torch.ones(13, 13).triu(1).bool(), -torch.inf)
    joined = torch.cat([scores, sinks[None, :, None, None].expand(2, 4, 13, 1)], dim=-1)
    witness = joined.softmax(-1)[..., :-1].to(dtype) @ v.repeat_interleave(2, dim=1)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(out, witness.transpose(1, 2), rtol=2 * ulp, atol=2 * ulp)
    torch.testing.assert_close(lse, joined.logsumexp(-1), rtol=1e-6, atol=1e-6)
    exact = reference(spec, **inputs, sinks=sinks)
    assert exact.dtype == torch.float64
    error = (out.double() - exact).abs().max()
    assert 0 < error < 8 * ulp


def test_same_dtype_of_integral_scores() -> None:
    spec = make(score="j - i")
    inputs = {name: x.bfloat16() for name, x in qkv(spec).items()}
    exact, same = reference(spec, **inputs), reference(spec, **inputs, precision="same")
    torch.testing.assert_close(same.double(), exact, rtol=2e-2, atol=2e-2)


# --- wrong calls


def wrong(spec: Spec, **changes: Any) -> str:
    inputs = packed([3], [3]) if spec.layout == "thd" else qkv(spec, b=2, sq=3, sk=5)
    with pytest.raises(TensorError) as caught:
        reference(spec, **(inputs | changes))
    return str(caught.value)


FEATURES: dict[str, Any] = {
    "sinks": True,
    "score": "s + t[h, j]",
    "mask": "i - j < window",
    "params": {"window": "int"},
    "captured": {"t": {"dtype": "float32", "axes": ["Hq", "Sk"]}},
}
GIVEN: dict[str, Any] = {"sinks": rand(2), "window": 3, "t": rand(2, 5)}
CALLS = [
    ({}, {"v": None}, "missing argument 'v'; x takes q, k, v"),
    ({}, {"qq": 1}, "unknown argument 'qq' for x; did you mean 'q'? known: dropout_p, k, q, return_lse, seed, softmax_scale, v"),
    ({}, {"q": [1]}, "q must be a tensor [B, Sq, Hq, 8], got list"),
    ({}, {"q": rand(2, 3, 8)}, "q has shape [2, 3, 8], expected [B, Sq, Hq, 8] = [any, any, any, 8]"),
    ({}, {"k": rand(2, 5, 2, 9)}, "k has shape [2, 5, 2, 9], expected [B, Sk, Hkv, 8] = [2, any, any, 8]"),
    ({}, {"v": rand(2, 4, 2, 8)}, "v has shape [2, 4, 2, 8], expected [B, Sk, Hkv, 8] = [2, 5, 2, 8]"),
    ({}, {"v": rand(2, 5, 2, 8).float()}, "q, k and v must have one dtype, got torch.float64 and torch.float32 for v"),
    ({}, {"q": torch.ones(2, 3, 2, 8, dtype=torch.int32)}, "q must have a floating-point dtype, got torch.int32"),
    ({}, {"q": rand(2, 3, 4, 8)}, "q has 4 heads and k has 2; x has 1 query heads per key/value head"),
    ({}, {"dropout_p": 0.1}, "dropout_p, seed: x has no dropout; add `dropout: true` to the spec"),
    ({}, {"seed": 1}, "dropout_p, seed: x has no dropout; add `dropout: true` to the spec"),
    ({"dropout": True}, {"dropout_p": 1.0, "seed": 1}, "dropout_p must lie in [0, 1), got 1.0"),
    ({"dropout": True}, {"dropout_p": "0"}, "dropout_p must lie in [0, 1), got '0'"),
    ({"dropout": True}, {"dropout_p": 0.1}, "seed must be an int or an int64 tensor [2]: the oracle draws none; got None"),
    ({"dropout": True}, {"seed": 0.5}, "seed must be an int or an int64 tensor [2]: the oracle draws none; got 0.5"),
    ({"dropout": True}, {"seed": torch.tensor([1])}, "seed must be int64 [2], got torch.int64 [1]"),
    ({}, {"sinks": rand(2)}, "unknown argument 'sinks' for x; known: dropout_p, k, q, return_lse, seed, softmax_scale, v"),
    ({"head_dim": {"qk": 8, "v_from_k": 4}}, {"v": rand(2, 5, 2, 4)}, "v must be left out: in x it is the first 4 columns of k"),
    (FEATURES, GIVEN | {"sinks": None}, "missing argument 'sinks'; x takes q, k, v, sinks, window, t"),
    (FEATURES, GIVEN | {"sinks": rand(3)}, "sinks has shape [3], expected [Hq] = [2]"),
    (FEATURES, GIVEN | {"window": 3.0}, "window must be int, got 3.0"),
    (FEATURES, GIVEN | {"window": True}, "window must be int, got True"),
    (FEATURES, GIVEN | {"t": rand(2, 6)}, "t has shape [2, 6], expected [Hq, Sk] = [2, 5]"),
    (FEATURES, GIVEN | {"t": torch.ones(2, 5, dtype=torch.int32)}, "t must be float32, got torch.int32"),
    ({"layout": "thd"}, {"cu_seqlens_k": None}, "missing argument 'cu_seqlens_k'; x takes q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"),
    ({"layout": "thd"}, {"cu_seqlens_q": torch.tensor([0, 4])}, "cu_seqlens_q must rise from 0 to 3 (the tokens given), got [0, 4]"),
    ({"layout": "thd"}, {"cu_seqlens_q": torch.tensor([0, 2, 1, 3])}, "cu_seqlens_q must rise from 0 to 3 (the tokens given), got [0, 2, 1, 3]"),
    ({"layout": "thd"}, {"cu_seqlens_q": torch.tensor([0, 1, 3])}, "cu_seqlens_q has 3 entries and cu_seqlens_k has 2; give one per sequence"),
    ({"layout": "thd"}, {"cu_seqlens_q": torch.tensor([0.0, 3.0])}, "cu_seqlens_q must be int32, got torch.float32"),
    ({"layout": "thd"}, {"max_seqlen_q": 2}, "max_seqlen_q is 2, the longest sequence has 3 tokens"),
    ({"layout": "thd"}, {"seqused_k": torch.tensor([4])}, "seqused_k[0] is 4, sequence 0 has 3 keys"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "changes", "message"), CALLS, ids=[message[:40] for *_, message in CALLS])
def test_wrong_calls(fields: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    assert wrong(make(**fields), **changes) == message


def test_wrong_precision() -> None:
    spec = make()
    with pytest.raises(ValueError, match="precision is 'float64' or 'same', got 'fp64'"):
        reference(spec, **qkv(spec), precision="fp64")


def test_import_is_light() -> None:
    code = "import attngen.reference.oracle, sys; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
