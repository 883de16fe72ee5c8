"""Scalar expressions of the IR: what a mask, a score or a tile bound computes for one (query, key) pair.

An expression is a small frozen tree. It is deliberately not sympy: sympy folds ``0 * s`` to 0 and ``log(exp(s))`` to
``s``, which changes NaN and infinity. `attngen.ir.symbolic` converts to sympy where calculus is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from attngen.errors import InternalError

Type = Literal["bool", "int", "float"]

# operator -> (Python infix form or None for a call, number of arguments, result type or a rule name)
OPERATORS: dict[str, tuple[str | None, int, str]] = {
    "add": ("+", 2, "promote"),
    "sub": ("-", 2, "promote"),
    "mul": ("*", 2, "promote"),
    "div": ("/", 2, "float"),
    "floordiv": ("//", 2, "int"),
    "mod": ("%", 2, "int"),
    "pow": ("**", 2, "promote"),
    "neg": ("-", 1, "promote"),
    "lt": ("<", 2, "bool"),
    "le": ("<=", 2, "bool"),
    "gt": (">", 2, "bool"),
    "ge": (">=", 2, "bool"),
    "eq": ("==", 2, "bool"),
    "ne": ("!=", 2, "bool"),
    "and": ("and", 2, "bool"),
    "or": ("or", 2, "bool"),
    "not": ("not", 1, "bool"),
    "where": (None, 3, "promote"),
    "min": (None, 2, "promote"),
    "max": (None, 2, "promote"),
    "abs": (None, 1, "promote"),
    "exp": (None, 1, "float"),
    "exp2": (None, 1, "float"),
    "log": (None, 1, "float"),
    "log2": (None, 1, "float"),
    "sqrt": (None, 1, "float"),
    "tanh": (None, 1, "float"),
    "tanh_exp2": (
        None,
        2,
        "float",
    ),  # (y, c): c tanh(y / (2 log2 e)), computed from exp2, see passes.base_two
    "sigmoid": (None, 1, "float"),
    "softplus": (None, 1, "float"),
    "weight": (None, 2, "float"),  # (s, lse): exp(s - lse), and 0 where lse is -inf: a row without keys
    "weight_exp2": (None, 2, "float"),  # the same in base two
    "sin": (None, 1, "float"),
    "cos": (None, 1, "float"),
    "floor": (None, 1, "int"),
    "int": (None, 1, "int"),
    "float": (None, 1, "float"),
}
PRECEDENCE = {
    "or": 1, "and": 2, "not": 3, "lt": 4, "le": 4, "gt": 4, "ge": 4, "eq": 4, "ne": 4,
    "add": 5, "sub": 5, "mul": 6, "div": 6, "floordiv": 6, "mod": 6, "neg": 7, "pow": 8,
}  # fmt: skip
ATOM = 9


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A literal. Equal only to a literal of the same type: True, 1 and 1.0 are three constants."""

    value: bool | int | float

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Const) and type(self.value) is type(other.value) and self.value == other.value
        )

    def __hash__(self) -> int:
        return hash((type(self.value).__name__, self.value))


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named scalar: a position (b, h, hk, row, i, j), a length, a parameter, or an operand of the node (s)."""

    name: str
    type: Type = "int"


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator of `OPERATORS` applied to arguments."""

    op: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a captured tensor."""

    tensor: str
    indices: tuple[Expr, ...]
    type: Type


@dataclass(frozen=True, slots=True)
class Search:
    """The first x in [0, size) with ``tensor[*indices, x] >= value`` (side left) or ``> value`` (right), else size.

    The tensor's last axis ascends. This is how a plan inverts a lookup: O(log size) reads, never a scan.
    """

    tensor: str
    indices: tuple[Expr, ...]
    value: Expr
    side: Literal["left", "right"]
    size: Expr


Expr = Const | Symbol | Apply | Element | Search

TRUE = Const(True)
FALSE = Const(False)


def const(value: bool | int | float) -> Const:
    """Return a literal."""
    return Const(value)


def type_of(expr: Expr) -> Type:
    """Return the type of an expression: bool, int or float."""
    match expr:
        case Const(value):
            return "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        case Symbol(_, kind) | Element(_, _, kind):
            return kind
        case Search():
            return "int"
        case Apply(op, args):
            return _result_type(op, args)


def _result_type(op: str, args: tuple[Expr, ...]) -> Type:
    rule = OPERATORS[op][2]
    if rule == "promote":
        kinds = [type_of(a) for a in (args[1:] if op == "where" else args)]
        return "float" if "float" in kinds else "int" if "int" in kinds else "bool"
    if rule in ("bool", "int", "float"):
        return rule
    raise InternalError(f"operator {op} has no typing rule {rule!r}")


# ---- building: exact folding of integers and booleans only, so that no float, NaN or infinity changes its meaning

_FOLD: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "neg": lambda a: -a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a and b),
    "or": lambda a, b: bool(a or b),
    "not": lambda a: not a,
    "min": min,
    "max": max,
    "abs": abs,
}


def apply(op: str, *args: Expr) -> Expr:
    """Build ``op(*args)``, folding what is exact on integers and booleans."""
    if op not in OPERATORS or len(args) != OPERATORS[op][1]:
        raise InternalError(f"no operator {op!r} of {len(args)} arguments")
    whole = all(isinstance(a, Const) and not isinstance(a.value, float) for a in args)
    by_zero = op in ("floordiv", "mod") and args[1] == Const(0)
    if whole and op in _FOLD and not by_zero:
        return Const(_FOLD[op](*(a.value for a in args if isinstance(a, Const))))
    return _identity(op, args) or Apply(op, args)


def _identity(op: str, args: tuple[Expr, ...]) -> Expr | None:
    """Rewrites that hold for every integer and boolean (and never touch a float)."""
    if op == "where" and isinstance(args[0], Const) and type_of(args[1]) == type_of(args[2]):
        return args[1] if args[0].value else args[2]
    if len(args) == 2:
        return _identity_of_two(op, *args)
    if op == "not" and isinstance(args[0], Apply) and args[0].op == "not":
        return args[0].args[0]
    return None


def _identity_of_two(op: str, a: Expr, b: Expr) -> Expr | None:
    if op in ("min", "max", "and", "or") and a == b:
        return a
    for this, other in ((a, b), (b, a)):
        if op == "and" and isinstance(this, Const):
            return other if this.value else FALSE
        if op == "or" and isinstance(this, Const):
            return TRUE if this.value else other
        if op == "add" and this == Const(0) and type_of(other) == "int":
            return other
        if op == "mul" and this == Const(1) and type_of(other) == "int":
            return other
    if op == "sub" and type_of(a) == "int" and a == b:
        return Const(0)
    if op == "sub" and type_of(a) == "int" and b == Const(0):
        return a
    if op == "floordiv" and b == Const(1) and type_of(a) == "int":
        return a
    return _merge_constants(op, a, b)


def _merge_constants(op: str, a: Expr, b: Expr) -> Expr | None:
    """``(x + 2) - 3`` is ``x - 1``: keeps planned bounds short."""
    if op not in ("add", "sub") or not (isinstance(b, Const) and type_of(b) == "int"):
        return None
    if (
        isinstance(a, Apply)
        and a.op in ("add", "sub")
        and isinstance(a.args[1], Const)
        and type_of(a) == "int"
    ):
        inner = int(a.args[1].value) if a.op == "add" else -int(a.args[1].value)
        total = inner + (int(b.value) if op == "add" else -int(b.value))
        return apply("add" if total >= 0 else "sub", a.args[0], Const(abs(total)))
    if int(b.value) < 0:
        return apply("sub" if op == "add" else "add", a, Const(-int(b.value)))
    return None


def product(factors: list[Expr]) -> Expr:
    """Return the product of factors, left to right (1.0 when there are none)."""
    result: Expr | None = None
    for factor in factors:
        result = factor if result is None else apply("mul", result, factor)
    return Const(1.0) if result is None else result


def conjunction(parts: list[Expr]) -> Expr:
    """Return the ``and`` of all parts (true when there are none)."""
    result: Expr = TRUE
    for part in parts:
        result = apply("and", result, part)
    return result


# ---- walking


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct sub-expressions in order."""
    match expr:
        case Const() | Symbol():
            return ()
        case Apply(_, args):
            return args
        case Element(_, indices, _):
            return indices
        case Search(_, indices, value, _, size):
            return (*indices, value, size)


