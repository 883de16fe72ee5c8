"""Executing Triton kernels on a CPU with the values that a GPU gives.

Triton's interpreter runs a kernel program by program in numpy, but it adds, compares and rounds bf16 and fp8
on raw bit patterns: the results are garbage and no error is raised. `enable` mends that for every Triton
version that this project supports, so that a check on a machine without a GPU means something. The kernel
text is the one that the GPU runs.

What is emulated: round to nearest even after every operation, saturating fp8 conversions (PTX
`cvt.rn.satfinite`: too large values and infinities become the largest finite value, where torch gives NaN or
infinity), minimum and maximum that ignore NaN unless told otherwise, products of fp32 operands rounded to
tf32 unless `input_precision="ieee"` is given, and float arguments that are fp32 scalars inside a kernel. What
is not: flushing of subnormals, the approximations of `ex2.approx` and `div.full`, contraction of `a * b + c`
into one rounding, and the order in which a GPU adds.
"""

from __future__ import annotations

from attngen.runtime.cpu.grid import overflow_checks, reversed_grid

__all__ = ["enable", "overflow_checks", "reversed_grid"]


def enable() -> None:
    """Makes Triton's interpreter in this process value-correct. Calling it again does nothing.

    Generated modules test the attribute `attngen_value_correct` of `triton.runtime.interpreter` and refuse
    bf16 and fp8 tensors on the CPU without it. Compilation for a GPU in the same process is not affected.
    """
    from attngen.runtime.cpu import builder, grid, language, reductions, triton_modules

    interpreter = triton_modules.interpreter()
    if getattr(interpreter, triton_modules.MARKER, False):
        return
    builder.install(interpreter)
    reductions.install(interpreter)
    language.install(interpreter)
    grid.install(interpreter)
    setattr(interpreter, triton_modules.MARKER, True)
