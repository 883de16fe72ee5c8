"""Formulas evaluated with torch: a walk over the checked `ast`, one rule per node type.

A value that a formula cannot have (a read outside a captured tensor, an integer division by zero) is
*unknown*. In a mask, unknown behaves as in three-valued logic: `False and unknown` is False. So a mask may
read `doc[b, i]` next to `j <= i` even where i is negative, and an accepted mask never depends on what is read
outside. A score is evaluated at the allowed places only, and there nothing may be unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final

import torch
from torch import Tensor

from attngen.errors import CheckError, InternalError

Unknown = Tensor | None
Describe = Callable[[tuple[int, ...]], str]


@dataclass(frozen=True)
class Indexed:
    """A captured tensor and how to read it: per axis the extent for indices, and what to add to an index."""

    tensor: Tensor
    extents: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass
class Scope:
    """What names mean during one evaluation.

    Attributes:
        scalars: name to a tensor; all broadcast against each other.
        captured: captured tensors.
        floats: the dtype that integers get where a formula needs floats.
        strict: nothing may be unknown, not even where the result does not depend on it.
        faults: every place that could not be evaluated, with what to say about it.
    """

    key: str
    scalars: Mapping[str, Tensor]
    captured: Mapping[str, Indexed]
    floats: torch.dtype
    strict: bool
    faults: list[tuple[Tensor, Describe]] = field(default_factory=list[tuple[Tensor, Describe]])


def evaluate(tree: ast.expr, scope: Scope, shape: Sequence[int]) -> Tensor:
    """The value of `tree` at every place of a grid of `shape`.

    Raises:
        CheckError: a read outside a tensor or a division by zero that matters; with the first such place.
    """
    value, unknown = _walk(tree, scope)
    if scope.strict:
        unknown = _either(*(bad for bad, _ in scope.faults))
    if unknown is not None and bool(
        unknown.expand(shape).any()
    ):  # an empty grid has no place where it matters
        _report(scope, unknown.expand(shape))
    return value.expand(shape)


def _report(scope: Scope, unknown: Tensor) -> None:
    place = tuple(int(index) for index in torch.nonzero(unknown)[0])

    def at(tensor: Tensor) -> Tensor:
        return tensor.expand(unknown.shape)[place]

    where = ", ".join(f"{name} = {int(at(scope.scalars[name]))}" for name in ("b", "h", "row", "i", "j"))
    for bad, describe in scope.faults:
        if bool(at(bad)):
            raise CheckError(f"{scope.key}: {describe(place)} at {where}")
    raise InternalError(f"{scope.key}: a value is unknown at {where} without a fault")


def _walk(node: ast.expr, scope: Scope) -> tuple[Tensor, Unknown]:
    return _RULES[type(node)](node, scope)


def _either(*unknowns: Unknown) -> Unknown:
    """Unknown where any operand is."""
    result: Unknown = None
    for unknown in unknowns:
        if unknown is not None:
            result = unknown if result is None else result | unknown
    return result


def _as_float(value: Tensor, scope: Scope) -> Tensor:
    return value if value.is_floating_point() else value.to(scope.floats)


def _alike(values: Sequence[Tensor], scope: Scope) -> list[Tensor]:
    """Integers become floats where there are floats among them."""
    mixed = any(value.is_floating_point() for value in values)
    return [_as_float(value, scope) for value in values] if mixed else list(values)


def _constant(node: ast.Constant, scope: Scope) -> tuple[Tensor, Unknown]:
    dtype = torch.float64 if isinstance(node.value, float) else None
    device = next(iter(scope.scalars.values())).device
    return torch.tensor(node.value, dtype=dtype, device=device), None


def _name(node: ast.Name, scope: Scope) -> tuple[Tensor, Unknown]:
    return scope.scalars[node.id], None


def _bin_op(node: ast.BinOp, scope: Scope) -> tuple[Tensor, Unknown]:
    (left, left_unknown), (right, right_unknown) = _walk(node.left, scope), _walk(node.right, scope)
    unknown = _either(left_unknown, right_unknown)
    if isinstance(node.op, ast.Pow):
        return left ** int(right), unknown
    if isinstance(node.op, ast.Div):
        return _as_float(left, scope) / _as_float(right, scope), unknown
    if isinstance(node.op, ast.FloorDiv | ast.Mod):
        zero = right == 0
        if bool(zero.any()):
            text = ast.unparse(node)
            scope.faults.append((zero, lambda _: f"`{text}` divides by zero"))
            unknown = _either(unknown, zero)
            right = torch.where(zero, 1, right)
        if isinstance(node.op, ast.FloorDiv):
            return torch.div(left, right, rounding_mode="floor"), unknown
        return torch.remainder(left, right), unknown
    left, right = _alike([left, right], scope)
    return _ARITHMETIC[type(node.op)](left, right), unknown


def _unary_op(node: ast.UnaryOp, scope: Scope) -> tuple[Tensor, Unknown]:
    value, unknown = _walk(node.operand, scope)
    if isinstance(node.op, ast.Not):
        return ~value, unknown
    return (-value if isinstance(node.op, ast.USub) else value), unknown


def _bool_op(node: ast.BoolOp, scope: Scope) -> tuple[Tensor, Unknown]:
    """`and` is known where all operands are, or where one is known to be False; `or` likewise with True."""
    is_and = isinstance(node.op, ast.And)
    value, unknown = _walk(node.values[0], scope)
    for operand in node.values[1:]:
        other, other_unknown = _walk(operand, scope)
        result = value & other if is_and else value | other
        undecided = _either(unknown, other_unknown)
        if undecided is not None:
            sure = _sure(value ^ is_and, unknown) | _sure(other ^ is_and, other_unknown)
            undecided = undecided & ~sure
            result = torch.where(sure, torch.tensor(not is_and, device=result.device), result)
        value, unknown = result, undecided
    return value, unknown


def _sure(value: Tensor, unknown: Unknown) -> Tensor:
    return value if unknown is None else value & ~unknown


def _compare(node: ast.Compare, scope: Scope) -> tuple[Tensor, Unknown]:
    operands = [_walk(operand, scope) for operand in (node.left, *node.comparators)]
    result: Tensor | None = None
    for op, (left, _), (right, _) in zip(node.ops, operands, operands[1:], strict=False):
        pair = _COMPARISONS[type(op)](*_alike([left, right], scope))
        result = pair if result is None else result & pair
    if result is None:
        raise InternalError("a comparison without operands")
    return result, _either(*(unknown for _, unknown in operands))


def _choose(test: ast.expr, body: ast.expr, orelse: ast.expr, scope: Scope) -> tuple[Tensor, Unknown]:
    (condition, unknown), (left, left_unknown), (right, right_unknown) = (
        _walk(part, scope) for part in (test, body, orelse)
    )
    if left_unknown is not None:
        unknown = _either(unknown, left_unknown & condition)
    if right_unknown is not None:
        unknown = _either(unknown, right_unknown & ~condition)
    left, right = _alike([left, right], scope)
    return torch.where(condition, left, right), unknown


def _if_exp(node: ast.IfExp, scope: Scope) -> tuple[Tensor, Unknown]:
    return _choose(node.test, node.body, node.orelse, scope)


def _call(node: ast.Call, scope: Scope) -> tuple[Tensor, Unknown]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name == "where":
        return _choose(node.args[0], node.args[1], node.args[2], scope)
    walked = [_walk(arg, scope) for arg in node.args]
    values, unknown = [value for value, _ in walked], _either(*(unknown for _, unknown in walked))
    if name in _FLOAT_FUNCTIONS:
        return _FLOAT_FUNCTIONS[name](_as_float(values[0], scope)), unknown
    if name in ("min", "max"):
        result, *others = _alike(values, scope)
        for other in others:
            result = torch.minimum(result, other) if name == "min" else torch.maximum(result, other)
        return result, unknown
    if name == "abs":
        return values[0].abs(), unknown
    if name == "float":
        return _as_float(values[0], scope), unknown
    whole = values[0].floor() if name == "floor" and values[0].is_floating_point() else values[0]
    return whole.to(torch.int64), unknown


def _subscript(node: ast.Subscript, scope: Scope) -> tuple[Tensor, Unknown]:
    """A read of a captured tensor; outside it the element is unknown (and read as element 0 or as 0)."""
    name = node.value.id if isinstance(node.value, ast.Name) else ""
    captured = scope.captured[name]
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    walked = [_walk(part, scope) for part in parts]
    unknown = _either(*(part_unknown for _, part_unknown in walked))
    places: list[Tensor] = []
    for axis, (index, _) in enumerate(walked):
        outside = (index < 0) | (index >= captured.extents[axis])
        if bool(outside.any()):
            scope.faults.append((outside, _outside(name, axis, index, captured.extents[axis])))
            unknown = _either(unknown, outside)
            index = torch.where(outside, 0, index)
        places.append(index + captured.starts[axis])
    if 0 in captured.extents:
        return torch.zeros_like(reduce(torch.add, places), dtype=captured.tensor.dtype), unknown
    return captured.tensor[tuple(places)], unknown


def _outside(name: str, axis: int, index: Tensor, extent: int) -> Describe:
    def describe(place: tuple[int, ...]) -> str:
        own = place[len(place) - index.dim() :]
        at = tuple(p if size > 1 else 0 for p, size in zip(own, index.shape, strict=True))
        return f"index {int(index[at])} is outside axis {axis} of captured tensor '{name}' (extent {extent})"

    return describe


_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
}
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Tensor, Tensor], Tensor]]] = {
    ast.Lt: torch.lt,
    ast.LtE: torch.le,
    ast.Gt: torch.gt,
    ast.GtE: torch.ge,
    ast.Eq: torch.eq,
    ast.NotEq: torch.ne,
}
_FLOAT_FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "cos": torch.cos,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}
_RULES: Final[dict[type[ast.expr], Callable[[Any, Scope], tuple[Tensor, Unknown]]]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _bin_op,
    ast.UnaryOp: _unary_op,
    ast.BoolOp: _bool_op,
    ast.Compare: _compare,
    ast.IfExp: _if_exp,
    ast.Call: _call,
    ast.Subscript: _subscript,
}
