"""Value-correct operations for the builder of Triton's interpreter.

Each operation of a kernel ends in a method `create_*` of `InterpreterBuilder`, with operands that are numpy
arrays and a Triton type. The methods here decode packed operands, compute in numpy, and encode the result. A
method that the version at hand lacks is not added: nothing calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attngen.runtime.cpu import values
from attngen.runtime.cpu.values import Array

Operation = Callable[..., Array]


def _reciprocal_root(x: Array) -> Array:
    return 1 / np.sqrt(x)


BINARY: dict[str, Operation] = {
    "fadd": np.add,
    "fsub": np.subtract,
    "fmul": np.multiply,
    "fdiv": np.divide,
    "precise_divf": np.divide,
    "frem": np.fmod,
    "minimumf": np.minimum,
    "maximumf": np.maximum,
    # min.f32 and max.f32 give the operand that is a number; Triton's interpreter propagates NaN here too.
    "minnumf": np.fmin,
    "maxnumf": np.fmax,
}
UNARY: dict[str, Operation] = {
    "fneg": np.negative,
    "cos": np.cos,
    "sin": np.sin,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "floor": np.floor,
    "ceil": np.ceil,
    "sqrt": np.sqrt,
    "precise_sqrt": np.sqrt,
    "rsqrt": _reciprocal_root,
}
ORDERED: dict[str, Operation] = {
    "LT": np.less,
    "GT": np.greater,
    "LE": np.less_equal,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}
# OpenBLAS multiplies on one thread up to this many products.
_ONE_THREAD = 1 << 18
CASTS = ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc", "fp_to_fp")


def install(interpreter: Any) -> None:
    """Replaces the methods of `InterpreterBuilder` whose results are wrong or depend on packed formats."""
    interpreter._get_np_dtype = _cached_np_dtype(interpreter._get_np_dtype)
    rules = _Rules(interpreter)
    builder = interpreter.InterpreterBuilder
    for name, method in rules.methods().items():
        if hasattr(builder, name):
            setattr(builder, name, method)
    for name in sorted(values.NAMES):
        setattr(builder, f"get_{name}", rules.constant(name))


class _Rules:
    """Makes the methods; holds what they need of one interpreter module."""

    def __init__(self, interpreter: Any) -> None:
        self.handle = interpreter.TensorHandle
        self.np_dtype = interpreter._get_np_dtype
        self.tl = interpreter.tl
        self.ir = interpreter._ir
        self.builder = interpreter.InterpreterBuilder

    def methods(self) -> dict[str, Callable[..., Any]]:
        made: dict[str, Callable[..., Any]] = {}
        made.update({f"create_{name}": self.elementwise(op) for name, op in (BINARY | UNARY).items()})
        for name, op in ORDERED.items():
            made[f"create_fcmpO{name}"] = self.comparison(op, if_nan=False)
            made[f"create_fcmpU{name}"] = self.comparison(op, if_nan=True)
        made.update({f"create_{name}": self.cast() for name in CASTS})
        made["create_erf"] = self.erf()
        made["create_fma"] = self.fma()
        made["create_clampf"] = self.clamp()
        made["create_dot"] = self.dot()
        made["create_atomic_rmw"] = self.atomic()
        for name in ("create_descriptor_load", "create_tensor_pointer_load"):
            if hasattr(self.builder, name):
                made[name] = self.padded_load(getattr(self.builder, name))
        return made

    def lift(self, handle: Any) -> Array:
        """The values of an operand: decoded if it is packed."""
        name = handle.dtype.scalar.name
        return values.decode(handle.data, name) if values.is_packed(name) else handle.data

    def lower(self, result: Array, dtype: Any) -> Any:
        """An operand of type `dtype` with the values `result`, rounded once."""
        if values.is_packed(dtype.name):
            return self.handle(values.encode(result, dtype.name), dtype)
        return self.handle(result.astype(self.np_dtype(dtype), copy=False), dtype)

    def constant(self, name: str) -> Callable[..., Any]:
        def get(_: Any, value: float) -> Any:
            dtype = self.tl.dtype(name)
            return self.lower(np.array([value], dtype=np.float32), dtype)

        return get

    def elementwise(self, op: Operation) -> Callable[..., Any]:
        def create(_: Any, *operands: Any) -> Any:
            return self.lower(op(*map(self.lift, operands)), operands[0].dtype.scalar)

        return create

    def comparison(self, op: Operation, *, if_nan: bool) -> Callable[..., Any]:
        """An ordered comparison is false when an operand is NaN, an unordered one true."""
        needs_mask = if_nan != (op is np.not_equal)

        def create(_: Any, lhs: Any, rhs: Any) -> Any:
            left, right = self.lift(lhs), self.lift(rhs)
            result = op(left, right)
            if needs_mask:
                nan = np.isnan(left) | np.isnan(right)
                result = result | nan if if_nan else result & ~nan
            return self.handle(result, self.tl.int1)

        return create

    def cast(self) -> Callable[..., Any]:
        def create(_: Any, src: Any, dst_type: Any, rounding: Any = None) -> Any:
            lifted, dst = self.lift(src), dst_type.scalar
            toward_zero = rounding == self.ir.ROUNDING_MODE.RTZ
            if values.is_packed(dst.name):
                # An integer becomes a float32 first, as on the GPU and in torch.
                source = lifted if lifted.dtype.kind == "f" else lifted.astype(np.float32)
                return self.handle(values.encode(source, dst.name, toward_zero=toward_zero), dst)
            to = self.np_dtype(dst)
            if lifted.dtype.kind == "f" and to.kind in "iu":
                return self.handle(values.to_integer(lifted, to), dst)
            if lifted.dtype.kind == "f" and to.kind == "f":
                return self.handle(values.narrow(lifted, to, toward_zero=toward_zero), dst)
            return self.handle(lifted.astype(to), dst)

        return create

    def erf(self) -> Callable[..., Any]:
        original = self.builder.create_erf

        def create(builder: Any, arg: Any) -> Any:
            packed = values.is_packed(arg.dtype.scalar.name)
            wide = self.handle(self.lift(arg), self.tl.float32) if packed else arg
            return self.lower(original(builder, wide).data, arg.dtype.scalar)

        return create

    def fma(self) -> Callable[..., Any]:
        def create(_: Any, x: Any, y: Any, z: Any) -> Any:
            dtype = z.dtype.scalar
            if dtype.name == "fp64":
                return self.handle(x.data * y.data + z.data, dtype)
            exact = values.fused_multiply_add(self.lift(x), self.lift(y), self.lift(z))
            if dtype.name == values.BF16:
                exact = _to_odd_float32(exact)
            return self.lower(exact, dtype)

        return create

    def clamp(self) -> Callable[..., Any]:
        """min(max(x, lo), hi); a NaN x gives lo, or NaN if asked to propagate."""
        everything = self.tl.PropagateNan.ALL

        def create(_: Any, arg: Any, lo: Any, hi: Any, propagate_nan: Any) -> Any:
            low, high = (np.maximum, np.minimum) if propagate_nan == everything else (np.fmax, np.fmin)
            clamped = high(low(self.lift(arg), self.lift(lo)), self.lift(hi))
            return self.lower(clamped, arg.dtype.scalar)

        return create

    def dot(self) -> Callable[..., Any]:
        def create(_: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
            dtype = d.dtype.scalar
            if d.data.dtype.kind in "iu":
                return self.handle(np.matmul(a.data, b.data, dtype=d.data.dtype) + d.data, dtype)
            left, right = self.lift(a), self.lift(b)
            if a.dtype.scalar.name == "fp32" and input_precision == self.ir.INPUT_PRECISION.TF32:
                left, right = values.round_to_tf32(left), values.round_to_tf32(right)
            compute = np.promote_types(d.data.dtype, np.float32)
            product = _matmul(left.astype(compute, copy=False), right.astype(compute, copy=False))
            return self.lower(product + d.data, dtype)

        return create

    def atomic(self) -> Callable[..., Any]:
        original = self.builder.create_atomic_rmw

        def create(builder: Any, rmw_op: Any, ptr: Any, val: Any, *rest: Any) -> Any:
            if values.is_packed(val.dtype.scalar.name):
                raise NotImplementedError(f"atomic operations on {val.dtype.scalar} on the CPU; use float32")
            return original(builder, rmw_op, ptr, val, *rest)

        return create

    def padded_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Refuses NaN padding of packed formats: Triton's interpreter makes a number of it."""

        def create(builder: Any, source: Any, *rest: Any) -> Any:
            padding = source.padding if hasattr(source, "padding") else rest[1]
            name = source.base.dtype.scalar.element_ty.name
            if padding == self.ir.PADDING_OPTION.PAD_NAN and values.is_packed(name):
                raise NotImplementedError(f"NaN padding of {name} loads on the CPU")
            return original(builder, source, *rest)

        return create


