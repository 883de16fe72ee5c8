"""Small kernels that the compile tests build for GPUs that are not there."""

import triton
import triton.language as tl


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of a product; BLOCK decides how many registers and how much shared memory it takes."""
    r = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        a = tl.load(a_ptr + r[:, None] * K + k + r[None, :])
        b = tl.load(b_ptr + (k + r[:, None]) * K + r[None, :])
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(c_ptr + r[:, None] * K + r[None, :], acc)


@triton.jit
def copy_rows(a_ptr, c_ptr, n, BLOCK: tl.constexpr):
    """Rows through a tensor descriptor, so that targets with TMA use it."""
    source = tl.make_tensor_descriptor(a_ptr, [n, BLOCK], [BLOCK, 1], [BLOCK, BLOCK])
    r = tl.arange(0, BLOCK)
    tl.store(c_ptr + r[:, None] * BLOCK + r[None, :], source.load([0, 0]))


@triton.jit
def ill_typed(a_ptr):
    """Adds tensors whose shapes do not agree."""
    tl.store(a_ptr, tl.arange(0, 16) + tl.arange(0, 32))
