"""What templates ask of the nodes of a graph: a type, and a value for every field that they do not print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from attngen.errors import InternalError
from attngen.ir.graph import Graph, value_text
from attngen.ir.nodes import Input, Node

SomeNode = TypeVar("SomeNode", bound=Node)


@dataclass(frozen=True, slots=True)
class Rule:
    """A node that templates can print: of one type, with these ``values`` in all fields but those ``followed``."""

    kind: type[Node]
    followed: frozenset[str]
    values: Mapping[str, Any]


def rule(kind: type[Node], followed: str = "", **values: Any) -> Rule:
    """Return the rule of a node. A field that is neither ``followed`` (words) nor given must have its default."""
    defaults = {field.name: field.default for field in fields(kind)}
    return Rule(kind, frozenset(followed.split()), {**defaults, **values})


def broken(graph: Graph, rules: Mapping[str, Rule]) -> list[str]:
    """Return, in words, where nodes differ from the rules for them."""
    found: list[str] = []
    for name, wanted in rules.items():
        node = graph.nodes.get(name)
        if type(node) is not wanted.kind:
            found.append(f"{name} is a {wanted.kind.kind}")
            continue
        found += [
            f"{name}.{key} is {value_text(value)}"
            for key, value in wanted.values.items()
            if key not in wanted.followed and getattr(node, key) != value
        ]
    return found


def strangers(graph: Graph, rules: Mapping[str, Rule]) -> list[str]:
    """Return, in words, which nodes have no rule; inputs need none."""
    found = [n for n, node in graph.nodes.items() if n not in rules and not isinstance(node, Input)]
    return [f"there is no node {name}" for name in found]


def node_of(graph: Graph, name: str, kind: type[SomeNode]) -> SomeNode:
    """Return a node by its name; raise `InternalError` if there is none of that type."""
    node = graph.nodes.get(name)
    if not isinstance(node, kind):
        raise InternalError(
            f"{graph.provenance.name}: the templates need: {name or 'an operand'} is a {kind.kind}"
        )
    return node
