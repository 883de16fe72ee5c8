"""Refuse the graph of a recurrence that says what its templates do not print."""

from __future__ import annotations

from attngen.emit.decode_parts import decode_rules
from attngen.emit.recurrence_rules import forward_rules, shape_of
from attngen.emit.recurrence_rules_adjoint import adjoint_rules
from attngen.emit.rules import broken, strangers
from attngen.errors import InternalError
from attngen.ir.graph import Graph


def refuse_others(graph: Graph) -> None:
    """Raise `InternalError`, naming nodes and fields, if a node has no rule, or is not what its rule says."""
    shape = shape_of(graph)
    rules = {**dict(forward_rules(shape)), **dict(adjoint_rules(shape)), **decode_rules(graph)}
    if wrong := [*broken(graph, rules), *strangers(graph, rules)]:
        raise InternalError(f"{graph.provenance.name}: the templates need: {'; '.join(wrong)}")
