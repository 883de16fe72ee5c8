"""An order that is known of some values, and what follows from it for their minima and maxima."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from attngen.ir.expr import Apply, Const, Expr

MAX_STEPS = 150  # pairs looked at in one question


@dataclass(slots=True)
class TileOrder:
    """Values >= 0 with pairs known to be in order; some are named minima or maxima of others."""

    above: dict[Expr, list[Expr]] = field(default_factory=dict[Expr, list[Expr]])
    definitions: dict[Expr, Expr] = field(default_factory=dict[Expr, Expr])

    def add(self, low: Expr, high: Expr) -> None:
        """Note that ``low <= high``."""
        self.above.setdefault(low, []).append(high)

    def chain(self, *values: Expr) -> None:
        """Note that the values ascend."""
        for low, high in pairwise(values):
            self.add(low, high)

    def define(self, name: Expr, value: Expr) -> None:
        """Note that a name stands for a minimum or maximum."""
        self.definitions[name] = value

    def known(self, low: Expr, high: Expr) -> bool:
        """Return whether ``low <= high`` is found to follow, by cases or along noted pairs."""
        return self._known(low, high, set())

    def _known(self, low: Expr, high: Expr, seen: set[tuple[Expr, Expr]]) -> bool:
        if low in (high, Const(0)):
            return True
        if (low, high) in seen or len(seen) >= MAX_STEPS:
            return False
        seen.add((low, high))
        x, y = self.definitions.get(low, low), self.definitions.get(high, high)
        if isinstance(x, Apply) and x.op == "max" and all(self._known(a, high, seen) for a in x.args):
            return True
        if isinstance(y, Apply) and y.op == "min" and all(self._known(low, b, seen) for b in y.args):
            return True
        if isinstance(x, Apply) and x.op == "min" and any(self._known(a, high, seen) for a in x.args):
            return True
        if isinstance(y, Apply) and y.op == "max" and any(self._known(low, b, seen) for b in y.args):
            return True
        return any(self._known(above, high, seen) for above in self.above.get(low, ()))
