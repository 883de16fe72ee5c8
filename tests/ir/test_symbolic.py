"""sympy at the edge: printing and derivatives, checked against numbers."""

from __future__ import annotations

import math

import pytest

from attngen.ir import expr as ex
from attngen.ir.expr import Const, Element, Symbol, apply
from attngen.ir.symbolic import derivative, pretty

S, J, ROW = Symbol("s", "float"), Symbol("j"), Symbol("i")
OPS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b, "neg": lambda a: -a, "exp": math.exp, "exp2": lambda a: 2.0**a, "log": math.log,
    "log2": math.log2, "tanh": math.tanh, "sigmoid": lambda a: 1 / (1 + math.exp(-a)), "sqrt": math.sqrt,
    "sin": math.sin, "cos": math.cos, "where": lambda c, a, b: a if c else b, "lt": lambda a, b: a < b, "abs": abs,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "le": lambda a, b: a <= b,
}  # fmt: skip
BIAS = Element("bias", (Symbol("h"), J), "float")
SCORES = [
    apply("mul", Const(50), apply("tanh", apply("div", S, Const(50)))),
    apply("add", S, BIAS),
    apply("mul", S, apply("sigmoid", S)),
    apply("div", S, apply("add", Const(1.0), apply("mul", S, S))),
    apply("exp2", apply("neg", apply("pow", S, Const(2)))),
    apply("where", apply("lt", S, Const(0.0)), apply("mul", Const(0.1), S), S),
    apply("add", apply("log", apply("add", apply("exp", S), Const(1.0))), apply("sin", S)),
]


def value(expr, s):
    env = {"s": s, "h": 1, "j": 7, "i": 9, "bias": lambda h, j: 0.25 * h + j}
    return ex.evaluate(expr, env, OPS)


@pytest.mark.parametrize("score", SCORES, ids=ex.text)
@pytest.mark.parametrize("s", [-1.7, -0.2, 0.3, 2.5])
def test_derivative_equals_a_difference_quotient(score, s):
    step = 1e-6
    expected = (value(score, s + step) - value(score, s - step)) / (2 * step)
    assert value(derivative(score, Symbol("s", "float")), s) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_derivative_of_what_does_not_occur_is_zero():
    assert derivative(BIAS, Symbol("s", "float")) == Const(0)


def test_pretty_shows_mathematics():
    assert "tanh" in pretty(SCORES[0])
    assert "≤" in pretty(apply("le", J, ROW))
