"""The interpreter's operators: torch in float64 for elements, Python integers for bounds of tiles."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor


def as_tensor(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None)


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    return lambda x: function(as_tensor(x).double())


def _exact(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Python floats enter as float64: with a tensor of integers, torch would make float32 of the two."""

    def with_float64(a: Any, b: Any) -> Any:
        a, b = (as_tensor(x) if isinstance(x, float) else x for x in (a, b))
        return function(a, b)

    return with_float64


def _search(read: Callable[..., Tensor], at: tuple[Any, ...], value: Any, side: str, size: Any) -> Tensor:
    """First index whose element is >= (left) or > (right) the value, by looking at every element."""
    count = int(size)
    element = (
        torch.stack([as_tensor(read(*at, torch.tensor(x))) for x in range(count)])
        if count
        else torch.empty(0)
    )
    return (element < value if side == "left" else element <= value).sum(0)


def _weight(s: Any, lse: Any, base: float) -> Tensor:
    """exp((s - lse) base), and 0 in a row without keys."""
    s, lse = torch.broadcast_tensors(as_tensor(s).double(), as_tensor(lse).double())
    empty = lse == float("-inf")
    return torch.where(empty, 0.0, torch.exp(base * (s - torch.where(empty, 0.0, lse))))


OPS: dict[str, Callable[..., Any]] = {
    "add": _exact(operator.add), "sub": _exact(operator.sub), "mul": _exact(operator.mul), "neg": operator.neg,
    "lt": _exact(operator.lt), "le": _exact(operator.le), "gt": _exact(operator.gt), "ge": _exact(operator.ge),
    "eq": _exact(operator.eq), "ne": _exact(operator.ne),
    "and": lambda a, b: torch.logical_and(as_tensor(a), as_tensor(b)),
    "or": lambda a, b: torch.logical_or(as_tensor(a), as_tensor(b)),
    "not": lambda a: torch.logical_not(as_tensor(a)),
    "div": lambda a, b: as_tensor(a).double() / as_tensor(b).double(),
    "floordiv": lambda a, b: torch.div(as_tensor(a), as_tensor(b), rounding_mode="floor"),
    "mod": lambda a, b: torch.remainder(as_tensor(a), as_tensor(b)),
    "pow": lambda a, b: as_tensor(a) ** b,
    "where": lambda c, a, b: torch.where(as_tensor(c), as_tensor(a), as_tensor(b)),
    "min": lambda a, b: torch.minimum(*torch.broadcast_tensors(as_tensor(a), as_tensor(b))),
    "max": lambda a, b: torch.maximum(*torch.broadcast_tensors(as_tensor(a), as_tensor(b))),
    "abs": lambda a: as_tensor(a).abs(),
    "exp": _unary(torch.exp), "exp2": _unary(torch.exp2), "log": _unary(torch.log), "log2": _unary(torch.log2),
    "sqrt": _unary(torch.sqrt), "tanh": _unary(torch.tanh), "sigmoid": _unary(torch.sigmoid),
    "tanh_exp2": lambda y, c: as_tensor(c) * torch.tanh(as_tensor(y) * (math.log(2.0) / 2)),
    "weight": lambda s, lse: _weight(s, lse, 1.0), "weight_exp2": lambda s, lse: _weight(s, lse, math.log(2.0)),
    "softplus": _unary(lambda x: torch.nn.functional.softplus(x, threshold=1e9)),
    "sin": _unary(torch.sin), "cos": _unary(torch.cos),
    "floor": lambda a: torch.floor(as_tensor(a)).long(),
    "int": lambda a: torch.trunc(as_tensor(a).double()).long(),
    "float": lambda a: as_tensor(a).double(),
    "search": _search,
}  # fmt: skip


def _scalar_search(read: Callable[..., Tensor], at: tuple[Any, ...], value: Any, side: str, size: int) -> int:
    return sum(bool(x < value if side == "left" else x <= value) for x in (read(*at, n) for n in range(size)))


# bounds of tiles are Python integers: the same operators without tensors
SCALAR_OPS: dict[str, Callable[..., Any]] = {
    **OPS,
    "min": min, "max": max, "abs": abs, "floordiv": operator.floordiv, "mod": operator.mod,
    "and": lambda a, b: a and b, "or": lambda a, b: a or b, "not": operator.not_,
    "where": lambda c, a, b: a if c else b,
    "search": _scalar_search,
}  # fmt: skip


def reader(tensor: Tensor) -> Callable[..., Tensor]:
    """Read elements; an index outside is moved inside, its value is used nowhere (the mask excludes it)."""
    values = (
        tensor.double()
        if tensor.is_floating_point()
        else tensor
        if tensor.dtype == torch.bool
        else tensor.long()
    )

    def read(*indices: Any) -> Tensor:
        inside = [
            as_tensor(x).long().clamp(0, max(n - 1, 0)) for x, n in zip(indices, values.shape, strict=True)
        ]
        inside = [torch.zeros_like(x) if n == 1 else x for x, n in zip(inside, values.shape, strict=True)]
        return values[tuple(inside)] if values.numel() else values.new_zeros(())

    return read
