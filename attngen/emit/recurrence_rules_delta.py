"""What each node of the backward of a delta rule has to be."""

from __future__ import annotations

from typing import Any

from attngen.emit.recurrence_rules import TOKEN_DOMAIN, TOKENS, Found, Shape, fp32, kernel, reads
from attngen.emit.rules import Rule, node_of, rule
from attngen.ir.nodes import Contract, Fold, Load, Read, Solve


def delta_rules(s: Shape, keys: str) -> Found:
    """The rules of the nodes between what is read of and what is written to a state; ``keys`` is the gradient of keys."""
    of_values, of_keys = (*TOKENS, "V"), (*TOKENS, "K")
    yield from reads(s, "dwritten", s.keys, s.queries, "dread", "dfold", only_within=True)
    for name in ("dwritten_within", "dwritten", "dv"):
        yield f"{name}_tile", _tile(s, name)
    if s.decay:
        cut: dict[str, Any] = {**s.cut("sequential", "register"), "axis": "L", "domain": TOKEN_DOMAIN}
        rest: dict[str, Any] = {"prefix": "i", "reverse": True, "base": "2", "axes": ("B", "H", "L")}
        rest["factor"] = node_of(s.graph, "total", Fold).factor
        yield "rest", rule(Fold, monoid="sum", element=s.decay, **rest, **cut)
        yield from s.maps("share", operand="rest")
    system: dict[str, Any] = {
        "matrix": "alike", "scale": "beta", "decay": s.total, "chunk": s.chunk, "block": 16, "transposed": True
    }  # fmt: skip
    yield "dwrites", rule(Solve, rhs="dwritten_within_tile", weight="", axes=of_values, **system)
    share = "share" if s.decay else ""
    yield "derases", rule(Solve, rhs=s.keys, weight=share, axes=of_keys, **system)
    yield from s.maps("weighed", ["beta"], operand=s.keys, axes=of_keys)
    yield "brought", rule(Read, query="derases", state="dfold", axes=of_values)
    yield from s.maps("dwritten", ["brought"], operand="dwrites", axes=of_values)
    yield from s.maps("dv", ["beta"], operand="dwritten", axes=of_values)
    yield from _found(s)
    yield from _keys(s, keys)


def _tile(s: Shape, name: str) -> Rule:
    """A tile of rows like those of values."""
    values = node_of(s.graph, "v_tile", Load)
    given: dict[str, Any] = {"columns": values.columns, "chunks": values.chunks}
    return rule(Load, operand=name, axes=(*TOKENS, "V"), tile_axis="L", address="strided", **given)


def _found(s: Shape) -> Found:
    """What the gradients of what is written find in the states before them, and beta."""
    yield from reads(s, "found", "dwritten_tile", s.read_values, s.keys, "fold", columns="V", order="lt")
    yield "of_values", rule(Contract, left="v_tile", right="dwritten_tile", over="V", axes=TOKENS)
    yield "of_found", rule(Contract, left=s.raw_keys, right="found", over="K", axes=TOKENS)
    if "of_both" in s.graph.nodes:
        yield from s.maps("of_erased", ["beta"], operand="of_found")
    yield from s.maps("dbeta", ["of_found"], operand="of_values")


def _keys(s: Shape, keys: str) -> Found:
    """The gradient of keys: as what is written along, as what erases, and as what finds."""
    name, axes, taken = "dk_written", (*TOKENS, "K"), "dk_written_taken"
    for made, found in reads(s, name, s.read_values, "dread", s.queries, "dfold", columns="V"):
        yield ("dk_written_read" if made == f"{name}_within" else made), found
    minus = reads(
        s, taken, s.read_values, "dv_tile", s.keys, "dfold", columns="V", only_within=True, order="gt"
    )
    for made, found in minus:
        yield made.removesuffix("_within"), found
    yield from s.maps(f"{name}_within", [taken], operand=f"{name}_read", axes=axes)
    yield from s.maps(keys, ["found", "beta"], operand=name, axes=axes)


def delta_kernels(s: Shape) -> Found:
    """The kernels that the backward of other recurrences does not have."""
    heads, decays = ("C", "H"), "of_both" in s.graph.nodes
    yield from kernel(s.graph, "writes_adjoint_kernel", [("dwritten_within", "io")], "L", heads)
    solved = [*fp32("dwrites"), ("derases", "io")]
    yield from kernel(s.graph, "solve_adjoint_kernel", solved, "L", heads)
    found = fp32("found", "dbeta", "of_erased" * decays)
    yield from kernel(s.graph, "found_kernel", found, "L", heads)
