"""Values of the number formats that numpy lacks: bf16 and the four 8-bit floats, by Triton's names.

numpy holds them as unsigned integers. `decode` gives their values as float32, exactly; `encode` rounds values
to a format as a GPU does. Arithmetic in float32 followed by one `encode` equals a single rounding for `+ - *
/` and `sqrt` of bf16 and fp8: float32 has more than twice their precision plus two bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BF16 = "bf16"
_BF16_NAN = np.uint16(0x7FC0)


@dataclass(frozen=True)
class Float8:
    """An 8-bit float. `top` is the code of the largest finite value, `nan` the code that NaN is written as.

    Formats without a negative zero (`fnuz`) use its code for NaN.
    """

    mantissa_bits: int
    bias: int
    top: int
    nan: int
    has_inf: bool = False
    fnuz: bool = False

    @cached_property
    def magnitudes(self) -> Array:
        """The finite values of codes 0 to `top`, ascending, in float64."""
        codes = np.arange(self.top + 1)
        exponents = codes >> self.mantissa_bits
        fractions = (codes & ((1 << self.mantissa_bits) - 1)) / 2.0**self.mantissa_bits
        normal = exponents > 0
        return np.ldexp(fractions + normal, np.where(normal, exponents, 1) - self.bias)

    @cached_property
    def table(self) -> Array:
        """The value of each of the 256 codes, in float32."""
        half = np.full(128, np.nan)
        half[: self.top + 1] = self.magnitudes
        if self.has_inf:
            half[self.top + 1] = np.inf
        table = np.concatenate([half, -half]).astype(np.float32)
        if self.fnuz:
            table[128] = np.nan
        return table

    @cached_property
    def midpoints(self) -> Array:
        """Where rounding to nearest changes from a code to the next; exact in float64."""
        return (self.magnitudes[1:] + self.magnitudes[:-1]) / 2

    def encode(self, values: Array, toward_zero: bool) -> Array:
        """The codes of `values`, saturating. Of two equally near values the even code is taken."""
        size = np.abs(values.astype(np.float64))
        if toward_zero:
            code = np.searchsorted(self.magnitudes, size, side="right") - 1
        else:
            below = np.searchsorted(self.midpoints, size, side="left")
            above = np.searchsorted(self.midpoints, size, side="right")
            code = np.where(below % 2 == 0, below, above)
        negative = np.signbit(values) & ~((code == 0) & self.fnuz)
        signed = code + np.where(negative, 128, 0)
        return np.where(np.isnan(values), self.nan, signed).astype(np.uint8)


FLOAT8 = {
    "fp8e4nv": Float8(mantissa_bits=3, bias=7, top=0x7E, nan=0x7F),
    "fp8e5": Float8(mantissa_bits=2, bias=15, top=0x7B, nan=0x7F, has_inf=True),
    "fp8e4b8": Float8(mantissa_bits=3, bias=8, top=0x7F, nan=0x80, fnuz=True),
    "fp8e5b16": Float8(mantissa_bits=2, bias=16, top=0x7F, nan=0x80, fnuz=True),
}
NAMES = frozenset({BF16, *FLOAT8})
# Triton has this format too, and no GPU that this project targets does.
REFUSED = frozenset({"fp8e4b15"})


@cache
def is_packed(name: str) -> bool:
    """Whether numpy holds values of this Triton type as bare bits; refuses a format without rules."""
    if name in REFUSED:
        raise NotImplementedError(f"{name} has no value-correct execution on the CPU; use fp8e4nv or fp8e5")
    return name in NAMES


def decode(data: Array, name: str) -> Array:
    """The float32 values of bits in the format `name`."""
    if name == BF16:
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return FLOAT8[name].table[data]


def encode(values: Array, name: str, *, toward_zero: bool = False) -> Array:
    """The bits of `values` in the format `name`, rounded to nearest even unless `toward_zero`.

    float64 goes to bf16 by way of float32, as torch and Triton do.
    """
    if name == BF16:
        return _encode_bf16(values.astype(np.float32, copy=False), toward_zero)
    return FLOAT8[name].encode(values, toward_zero)


def _encode_bf16(values: Array, toward_zero: bool) -> Array:
    bits = np.ascontiguousarray(values).reshape(values.shape).view(np.uint32)
    half = np.uint32(0) if toward_zero else np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(values)
    return np.where(nan, _BF16_NAN, rounded) if nan.any() else rounded


def round_to_odd(total: Array, error: Array) -> Array:
    """`total` moved to its odd neighbour where `total + error` is the exact value and `error` is not zero.

    A float64 rounded to odd can be rounded again to any narrower format without a double rounding.
    """
    even = (total.view(np.int64) & 1) == 0
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0) & np.isfinite(total), toward, total)


def fused_multiply_add(x: Array, y: Array, z: Array) -> Array:
    """x * y + z in float64, rounded to odd: ready to be rounded once, for operands of at most 26 bits."""
    product = x.astype(np.float64) * y.astype(np.float64)
    addend = z.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    return round_to_odd(total, error)


def round_to_tf32(values: Array) -> Array:
    """float32 values rounded to the 10 mantissa bits of tf32, ties away from zero (`cvt.rna.tf32`)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(values.shape).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def narrow(values: Array, dtype: np.dtype[Any], *, toward_zero: bool = False) -> Array:
    """`values` in a narrower numpy float type."""
    nearest = values.astype(dtype)
    if not toward_zero:
        return nearest
    too_far = np.abs(nearest.astype(values.dtype)) > np.abs(values)
    return np.where(too_far & np.isfinite(values), np.nextafter(nearest, dtype.type(0)), nearest)


def to_integer(values: Array, dtype: np.dtype[Any]) -> Array:
    """Floats to integers as `cvt.rzi` does: toward zero, saturating, NaN to 0; undefined in numpy."""
    info = np.iinfo(dtype)
    wide = np.trunc(values.astype(np.float64))
    too_low, too_high = wide <= float(info.min), wide >= float(info.max)
    inside = np.where(np.isnan(wide) | too_low | too_high, 0, wide).astype(dtype)
    return np.where(too_high, dtype.type(info.max), np.where(too_low, dtype.type(info.min), inside))
