"""The types of formulas: bool, int and float, checked statically, with the column of every mistake."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn

from attngen.errors import SpecError, did_you_mean

Type = Literal["bool", "int", "float"]

MAX_INT: Final = 2**28  # several of them and a position add up within 32 bits
MAX_EXPONENT: Final = 8

FUNCTIONS: Final[dict[str, tuple[int, int | None]]] = {
    "abs": (1, 1),
    "cos": (1, 1),
    "exp": (1, 1),
    "exp2": (1, 1),
    "float": (1, 1),
    "floor": (1, 1),
    "int": (1, 1),
    "log": (1, 1),
    "log2": (1, 1),
    "max": (2, None),
    "min": (2, None),
    "sigmoid": (1, 1),
    "sin": (1, 1),
    "sqrt": (1, 1),
    "tanh": (1, 1),
    "where": (3, 3),
}
"""Function name to its least and greatest number of arguments (None: no limit)."""


@dataclass(frozen=True)
class Env:
    """What the names in a formula mean.

    Attributes:
        scalars: name to type, for symbols and params.
        tensors: captured tensor to (type of an element, number of axes).
        zeros: compiled-in params whose value is zero, so that dividing by them is refused.
        hidden: names that exist elsewhere but not here, with the reason.
    """

    scalars: Mapping[str, Type]
    tensors: Mapping[str, tuple[Type, int]] = field(default_factory=dict[str, tuple[Type, int]])
    zeros: frozenset[str] = frozenset()
    hidden: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def known(self) -> list[str]:
        return sorted([*self.scalars, *self.tensors])


def infer(tree: ast.expr, env: Env) -> Type:
    """The type of `tree`, or a SpecError with the column (1-based) of the first mistake inside it."""
    rule = _RULES.get(type(tree))
    if rule is None:
        _fail(tree, f"{type(tree).__name__} is not part of formulas")
    return rule(tree, env)


def _fail(node: ast.expr, message: str) -> NoReturn:
    raise SpecError(message, column=node.col_offset + 1)


def _number(node: ast.expr, env: Env, user: str) -> Type:
    """The type of an operand that has to be a number."""
    found = infer(node, env)
    if found == "bool":
        _fail(
            node,
            f"{user} takes numbers, `{ast.unparse(node)}` is a bool; write int(...) to count it as 0 or 1",
        )
    return found


def _boolean(node: ast.expr, env: Env, user: str) -> Type:
    """The type of an operand that has to be true or false."""
    found = infer(node, env)
    if found != "bool":
        _fail(node, f"{user} takes bools, `{ast.unparse(node)}` is {_a(found)}")
    return found


def _integer(node: ast.expr, env: Env, user: str) -> Type:
    """The type of an operand that has to be an integer."""
    found = infer(node, env)
    if found != "int":
        _fail(node, f"{user} takes integers, `{ast.unparse(node)}` is {_a(found)}")
    return found


def _a(found: Type) -> str:
    return "an int" if found == "int" else f"a {found}"


def _promote(types: Sequence[Type]) -> Type:
    return "float" if "float" in types else "int"


def _constant(node: ast.Constant, env: Env) -> Type:
    value = node.value
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if value > MAX_INT:
            _fail(node, f"integers in formulas are at most {MAX_INT}")
        return "int"
    if isinstance(value, float):
        if not math.isfinite(value):
            _fail(node, "a number in a formula must be finite")
        return "float"
    _fail(node, f"a {type(value).__name__} literal is not part of formulas")


def _name(node: ast.Name, env: Env) -> Type:
    if node.id in env.scalars:
        return env.scalars[node.id]
    if node.id in env.tensors:
        axes = env.tensors[node.id][1]
        _fail(node, f"'{node.id}' is a captured tensor with {_axes(axes)}; index it, as in {node.id}[...]")
    if node.id in env.hidden:
        _fail(node, env.hidden[node.id])
    if node.id in FUNCTIONS:
        _fail(node, f"'{node.id}' is a function; call it, as in {node.id}(...)")
    if node.id in ("true", "false"):
        _fail(node, f"unknown symbol '{node.id}'; write {node.id.capitalize()}")
    _fail(node, f"unknown symbol '{node.id}'; {did_you_mean(node.id, env.known)}")


def _axes(count: int) -> str:
    return "1 axis" if count == 1 else f"{count} axes"


def _bin_op(node: ast.BinOp, env: Env) -> Type:
    sign = _OPERATORS.get(type(node.op))
    if sign is None:
        _fail(node, f"operator {type(node.op).__name__} is not part of formulas")
    if isinstance(node.op, ast.Pow):
        return _power(node, env)
    operand = _integer if isinstance(node.op, ast.FloorDiv | ast.Mod) else _number
    types = (operand(node.left, env, f"`{sign}`"), operand(node.right, env, f"`{sign}`"))
    if isinstance(node.op, ast.FloorDiv | ast.Mod | ast.Div):
        _refuse_zero(node.right, env)
    return "float" if isinstance(node.op, ast.Div) else _promote(types)


def _refuse_zero(node: ast.expr, env: Env) -> None:
    is_zero = (isinstance(node, ast.Constant) and node.value == 0) or (
        isinstance(node, ast.Name) and node.id in env.zeros
    )
    if is_zero:
        _fail(node, "division by zero")


def _power(node: ast.BinOp, env: Env) -> Type:
    base = _number(node.left, env, "`**`")
    exponent = node.right.value if isinstance(node.right, ast.Constant) else None
    if isinstance(exponent, bool) or not isinstance(exponent, int) or not 0 <= exponent <= MAX_EXPONENT:
        _fail(node.right, f"the exponent of `**` must be a literal integer from 0 to {MAX_EXPONENT}")
    return base


def _unary_op(node: ast.UnaryOp, env: Env) -> Type:
    if isinstance(node.op, ast.Not):
        return _boolean(node.operand, env, "`not`")
    if isinstance(node.op, ast.UAdd | ast.USub):
        return _number(node.operand, env, "`-`" if isinstance(node.op, ast.USub) else "`+`")
    _fail(node, f"operator {type(node.op).__name__} is not part of formulas")


def _bool_op(node: ast.BoolOp, env: Env) -> Type:
    word = "`and`" if isinstance(node.op, ast.And) else "`or`"
    for value in node.values:
        _boolean(value, env, word)
    return "bool"


def _compare(node: ast.Compare, env: Env) -> Type:
    operands = [node.left, *node.comparators]
    types: list[Type] = [infer(operand, env) for operand in operands]
    for index, op in enumerate(node.ops):
        sign = _COMPARISONS.get(type(op))
        if sign is None:
            _fail(node, "`is` and `in` are not part of formulas; write ==")
        left, right = types[index], types[index + 1]
        if (left == "bool") != (right == "bool"):
            _fail(operands[index + 1], f"`{sign}` compares {_a(left)} with {_a(right)}")
        if left == "bool" and not isinstance(op, ast.Eq | ast.NotEq):
            _fail(operands[index], f"`{sign}` does not order bools; use ==, !=, and, or, not")
    return "bool"


def _if_exp(node: ast.IfExp, env: Env) -> Type:
    _boolean(node.test, env, "`if`")
    return _unify(node.body, node.orelse, env, "`if` and `else`")


def _unify(left: ast.expr, right: ast.expr, env: Env, user: str) -> Type:
    types = (infer(left, env), infer(right, env))
    if "bool" not in types:
        return _promote(types)
    if types[0] != types[1]:
        _fail(right, f"{user} give {_a(types[0])} and {_a(types[1])}; both must be numbers or both bools")
    return "bool"


def _call(node: ast.Call, env: Env) -> Type:
    if not isinstance(node.func, ast.Name):
        _fail(node.func, "only the functions of formulas can be called; " + did_you_mean("", FUNCTIONS))
    name = node.func.id
    if name not in FUNCTIONS:
        _fail(node.func, f"unknown function '{name}'; {did_you_mean(name, FUNCTIONS)}")
    if node.keywords:
        _fail(node.keywords[0].value, f"{name}() takes no keyword arguments")
    least, most = FUNCTIONS[name]
    if len(node.args) < least or (most is not None and len(node.args) > most):
        count = (
            f"{least} argument{'s' if least > 1 else ''}"
            if most is not None
            else f"at least {least} arguments"
        )
        _fail(node, f"{name}() takes {count}, got {len(node.args)}")
    return _call_type(name, node.args, env)


def _call_type(name: str, args: Sequence[ast.expr], env: Env) -> Type:
    if name == "where":
        _boolean(args[0], env, "the condition of where()")
        return _unify(args[1], args[2], env, "the branches of where()")
    if name in ("int", "float"):
        infer(args[0], env)
        return "int" if name == "int" else "float"
    types: list[Type] = [_number(arg, env, f"{name}()") for arg in args]
    if name == "floor":
        return "int"
    return _promote(types) if name in ("abs", "min", "max") else "float"


def _subscript(node: ast.Subscript, env: Env) -> Type:
    if not isinstance(node.value, ast.Name):
        _fail(node.value, "only captured tensors can be indexed")
    name = node.value.id
    if name not in env.tensors:
        if name in env.scalars:
            _fail(node.value, f"'{name}' is a number, not a captured tensor")
        _fail(node.value, f"unknown captured tensor '{name}'; {did_you_mean(name, env.tensors)}")
    element, axes = env.tensors[name]
    indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if len(indices) != axes:
        _fail(
            node,
            f"{name} has {_axes(axes)}, got {len(indices)} {'index' if len(indices) == 1 else 'indices'}",
        )
    for index in indices:
        _integer(index, env, f"the index of {name}")
    return element


_OPERATORS: Final[dict[type[ast.operator], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
_COMPARISONS: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_RULES: Final[dict[type[ast.expr], Callable[..., Type]]] = {
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
