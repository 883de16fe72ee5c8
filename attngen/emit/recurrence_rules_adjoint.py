"""What each node of a recurrence's backward has to be."""

from __future__ import annotations

from typing import Any, Final

from attngen.emit.recurrence_rules import (
    OF_CHUNKS,
    TOKEN_DOMAIN,
    TOKENS,
    Found,
    S,
    Shape,
    final_axes,
    fp32,
    inputs_of_gradients,
    kernel,
    raw_step,
    reads,
    scan,
    states_of_chunks,
)
from attngen.emit.recurrence_rules_delta import delta_kernels, delta_rules
from attngen.emit.rules import Rule, rule
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Symbol
from attngen.ir.nodes import Contract, Domain, Finish, Fold, Launch, Map, Merge, Pad, Slice, Store

ALL: Final = Domain(size=Symbol("all"))


def adjoint_rules(s: Shape) -> Found:
    """The rules of a backward; none where the graph has none."""
    if "dfold" not in s.graph.nodes:
        return
    yield from inputs_of_gradients(s)
    yield from _read_adjoint(s)
    dread = "dread"
    local = s.cut("sequential", "register") if s.delta else s.cut("parallel", "buffer")
    erased = {"erase": "derases", "along": "weighed", "taken": "dwrites"} if s.delta else {}
    yield "chunk_adjoints", states_of_chunks(s, s.queries, dread, reverse=True, **erased, **local)
    yield "dfold", scan(s, "chunk_adjoints", "dstates", reverse=True)
    yield f"d{s.init}", rule(Finish, monoid="decay", operand="dfold", result="states", axes=final_axes(s))
    queries, keys = _each(s, s.queries), _each(s, s.keys)
    wide = s.wide
    yield from reads(s, queries, dread, s.read_values, s.keys, "fold", columns=wide)
    yield from _rows(s, s.queries)
    yield from _rows(s, s.keys)
    if s.delta:
        yield from delta_rules(s, keys)
    else:
        yield from reads(s, keys, s.read_values, dread, s.queries, "dfold", columns=wide)
        yield from _values(s)
    if "of_both" in s.graph.nodes:
        yield from _decays(s, queries, keys)
        if s.mamba:
            yield from _steps(s)
    yield from _kernels(s)


def _sum(s: Shape, element: str, axis: str, axes: tuple[str, ...], carrier: str = "buffer") -> Rule:
    """A sum over axes that the result lacks."""
    cut = s.cut("sequential", carrier)
    return rule(Fold, monoid="sum", element=element, axis=axis, domain=ALL, axes=axes, **cut)


# ---- the gradient of what is read


def _read_adjoint(s: Shape) -> Found:
    of_values = (*TOKENS, "V")
    if s.mamba:
        yield from s.maps("dskipped", ["z"], operand="dout", given="z", axes=of_values)
        yield "dread", rule(Map, operand="dskipped", expr=S, axes=of_values)
        yield from s.maps("dx_skipped", ["D"], operand="dskipped", axes=of_values)
        yield from s.maps("dD_each", ["x"], operand="dskipped", axes=of_values)
        yield "dD", _sum(s, "dD_each", "B", ("H", "V"))
        yield from s.maps("dz", ["skipped", "z"], operand="dout", axes=of_values)
        return
    wide = (*TOKENS, s.wide)
    yield from s.maps("dread", operand="dscaled" if s.wide == "W" else "dout", axes=wide)
    if s.wide == "W":
        yield "dout_wide", rule(Pad, operand="dout", axes=wide)
        size = s.graph.axis("V").size
        start = int(size.value) if isinstance(size, Const) else 0
        yield "weight", rule(Slice, operand="scaled", start=start, columns=1, axes=TOKENS)
        yield "out_dout", rule(Contract, left="out", right="dout", over="V", axes=TOKENS)
        yield from s.maps("dscaled", ["out_dout", "weight"], operand="dout_wide", axes=wide)


# ---- of queries, keys and values


def _each(s: Shape, name: str) -> str:
    """The gradient of queries or keys, per head."""
    return f"d{s.raw(name)}" + "_each" * s.mamba


def _rows(s: Shape, name: str) -> Found:
    """From the gradient of queries or keys to that of an argument."""
    each = _each(s, name)
    if s.mamba:
        yield each.removesuffix("_each"), _sum(s, each, "H", ("B", "L", "G", "K"))
    elif name in ("queries", "keys"):
        tensor = name[0]
        slope = getattr(s.graph.nodes.get(f"d{tensor}"), "expr", S)
        read = [tensor] if tensor in ex.symbols(slope) else []  # of a straight line the slope is a number
        yield from s.maps(f"d{tensor}", read, operand=each, axes=(*TOKENS, "K"))


