"""The graph is no decoration: any edit of any field of a scheduled node changes the module's text, or is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from attngen.emit.context import context
from attngen.emit.render import environment
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Symbol
from attngen.ir.graph import Graph, verify
from attngen.ir.nodes import Config, Domain, Input, Node, Pages, Splits
from attngen.ir.tiles import Tiles
from attngen.passes.pipeline import schedule
from attngen.spec import Spec, load_spec
from tests.passes.gradients import make
from tests.passes.test_tile_backward import doubled, from_two

WIDE: dict[str, Any] = {"head_dim": 32, "heads": {"q": 2, "kv": 1}, "mask": "j <= i"}


def reading(element: str, axes: list[str | int], **more: Any) -> Spec:
    """A spec whose score reads x."""
    return make(**WIDE, score=f"s * {element}", captured={"x": {"dtype": "float32", "axes": axes}}, **more)


SPECS: dict[str, Spec] = {
    "plain": make(**WIDE),
    "row": reading("x[h]", ["Hq"], sinks=True),
    "key": reading("x[h, j]", ["Hq", "Sk"]),
    "element": reading("x[row, j]", ["Sq", "Sk"]),
    "distance": reading("x[h, i - j + 64]", ["Hq", 128]),
    "dropout": make(**WIDE, dropout=True),
    "values inside K": make(**{**WIDE, "head_dim": {"qk": 48, "v_from_k": 32}}),
    "heads": make(**WIDE, score="s * (1 + h)"),
    "packed": reading("x[h]", ["Hq"], layout="thd"),
    "atomic": reading("x[h, j // 2]", ["Hq", "Sk"], deterministic=False),
}
CACHE = {"kind": "paged", "page_size": 16}
FORWARD: dict[str, dict[str, Any]] = {
    "sinks": {"layout": "bhsd", "score": "3 * tanh(s / 3)", "sinks": True},
    "pages": {"layout": "thd", "cache": CACHE, "dtype": "bfloat16"},
    "splits": {"layout": "thd", "cache": CACHE, "splits": 4, "dtype": "bfloat16"},
    "splits by lengths": {"layout": "thd", "cache": CACHE, "splits": "auto", "dtype": "bfloat16"},
    "splits of keys": {"layout": "thd", "cache": CACHE, "splits": {"keys": 64}, "dtype": "bfloat16"},
    "csr, sinks": {"cache": {**CACHE, "table": "csr"}, "splits": "auto", "sinks": True, "dtype": "float16"},
    "int4": {"cache": {**CACHE, "dtype": "int4"}, "dtype": "bfloat16"},
    "fp8 per head": {"cache": {**CACHE, "dtype": "float8_e5m2", "scales": "per_head"}, "dtype": "bfloat16"},
    "prefix": {"cache": {**CACHE, "prefix": "shared"}, "splits": "auto", "dtype": "bfloat16"},
    "pages by head": {"cache": CACHE, "mask": "j <= i and i - j < 8 + h", "dtype": "bfloat16"},
}


hints = functools.cache(get_type_hints)


def text(graph: Graph) -> str:
    """The module of a graph before it is formatted, without digests."""
    made = context(graph, version="", regenerate="")
    module = environment().get_template("attention.py.jinja").render(c=made, face=made.interface)
    return re.sub(r"[0-9a-f]{12,}", "", module)


def edits(graph: Graph, node: Node, field: Field[Any]) -> Iterator[Any]:
    """Other values of a field, as a careless pass might leave them."""
    value, hint = getattr(node, field.name), hints(type(node))[field.name]
    if field.name in node.OPERANDS:
        yield from other_operands(graph, node, value)
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    elif field.name in ("axis", "over", "tile_axis", "across"):
        yield from ("", *(axis.name for axis in graph.axes))
    elif field.name in ("address", "pages"):
        yield from ("strided", Pages(size=64, table="dense"))
    elif field.name in ("configs", "decode"):
        yield (("default", (Config(block_m=16, block_n=16, num_warps=1, num_stages=1),)),)
        yield from other_schedules(value) if "dq" not in graph.nodes else ()
    elif isinstance(value, tuple):
        more = {"at": Const(0), "chunks": (64, 16)}.get(field.name, "Dv")
        yield from (value[::-1], value[1:], (*value, more))
        if field.name == "at" and value:
            yield (*value[:-1], ex.apply("sub", value[-1], Const(1)))
    else:
        yield from other_values(value)


def other_schedules(configs: Any) -> Iterator[Any]:
    """Each field of the first schedule changed, the others kept."""
    if configs:
        [(target, [config, *more]), *others] = configs
        for field in fields(config):
            was = getattr(config, field.name)
            other = replace(config, **{field.name: not was if isinstance(was, bool) else 2 * was})
            yield ((target, (other, *more)), *others)


def other_values(value: Any) -> Iterator[Any]:
    match value:
        case bool():
            yield not value
        case int():
            yield 32 if value == 16 else 16
        case float():
            yield value + 1.0
        case str():
            yield from ("", "zz", "float16", "float32", "io", "bshd", "thd")
        case Tiles():
            yield from_two(value)
        case Domain():
            later = ex.apply("ge", Symbol("j"), Const(2))
            yield replace(value, mask=ex.apply("and", value.mask, later))
            yield replace(value, size=ex.apply("sub", value.size, Const(1)))
            yield replace(value, table=not value.table)
            yield replace(value, splits=Splits(count=7))
        case None:
            yield Const(2.0)  # a factor
        case _:
            yield from (doubled(value), ex.apply("add", value, Const(1.0)), *ex.children(value))


def other_operands(graph: Graph, node: Node, value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        yield from (value[::-1], value[1:], (*value, next(iter(graph.nodes))))
        return
    yield ""
    alike = getattr(graph.nodes.get(value), "axes", ())
    same = [n for n, x in graph.nodes.items() if getattr(x, "axes", None) == alike and x != node]
    yield from (*same[:3], *same[-3:], "k_tile", "p")


def unnoticed(
    graph: Graph,
    wanted: Callable[[str, Node], bool],
    text: Callable[[Graph], str] = text,
    follows: Callable[[str, str, str], bool] = lambda node, before, after: before != after,
) -> list[str]:
    """Edits that neither change the text, as it ``follows`` a node, nor raise `InternalError`."""
    before, found = text(graph), list[str]()
    for name, node in graph.nodes.items():
        if not wanted(name, node):
            continue
        for field in fields(node):
            others = [x for x in edits(graph, node, field) if x != getattr(node, field.name)]
            assert others, f"{name}.{field.name}: no edit"
            for other in others:
                try:
                    edited = graph.with_nodes({name: replace(node, **{field.name: other})})
                    verify(edited)
                    if follows(name, before, text(edited)):
                        continue
                    found.append(f"{name}.{field.name} = {other}: ignored")
                except InternalError:
                    pass
                except Exception as error:
                    found.append(f"{name}.{field.name} = {other}: {type(error).__name__} {error}")
    return found


def of_a_call(name: str, node: Node) -> bool:
    """Whether a node is an argument of a call; the spec says what those are."""
    return isinstance(node, Input) and node.role != "gradient"


@pytest.mark.parametrize("name", SPECS)
def test_no_edit_goes_unnoticed(name):
    assert unnoticed(schedule(SPECS[name]), lambda n, x: not of_a_call(n, x)) == []


@pytest.mark.parametrize("name", FORWARD)
def test_no_edit_of_a_forward_goes_unnoticed(name):
    small = {"attngen": 1, "name": "x", "heads": {"q": 2, "kv": 1}, "head_dim": 32, "dtype": "float32"}
    spec = load_spec({**small, "mask": "j <= i", **FORWARD[name]})
    assert unnoticed(schedule(spec), lambda n, x: not of_a_call(n, x)) == []


@pytest.mark.parametrize("name", ["row", "values inside K"])
def test_what_nobody_reads_is_refused(name):
    graph = schedule(SPECS[name])
    for node in ("ds", "dq", "kernel_dq", "out_dout"):
        with pytest.raises(InternalError, match="there is no node another"):
            text(graph.with_nodes({"another": graph.nodes[node]}))
        with pytest.raises(InternalError, match=r"need: |no kernel stores"):
            text(graph.without({node}))
