"""The graph is what everything is made from: verified, complete, and not a decoration."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace

import pytest
import torch

from attngen.emit.render import render
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir import nodes as ir
from attngen.ir.graph import graph_text, verify
from attngen.ir.tiles import Interval
from attngen.passes.build import build
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter import RULES, interpret
from attngen.reference.interpreter_recurrence import RECURRENCE_RULES
from attngen.runtime.load import load_module
from attngen.spec import load_spec

SPEC = {
    "attngen": 1,
    "name": "edited",
    "heads": {"q": 2, "kv": 1},
    "head_dim": 16,
    "dtype": "float32",
    "score": "20 * tanh(s / 20)",
    "mask": "j <= i",
}


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    return {n: torch.randn(1, s, h, 16) for n, s, h in (("q", 50, 2), ("k", 128, 1), ("v", 128, 1))}


def kernel(graph, tmp_path, inputs):
    path = tmp_path / f"{graph.digest()[:8]}.py"
    path.write_text(render(graph))
    return load_module(path).attention(**inputs, return_lse=True)


def double_the_score(graph):
    node = graph.nodes["scores"]
    return graph.with_nodes({"scores": replace(node, expr=ex.apply("mul", node.expr, ex.Const(2.0)))})


def treat_every_tile_as_full(graph):
    fold = graph.nodes["fold"]
    every = (Interval(ex.Const(0), ex.Symbol("seqlen_k")),)
    return graph.with_nodes({"fold": replace(fold, tiles=replace(fold.tiles, may=every, must=every))})


def stop_rows_early(graph):
    fold = graph.nodes["fold"]
    row = Interval(fold.tiles.row.lo, ex.apply("sub", fold.tiles.row.hi, ex.Const(3)))
    return graph.with_nodes({"fold": replace(fold, tiles=replace(fold.tiles, row=row))})


@pytest.mark.parametrize("edit", [double_the_score, treat_every_tile_as_full, stop_rows_early])
def test_an_edited_node_changes_interpreter_and_kernel_alike(edit, inputs, tmp_path):
    graph = schedule(load_spec(SPEC))
    changed = edit(graph)
    before, _ = interpret(graph, inputs, block_m=64, block_n=64)
    after, after_lse = interpret(changed, inputs, block_m=64, block_n=64)
    out, lse = kernel(changed, tmp_path, inputs)
    assert (after - before).abs().max() > 1e-3
    assert (out - after).abs().max() < 2e-6
    assert (lse - after_lse)[after_lse.isfinite()].abs().max() < 2e-6


def test_semantic_and_scheduled_graphs_agree_for_odd_tiles(inputs):
    spec = load_spec(SPEC)
    whole, lse = interpret(build(spec), inputs)
    for block_m, block_n in ((1, 1), (7, 3), (64, 16)):
        cut, cut_lse = interpret(schedule(spec), inputs, block_m=block_m, block_n=block_n)
        assert (cut - whole).abs().max() < 1e-13
        assert (cut_lse - lse).abs().max() < 1e-13


def node_classes():
    return [
        c for _, c in inspect.getmembers(ir, inspect.isclass) if issubclass(c, ir.Node) and c is not ir.Node
    ]


def test_every_node_is_complete():
    assert set(node_classes()) == set(ir.NODE_TYPES) == set(RULES) | set(RECURRENCE_RULES)
    for kind in ir.NODE_TYPES:
        assert kind.kind, kind
        assert kind.__doc__, kind
        assert kind.__dataclass_params__.frozen, kind
        assert "__slots__" in vars(kind), kind


def test_every_node_and_operator_is_drawn_by_some_spec():
    spec = {
        **SPEC,
        "sinks": True,
        "dropout": True,
        "head_dim": {"qk": 48, "v": 32, "v_from_k": 32},
        "grad": True,
    }
    recurrence = {"attngen": 1, "name": "delta", "heads": 2, "head_dim": 16, "dtype": "float32"}
    recurrence["recurrence"] = {"transition": "delta", "decay": "scalar"}
    graphs = [level(load_spec(x)) for x in (spec, recurrence) for level in (build, schedule)]
    assert {type(n) for g in graphs for n in g.nodes.values()} == set(ir.NODE_TYPES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.with_nodes({"out": replace(g.nodes["out"], operand="nothing")}), "read but not defined"),
        (lambda g: g.with_nodes({"fold": replace(g.nodes["fold"], element="out")}), "cycle"),
        (lambda g: g.with_nodes({"fold": replace(g.nodes["fold"], tiles=None)}), "run plan-masks"),
        (lambda g: g.with_nodes({"fold": replace(g.nodes["fold"], carrier="none")}), "go together"),
        (lambda g: g.with_nodes({"k_tile": replace(g.nodes["k_tile"], chunks=((0, 8),))}), "bad chunks"),
        (lambda g: g.with_nodes({"qk": replace(g.nodes["qk"], over="Sk")}), "is summed"),
        (lambda g: g.with_nodes({"out": replace(g.nodes["out"], axes=("Nowhere",))}), "no axis"),
        (lambda g: dataclasses.replace(g, level="semantic"), "in a semantic graph"),
        (lambda g: g.with_nodes({"scores": replace(g.nodes["scores"], expr=ex.TRUE)}), "not a number"),
        (lambda g: g.with_nodes({"r": ir.Random(seed="q", axes=("B", "Hq", "Sq"))}), "the axes are"),
        (lambda g: g.with_nodes({"fold": replace(g.nodes["fold"], monoid="sum", dropout="qk")}), "to drop"),
    ],
)
def test_a_broken_graph_is_refused(change, message):
    graph = schedule(load_spec(SPEC))
    with pytest.raises(InternalError, match=message):
        verify(change(graph))


def test_text_and_digest_say_everything():
    graph = schedule(load_spec(SPEC))
    assert graph.digest() == schedule(load_spec(SPEC)).digest()
    for name, node in graph.nodes.items():
        for field, value in node.attributes():
            if isinstance(value, str):
                changed = replace(node, **{field: value + "_"})
                assert graph_text(graph.with_nodes({name: changed})) != graph_text(graph), (name, field)


def test_graph_is_frozen():
    graph = schedule(load_spec(SPEC))
    with pytest.raises(Exception, match=r"[Ff]rozen"):
        graph.dag.add_node("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.level = "semantic"


@pytest.mark.parametrize(
    ("node", "change"),
    [
        ("fold", {"base": "e"}),
        ("fold", {"domain": ir.Domain(size=ex.Const(3))}),
        ("q_tile", {"chunks": ((0, 16), (16, 16))}),
        ("q_tile", {"tile_axis": "Sk"}),
        ("k_tile", {"address": ir.Pages(size=16, table="dense")}),
        ("k_tile", {"tile_axis": "Sq"}),
        ("v_tile", {"address": ir.Pages(size=16, table="dense")}),
        ("store_out", {"dtype": "float32"}),
        ("store_out", {"name": "lse"}),
        ("store_lse", {"operand": "out"}),
        ("out", {"result": "lse"}),
        ("kernel", {"tile_axis": "Sk"}),
        ("kernel", {"program_axes": ("B", "Hq")}),
        ("kernel", {"stores": ("store_out",)}),
        ("kernel", {"rows": "search"}),
        ("q", {"layout": "thd"}),
        ("k", {"layout": "bhsd"}),
        ("v", {"dtypes": ("float16",)}),
        ("qk", {"over": "Dv"}),
    ],
)
def test_emission_refuses_what_its_templates_cannot_print(node, change):
    """A field of a node either changes the kernel or is refused; none is a decoration."""
    graph = schedule(load_spec(SPEC))
    with pytest.raises(InternalError):
        render(graph.with_nodes({node: replace(graph.nodes[node], **change)}))


@pytest.mark.parametrize(
    ("node", "change"),
    [
        ("dropout", {"expr": ex.Symbol("s", "float")}),
        ("dropout", {"operand": "qk"}),
        ("p_dropout", {"expr": ex.Symbol("s", "float")}),
        ("dp_dropout", {"operand": "p"}),
        ("dp_dropout", {"others": ("p",)}),
        ("ds", {"operand": "dp"}),
        ("dv", {"element": "p"}),
    ],
)
def test_emission_refuses_other_dropouts(node, change):
    graph = schedule(load_spec({**SPEC, "dropout": True, "grad": True}))
    render(graph)
    with pytest.raises(InternalError):
        render(graph.with_nodes({node: replace(graph.nodes[node], **change)}))


@pytest.mark.parametrize(
    ("node", "change"),
    [
        ("fold", {"precision": "tf32"}),
        ("qk", {"precision": "tf32"}),
        ("softmax_scale", {"default": "2.0"}),
        ("fold", {"domain": ir.Domain(size=ex.Symbol("seqlen_k"), table=True)}),
        (
            "kernel",
            {"configs": (("default", (ir.Config(block_m=16, block_n=16, num_warps=1, num_stages=1),)),)},
        ),
    ],
)
def test_a_field_that_float64_cannot_show_changes_the_text(node, change):
    graph = schedule(load_spec(SPEC))
    changed = graph.with_nodes({node: replace(graph.nodes[node], **change)})
    strip = lambda text: "\n".join(line for line in text.splitlines() if graph.digest()[:8] not in line)  # noqa: E731
    assert strip(render(changed)) != strip(render(graph))
