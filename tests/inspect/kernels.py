"""Small kernels whose loops can be counted by eye. `listings/` holds what the compiler makes of them."""

import triton
import triton.language as tl


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of a product."""
    r = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        a = tl.load(a_ptr + r[:, None] * K + k + r[None, :])
        b = tl.load(b_ptr + (k + r[:, None]) * BLOCK + r[None, :])
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(c_ptr + r[:, None] * BLOCK + r[None, :], acc)


@triton.jit
def matmul_of_descriptors(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr):
    """The same through tensor descriptors."""
    a = tl.make_tensor_descriptor(a_ptr, [BLOCK, K], [K, 1], [BLOCK, BLOCK])
    b = tl.make_tensor_descriptor(b_ptr, [K, BLOCK], [BLOCK, 1], [BLOCK, BLOCK])
    r = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        acc = tl.dot(a.load([0, k]), b.load([k, 0]), acc)
    tl.store(c_ptr + r[:, None] * BLOCK + r[None, :], acc)


@triton.jit
def products_in_the_inner_loop(a_ptr, b_ptr, c_ptr, N, K, BLOCK: tl.constexpr):
    """The outer loop walks over tiles and only stores."""
    r = tl.arange(0, BLOCK)
    for n in range(0, N, BLOCK):
        acc = tl.zeros((BLOCK, BLOCK), tl.float32)
        for k in range(0, K, BLOCK):
            a = tl.load(a_ptr + r[:, None] * K + k + r[None, :])
            b = tl.load(b_ptr + (k + r[:, None]) * N + n + r[None, :])
            acc = tl.dot(a, b, acc)
        tl.store(c_ptr + r[:, None] * N + n + r[None, :], acc)


@triton.jit
def products_in_both_loops(a_ptr, b_ptr, c_ptr, N, K, BLOCK: tl.constexpr):
    """The outer loop multiplies too, after the inner one."""
    r = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for n in range(0, N, BLOCK):
        acc = tl.zeros((BLOCK, BLOCK), tl.float32)
        for k in range(0, K, BLOCK):
            a = tl.load(a_ptr + r[:, None] * K + k + r[None, :])
            b = tl.load(b_ptr + (k + r[:, None]) * N + n + r[None, :])
            acc = tl.dot(a, b, acc)
        v = tl.load(b_ptr + (n + r[:, None]) * N + r[None, :])
        total = tl.dot(acc.to(v.dtype), v, total)
    tl.store(c_ptr + r[:, None] * N + r[None, :], total)


@triton.jit
def row_max(q_ptr, k_ptr, m_ptr, l_ptr, N, BLOCK: tl.constexpr):
    """Scores, their running row maximum, and the running row sum of their powers."""
    r = tl.arange(0, BLOCK)
    q = tl.load(q_ptr + r[:, None] * BLOCK + r[None, :])
    m = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for n in range(0, N, BLOCK):
        k = tl.load(k_ptr + (n + r[None, :]) * BLOCK + r[:, None])
        s = tl.dot(q, k)
        m_new = tl.maximum(m, tl.max(s, 1))
        total = total * tl.exp2(m - m_new)[:, None] + tl.exp2(s - m_new[:, None])
        m = m_new
    tl.store(m_ptr + r, m)
    tl.store(l_ptr + r, tl.sum(total, 1))
