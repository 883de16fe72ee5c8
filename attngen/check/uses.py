"""How the formulas of a spec use its numbers and tensors: what values make sense for them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from attngen.spec import Captured, Param, Spec


@dataclass(frozen=True)
class IntegerUse:
    """Values for an integer tensor: from 0 to below `stop`; `stop` None means positions of the key axis."""

    stop: int | str | None


def trees(spec: Spec) -> list[ast.expr]:
    """Return the formulas of a spec."""
    return [formula.tree for formula in (spec.mask, spec.score) if formula is not None]


def must_be_positive(spec: Spec, param: Param) -> bool:
    """Whether a param divides or is the size of an axis: zero and less make no sense."""
    if any(param.name in captured.axes for captured in spec.captured):
        return True
    divisions = (ast.FloorDiv, ast.Mod, ast.Div)
    return any(
        param.name in _names(node.right)
        for tree in trees(spec)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, divisions)
    )


def constants(spec: Spec) -> list[int]:
    """Return the positive integers of the mask, compiled-in params too: lengths beyond them matter."""
    if spec.mask is None:
        return []
    found = {node.value for node in ast.walk(spec.mask.tree) if isinstance(node, ast.Constant)}
    found |= {param.value for param in spec.params if param.name in spec.mask.names}
    return sorted(n for n in found if type(n) is int and n > 0)


def largest_number(spec: Spec) -> float:
    """Return the largest number of the score formula: a cap of 50 makes scores that round as 50 does."""
    if spec.score is None:
        return 0.0
    nodes = list(ast.walk(spec.score.tree))
    inside = {id(n) for s in nodes if isinstance(s, ast.Subscript) for n in ast.walk(s.slice)}
    outside = [n for n in nodes if id(n) not in inside]
    literals = [n.value for n in outside if isinstance(n, ast.Constant)]
    found = [abs(value) for value in literals if isinstance(value, int | float)]
    named = {n.id for n in outside if isinstance(n, ast.Name)}
    found += [abs(p.value) for p in spec.params if p.value is not None and p.name in named]
    return float(max(found, default=0.0))


def integer_use(spec: Spec, captured: Captured) -> IntegerUse:
    """Guess what an integer tensor holds: indices of another tensor, few equal ids, or positions."""
    for node in _walk_all(spec):
        if isinstance(node, ast.Subscript) and _tensor(node) != captured.name:
            for position, index in enumerate(_indices(node)):
                if captured.name in _names(index):
                    axes = {c.name: c.axes for c in spec.captured}[_tensor(node)]
                    return IntegerUse(axes[position])
    for node in _walk_all(spec):
        if isinstance(node, ast.Compare):
            sides = [_tensors(side) for side in (node.left, *node.comparators)]
            if sum(captured.name in side for side in sides) >= 1 and sum(bool(side) for side in sides) >= 2:
                return IntegerUse(3)
    return IntegerUse(None)


def _walk_all(spec: Spec) -> Iterator[ast.AST]:
    for tree in trees(spec):
        yield from ast.walk(tree)


def _tensor(node: ast.Subscript) -> str:
    return node.value.id if isinstance(node.value, ast.Name) else ""


def _indices(node: ast.Subscript) -> list[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _tensors(node: ast.AST) -> set[str]:
    return {_tensor(n) for n in ast.walk(node) if isinstance(n, ast.Subscript)}
