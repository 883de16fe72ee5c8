"""Statements that the kernels of a recurrence, forward and backward, print alike."""

from __future__ import annotations

from attngen.emit.printer import Body, Printer
from attngen.ir import expr as ex
from attngen.ir.expr import Expr, Symbol
from attngen.ir.nodes import Map


def text_of(expr: Expr, names: dict[str, str]) -> str:
    """An expression whose symbols are variables of these names."""
    renamed = ex.substitute(expr, {name: Symbol(text, "float") for name, text in names.items()})
    return Body(Printer({}), "scalar").text(renamed)


def feature(node: Map | None, tile: str, tensor: str, limit: str) -> tuple[str, ...]:
    """The feature map of a tile of keys or queries; columns that fill it up stay 0 in queries."""
    if node is None:
        return ()
    value = text_of(node.expr, {"s": "feature"})
    value = f"tl.where({limit}, {value}, 0.0)" if limit else value
    return (f"feature = {tile}.to(tl.float32)", f"{tile} = ({value}).to({tensor}.dtype.element_ty)")


def columns(letter: str, spans: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """Statements that make the vectors of column indices, one per (start, width)."""
    return tuple(
        f"{letter}_{n} = {f'{start} + ' if start else ''}tl.arange(0, {width})"
        for n, (start, width) in enumerate(spans)
    )


def place_in_state(axes: tuple[str, ...], stride: str) -> str:
    """Where number d, e of a state lies in a tensor with axes B, H, and K and the columns in some order."""
    letters = {"K": "d"}
    return " + ".join(
        f"{letters.get(a, 'e')}.to(tl.int64) * {stride}{n}" for n, a in enumerate(axes) if n > 1
    )