def rebuild(expr: Expr, parts: tuple[Expr, ...]) -> Expr:
    """Return the same expression over other sub-expressions."""
    match expr:
        case Const() | Symbol():
            return expr
        case Apply(op, _):
            return apply(op, *parts)
        case Element(tensor, _, kind):
            return Element(tensor, parts, kind)
        case Search(tensor, _, _, side, _):
            return Search(tensor, parts[:-2], parts[-2], side, parts[-1])


def walk(expr: Expr) -> Iterator[Expr]:
    """Yield the expression and everything in it, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def substitute(expr: Expr, table: Mapping[str, Expr]) -> Expr:
    """Replace symbols by name."""
    if isinstance(expr, Symbol):
        return table.get(expr.name, expr)
    return rebuild(expr, tuple(substitute(c, table) for c in children(expr)))


def symbols(expr: Expr) -> frozenset[str]:
    """Return the names of all symbols."""
    return frozenset(e.name for e in walk(expr) if isinstance(e, Symbol))


def tensors(expr: Expr) -> tuple[str, ...]:
    """Return the names of all captured tensors read, sorted."""
    return tuple(sorted({e.tensor for e in walk(expr) if isinstance(e, Element | Search)}))


# ---- evaluating


def evaluate(expr: Expr, env: Mapping[str, Any], ops: Mapping[str, Callable[..., Any]]) -> Any:
    """Evaluate with the operators of one array library.

    ``env`` gives each symbol's value and, under a tensor's name, a function of its indices. ``ops`` has one function per
    operator used, plus ``"search"`` taking (tensor function, index values, value, side, size) if a `Search` occurs.
    """
    match expr:
        case Const(value):
            return value
        case Symbol(name, _):
            return env[name]
        case Apply(op, args):
            return ops[op](*(evaluate(a, env, ops) for a in args))
        case Element(tensor, indices, _):
            return env[tensor](*(evaluate(x, env, ops) for x in indices))
        case Search(tensor, indices, value, side, size):
            at = tuple(evaluate(x, env, ops) for x in indices)
            return ops["search"](env[tensor], at, evaluate(value, env, ops), side, evaluate(size, env, ops))


# ---- text


def text(expr: Expr) -> str:
    """Return the one text form of an expression: the syntax of formulas in a spec."""
    return _text(expr)[0]


def _text(expr: Expr) -> tuple[str, int]:
    match expr:
        case Const(value):
            return (repr(value), ATOM) if not _negative(value) else (repr(value), PRECEDENCE["neg"])
        case Symbol(name, _):
            return name, ATOM
        case Element(tensor, indices, _):
            return f"{tensor}[{', '.join(text(x) for x in indices)}]", ATOM
        case Search(tensor, indices, value, side, size):
            at = ", ".join([*(text(x) for x in indices), ":"])
            return f"search_{side}({tensor}[{at}], {text(value)}, {text(size)})", ATOM
        case Apply(op, args):
            return _apply_text(op, args)


def _negative(value: bool | int | float) -> bool:
    return not isinstance(value, bool) and value < 0


def _apply_text(op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
    infix = OPERATORS[op][0]
    if infix is None:
        return f"{op}({', '.join(text(a) for a in args)})", ATOM
    level = PRECEDENCE[op]
    if len(args) == 1:
        space = " " if infix.isalpha() else ""
        return infix + space + _bracket(args[0], level), level
    right_level = level if op in ("and", "or") else level + 1
    left_level = level + 1 if level == PRECEDENCE["lt"] or op == "pow" else level
    return f"{_bracket(args[0], left_level)} {infix} {_bracket(args[1], right_level)}", level


def _bracket(expr: Expr, level: int) -> str:
    body, own = _text(expr)
    return body if own >= level else f"({body})"
