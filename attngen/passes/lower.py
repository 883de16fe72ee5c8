"""Formulas of a spec as expressions of the IR."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Final

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Element, Expr, Symbol
from attngen.spec import Captured, Formula, Spec

_ELEMENT_TYPE: Final[dict[str, ex.Type]] = {"bool": "bool", "int32": "int", "int64": "int"}
_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div",
    ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Pow: "pow",
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], str] = {ast.USub: "neg", ast.Not: "not"}


def lower(formula: Formula, spec: Spec) -> Expr:
    """Turn a validated formula into an IR expression; compiled-in parameters become literals."""
    params: dict[str, Expr] = {
        p.name: Symbol(p.name, p.type) if p.value is None else Const(p.value) for p in spec.params
    }
    captured = {c.name: c for c in spec.captured}
    return _Lowering(params, captured).visit(formula.tree)


class _Lowering:
    """Walk a formula's syntax tree. The spec layer has refused whatever is not handled here."""

    def __init__(self, params: Mapping[str, Expr], captured: Mapping[str, Captured]) -> None:
        self.params = params
        self.captured = captured

    def visit(self, tree: ast.expr) -> Expr:
        match tree:
            case ast.Constant(value=bool() | int() | float() as value):
                return Const(value)
            case ast.Name(id=name):
                return self.params.get(name) or Symbol(name, "float" if name in ("s", "x") else "int")
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(_BINARY[type(op)], self.visit(left), self.visit(right))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.visit(operand)
            case ast.UnaryOp(op=op, operand=operand):
                return ex.apply(_UNARY[type(op)], self.visit(operand))
            case ast.BoolOp(op=op, values=values):
                return self._chain(
                    "and" if isinstance(op, ast.And) else "or", [self.visit(v) for v in values]
                )
            case ast.Compare():
                return self._compare(tree)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return ex.apply("where", self.visit(test), self.visit(body), self.visit(orelse))
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._call(name, [self.visit(a) for a in args])
            case ast.Subscript(value=ast.Name(id=name)):
                return self._element(name, tree.slice)
            case _:
                raise PlanError(f"formula: {ast.unparse(tree)} cannot be lowered")

    def _binary(self, op: str, left: Expr, right: Expr) -> Expr:
        if op in ("div", "floordiv", "mod") and isinstance(right, Const) and right.value == 0:
            raise PlanError(f"{ex.text(ex.Apply(op, (left, right)))}: division by zero")
        return ex.apply(op, left, right)

    def _chain(self, op: str, parts: list[Expr]) -> Expr:
        result = parts[0]
        for part in parts[1:]:
            result = ex.apply(op, result, part)
        return result

    def _compare(self, tree: ast.Compare) -> Expr:
        sides = [self.visit(tree.left), *(self.visit(c) for c in tree.comparators)]
        links = [
            ex.apply(_COMPARE[type(o)], a, b) for o, a, b in zip(tree.ops, sides, sides[1:], strict=False)
        ]
        return ex.conjunction(links)

    def _call(self, name: str, args: list[Expr]) -> Expr:
        return self._chain(name, args) if name in ("min", "max") else call_of(name, args)

    def _element(self, name: str, index: ast.expr) -> Expr:
        captured = self.captured[name]
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        indices = tuple(self.visit(p) for p in parts)
        for at, size in zip(indices, captured.axes, strict=True):
            if isinstance(at, Const) and (at.value < 0 or (isinstance(size, int) and at.value >= size)):
                raise PlanError(
                    f"{name}[{', '.join(ex.text(x) for x in indices)}]: index {at.value} is outside axis {size}"
                )
        return Element(name, indices, _ELEMENT_TYPE.get(captured.dtype, "float"))


_OF_NUMBERS: dict[str, Callable[[float], float | int]] = {
    "exp": math.exp, "exp2": lambda x: 2.0**x, "log": math.log, "log2": math.log2, "sqrt": math.sqrt,
    "tanh": math.tanh, "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)), "sin": math.sin, "cos": math.cos,
    "floor": math.floor, "int": int, "float": float,
}  # fmt: skip


def call_of(name: str, args: list[Expr]) -> Expr:
    """A function of floats takes integers as floats; of a literal it is a literal."""
    if name not in _OF_NUMBERS:
        return ex.apply(name, *args)
    [argument] = args
    if ex.type_of(argument) == name or (name == "floor" and ex.type_of(argument) == "int"):
        return argument
    if isinstance(argument, Const):
        try:
            return Const(_OF_NUMBERS[name](argument.value))
        except (ValueError, OverflowError) as error:
            raise PlanError(f"{name}({ex.text(argument)}): {error}") from error
    takes_floats = name not in ("floor", "int", "float") and ex.type_of(argument) == "int"
    return ex.apply(name, ex.apply("float", argument) if takes_floats else argument)
