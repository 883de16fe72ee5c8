"""Print IR expressions as Triton, each part where it varies: once per program, per row, per key tile, or per element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from attngen.errors import InternalError, PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Element, Expr, Search, Symbol
from attngen.ir.linear import Facts, least
from attngen.ir.nodes import OWNED_AXES, Axis

Place = Literal["scalar", "rows", "keys", "tile"]
ROW_SYMBOLS = frozenset({"i", "row"})
KEY_SYMBOLS = frozenset({"j"})
Walked = Literal["keys", "rows"]
# a tile's first axis is the one that the program owns, its second the one that its loop walks
BROADCAST: dict[Walked, dict[Place, str]] = {
    "keys": {"scalar": "{}", "rows": "{}[:, None]", "keys": "{}[None, :]", "tile": "{}"},
    "rows": {"scalar": "{}", "rows": "{}[None, :]", "keys": "{}[:, None]", "tile": "{}"},
}

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "neg": "-", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "eq": "==", "ne": "!=", "and": "&", "or": "|", "not": "~",
}  # fmt: skip
# Python's precedence of the operators as they are printed: & and | bind tighter than comparisons
_LEVEL = {
    "lt": 1, "le": 1, "gt": 1, "ge": 1, "eq": 1, "ne": 1, "or": 2, "and": 3, "add": 4, "sub": 4, "mul": 5, "div": 5,
    "floordiv": 5, "mod": 5, "neg": 6, "not": 6,
}  # fmt: skip
_ATOM = 9
_CALLS = {
    "where": "tl.where", "min": "tl.minimum", "max": "tl.maximum", "abs": "tl.abs", "exp2": "tl.math.exp2",
    "exp": "tl.exp", "log": "tl.log", "log2": "tl.log2", "sqrt": "tl.sqrt", "sin": "tl.sin", "cos": "tl.cos",
    "sigmoid": "tl.sigmoid", "softplus": "_softplus", "tanh_exp2": "_tanh_exp2",
}  # fmt: skip
_HOISTED: dict[Place, str] = {"rows": "per_row", "keys": "per_key", "scalar": "term", "tile": "tile"}
_LENGTHS = ("b", "h", "hk", "row", "j", "seqlen_q", "seqlen_k", "q_start", "k_start")


def place_of(expr: Expr, row_symbols: frozenset[str] = ROW_SYMBOLS) -> Place:
    """Return where an expression varies."""
    names = ex.symbols(expr)
    rows, keys = bool(names & row_symbols), bool(names & KEY_SYMBOLS)
    if "s" in names or (rows and keys):
        return "tile"
    return "rows" if rows else "keys" if keys else "scalar"


SMALL = 64  # a position times this much stays within 32 bits for sequences of up to 2**25 tokens


def multiplies_wide(expr: Expr) -> bool:
    """Whether a product of integers can pass 2**31 and is computed in 64 bits."""
    match expr:
        case Apply("pow", (base, Const(value))):
            return value > 1 and ex.type_of(base) == "int"
        case Apply("mul", args) if ex.type_of(expr) == "int":
            return not any(isinstance(a, Const) and abs(a.value) <= SMALL for a in args)
        case _:
            return False


@dataclass(frozen=True, slots=True)
class Captured:
    """How a captured tensor is addressed: the names of its strides, and each axis' symbol and size."""

    name: str
    strides: tuple[str, ...]
    axes: tuple[Axis, ...]
    wide: bool = False  # 64-bit integers


@dataclass(slots=True)
class Printer:
    """Prints expressions and collects the statements that must come before them.

    ``prologue`` runs once per program and holds what varies with scalars and the axis that the program owns: rows, unless its
    loop ``walks`` over rows. Names are reused for equal expressions, so a term that a mask and a score share is computed once.
    """

    captured: Mapping[str, Captured]
    walks: Walked = "keys"
    row_symbols: frozenset[str] = ROW_SYMBOLS  # and h, where a tile holds rows of several heads
    row_block: str = "BLOCK_M"  # rows of queries in a tile
    shares_prefix: bool = False  # rows may be those of several sequences
    prologue: list[str] = field(default_factory=list[str])
    helpers: set[str] = field(default_factory=set[str])
    named: dict[Expr, str] = field(default_factory=dict[Expr, str])
    assigned: dict[Expr, str] = field(default_factory=dict[Expr, str])
    wide: set[str] = field(default_factory=set[str])
    least: dict[str, int] = field(
        default_factory=lambda: {**dict.fromkeys(_LENGTHS, 0), "BLOCK_M": 1, "BLOCK_N": 1}
    )

    def place_of(self, expr: Expr) -> Place:
        """Return where an expression varies in this kernel."""
        return place_of(expr, self.row_symbols)

    def is_wide(self, expr: Expr) -> bool:
        """Whether an expression is computed in 64 bits, because a captured tensor holds 64-bit integers."""
        read = any(self.captured[t].wide for t in ex.tensors(expr)) or any(
            multiplies_wide(e) for e in ex.walk(expr)
        )
        return read or not self.wide.isdisjoint(ex.symbols(expr))

    def nonnegative(self, expr: Expr) -> bool:
        """Whether an expression is proved to be at least 0, so that its quotient needs no correction."""
        bound = least(expr, Facts(least=self.least))
        return bound is not None and bound >= 0

    def assign(self, name: str, expr: Expr) -> str:
        """Name an expression of scalars or rows in the prologue."""
        place = self.place_of(expr)
        if self.assigned.get(expr) == name:
            return BROADCAST[self.walks][place].format(name)
        self.assigned[expr] = name
        if self.is_wide(expr):
            self.wide.add(name)
        if self.nonnegative(expr):
            self.least[name] = 0
        self.prologue.append(f"{name} = {Body(self, place).text(expr)}")
        return BROADCAST[self.walks][place].format(name)

    def edge(self, expr: Expr) -> list[str]:
        """The test that the places of the axis that the program owns exist, where an expression varies along it."""
        own, test = (self.row_symbols, "row_valid") if self.walks == "keys" else (KEY_SYMBOLS, "key_valid")
        return [f"{test}[:, None]"] if ex.symbols(expr) & own else []


