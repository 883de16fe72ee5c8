"""Expressions as sympy: for printing as mathematics and for derivatives. Never for evaluation or planning.

sympy folds (``0 * s`` becomes 0, ``log(exp(s))`` becomes s), so what it returns is mathematics over the reals: right for a
formula shown to a person, wrong as a definition of what a kernel computes. For derivatives it does the arithmetic and the
chain rule; every function is one of ours that nothing folds, and what does not vary is a symbol without structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy as sp

from attngen.errors import InternalError, PlanError
from attngen.ir.expr import Apply, Const, Element, Expr, Search, Symbol, apply, text, type_of

_TO: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "floordiv": lambda a, b: sp.floor(a / b), "mod": sp.Mod, "pow": lambda a, b: a**b, "neg": lambda a: -a,
    "lt": sp.Lt, "le": sp.Le, "gt": sp.Gt, "ge": sp.Ge, "eq": sp.Eq, "ne": sp.Ne,
    "and": sp.And, "or": sp.Or, "not": sp.Not,
    "where": lambda c, a, b: sp.Piecewise((a, c), (b, True)),
    "min": sp.Min, "max": sp.Max, "abs": sp.Abs, "exp": sp.exp, "log": sp.log, "sqrt": sp.sqrt, "tanh": sp.tanh,
    "exp2": lambda a: sp.Integer(2) ** a, "log2": lambda a: sp.log(a) / sp.log(2),
    "tanh_exp2": lambda y, c: c * sp.tanh(y * sp.log(2) / 2), "sigmoid": lambda a: 1 / (1 + sp.exp(-a)),
    "softplus": lambda a: sp.log(1 + sp.exp(a)),
    "sin": sp.sin, "cos": sp.cos, "floor": sp.floor, "int": lambda a: sp.sign(a) * sp.floor(sp.Abs(a)), "float": lambda a: a,
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


# ---- derivatives


def derivative(expr: Expr, variable: Symbol | Element) -> Expr:
    """Return the derivative of a formula with respect to a symbol or an element of a captured tensor.

    Where there is none, it is the one that torch uses: 0 for ``abs`` at 0 and for integers and truth values everywhere, half
    of each side for ``min`` and ``max`` of equals. What is not selected (by ``where``, ``min``, ``max``) never counts, not
    even if it is infinite.

    Raises:
        PlanError: the formula divides by zero.
    """
    conversion = _Conversion(variable)
    found = sp.diff(conversion.to(expr), _VARIABLE)
    if found.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise PlanError(f"{text(expr)}: has no derivative, it divides by zero")
    return conversion.back(found)


_VARIABLE = sp.Symbol("_variable", real=True)


class _Conversion:
    """One formula there and back. What sympy leaves as it was comes back as it was written."""

    def __init__(self, variable: Symbol | Element) -> None:
        self.variable = variable
        self.known: dict[Any, Expr] = {_VARIABLE: variable}
        self.fixed: dict[Expr, Any] = {}

    def to(self, expr: Expr) -> Any:
        """Return an expression as sympy, its functions as those of `_FUNCTIONS`."""
        if expr == self.variable:
            return _VARIABLE
        if not self._varies(expr):
            return self._fixed(expr)
        assert isinstance(expr, Apply)
        op, args = expr.op, expr.args
        if op == "float":
            return self.to(args[0])
        parts = [self.to(a) for a in args]
        if op in _ARITHMETIC:
            value = _TO[op](*parts)
        elif op in _FUNCTIONS:
            value = _FUNCTIONS[op](*parts)
        else:
            raise InternalError(f"{op} has no derivative")
        if not value.is_Number:
            self.known.setdefault(value, expr)
        return value

    def _varies(self, expr: Expr) -> bool:
        """Whether the derivative may differ from zero: only floats vary, and only where the variable enters as a float."""
        if expr == self.variable:
            return True
        return isinstance(expr, Apply) and type_of(expr) == "float" and any(map(self._varies, expr.args))

    def _fixed(self, expr: Expr) -> Any:
        """A number, or a symbol for something that does not vary; integers count as floats from here on."""
        if isinstance(expr, Const) and not isinstance(expr.value, bool):
            return sp.Integer(expr.value) if isinstance(expr.value, int) else sp.Float(expr.value)
        if expr not in self.fixed:
            found = sp.Symbol(f"_{len(self.fixed)}", **({} if type_of(expr) == "bool" else {"real": True}))
            self.fixed[expr] = found
            self.known[found] = apply("float", expr) if type_of(expr) == "int" else expr
        return self.fixed[expr]

    def back(self, value: Any) -> Expr:
        """Return a sympy expression as ours."""
        if value in self.known:
            return self.known[value]
        if value.is_Integer:
            return Const(int(value))
        if value.is_Number:
            return Const(float(value))
        if value.is_Add:
            return self._sum(value)
        if value.is_Mul or value.is_Pow:
            return self._quotient(value)
        op = type(value).__name__
        if op not in _FUNCTIONS and op not in _COMPARISONS:
            raise InternalError(f"sympy gave {op}, which formulas do not have")
        parts = [self.back(a) for a in value.args]
        return apply(op, *(_as_float(p) for p in parts)) if op == "where" else apply(op, *parts)

    def _sum(self, value: Any) -> Expr:
        """Terms in order, the positive ones first; a negative term is subtracted."""
        terms = sorted(value.args, key=lambda a: (a.could_extract_minus_sign(), sp.default_sort_key(a)))
        result = self.back(terms[0])
        for term in terms[1:]:
            if term.could_extract_minus_sign() and term not in self.known:
                result = apply("sub", result, self.back(-term))
            else:
                result = apply("add", result, self.back(term))
        return result

    def _quotient(self, value: Any) -> Expr:
        """Factors in order, those with negative exponents below the line."""
        above: list[Expr] = []
        below: list[Expr] = []
        sign = 1
        factors: list[Any] = sorted(sp.Mul.make_args(value), key=sp.default_sort_key)
        for factor in factors:
            if factor == -1:
                sign = -1
            elif factor.is_Rational and factor.p in (1, -1) and factor.q != 1:
                sign, below = sign * int(factor.p), [*below, Const(int(factor.q))]
            elif factor.is_Pow and factor not in self.known:
                base, exponent = self.back(factor.base), int(factor.exp)
                power = base if abs(exponent) == 1 else apply("pow", base, Const(abs(exponent)))
                (above if exponent > 0 else below).append(power)
            else:
                above.append(self.back(factor))
        top = _chain("mul", above) if above else Const(1.0)
        result = apply("div", top, _chain("mul", below)) if below else top
        return result if sign > 0 else apply("neg", result)


def _chain(op: str, parts: list[Expr]) -> Expr:
    result = parts[0]
    for part in parts[1:]:
        result = apply(op, result, part)
    return result


def _as_float(expr: Expr) -> Expr:
    return Const(float(expr.value)) if isinstance(expr, Const) and type_of(expr) == "int" else expr


# ---- the functions of formulas, as sympy functions that nothing folds

_ARITHMETIC = ("add", "sub", "mul", "div", "pow", "neg")
_COMPARISONS: dict[str, Any] = {op: sp.Function(op) for op in ("lt", "le", "gt", "ge", "eq")}
_HALF = sp.Rational(1, 2)


def _smooth(op: str, slope: Callable[[Any, Any], Any]) -> Any:
    """A function of one argument x; ``slope(x, y)`` is its derivative at x, where its value is y."""
    return type(op, (sp.Function,), {"nargs": 1, "fdiff": lambda self, argindex=1: slope(self.args[0], self)})


def _where(c: Any, a: Any, b: Any) -> Any:
    return a if a == b else _FUNCTIONS["where"](c, a, b)


def _diff_where(self: Any, x: Any) -> Any:
    c, a, b = self.args
    return _where(c, sp.diff(a, x), sp.diff(b, x))


def _diff_extreme(wins: str) -> Callable[[Any, Any], Any]:
    """The derivative of the side that wins; of equals, half of each."""

    def diff(self: Any, x: Any) -> Any:
        a, b = self.args
        share = _where(_COMPARISONS["eq"](a, b), _HALF, sp.Integer(1))
        sides = ((a, b, sp.diff(a, x)), (b, a, sp.diff(b, x)))
        terms = [_where(_COMPARISONS[wins](own, other), share * d, sp.Integer(0)) for own, other, d in sides]
        return sp.Add(*terms)

    return diff


def _sign(x: Any) -> Any:
    below = _where(_COMPARISONS["lt"](x, 0), sp.Integer(-1), sp.Integer(0))
    return _where(_COMPARISONS["gt"](x, 0), sp.Integer(1), below)


_LN2 = sp.Float(math.log(2.0))
_FUNCTIONS: dict[str, Any] = {
    "exp": _smooth("exp", lambda x, y: y),
    "exp2": _smooth("exp2", lambda x, y: y * _LN2),
    "log": _smooth("log", lambda x, y: 1 / x),
    "log2": _smooth("log2", lambda x, y: 1 / (x * _LN2)),
    "sqrt": _smooth("sqrt", lambda x, y: 1 / (2 * y)),
    "tanh": _smooth("tanh", lambda x, y: 1 - y**2),
    "sigmoid": _smooth("sigmoid", lambda x, y: y * (1 - y)),
    "softplus": _smooth("softplus", lambda x, y: _FUNCTIONS["sigmoid"](x)),
    "sin": _smooth("sin", lambda x, y: _FUNCTIONS["cos"](x)),
    "cos": _smooth("cos", lambda x, y: -_FUNCTIONS["sin"](x)),
    "abs": _smooth("abs", lambda x, y: _sign(x)),
    "where": type("where", (sp.Function,), {"nargs": 3, "_eval_derivative": _diff_where}),
    "max": type("max", (sp.Function,), {"nargs": 2, "_eval_derivative": _diff_extreme("ge")}),
    "min": type("min", (sp.Function,), {"nargs": 2, "_eval_derivative": _diff_extreme("le")}),
}


# ---- for a person


def pretty(expr: Expr) -> str:
    """Return an expression as mathematics in plain Unicode text, for a person."""
    return sp.pretty(to_sympy(expr), use_unicode=True, wrap_line=False)
