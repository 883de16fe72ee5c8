"""Expressions as sympy: for printing as mathematics and for derivatives. Never for evaluation or planning.

sympy folds (``0 * s`` becomes 0, ``log(exp(s))`` becomes s), so what it returns is mathematics over the reals: right for a
formula shown to a person and for the derivative of a smooth score, wrong as a definition of what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp

from attngen.errors import InternalError
from attngen.ir.expr import Apply, Const, Element, Expr, Search, Symbol, apply, children, rebuild

_TO: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "floordiv": lambda a, b: sp.floor(a / b), "mod": sp.Mod, "pow": lambda a, b: a**b, "neg": lambda a: -a,
    "lt": sp.Lt, "le": sp.Le, "gt": sp.Gt, "ge": sp.Ge, "eq": sp.Eq, "ne": sp.Ne,
    "and": sp.And, "or": sp.Or, "not": sp.Not,
    "where": lambda c, a, b: sp.Piecewise((a, c), (b, True)),
    "min": sp.Min, "max": sp.Max, "abs": sp.Abs, "exp": sp.exp, "log": sp.log, "sqrt": sp.sqrt, "tanh": sp.tanh,
    "exp2": lambda a: sp.Integer(2) ** a, "log2": lambda a: sp.log(a) / sp.log(2),
    "tanh_exp2": lambda y, c: c * sp.tanh(y * sp.log(2) / 2), "sigmoid": lambda a: 1 / (1 + sp.exp(-a)),
    "sin": sp.sin, "cos": sp.cos, "floor": sp.floor, "int": lambda a: sp.sign(a) * sp.floor(sp.Abs(a)), "float": lambda a: a,
}  # fmt: skip
_FROM: dict[Any, str] = {
    sp.exp: "exp", sp.log: "log", sp.tanh: "tanh", sp.sin: "sin", sp.cos: "cos", sp.Abs: "abs", sp.floor: "floor",
    sp.StrictLessThan: "lt", sp.LessThan: "le", sp.StrictGreaterThan: "gt", sp.GreaterThan: "ge", sp.Eq: "eq", sp.Ne: "ne",
    sp.And: "and", sp.Or: "or", sp.Not: "not", sp.Min: "min", sp.Max: "max", sp.Mod: "mod",
}  # fmt: skip


def to_sympy(expr: Expr) -> Any:
    """Return an expression as sympy. Elements of captured tensors become indexed symbols."""
    match expr:
        case Const(bool() as value):
            return sp.true if value else sp.false
        case Const(value):
            return sp.Integer(value) if isinstance(value, int) else sp.Float(value)
        case Symbol(name, "int"):
            return sp.Symbol(name, integer=True)
        case Symbol(name, _):
            return sp.Symbol(name, real=True)
        case Apply(op, args):
            return _TO[op](*(to_sympy(a) for a in args))
        case Element(tensor, indices, _):
            return sp.Indexed(tensor, *(to_sympy(x) for x in indices))
        case Search():
            raise InternalError("a search has no symbolic form")


def from_sympy(value: Any, symbols: dict[str, Expr]) -> Expr:
    """Return a sympy expression as ours. ``symbols`` gives back each symbol and, by its text, each indexed element.

    Raises:
        InternalError: sympy produced a function that formulas do not have.
    """
    if value in (sp.true, sp.false):
        return Const(bool(value))
    if value.is_Integer:
        return Const(int(value))
    if value.is_Number:
        return Const(float(value))
    if str(value) in symbols and (value.is_Symbol or isinstance(value, sp.Indexed)):
        return symbols[str(value)]
    parts = (
        [from_sympy(a, symbols) for a in sorted_args(value)] if not isinstance(value, sp.Piecewise) else []
    )
    if isinstance(value, sp.Piecewise):
        return _piecewise(value, symbols)
    if value.is_Add or value.is_Mul or isinstance(value, sp.And | sp.Or | sp.Min | sp.Max):
        op = "add" if value.is_Add else "mul" if value.is_Mul else _FROM[type(value)]
        return _chain(op, parts)
    if value.is_Pow:
        return _power(value, parts)
    if type(value) in _FROM:
        return apply(_FROM[type(value)], *parts)
    raise InternalError(f"sympy gave {type(value).__name__}, which formulas do not have")


def sorted_args(value: Any) -> list[Any]:
    """Return arguments in an order that does not depend on the hash seed."""
    return (
        sorted(value.args, key=sp.default_sort_key)
        if value.is_commutative and (value.is_Add or value.is_Mul)
        else list(value.args)
    )


def _chain(op: str, parts: list[Expr]) -> Expr:
    result = parts[0]
    for part in parts[1:]:
        result = apply(op, result, part)
    return result


def _power(value: Any, parts: list[Expr]) -> Expr:
    base, exponent = parts
    if exponent == Const(-1):
        return apply("div", Const(1.0), base)
    if exponent == Const(0.5) or value.exp == sp.Rational(1, 2):
        return apply("sqrt", base)
    if isinstance(exponent, Const) and isinstance(exponent.value, int) and exponent.value < 0:
        return apply("div", Const(1.0), apply("pow", base, Const(-exponent.value)))
    return apply("exp2", exponent) if base == Const(2) else apply("pow", base, exponent)


def _piecewise(value: Any, symbols: dict[str, Expr]) -> Expr:
    *cases, (last, _) = value.args
    result = from_sympy(last, symbols)
    for case, condition in reversed(cases):
        result = apply("where", from_sympy(condition, symbols), from_sympy(case, symbols), result)
    return result


def derivative(expr: Expr, variable: Symbol | Element) -> Expr:
    """Return the derivative of a real-valued expression with respect to a symbol or an element of a captured tensor."""
    own = Symbol("_variable", "float")
    table: dict[str, Expr] = {}
    _collect(expr, table)
    table[own.name] = variable
    found = sp.diff(to_sympy(_replaced(expr, variable, own)), to_sympy(own))
    return from_sympy(found, table)


def _replaced(expr: Expr, old: Expr, new: Expr) -> Expr:
    if expr == old:
        return new
    return rebuild(expr, tuple(_replaced(part, old, new) for part in children(expr)))


def _collect(expr: Expr, table: dict[str, Expr]) -> None:
    if isinstance(expr, Symbol | Element):
        table[str(to_sympy(expr))] = expr
    if isinstance(expr, Apply):
        for a in expr.args:
            _collect(a, table)


def pretty(expr: Expr) -> str:
    """Return an expression as mathematics in plain Unicode text, for a person."""
    return sp.pretty(to_sympy(expr), use_unicode=True, wrap_line=False)