def _values(s: Shape) -> Found:
    value = "dvalue" if s.mamba or s.wide == "W" else "dv"
    yield from reads(s, value, s.keys, s.queries, "dread", "dfold")
    of_values = (*TOKENS, "V")
    if s.wide == "W":
        size = s.graph.axis("V").size
        columns = int(size.value) if isinstance(size, Const) else 0
        yield "dv", rule(Slice, operand="dvalue", columns=columns, axes=of_values)
    if s.mamba:
        yield from s.maps("dx_value", ["step"], operand="dvalue", axes=of_values)
        yield from s.maps("dstep_value_each", ["x"], operand="dvalue", axes=of_values)
        yield "dstep_value", _sum(s, "dstep_value_each", "V", TOKENS, "register")
        yield "dx", rule(Merge, monoid="sum", left="dx_skipped", right="dx_value", axes=of_values)


# ---- of decays


def _decays(s: Shape, queries: str, keys: str) -> Found:
    q, k = s.raw(s.queries), s.raw(s.keys)
    axes = (*TOKENS, "K") if s.rows else TOKENS
    keys = "dk_written" if s.delta else keys
    read = {"of_queries": (q, queries), "of_keys": (k, f"{keys}_within"), "of_states": (k, f"{keys}_across")}
    for name, (left, right) in read.items():
        if s.rows:
            yield from s.maps(name, [right], operand=left, axes=axes)
        else:
            yield name, rule(Contract, left=left, right=right, over="K", axes=axes)
    over, of_edges = (s.wide, (*OF_CHUNKS, "K")) if s.rows else ("K", OF_CHUNKS)
    yield "edges", rule(Contract, left="dfold", right="fold", over=over, axes=of_edges)
    others = ["of_keys", *(["of_erased"] if s.delta else [])]
    yield from s.maps("of_both", others, operand="of_queries", axes=axes)
    total, cut = f"d{s.decay}", s.cut("sequential", "buffer")
    along: dict[str, Any] = {"axis": "L", "domain": TOKEN_DOMAIN, "axes": axes, **cut}
    yield f"{total}_within", rule(Fold, monoid="sum", element="of_both", prefix="i+1", reverse=True, **along)
    yield f"{total}_across", rule(Fold, monoid="sum", element="of_states", prefix="i", init="edges", **along)
    yield total, rule(Merge, monoid="sum", left=f"{total}_within", right=f"{total}_across", axes=axes)


def _steps(s: Shape) -> Found:
    """From decays and values of Mamba-2 to dt, its bias and A."""
    yield from s.maps("dstep_decay", ["A"], operand="ddecay")
    yield from s.maps("dA_each", ["step"], operand="ddecay")
    yield "dA", _sum(s, "dA_each", "B", ("H",))
    yield "dstep", rule(Merge, monoid="sum", left="dstep_value", right="dstep_decay", axes=TOKENS)
    raw = raw_step(s)
    yield from s.maps(f"d{raw}", [raw], operand="dstep")
    if raw == "positive":
        yield from s.maps("dbiased", ["biased"], operand="dpositive")
    yield from s.maps("ddt", operand="dbiased")
    yield from s.maps("ddt_bias_each", operand="dbiased")
    yield "ddt_bias", _sum(s, "ddt_bias_each", "B", ("H",))


# ---- kernels


def _kernels(s: Shape) -> Found:
    q, k, v = (f"d{name}" for name in s.tensors)
    decays, heads, mamba = "of_both" in s.graph.nodes, ("C", "H"), s.mamba
    of_out = [("dread", "io"), *([("dz", "io"), *fp32("dD")] if mamba else [])]
    of_tokens = fp32("ddt", "dA", "ddt_bias") if mamba else fp32(f"d{s.decay}")
    edges = "edges" * (decays and not s.rows)
    of_keys = [(k, "io"), *fp32("of_keys" * decays, "of_states" * decays)]
    across = "K" * s.rows
    yield from kernel(s.graph, "out_adjoint_kernel", of_out, "L", heads)
    of_queries = [(q, "io"), *fp32("of_queries" * decays)]
    yield from kernel(s.graph, "queries_kernel", of_queries, "L", heads, across)
    yield from kernel(s.graph, "keys_kernel", of_keys, "L", heads, across)
    scanned = fp32("dfold", f"d{s.init}", edges)
    if s.delta:
        scanned += [("dwritten", "io"), ("dv", "io")]
        yield from delta_kernels(s)
    else:
        yield from kernel(s.graph, "chunk_adjoints_kernel", fp32("chunk_adjoints"), "K", heads)
        of_values = [(v, "io"), *fp32("dstep_value" * (mamba and decays))]
        yield from kernel(s.graph, "values_kernel", of_values, "L", heads)
    yield from kernel(s.graph, "adjoint_scan_kernel", scanned, "V" if s.delta else "K", ("B", "H"))
    if decays and s.rows:
        yield from kernel(s.graph, "tokens_kernel", of_tokens, "K", heads)
    elif decays:
        yield from kernel(s.graph, "tokens_kernel", of_tokens, "H", ("C",))
    if s.rows:
        name, axes = f"{_each(s, s.queries)}_pairs", ("B", "H", "L", "J")
        yield "store_adjoint_pairs", rule(Store, operand=name, name="adjoint_pairs", dtype="io", axes=axes)
        launch: dict[str, Any] = {"tile_axis": "L", "program_axes": heads, "rows": "chunks"}
        yield "adjoint_pairs_kernel", rule(Launch, "configs", stores=("store_adjoint_pairs",), **launch)