def _matmul(left: Array, right: Array) -> Array:
    """left @ right in slices of rows small enough for one thread.

    For tiles of this size a second BLAS thread costs fifty times what it saves when the machine is busy.
    """
    rows = _ONE_THREAD // (right.shape[-2] * right.shape[-1])
    if left.ndim != 2 or not 0 < rows < left.shape[0] or left.shape[0] % (1 << rows.bit_length() - 1):
        return np.matmul(left, right)
    sliced = left.reshape(-1, 1 << rows.bit_length() - 1, left.shape[1])
    return np.matmul(sliced, right).reshape(left.shape[0], right.shape[1])


def _cached_np_dtype(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The numpy type of a Triton type, looked up by name: Triton builds its table anew at each call."""
    known: dict[str, Any] = {}

    def np_dtype(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        if name not in known:
            known[name] = original(tt_dtype.scalar)
        return known[name]

    return np_dtype


def _to_odd_float32(exact: Array) -> Array:
    """float64 to float32 rounded to odd, so that rounding to bf16 next is the only rounding that counts."""
    near = exact.astype(np.float32)
    error = exact - near.astype(np.float64)
    even = (near.view(np.int32) & 1) == 0
    toward = np.nextafter(near, np.where(error > 0, np.float32(np.inf), np.float32(-np.inf)))
    return np.where(even & (error != 0) & np.isfinite(near), toward, near)
