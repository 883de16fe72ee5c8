"""Interpreted kernels against torch, op by op: equal bits where an op rounds once, else a derived bound.

The same file runs at both ends of the supported Triton range (test_oldest_triton.py).
`python tests/runtime/test_cpu_ops.py` prints how long a flash-attention forward takes.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from triton.runtime.errors import InterpreterError

from attngen.runtime import cpu
from attngen.runtime.cpu import values
from attngen.runtime.load import load_module

HEADER = """
import triton
import triton.language as tl
from triton.language import math


@triton.jit
def decayed(decay_left, state_left, decay_right, state_right):
    return decay_left * decay_right, decay_right * state_left + state_right


@triton.jit
def last(left, right):
    return right


@triton.jit
def larger_with_and(left, right):
    both = (left > right) and (left == left)
    return tl.where(both, left, right)

"""

ELEMENTWISE = {
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "div": "x / y",
    "rem": "x % y",
    "neg": "-x",
    "lt": "x < y",
    "le": "x <= y",
    "gt": "x > y",
    "ge": "x >= y",
    "eq": "x == y",
    "ne": "x != y",
    "abs": "tl.abs(x)",
    "where": "tl.where(x < y, x, y)",
    "maximum": "tl.maximum(x, y)",
    "minimum": "tl.minimum(x, y)",
    "maximum_nan": "tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)",
    "minimum_nan": "tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)",
    "fma": "tl.fma(x, y, z)",
    "clamp": "tl.clamp(x, -1.5, 2.5)",
    "clamp_nan": "tl.clamp(x, -1.5, 2.5, propagate_nan=tl.PropagateNan.ALL)",
    "constant": "tl.full([N], 1.7, x.dtype) + x",
    "cast": "x.to(o_ptr.dtype.element_ty)",
    "cast_rtz": "x.to(o_ptr.dtype.element_ty, fp_downcast_rounding='rtz')",
    "exp": "tl.exp(x.to(tl.float32))",
    "exp2": "tl.exp2(x.to(tl.float32))",
    "log": "tl.log(x.to(tl.float32))",
    "log2": "tl.log2(x.to(tl.float32))",
    "sqrt": "tl.sqrt(x.to(tl.float32))",
    "sqrt_rn": "tl.sqrt_rn(x.to(tl.float32))",
    "div_rn": "tl.div_rn(x.to(tl.float32), y.to(tl.float32))",
    "rsqrt": "math.rsqrt(x.to(tl.float32))",
    "sin": "tl.sin(x.to(tl.float32))",
    "cos": "tl.cos(x.to(tl.float32))",
    "erf": "tl.erf(x.to(tl.float32))",
    "floor": "tl.floor(x.to(tl.float32))",
    "ceil": "tl.ceil(x.to(tl.float32))",
    "sigmoid": "tl.sigmoid(x.to(tl.float32))",
    "sum_whole": "x + tl.sum(y, 0)",
}
ELEMENTWISE_TEXT = """
@triton.jit
def {name}(x_ptr, y_ptr, z_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    z = tl.load(z_ptr + i)
    tl.store(o_ptr + i, {expression})

"""

REDUCTIONS = {
    "sum0": "tl.sum(x, 0)",
    "sum1": "tl.sum(x, axis=1)",
    "sum_member": "x.sum(1)",
    "max0": "tl.max(x, 0)",
    "max1": "tl.max(x, 1)",
    "min1": "tl.min(x, 1)",
    "argmax1": "tl.argmax(x, 1)",
    "argmin1": "tl.argmin(x, 1)",
    "last1": "tl.reduce(x, 1, last)",
    "with_and1": "tl.reduce(x, 1, larger_with_and)",
    "decay1": "tl.reduce((x, x), 1, decayed)[1]",
}
REDUCTION_TEXT = """
@triton.jit
def {name}(x_ptr, o_ptr, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    x = tl.load(x_ptr + m[:, None] * N + n[None, :])
    r = {expression}
    tl.store(o_ptr + tl.arange(0, r.shape[0]), r)

"""

SCANS = {
    "cumsum1": "tl.cumsum(x, 1)",
    "cumsum0_reverse": "tl.cumsum(x, 0, reverse=True)",
    "cumprod1": "tl.cumprod(x, 1)",
    "decay_scan1": "tl.associative_scan((x, x), 1, decayed)[1]",
    "decay_scan1_reverse": "tl.associative_scan((x, x), 1, decayed, reverse=True)[1]",
    "sum_keep": "x + tl.sum(x, 1, keep_dims=True)",
    "sorted1": "tl.sort(x, 1)",
}
SCAN_TEXT = """
@triton.jit
def {name}(x_ptr, o_ptr, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    at = m[:, None] * N + n[None, :]
    x = tl.load(x_ptr + at)
    tl.store(o_ptr + at, {expression})

"""

OTHER_TEXT = """
@triton.jit
def dot(a_ptr, b_ptr, o_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    acc = tl.load(o_ptr + m[:, None] * N + n[None, :])
    acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    tl.store(o_ptr + m[:, None] * N + n[None, :], acc)


@triton.jit
def scale_by_argument(x_ptr, o_ptr, scale, widen, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    if widen:
        tl.store(o_ptr + i, x * scale)


@triton.jit
def order(o_ptr, count_ptr):
    step = tl.load(count_ptr)
    at = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(o_ptr + at, step)
    tl.store(count_ptr, step + 1)


@triton.jit
def square_int(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(o_ptr + i, x * x)


@triton.jit
def and_of_blocks(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(o_ptr + i, tl.where((x > 0) and (x < 1), x, 0.0))


@triton.jit
def uniform(o_ptr, seed, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o_ptr + i, tl.rand(seed, i))


@triton.jit
def atomic_add(x_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.atomic_add(x_ptr + i, tl.load(x_ptr + i))


@triton.jit
def nan_padding(x_ptr, o_ptr, M, N: tl.constexpr):
    desc = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [16, N], padding_option="nan")
    at = tl.arange(0, 16)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(o_ptr + at, desc.load([0, 0]))

"""

FLASH_TEXT = """
@triton.jit
def scaled_scores(q, k_t, scale):
    return tl.dot(q, k_t, input_precision="ieee") * scale


@triton.jit
def flash(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, scale, seqlen, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
          BLOCK_N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    start_m = tl.program_id(0) * BLOCK_M
    base = tl.program_id(1).to(tl.int64) * seqlen * HEAD_DIM
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, HEAD_DIM)
    in_q = offs_m[:, None] < seqlen
    q = tl.load(q_ptr + base + offs_m[:, None] * HEAD_DIM + offs_d[None, :], mask=in_q, other=0.0)
    if DESCRIPTORS:
        k_at, v_at = k_ptr + base, v_ptr + base
        k_desc = tl.make_tensor_descriptor(k_at, [seqlen, HEAD_DIM], [HEAD_DIM, 1], [BLOCK_N, HEAD_DIM])
        v_desc = tl.make_tensor_descriptor(v_at, [seqlen, HEAD_DIM], [HEAD_DIM, 1], [BLOCK_N, HEAD_DIM])
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start_n in tl.range(0, tl.minimum(start_m + BLOCK_M, seqlen), BLOCK_N, num_stages=2):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        at = base + offs_n[:, None] * HEAD_DIM + offs_d[None, :]
        if DESCRIPTORS:
            k = k_desc.load([start_n, 0])
            v = v_desc.load([start_n, 0])
        else:
            k = tl.load(k_ptr + at, mask=offs_n[:, None] < seqlen, other=0.0)
            v = tl.load(v_ptr + at, mask=offs_n[:, None] < seqlen, other=0.0)
        s = scaled_scores(q, k.T, scale)
        s = tl.where((offs_n[None, :] <= offs_m[:, None]) & (offs_n[None, :] < seqlen), s, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
        m_i = m_new
    out = (acc / l_i[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_ptr + base + offs_m[:, None] * HEAD_DIM + offs_d[None, :], out, mask=in_q)
    lse = m_i * 0.6931471805599453 + tl.log(l_i)
    tl.store(lse_ptr + tl.program_id(1) * seqlen + offs_m, lse, mask=offs_m < seqlen)


def flash_attention(q, k, v, descriptors):
    import torch

    batch, heads, seqlen, head_dim = q.shape
    out, lse = torch.empty_like(q), torch.empty(batch, heads, seqlen)
    grid = (triton.cdiv(seqlen, 64), batch * heads)
    flash[grid](q, k, v, out, lse, head_dim**-0.5 * 1.4426950408889634, seqlen, HEAD_DIM=head_dim, BLOCK_M=64,
                BLOCK_N=64, DESCRIPTORS=descriptors, num_warps=4)
    return out, lse
"""


def kernels_text() -> str:
    tables = ((ELEMENTWISE_TEXT, ELEMENTWISE), (REDUCTION_TEXT, REDUCTIONS), (SCAN_TEXT, SCANS))
    made = [text.format(name=f"op_{n}", expression=e) for text, table in tables for n, e in table.items()]
    return "".join([HEADER, *made, OTHER_TEXT, FLASH_TEXT])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "op_kernels.py"
    path.write_text(kernels_text())
    return load_module(path, interpret=True)


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FNUZ = [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
FP8 = [E4M3, E5M2, *FNUZ]
STANDARD = [torch.bfloat16, torch.float16, torch.float32]
FLOATS = [*STANDARD, *FP8]
PAIRS = 4096


def to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """torch's cast, saturating for fp8 as PTX does."""
    if dtype in FP8:
        limit = torch.finfo(dtype).max
        x = x.float().clamp(-limit, limit)
    return x.to(dtype)


def sample(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Random bit patterns (every magnitude, infinities, NaN), then ordinary values in the second half."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([], dtype=dtype).element_size()
    storage = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]
    top = 2 ** (8 * size)
    bits = torch.randint(-top // 2, top // 2, (count // 2,), generator=generator).to(storage).view(dtype)
    return torch.cat([bits, to(torch.randn(count - count // 2, generator=generator), dtype)])


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of special values, then samples."""
    special = [0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).max, 3.0]
    special += [
        torch.finfo(dtype).smallest_normal,
        torch.finfo(dtype).smallest_normal / 2,
        1 + torch.finfo(dtype).eps,
    ]
    grid = torch.tensor(list(itertools.product(special, special)))
    rest = PAIRS - len(grid)
    x, y = (torch.cat([to(grid[:, i], dtype), sample(dtype, rest, i)]) for i in (0, 1))
    return x, y


def run(kernels, name, *operands, out_dtype):
    x, y, z = (*operands, operands[0], operands[0])[:3]
    out = torch.zeros(x.shape, dtype=out_dtype)
    getattr(kernels, f"op_{name}")[(1,)](x, y, z, out, N=x.numel())
    return out


def assert_same(got: torch.Tensor, expected: torch.Tensor, *, zero_sign: bool = True) -> None:
    """Equal values, NaN where NaN is expected, and the same sign of zero."""
    assert got.dtype == expected.dtype
    got, expected = got.double(), expected.double()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(0, 9e300, -9e300), expected.nan_to_num(0, 9e300, -9e300))
    if zero_sign:
        number = ~got.isnan()
        assert torch.equal(got.signbit()[number], expected.signbit()[number])


ARITHMETIC = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_equals_torch(kernels, name, dtype):
    x, y = pairs(dtype)
    operands = (x.float(), y.float()) if dtype in FP8 else (x, y)  # torch has no fp8 arithmetic
    expected = to(ARITHMETIC[name](*operands), dtype)
    assert_same(run(kernels, name, x, y, out_dtype=dtype), expected)


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_remainder_equals_fmod(kernels, dtype):
    x, y = pairs(dtype)
    finite = x.isfinite() & y.isfinite() & (y != 0)
    x, y = torch.where(finite, x, 1).to(dtype), torch.where(finite, y, 1).to(dtype)
    expected = torch.from_numpy(np.fmod(x.double().numpy(), y.double().numpy())).to(dtype)
    assert_same(run(kernels, "rem", x, y, out_dtype=dtype), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_negation_is_zero_minus_x(kernels, dtype):
    """As Triton compiles it: -x of +0 is +0."""
    x, _ = pairs(dtype)
    assert_same(run(kernels, "neg", x, out_dtype=dtype), to(0 - x.float(), dtype))


COMPARISONS = {"lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparison_equals_torch(kernels, name, dtype):
    x, y = pairs(dtype)
    expected = COMPARISONS[name](x.float(), y.float())
    assert torch.equal(run(kernels, name, x, y, out_dtype=torch.int32), expected.int())


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
@pytest.mark.parametrize(
    ("name", "reference", "propagates"),
    [
        ("maximum", torch.maximum, False),
        ("minimum", torch.minimum, False),
        ("maximum_nan", torch.maximum, True),
        ("minimum_nan", torch.minimum, True),
    ],
)
def test_extremum_follows_the_rule_for_nan(kernels, name, reference, propagates, dtype):
    x, y = pairs(dtype)
    expected = reference(x, y)
    if not propagates:  # torch.fmax would do, but for signalling NaN, which it propagates
        expected = torch.where(x.isnan(), y, torch.where(y.isnan(), x, expected))
    assert_same(run(kernels, name, x, y, out_dtype=dtype), expected, zero_sign=False)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_select_and_abs_move_bits(kernels, dtype):
    x, y = pairs(dtype)
    chosen = torch.where(x.float() < y.float(), x.float(), y.float()).to(dtype)
    assert_same(run(kernels, "where", x, y, out_dtype=dtype), chosen)
    if dtype not in FNUZ:  # without a negative zero, clearing the sign bit turns NaN into 0 on a GPU too
        assert_same(run(kernels, "abs", x, out_dtype=dtype), x.float().abs().to(dtype))


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_clamp(kernels, dtype):
    x, _ = pairs(dtype)
    propagated = x.float().clamp(-1.5, 2.5)
    ignored = torch.where(x.isnan(), -1.5, propagated)
    assert_same(run(kernels, "clamp_nan", x, out_dtype=torch.float32), propagated)
    assert_same(run(kernels, "clamp", x, out_dtype=torch.float32), ignored)


def nearest(exact: Fraction, dtype: torch.dtype) -> float:
    """The value of `dtype` nearest to `exact`, ties to even, by exact arithmetic."""
    exponent = max(_exponent(exact), {torch.bfloat16: -126, torch.float32: -126, torch.float16: -14}[dtype])
    bits = {torch.bfloat16: 7, torch.float32: 23, torch.float16: 10}[dtype]
    quantum = Fraction(2) ** (exponent - bits)
    return float(round(exact / quantum) * quantum)


def _exponent(exact: Fraction) -> int:
    size = abs(exact)
    if not size:
        return -1000
    guess = size.numerator.bit_length() - size.denominator.bit_length()
    return guess if size >= Fraction(2) ** guess else guess - 1


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_fma_rounds_once(kernels, dtype):
    x, y = (sample(dtype, 1024, seed)[512:] for seed in (3, 4))
    # An addend that nearly cancels the product, and a tiny one that decides ties.
    z = torch.where(torch.arange(512) % 2 == 0, -(x * y), (x * y) * torch.finfo(dtype).eps / 2)
    exact = [
        Fraction(a) * Fraction(b) + Fraction(c)
        for a, b, c in zip(*(t.tolist() for t in (x, y, z)), strict=True)
    ]
    expected = torch.tensor([nearest(e, dtype) for e in exact], dtype=torch.float64).to(dtype)
    assert_same(run(kernels, "fma", x, y, z, out_dtype=dtype), expected, zero_sign=False)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_constants_are_values(kernels, dtype):
    x = to(torch.randn(64), dtype)
    constant = to(torch.full((64,), 1.7), dtype)
    assert_same(run(kernels, "constant", x, out_dtype=dtype), to(constant.float() + x.float(), dtype))


FUNCTIONS = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_within_4_ulp_of_float64(kernels, name, dtype):
    x = torch.cat([sample(dtype, 2048, 5)[1024:], to(torch.linspace(-20, 20, 1024), dtype)])
    got = run(kernels, name, x, out_dtype=torch.float32)
    exact = FUNCTIONS[name](x.double())
    assert torch.equal(got.isnan(), exact.isnan())
    finite = exact.float().isfinite() & got.isfinite()
    ulp = torch.exp2(torch.floor(torch.log2(exact.abs())).clamp(min=-126) - 23)
    # 1e-7 of the argument: next to their zeros, sin and cos are as good as the reduction of the argument.
    allowed = 4 * ulp + (1e-7 if name in ("sin", "cos") else 0)
    assert ((got.double() - exact).abs() <= allowed)[finite].all()
    assert torch.equal(got[~finite].nan_to_num(0), exact[~finite].float().nan_to_num(0))


def exact_sqrt(x: torch.Tensor) -> torch.Tensor:
    """Correctly rounded, which torch's own is not on every CPU."""
    return x.double().sqrt().float()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("sqrt", exact_sqrt), ("sqrt_rn", exact_sqrt), ("floor", torch.floor), ("ceil", torch.ceil)],
)
def test_correctly_rounded_function_equals_torch(kernels, name, reference, dtype):
    x, _ = pairs(dtype)
    assert_same(run(kernels, name, x, out_dtype=torch.float32), reference(x.float()))


def test_div_rn(kernels):
    x, y = pairs(torch.bfloat16)
    assert_same(run(kernels, "div_rn", x, y, out_dtype=torch.float32), x.float() / y.float())


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """All bit patterns of a narrow type; of fp32 samples, ties of the narrow types, and their neighbours."""
    size = torch.tensor([], dtype=dtype).element_size()
    if size < 4:
        storage = {1: torch.uint8, 2: torch.int16}[size]
        return torch.arange(2 ** (8 * size)).to(storage).view(dtype)
    narrow = torch.cat([every_value(t).float() for t in (torch.bfloat16, torch.float16, *FP8)])
    narrow = narrow[narrow.isfinite()].unique()
    ties = (narrow[1:].double() + narrow[:-1].double()).div(2).float()
    around = [ties, torch.nextafter(ties, torch.tensor(9e9)), torch.nextafter(ties, torch.tensor(-9e9))]
    values_ = torch.cat([*around, -ties, sample(torch.float32, 60000, 6)])
    count = 1 << (values_.numel() - 1).bit_length()
    return torch.cat([values_, torch.zeros(count - values_.numel())])


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("target", FLOATS, ids=str)
def test_float_cast_equals_torch(kernels, source, target):
    x = every_value(source)
    assert_same(run(kernels, "cast", x, out_dtype=target), x if source == target else to(x, target))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
def test_cast_toward_zero(kernels, target):
    x = every_value(torch.float32)
    got = run(kernels, "cast_rtz", x, out_dtype=target).double()
    finite = x.isfinite()
    assert (got.abs() <= x.double().abs())[finite].all()
    limit = torch.finfo(target).max
    gap = torch.maximum(
        x.double().abs() * torch.finfo(target).eps, torch.tensor(2.0**-14 * torch.finfo(target).eps)
    )
    assert ((got - x.double().clamp(-limit, limit)).abs() <= gap)[finite].all()
    assert torch.equal(got[x.isinf()], x.double()[x.isinf()])


@pytest.mark.parametrize(
    "source", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str
)
@pytest.mark.parametrize("target", STANDARD, ids=str)
def test_integer_to_float_equals_torch(kernels, source, target):
    high = 2 if source == torch.bool else torch.iinfo(source).max
    low = 0 if source == torch.bool else torch.iinfo(source).min
    x = torch.randint(low, high, (4096,), generator=torch.Generator().manual_seed(7)).to(source)
    got = run(kernels, "cast", x, out_dtype=target)
    if source == torch.int64 and target == torch.float16:
        assert got.isinf().all()
    else:
        assert_same(got, x.to(target))


@pytest.mark.parametrize("source", STANDARD, ids=str)
@pytest.mark.parametrize("target", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_float_to_integer_truncates_and_saturates(kernels, source, target):
    x = torch.cat([sample(source, 2048, 8), torch.linspace(-300, 300, 2048).to(source)])
    info = torch.iinfo(target)
    expected = [
        0 if np.isnan(v) else info.max if v > info.max else info.min if v < info.min else int(v)
        for v in x.double().tolist()
    ]
    assert run(kernels, "cast", x, out_dtype=target).tolist() == expected


@pytest.mark.parametrize("dtype", [*FP8, torch.bfloat16], ids=str)
def test_dot_of_narrow_operands(kernels, dtype):
    check_dot(kernels, dtype, torch.float32, "ieee")


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_dot_of_fp32_follows_its_precision(kernels, precision):
    relative = check_dot(kernels, torch.float32, torch.float32, precision, loose=precision == "tf32")
    assert (relative > 1e-5) == (precision == "tf32")


def test_dot_of_fp16_into_fp16(kernels):
    check_dot(kernels, torch.float16, torch.float16, "ieee")


def check_dot(kernels, dtype, out_dtype, precision, *, loose=False) -> float:
    """The error against float64 within the bound of accumulation in fp32 and one rounding of the result."""
    m, n, k = 32, 64, 128
    generator = torch.Generator().manual_seed(9)
    a, b = (to(torch.randn(*shape, generator=generator), dtype) for shape in ((m, k), (k, n)))
    start = torch.randn(m, n, generator=generator).to(out_dtype)
    out = start.clone()
    kernels.dot[(1,)](a, b, out, M=m, N=n, K=k, PRECISION=precision)
    exact = a.double() @ b.double() + start.double()
    size = a.double().abs() @ b.double().abs() + start.double().abs()
    error = (out.double() - exact).abs()
    unit = 2.0**-10 if loose else k * 2.0**-24
    assert (error <= unit * size + exact.abs() * torch.finfo(out_dtype).eps / 2).all()
    return float((error / size).max())


def rows(dtype: torch.dtype, m: int = 16, n: int = 32) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(10)).to(dtype)


def reduced(kernels, name, x, count, dtype):
    out = torch.zeros(count, dtype=dtype)
    getattr(kernels, f"op_{name}")[(1,)](x, out, M=x.shape[0], N=x.shape[1])
    return out


def tree_sum(x: torch.Tensor) -> torch.Tensor:
    """Sums over the first axis, rounding after each addition of neighbours."""
    while len(x) > 1:
        x = x[0::2] + x[1::2]
    return x[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sum_of_a_narrow_type_rounds_each_addition(kernels, dtype):
    x = rows(dtype)
    assert_same(reduced(kernels, "sum0", x, 32, dtype), tree_sum(x))
    assert_same(reduced(kernels, "sum1", x, 16, dtype), tree_sum(x.T))
    assert_same(reduced(kernels, "sum_member", x, 16, dtype), tree_sum(x.T))


def test_sum_of_fp32_and_integers(kernels):
    x = rows(torch.float32)
    error = (reduced(kernels, "sum1", x, 16, torch.float32).double() - x.double().sum(1)).abs()
    assert (error <= 32 * 2.0**-24 * x.double().abs().sum(1)).all()
    assert torch.equal(reduced(kernels, "sum0", (x * 9).int(), 32, torch.int32), (x * 9).int().sum(0).int())


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_extrema_of_rows(kernels, dtype):
    x = rows(dtype)
    assert_same(reduced(kernels, "argmax1", x, 16, torch.int32), x.argmax(1).int())
    assert_same(reduced(kernels, "argmin1", x, 16, torch.int32), x.argmin(1).int())
    x[3] = float("nan")
    x[4, 5] = float("nan")
    x[5] = float("-inf")
    ignoring = torch.from_numpy(np.fmax.reduce(x.float().numpy(), axis=1))
    assert_same(reduced(kernels, "max1", x, 16, torch.float32), ignoring)
    assert_same(
        reduced(kernels, "min1", x, 16, torch.float32),
        torch.from_numpy(np.fmin.reduce(x.float().numpy(), axis=1)),
    )
    assert_same(
        reduced(kernels, "max0", x, 32, torch.float32),
        torch.from_numpy(np.fmax.reduce(x.float().numpy(), axis=0)),
    )


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_reduction_keeps_the_order_of_operands(kernels, dtype):
    x = rows(dtype)
    assert_same(reduced(kernels, "last1", x, 16, dtype), x[:, -1])


def test_combine_function_with_a_truth_value(kernels):
    """`and` needs scalars, so such a function runs once per element."""
    x = rows(torch.float32)
    assert_same(reduced(kernels, "with_and1", x, 16, torch.float32), x.amax(1))


def recurrence(x: torch.Tensor) -> torch.Tensor:
    """state = x * state + x along the rows, in float64."""
    states, state = [], torch.zeros(len(x), dtype=torch.float64)
    for column in x.double().T:
        state = column * state + column
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)], ids=str)
def test_scan_of_a_recurrence(kernels, dtype, unit):
    x = rows(dtype) / 4
    forward = scanned(kernels, "decay_scan1", x, dtype).double()
    backward = scanned(kernels, "decay_scan1_reverse", x, dtype).double()
    # At most 2 * 5 roundings per level of the tree, on values whose sizes the recurrence of |x| bounds.
    bound = 64 * unit * recurrence(x.abs())
    assert ((forward - recurrence(x)).abs() <= bound).all()
    flipped = x.flip(1)
    assert (
        (backward - recurrence(flipped).flip(1)).abs() <= 64 * unit * recurrence(flipped.abs()).flip(1)
    ).all()
    final = reduced(kernels, "decay1", x, 16, dtype).double()
    assert ((final - recurrence(x)[:, -1]).abs() <= bound[:, -1]).all()


def scanned(kernels, name, x, dtype):
    out = torch.zeros(x.shape, dtype=dtype)
    getattr(kernels, f"op_{name}")[(1,)](x, out, M=x.shape[0], N=x.shape[1])
    return out


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_cumulative_sum_and_product(kernels, dtype):
    x = rows(dtype)
    result = torch.float32 if dtype == torch.bfloat16 else dtype  # tl.cumsum widens bf16 only
    unit = torch.finfo(result).eps / 2
    cases = {"cumsum1": x.double().cumsum(1), "cumsum0_reverse": x.double().flip(0).cumsum(0).flip(0)}
    sizes = {
        "cumsum1": x.double().abs().cumsum(1),
        "cumsum0_reverse": x.double().abs().flip(0).cumsum(0).flip(0),
    }
    for name, exact in cases.items():
        assert ((scanned(kernels, name, x, result).double() - exact).abs() <= 6 * unit * sizes[name]).all()
    product = x.double().cumprod(1)
    error = (scanned(kernels, "cumprod1", x, result).double() - product).abs()
    assert (error <= 32 * unit * product.abs() + torch.finfo(result).smallest_normal * 32).all()


def test_sum_that_keeps_its_axis(kernels):
    x = rows(torch.bfloat16)
    assert_same(scanned(kernels, "sum_keep", x, torch.bfloat16), x + tree_sum(x.T)[:, None])


@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_sort(kernels, dtype):
    x = rows(dtype)
    assert_same(scanned(kernels, "sorted1", x, dtype), x.sort(1).values)


def test_scalar_reduction_broadcasts(kernels):
    x, y = rows(torch.float32).flatten(), rows(torch.float32).flatten().round()
    assert_same(run(kernels, "sum_whole", x, y, out_dtype=torch.float32), x + y.sum())


def test_float_argument_is_an_fp32_scalar(kernels):
    """It widens bf16, as on a GPU; a Python number in the kernel's text does not."""
    x = rows(torch.bfloat16).flatten()
    out = torch.zeros(x.numel())
    kernels.scale_by_argument[(1,)](x, out, 0.3, True, N=x.numel())
    assert_same(out, x.float() * torch.tensor(0.3))


def test_bool_argument(kernels):
    x, out = torch.ones(16), torch.zeros(16)
    kernels.scale_by_argument[(1,)](x, out, 2.0, False, N=16)
    assert torch.equal(out, torch.zeros(16))


def test_random_numbers_do_not_depend_on_how_triton_was_imported(kernels):
    out = torch.zeros(1024)
    kernels.uniform[(1,)](out, 2**40 + 3, N=1024)
    assert out.unique().numel() > 1000
    assert ((out >= 0) & (out < 1)).all()
    assert abs(out.mean().item() - 0.5) < 4 * (1 / 12 / 1024) ** 0.5


def test_reversed_grid_reverses_every_axis(kernels):
    def launch():
        out, count = torch.zeros(6, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        kernels.order[(2, 3)](out, count)
        return out.tolist()

    assert launch() == [0, 1, 2, 3, 4, 5]
    with cpu.reversed_grid():
        assert launch() == [5, 4, 3, 2, 1, 0]
    assert launch() == [0, 1, 2, 3, 4, 5]


def test_overflow_is_found_on_request(kernels):
    x, out = torch.full((16,), 1 << 16, dtype=torch.int32), torch.ones(16, dtype=torch.int32)
    kernels.square_int[(1,)](x, out, N=16)
    assert torch.equal(out, torch.zeros(16, dtype=torch.int32))
    with cpu.overflow_checks(True), pytest.raises(InterpreterError, match="int32 overflow"):
        kernels.square_int[(1,)](x, out, N=16)
    with cpu.overflow_checks(True), cpu.overflow_checks(False):
        kernels.square_int[(1,)](x, out, N=16)
    kernels.square_int[(1,)](x, out, N=16)


def test_and_of_blocks_is_refused(kernels):
    """Triton's interpreter takes the second operand and goes on."""
    with pytest.raises(InterpreterError, match=r"use & and \|"):
        kernels.and_of_blocks[(1,)](torch.ones(16), torch.ones(16), N=16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, E4M3], ids=str)
def test_what_has_no_rule_is_refused(kernels, dtype):
    x = torch.ones(16, 16).to(dtype)
    with pytest.raises(InterpreterError, match="NaN padding"):
        kernels.nan_padding[(1,)](x, torch.empty_like(x), 8, N=16)
    if dtype == torch.bfloat16:
        with pytest.raises(InterpreterError, match="atomic"):
            kernels.atomic_add[(1,)](x, N=16)


def test_nan_padding_of_fp32(kernels):
    x, out = torch.ones(8, 16), torch.zeros(16, 16)
    kernels.nan_padding[(1,)](x, out, 8, N=16)
    assert torch.equal(out.isnan(), torch.arange(16)[:, None].expand(16, 16) >= 8)


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("dtype", STANDARD, ids=str)
def test_flash_attention(kernels, dtype, descriptors):
    """No worse than twice torch's own kernel of the same type, in both grid orders with the same bits."""
    generator = torch.Generator().manual_seed(11)
    q, k, v = (torch.randn(1, 2, 200, 64, generator=generator).to(dtype) for _ in range(3))
    out, lse = kernels.flash_attention(q, k, v, descriptors)
    with cpu.reversed_grid(), cpu.overflow_checks(True):
        again = kernels.flash_attention(q, k, v, descriptors)
    assert torch.equal(out, again[0])
    assert torch.equal(lse, again[1])
    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = sdpa(q.double(), k.double(), v.double(), is_causal=True)
    own = (sdpa(q, k, v, is_causal=True).double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= 2 * own + 4 * torch.finfo(dtype).eps * 2.0**-2
    scores = q.double() @ k.double().mT * 64**-0.5
    scores = scores.masked_fill(~torch.ones(200, 200, dtype=torch.bool).tril(), float("-inf"))
    assert torch.allclose(lse.double(), scores.logsumexp(-1), rtol=0, atol=2e-6)


@given(st.integers(0, 2**32 - 1))
def test_bf16_rounding_of_any_float32(bits):
    x = np.array([bits], dtype=np.uint32).view(np.float32)
    expected = torch.from_numpy(x.copy()).to(torch.bfloat16)
    got = torch.from_numpy(values.encode(x, "bf16").view(np.int16).copy()).view(torch.bfloat16)
    assert_same(got, expected)


@pytest.mark.parametrize("name", sorted(values.FLOAT8))
def test_fp8_tables_equal_torch(name):
    dtype = dict(zip(["fp8e4nv", "fp8e5", "fp8e4b8", "fp8e5b16"], FP8, strict=True))[name]
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes.copy()).view(dtype)
    decoded = values.decode(codes, name)
    assert_same(torch.from_numpy(decoded), expected.float())
    finite = np.isfinite(decoded)
    assert np.array_equal(values.encode(decoded, name)[finite], codes[finite])


@given(st.floats(width=32), st.sampled_from(sorted(values.FLOAT8)))
def test_fp8_rounding_takes_a_nearest_value(x, name):
    got = values.decode(values.encode(np.array([x], dtype=np.float32), name), name).astype(np.float64)[0]
    if np.isnan(x):
        assert np.isnan(got)
    else:
        table = values.FLOAT8[name].magnitudes
        distance = np.abs(table - abs(x)) if np.isfinite(x) else table.max() - table
        assert abs(got) == table[np.argmin(distance)] or np.isclose(
            abs(abs(got) - abs(x)), distance.min(), rtol=0, atol=0
        )


def test_unknown_8_bit_format_is_refused():
    with pytest.raises(NotImplementedError, match="fp8e4b15"):
        values.is_packed("fp8e4b15")


def _measure() -> None:
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(kernels_text())
        module = load_module(path, interpret=True)
        for dtype, descriptors in itertools.product((torch.float32, torch.bfloat16), (False, True)):
            q, k, v = (torch.randn(1, 8, 1024, 128).to(dtype) for _ in range(3))
            module.flash_attention(q[:, :1], k[:, :1], v[:, :1], descriptors)
            wall, used = [], []
            for _ in range(3):
                start, start_used = time.perf_counter(), time.process_time()
                module.flash_attention(q, k, v, descriptors)
                wall.append(time.perf_counter() - start)
                used.append(time.process_time() - start_used)
            how = "descriptors" if descriptors else "pointers"
            print(f"{dtype} {how}: {min(wall) * 1e3:.0f} ms, {min(used) * 1e3:.0f} ms of CPU time")


if __name__ == "__main__":
    _measure()
