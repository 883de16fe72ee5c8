"""The graph of a recurrence is no decoration: an edit of any field of a node changes each kernel that the node is part of, or
is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from attngen.emit.decode import decode_context
from attngen.emit.recurrence import recurrence_context
from attngen.emit.render import environment
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Input, Launch, Node, Store
from attngen.passes.pipeline import schedule
from attngen.spec import Spec, load_spec
from tests.passes.test_backward_is_rendered import of_a_call, unnoticed

SSD: dict[str, Any] = {"kind": "ssd", "state": 32, "groups": 2}
POSITIVE = "elu(x) + 1"
KINDS: dict[str, dict[str, Any]] = {
    "ssd": {"grad": True, "recurrence": {**SSD, "dt_softplus": True}},
    "ssd without softplus": {"head_dim": 24, "grad": True, "recurrence": {**SSD, "state": 24}},
    "ssd, no gradients": {"recurrence": {**SSD, "dt_softplus": True}},
    "normalised": {"grad": True, "head_dim": 24, "recurrence": {"feature": POSITIVE, "normalise": True}},
    "normalised, scalar": {
        "grad": True,
        "recurrence": {"feature": POSITIVE, "normalise": True, "decay": "scalar"},
    },
    "feature, scalar": {"grad": True, "head_dim": 24, "recurrence": {"feature": POSITIVE, "decay": "scalar"}},
    "none": {"grad": True},
    "formula": {"grad": True, "recurrence": {"decay": "log(1 - exp2(-5.0 - h))"}},
    "scalar": {"grad": True, "recurrence": {"decay": "scalar"}},
    "vector": {"grad": True, "head_dim": {"qk": 96, "v": 16}, "recurrence": {"decay": "vector"}},
    "vector, normalised": {
        "grad": True,
        "recurrence": {"decay": "vector", "feature": "max(x, 0)", "normalise": True},
    },
    "delta": {"grad": True, "recurrence": {"transition": "delta"}},
    "gated delta": {
        "grad": True,
        "recurrence": {"transition": "delta", "decay": "scalar", "feature": "max(x, 0)"},
    },
    "formula, delta": {"grad": True, "recurrence": {"transition": "delta", "decay": "-0.1 * h", "chunk": 32}},
}
FUNCTIONS = {
    "chunk_states_kernel": "_chunk_states",
    "kernel": "_read",
    "queries_kernel": "_backward_queries",
    "keys_kernel": "_backward_keys",
    "values_kernel": "_backward_values",
    "tokens_kernel": "_backward_tokens",
    "found_kernel": "_backward_found",
    "solve_adjoint_kernel": "_backward_solve",
    "writes_adjoint_kernel": "_backward_writes",
}
"""The functions of launches; that of another, x_kernel, is _x."""
LEFT = {
    "skipped": "kernel",
    "scaled": "kernel",
    "dskipped": "out_adjoint_kernel",
    "dvalue_pairs": "pairs_kernel",
    "dv_pairs": "pairs_kernel",
    "rest": "totals_kernel",
}
"""What kernels leave to others without a store of its own: what out is before its last change, of which a copy is stored; where
products of queries and keys are stored, the same ones transposed; the sums of decays up to a chunk's end, which are differences
of the sums from its start."""


def spec_of(kind: str) -> Spec:
    small = {"attngen": 1, "name": "x", "heads": 4, "head_dim": 16, "dtype": "float32"}
    fields = KINDS[kind]
    recurrence = {"kind": "linear", "chunk": 16, **fields.get("recurrence", {})}
    return load_spec({**small, **fields, "recurrence": recurrence})


def text(graph: Graph) -> str:
    """The module of a graph before it is formatted, without digests."""
    made = recurrence_context(graph, version="", regenerate="")
    template = environment().get_template("recurrence.py.jinja")
    return re.sub(r"[0-9a-f]{12,}", "", template.render(c=made, decode=decode_context(graph)))


@functools.lru_cache(maxsize=2)
def functions(module: str) -> Mapping[str, str]:
    """The text of each private function of a module."""
    parts = re.split(r"^def (_\w+)\(", module, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def bodies(graph: Graph) -> dict[str, set[str]]:
    """The nodes of each kernel by its function: those below what it stores, down to what other kernels have left."""
    stored = {s.operand: name for name, launch in graph.all(Launch) for s in stores(graph, launch)}
    stored |= {node: kernel for node, kernel in LEFT.items() if kernel in graph.nodes}
    found: dict[str, set[str]] = {}
    for name, launch in graph.all(Launch):
        body = found.setdefault(FUNCTIONS.get(name, f"_{name.removesuffix('_kernel')}"), set())
        todo = [s.operand for s in stores(graph, launch)]
        while todo:
            node = todo.pop()
            if node not in body and stored.get(node, name) == name:
                body.add(node)
                todo += graph.nodes[node].operands()
    return found


def stores(graph: Graph, launch: Launch) -> list[Store]:
    return [node for name in launch.stores if isinstance(node := graph.nodes[name], Store)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_edit_goes_unnoticed(kind):
    graph = schedule(spec_of(kind))
    kernels = bodies(graph)
    inside = set().union(*kernels.values())
    rest = {n for n, x in graph.nodes.items() if not isinstance(x, Input | Store | Launch)}
    assert rest <= inside | set(LEFT), "every node is part of a kernel"

    def follows(node: str, before: str, after: str) -> bool:
        own = [name for name, body in kernels.items() if node in body]
        was, now = functions(before), functions(after)
        return before != after and all(was[name] != now[name] for name in own)

    def wanted(name: str, node: Node) -> bool:
        return not of_a_call(name, node)

    assert unnoticed(graph, wanted, text, follows) == []


@pytest.mark.parametrize(
    ("kind", "name", "change", "said"),
    [
        ("ssd", "late", {"expr": ex.Symbol("s", "float")}, "late.expr is (s - log2(step))"),
        ("ssd", "dread", {"expr": ex.Const(2.0)}, "dread.expr is (s)"),
        ("ssd", "dD", {"carrier": "atomic"}, "dD.carrier is buffer"),
        ("ssd", "of_keys", {"right": "dB_each"}, "of_keys.right is dB_each_within"),
        ("vector", "pairs", {"decay": ""}, "pairs.decay is total"),
        ("delta", "writes", {"block": 16, "chunk": 32}, "writes.chunk is 16"),
        ("normalised", "value", {"fill": 2.0}, "value.fill is 1.0"),
        ("scalar", "fold", {"order": "sequential"}, "fold.order is scan"),
        ("scalar", "q_tile", {"columns": 15}, "q_tile.columns is 16"),
        ("scalar", "store_total", {"dtype": "io"}, "store_total.dtype is float32"),
        ("scalar", "scan_kernel", {"rows": "grid"}, "scan_kernel.rows is chunks"),
        ("scalar", "token_fold", {"value": "k_tile"}, "token_fold.value is v_tile"),
        ("none", "token_out", {"given": "v"}, "token_out.given is "),
    ],
)  # fmt: skip
def test_what_is_not_printed_is_refused_by_node_and_field(kind, name, change, said):
    graph = schedule(spec_of(kind))
    with pytest.raises(InternalError, match=r"the templates need: .*" + re.escape(said)):
        text(graph.with_nodes({name: replace(graph.nodes[name], **change)}))


@pytest.mark.parametrize("kind", ["ssd", "normalised", "gated delta"])
def test_what_nobody_reads_is_refused(kind):
    graph = schedule(spec_of(kind))
    for node in ("fold", "read", "store_states", "kernel", "token_read"):
        with pytest.raises(InternalError, match="there is no node another"):
            text(graph.with_nodes({"another": graph.nodes[node]}))
        with pytest.raises(InternalError, match=rf"{node} is a "):
            text(graph.without({node}))


@pytest.mark.parametrize(
    ("name", "change"), [("scan_kernel", {"block_n": 64}), ("kernel", {"use_descriptors": True})]
)
def test_schedules_that_kernels_do_not_take_are_refused(name, change):
    graph = schedule(spec_of("scalar"))
    config = Config(block_m=16, block_n=16, num_warps=4, num_stages=1)
    launch = replace(graph.nodes[name], configs=(("default", (replace(config, **change),)),))
    with pytest.raises(InternalError, match=r"configs of the launch of _.*does not take"):
        text(graph.with_nodes({name: launch}))
