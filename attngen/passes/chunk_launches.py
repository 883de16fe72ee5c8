"""The kernels of a recurrence: which nodes each stores, and its schedules."""

from __future__ import annotations

from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Fold, Launch, Node, Store
from attngen.passes.schedules_recurrence import (
    Configs,
    of_chunk_scan,
    of_chunk_states,
    of_keys,
    of_out_adjoint,
    of_pairs,
    of_queries,
    of_scan,
    of_token_adjoints,
    of_totals,
    of_values,
)

Kernel = tuple[str, tuple[tuple[str, str], ...], str, tuple[str, ...], Configs]
"""Name, stored nodes with their dtypes, the axis of its tiles, the axes of programs, and schedules."""


def launches(graph: Graph, chunk: int) -> dict[str, Node]:
    """The launches and stores of a graph that is cut into chunks, in the order they run."""
    found: dict[str, Node] = {}
    for name, stored, tile_axis, axes, configs in (*_forward(graph, chunk), *_backward(graph, chunk)):
        there = [(node, dtype) for node, dtype in stored if node in graph.nodes]
        for node, dtype in there:
            own: tuple[str, ...] = getattr(graph.nodes[node], "axes", ())
            found[f"store_{node}"] = Store(operand=node, name=node, dtype=dtype, axes=own)
        if there:
            found[name] = Launch(
                stores=tuple(f"store_{node}" for node, _ in there),
                tile_axis=tile_axis,
                program_axes=axes,
                configs=configs,
                rows="chunks",
            )
    return found


def _sizes(graph: Graph) -> tuple[int, int]:
    """Rows and columns of a state."""
    fold = graph.nodes["fold"]
    assert isinstance(fold, Fold)
    rows, columns = (graph.axis(a).size for a in fold.axes[-2:])
    assert isinstance(rows, Const) and isinstance(columns, Const)  # noqa: PT018
    return int(rows.value), int(columns.value)


def _fp32(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "float32") for name in names)


def _forward(graph: Graph, chunk: int) -> list[Kernel]:
    """Decays of tokens, states of chunks, the scan over them, what groups share, and what is read."""
    rows, columns = _sizes(graph)
    pairs = graph.nodes["pairs"]
    assert isinstance(pairs, Contract)
    shared: list[Kernel] = []
    if "G" in pairs.axes:
        shared = [("pairs_kernel", (("pairs", "io"),), "L", ("C", "G"), of_pairs(rows, chunk))]
    return [
        (
            "totals_kernel",
            _fp32("total", "late", "step") if "total" in graph.nodes else (),
            "H",
            ("C",),
            of_totals(),
        ),
        (
            "chunk_states_kernel",
            _fp32("chunk_states"),
            "K",
            ("C", "H"),
            of_chunk_states(rows, columns, chunk),
        ),
        ("scan_kernel", _fp32("fold", "states"), "K", ("B", "H"), of_scan()),
        *shared,
        ("kernel", (("out", "io"),), "L", ("C", "H"), of_chunk_scan(rows, columns, chunk)),
    ]


def _backward(graph: Graph, chunk: int) -> list[Kernel]:
    """Adjoints of what becomes of out, of states, and what queries, keys and values read of these; then those of decays."""
    if "dfold" not in graph.nodes:
        return []
    rows, columns = _sizes(graph)
    mamba = "dt" in graph.nodes
    heads = ("C", "H")
    query, key, value = ("dC", "dB", "dx") if mamba else ("dq", "dk", "dv")
    sizes = (rows, columns, chunk)
    of_tokens = _fp32("ddt", "dA", "ddt_bias") if mamba else _fp32("dg")
    return [
        (
            "out_adjoint_kernel",
            (("dread", "io"), ("dz", "io"), *_fp32("dD")),
            "L",
            heads,
            of_out_adjoint(chunk),
        ),
        ("chunk_adjoints_kernel", _fp32("chunk_adjoints"), "K", heads, of_chunk_states(rows, columns, chunk)),
        (
            "adjoint_scan_kernel",
            _fp32("dfold", "dinitial_states", "dinitial_state", "edges"),
            "K",
            ("B", "H"),
            of_scan(),
        ),
        ("queries_kernel", ((query, "io"), *_fp32("of_queries")), "L", heads, of_queries(*sizes)),
        ("keys_kernel", ((key, "io"), *_fp32("of_keys", "of_states")), "L", heads, of_keys(*sizes)),
        ("values_kernel", ((value, "io"), *_fp32("dstep_value")), "L", heads, of_values(*sizes)),
        ("tokens_kernel", of_tokens if "of_both" in graph.nodes else (), "H", ("C",), of_token_adjoints()),
    ]
