"""Reductions and scans that round as the type they run in, and that combine whole slices instead of elements.

Triton's interpreter adds bit patterns of bf16, and calls any combine function that it does not know once per
element. Here a reduction combines neighbours in pairs and a scan joins neighbouring spans, so a
combine function runs log2(n) times on tensors. Both keep the order of the operands, so combine functions need
not be commutative. A sum of bf16 or fp16 rounds after each addition, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attngen.runtime.cpu import values
from attngen.runtime.cpu.language import BlockTruthError
from attngen.runtime.cpu.values import Array

Columns = tuple[Array, ...]
Combine = Callable[[Columns, Columns], Columns]


def install(interpreter: Any) -> None:
    """Replaces the implementations behind `tl.reduce` and `tl.associative_scan`."""
    rules = _Rules(interpreter)
    interpreter.ReduceOps.apply_impl = rules.reduction(interpreter.ReduceOps)
    interpreter.ScanOps.apply_impl = rules.scan(interpreter.ScanOps)


class _Rules:
    """Makes the methods; holds what they need of one interpreter module."""

    def __init__(self, interpreter: Any) -> None:
        self.tl = interpreter.tl
        self.handle = interpreter.TensorHandle
        self.np_dtype = interpreter._get_np_dtype

    def reduction(self, reduce_ops: Any) -> Callable[..., Any]:
        generic = reduce_ops.generic_reduce

        def apply_impl(ops: Any, operands: Sequence[Any]) -> Any:
            index = self.index_of_extremum(ops.combine_fn)
            if index is not None:
                return self.extremum(ops, operands[0], *index)
            direct = self.direct_reduction(ops.combine_fn, operands)
            if direct is not None:
                result = direct(self.lift(operands[0]), axis=ops.axis, keepdims=ops.keep_dims)
                return (self.tensor(self.lower(np.asarray(result), operands[0].dtype), operands[0].dtype),)
            try:
                return self.pairwise(ops, operands)
            except BlockTruthError:
                return generic(ops, operands)

        return apply_impl

    def scan(self, scan_ops: Any) -> Callable[..., Any]:
        generic = scan_ops.generic_scan

        def apply_impl(ops: Any, operands: Sequence[Any]) -> Any:
            if ops.reverse:
                operands = [self.tensor(np.flip(x.handle.data, ops.axis), x.dtype) for x in operands]
            try:
                results = self.join_spans(ops, operands)
            except BlockTruthError:
                results = generic(ops, operands)
            if ops.reverse:
                results = [self.tensor(np.flip(x.handle.data, ops.axis), x.dtype) for x in results]
            return results

        return apply_impl

    def index_of_extremum(self, combine_fn: Any) -> tuple[Any, Any] | None:
        standard = self.tl.standard
        if combine_fn in (standard._argmin_combine_tie_break_left, standard._argmin_combine_tie_break_fast):
            return np.min, np.argmin
        if combine_fn in (standard._argmax_combine_tie_break_left, standard._argmax_combine_tie_break_fast):
            return np.max, np.argmax
        return None

    def extremum(self, ops: Any, operand: Any, value_op: Any, index_op: Any) -> Any:
        lifted = self.lift(operand)
        value = np.asarray(value_op(lifted, axis=ops.axis, keepdims=ops.keep_dims))
        index = np.asarray(index_op(lifted, axis=ops.axis, keepdims=ops.keep_dims))
        return self.tensor(self.lower(value, operand.dtype), operand.dtype), self.tensor(index, self.tl.int32)

    def direct_reduction(self, combine_fn: Any, operands: Sequence[Any]) -> Callable[..., Any] | None:
        """numpy's own reduction where it rounds as the GPU does, up to the order of additions."""
        standard = self.tl.standard
        if combine_fn == standard._elementwise_max:
            return np.fmax.reduce
        if combine_fn == standard._elementwise_min:
            return np.fmin.reduce
        if combine_fn == standard._sum_combine and operands[0].dtype.name in ("fp32", "fp64"):
            return np.add.reduce
        if combine_fn == standard._sum_combine and operands[0].dtype.is_int():
            return np.sum
        return None

    def pairwise(self, ops: Any, operands: Sequence[Any]) -> list[Any]:
        """Combines neighbours, halving the axis, until one element is left."""
        rank = operands[0].handle.data.ndim
        axis = 0 if ops.axis is None else ops.axis % rank
        blocks = [x.handle.data for x in operands]
        columns = tuple(b.reshape(-1) if ops.axis is None else np.moveaxis(b, axis, 0) for b in blocks)
        dtypes = [x.dtype for x in operands]
        combine = self.combine(ops.combine_fn, dtypes)
        while len(columns[0]) > 1:
            columns = combine(tuple(c[0::2] for c in columns), tuple(c[1::2] for c in columns))
        kept = range(rank) if ops.axis is None else (axis,)
        results = [np.expand_dims(c[0], tuple(kept)) if ops.keep_dims else c[0] for c in columns]
        return [self.tensor(np.asarray(r), t) for r, t in zip(results, dtypes, strict=True)]

    def join_spans(self, ops: Any, operands: Sequence[Any]) -> list[Any]:
        """Joins scanned spans pairwise: the left one's last element is combined into all of the right one."""
        axis = ops.axis % operands[0].handle.data.ndim
        dtypes = [x.dtype for x in operands]
        combine = self.combine(ops.combine_fn, dtypes)
        columns = tuple(np.moveaxis(x.handle.data, axis, 0) for x in operands)
        span = 1
        while span < len(columns[0]):
            left = tuple(_last_of_left(c, span) for c in columns)
            joined = combine(left, tuple(_right(c, span) for c in columns))
            columns = tuple(_with_right(c, span, n) for c, n in zip(columns, joined, strict=True))
            span *= 2
        return [self.tensor(np.moveaxis(c, 0, axis), t) for c, t in zip(columns, dtypes, strict=True)]

    def combine(self, combine_fn: Any, dtypes: Sequence[Any]) -> Combine:
        """`combine_fn` on tuples of arrays; its results are cast to the types of its operands."""

        def run(left: Columns, right: Columns) -> Columns:
            data = zip((*left, *right), (*dtypes, *dtypes), strict=True)
            result = combine_fn(*(self.tensor(d, t) for d, t in data))
            results = result if isinstance(result, (tuple, self.tl.tuple)) else (result,)
            return tuple(self.data(r, t, left[0].shape) for r, t in zip(results, dtypes, strict=True))

        return run

    def data(self, result: Any, dtype: Any, shape: tuple[int, ...]) -> Array:
        """The array of a combined value, which may also be a constant."""
        if isinstance(result, self.tl.tensor):
            if result.dtype != dtype:
                raise TypeError(f"a combine function returned {result.dtype} where its operand is {dtype}")
            return np.broadcast_to(result.handle.data, shape)
        return np.broadcast_to(self.lower(np.asarray(result), dtype), shape)

    def lift(self, operand: Any) -> Array:
        name = operand.dtype.name
        return values.decode(operand.handle.data, name) if values.is_packed(name) else operand.handle.data

    def lower(self, result: Array, dtype: Any) -> Array:
        return values.encode(result, dtype.name) if values.is_packed(dtype.name) else result

    def tensor(self, data: Array, dtype: Any) -> Any:
        """A `tl.tensor`; an array without axes is a scalar."""
        kept = data.astype(self.np_dtype(dtype), copy=False)
        type_ = self.tl.block_type(dtype, list(kept.shape)) if kept.shape else dtype
        return self.tl.tensor(self.handle(kept.reshape(kept.shape or (1,)), dtype), type_)


def _spans(column: Array, span: int) -> Array:
    """The first axis as pairs of spans: [pair, left or right, place in the span, ...]."""
    return column.reshape(-1, 2, span, *column.shape[1:])


def _right(column: Array, span: int) -> Array:
    return _spans(column, span)[:, 1].reshape(-1, *column.shape[1:])


def _last_of_left(column: Array, span: int) -> Array:
    left = _spans(column, span)[:, 0]
    return np.broadcast_to(left[:, -1:], left.shape).reshape(-1, *column.shape[1:])


def _with_right(column: Array, span: int, right: Array) -> Array:
    pairs = _spans(column, span).copy()
    pairs[:, 1] = right.reshape(pairs[:, 1].shape)
    return pairs.reshape(column.shape)
