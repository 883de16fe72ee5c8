"""Named intermediate values: the assignments that come before the ranges of a loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attngen.ir.expr import Const, Expr, Symbol, symbols


@dataclass(slots=True)
class Bindings:
    """Names given to expressions, in order; no name is one of the `taken`."""

    taken: frozenset[str]
    values: dict[str, Expr] = field(default_factory=dict[str, Expr])
    names: dict[Expr, str] = field(default_factory=dict[Expr, str])

    def bind(self, name: str, value: Expr) -> Expr:
        """Name a value; a constant or a symbol needs no name, and equal values share one."""
        if isinstance(value, Const | Symbol):
            return value
        if value not in self.names:
            while name in self.taken or name in self.values:
                name += "_"
            self.values[name] = value
            self.names[value] = name
        return Symbol(self.names[value])

    def used_by(self, expressions: Iterable[Expr]) -> tuple[tuple[str, Expr], ...]:
        """Return the assignments that the expressions need, in order."""
        used = {name for e in expressions for name in symbols(e)}
        needed: list[tuple[str, Expr]] = []
        for name, value in reversed(self.values.items()):
            if name in used:
                needed.append((name, value))
                used |= symbols(value)
        return tuple(reversed(needed))