@dataclass(slots=True)
class Body:
    """One place where an expression is printed: the prologue (scalar, rows) or a loop body (keys, tile).

    ``guard`` is the mask under which an element that varies within the tile may be read; where it is '' (in the mask itself)
    every computed index is checked. ``ragged``: the key tile may reach past the last key.
    """

    printer: Printer
    place: Place
    guard: str = ""
    ragged: bool = True
    lines: list[str] = field(default_factory=list[str])
    named: dict[Expr, str] = field(default_factory=dict[Expr, str])

    def text(self, expr: Expr) -> str:
        """Return the Triton text of an expression at this place."""
        return self._print(expr)[0]

    def _print(self, expr: Expr) -> tuple[str, int]:
        own = self.printer.place_of(expr)
        if own != self.place and not isinstance(expr, Const):
            shown = BROADCAST[self.printer.walks][own if self.place == "tile" else "scalar"]
            return shown.format(self._hoist(expr, own)), _ATOM
        match expr:
            case Const(value):
                return _literal(value)
            case Symbol(name, _):
                return _variable(name), _ATOM
            case Element():
                return self._element(expr), _ATOM
            case Search():
                return self._search(expr), _ATOM
            case Apply(op, args):
                return self._apply(op, args)

    def _hoist(self, expr: Expr, own: Place) -> str:
        """Return the name that holds an expression computed where it varies (a symbol is its own name)."""
        if isinstance(expr, Symbol):
            return _variable(expr.name)
        if own == self.printer.walks:
            return self._in_loop(expr)
        key = expr
        if key not in self.printer.named:
            value = Body(self.printer, own).text(expr)
            name = f"{_HOISTED[own]}_{len(self.printer.named)}"
            self.printer.named[key] = name
            self.printer.prologue.append(f"{name} = {value}")
        return self.printer.named[key]

    def _in_loop(self, expr: Expr) -> str:
        key = expr
        if key not in self.named:
            inner = Body(self.printer, self.printer.walks, "", self.ragged, self.lines, self.named)
            value = inner.text(expr)
            self.named[key] = f"{_HOISTED[self.printer.walks]}_{len(self.named)}"
            self.lines.append(f"{self.named[key]} = {value}")
        return self.named[key]

    def _apply(self, op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
        if op in ("floordiv", "mod"):
            return self._divide(op, args)
        if op == "pow":
            return self._power(args)
        if op in _INFIX:
            return self._infix(op, args)
        inner = [self.text(a) for a in args]
        if op == "floor":
            return f"tl.floor({inner[0]}).to(tl.int32)", _ATOM
        if op in ("int", "float"):
            return f"({inner[0]}).to({'tl.int32' if op == 'int' else 'tl.float32'})", _ATOM
        if op not in _CALLS:
            raise InternalError(f"printer: operator {op!r} must be lowered before emission (pass base-two)")
        if op == "tanh_exp2":
            self.printer.helpers.add("tanh")
            inner.append("PRECISE")
        return f"{_CALLS[op]}({', '.join(inner)})", _ATOM

    def _infix(self, op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
        level = _LEVEL[op]
        if op == "mul" and multiplies_wide(Apply(op, args)):
            return f"{self._widened(args[0])} * {self._bracket(args[1], level + 1)}", level
        if len(args) == 1:
            return _INFIX[op] + self._bracket(args[0], level), level
        right = level if op in ("and", "or") else level + 1
        left = level + 1 if level == 1 else level
        return f"{self._bracket(args[0], left)} {_INFIX[op]} {self._bracket(args[1], right)}", level

    def _bracket(self, expr: Expr, level: int) -> str:
        body, own = self._print(expr)
        return body if own >= level else f"({body})"

    def _divide(self, op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
        """Triton's integer division truncates; formulas mean floor."""
        if all(self.printer.nonnegative(a) for a in args):
            sign = "//" if op == "floordiv" else "%"
            return f"{self._bracket(args[0], 5)} {sign} {self._bracket(args[1], 6)}", 5
        self.printer.helpers.add("floordiv")
        return (
            f"_floor_{'div' if op == 'floordiv' else 'mod'}({self.text(args[0])}, {self.text(args[1])})",
            _ATOM,
        )

    def _power(self, args: tuple[Expr, ...]) -> tuple[str, int]:
        base, exponent = args
        if not (isinstance(exponent, Const) and isinstance(exponent.value, int) and exponent.value >= 0):
            raise InternalError("printer: only literal powers can be printed")
        if exponent.value == 0:
            return ("1.0" if ex.type_of(base) == "float" else "1"), _ATOM
        wide = exponent.value > 1 and ex.type_of(base) == "int"
        return " * ".join([self._widened(base) if wide else self._bracket(base, 6)] * exponent.value), 5

    def _widened(self, expr: Expr) -> str:
        return f"tl.cast({self.text(expr)}, tl.int64)"

    def _element(self, expr: Element) -> str:
        pointer, mask = self.address(expr)
        loaded = f"tl.load({pointer}{f', mask={mask}, other=0' if mask else ''})"
        if expr.type == "bool":
            return f"({loaded} != 0)"
        return f"{loaded}.to(tl.float32)" if expr.type == "float" else loaded

    def address(self, expr: Element) -> tuple[str, str]:
        """Where an element lies, and under which mask it may be touched ('' is always)."""
        tensor = self.printer.captured[expr.tensor]
        terms = [
            f"{self._index(x, tensor, axis)} * {stride}"
            for x, stride, axis in zip(expr.indices, tensor.strides, tensor.axes, strict=True)
        ]
        mask = " & ".join(dict.fromkeys(self._checks(expr, tensor)))
        return " + ".join([tensor.name, *terms]), mask

    def _index(self, index: Expr, tensor: Captured, axis: Axis) -> str:
        if axis.origin:  # packed tokens: formulas count from the sequence's first one
            index = Apply("add", (Symbol(axis.origin), index))
        if isinstance(index, Const):
            return repr(index.value)
        body, level = self._print(index)
        wide = "tl.int64" if self.printer.place_of(index) == "scalar" else f"{tensor.name.upper()}_INDEX"
        return f"{body if level == _ATOM else f'({body})'}.to({wide})"

    def _checks(self, expr: Element, tensor: Captured) -> list[str]:
        """Return the masks of a read, so that nothing out of range is touched."""
        guarded = bool(self.guard) and self.printer.place_of(expr) == "tile"
        checks = [self.guard] if guarded and self.guard != "full" else []
        checks += self.printer.edge(expr) if guarded else []
        for index, axis in zip(expr.indices, tensor.axes, strict=True):
            checks += [] if guarded else self._bounds(index, axis)
        return checks

    def _bounds(self, index: Expr, axis: Axis) -> list[str]:
        """Return the tests that an index lies on its axis; none where it runs over exactly this axis."""
        size = axis.size
        owned = axis.name in OWNED_AXES
        # a constant outside is refused when the graph is built, or by the public function
        if isinstance(index, Const) and (owned or isinstance(size, Const)):
            return []
        if owned and index == Symbol(axis.symbol):
            return []
        walked = ("j", "seqlen_k") if self.printer.walks == "keys" else ("row", "seqlen_q")
        if (index, size) == tuple(map(Symbol, walked)) and not self.ragged:
            return []
        lower = [] if self.printer.nonnegative(index) else [f"({self.text(Apply('ge', (index, Const(0))))})"]
        return [*lower, f"({self.text(Apply('lt', (index, size)))})"]

    def _search(self, expr: Search) -> str:
        """Binary search in a sorted tensor, once per program."""
        tensor = self.printer.captured[expr.tensor]
        self.printer.helpers.add("search")
        terms = [
            f"{self._index(x, tensor, axis)} * {stride}"
            for x, stride, axis in zip(expr.indices, tensor.strides, tensor.axes, strict=False)
        ]
        base = " + ".join([tensor.name, *terms])
        right = expr.side == "right"
        return (
            f"_search({base}, {tensor.strides[-1]}, {self.text(expr.value)}, {self.text(expr.size)}, {right})"
        )


def _variable(name: str) -> str:
    return "qk" if name == "s" else name


def _literal(value: bool | int | float) -> tuple[str, int]:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")', _ATOM
    if isinstance(value, int) and abs(value) >= 2**31:
        raise PlanError(f"a constant of the formulas adds up to {value}, which does not fit 32 bits")
    return repr(value), _ATOM if value >= 0 else 6
