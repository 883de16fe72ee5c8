"""Build: spec -> semantic graph. The only pass that reads a spec."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.graph import Graph, Provenance, name_taken, verify
from attngen.ir.nodes import (
    Axis,
    Contract,
    Domain,
    Finish,
    Fold,
    Input,
    Lift,
    Map,
    Merge,
    Node,
    Pages,
    Random,
    Slice,
    Splits,
    symbol,
)
from attngen.passes.build_recurrence import recurrence_axes, recurrence_nodes
from attngen.passes.lower import call_of, lower
from attngen.spec import Captured, Spec

_SCALAR_DTYPE = {"int": "int32", "float": "float32"}
_STORED = {"float8_e4m3": "float8_e4m3fn"}  # torch's names
_AXIS_NAMES = {"B": "b", "Hq": "h", "Hkv": "hk", "Sq": "row", "Sk": "j"}
_SCORES = ("B", "Hq", "Sq", "Sk")
_ROWS = ("B", "Hq", "Sq")


def build(spec: Spec) -> Graph:
    """Return the semantic graph of a spec: what is computed, nothing of how."""
    if spec.precision != "ieee" and "float32" not in spec.dtypes:
        raise not_built(spec, "precision", "it is that of fp32 products; the spec has no float32 in 'dtype'")
    for captured in spec.captured:
        if captured.sorted and captured.axes[-1] in ("Tq", "Tk"):
            message = f"{captured.name} is sorted along packed tokens; sequences are apart already, declare it without 'sorted'"
            raise not_built(spec, "captured", message)
    nodes: dict[str, Node] = {}
    if spec.recurrence is not None:
        nodes, axes = recurrence_nodes(spec, spec.recurrence), recurrence_axes(spec, spec.recurrence)
        graph = Graph(level="semantic", axes=axes, nodes=nodes, provenance=_provenance(spec))
        verify(graph)
        return graph
    _inputs(spec, nodes)
    inputs = dict(nodes)
    _scores(spec, nodes)
    _fold(spec, nodes)
    for name, node in inputs.items():
        if nodes[name] is not node:
            raise name_taken(spec.name, name)
    graph = Graph(level="semantic", axes=_axes(spec), nodes=nodes, provenance=_provenance(spec))
    verify(graph)
    return graph


def not_built(spec: Spec, key: str, message: str) -> PlanError:
    """The error for a key of the spec that cannot be done, at its place in the file."""
    place = spec.position((key,))
    where = f"{place[0]}:{place[1]}:{place[2]}: " if place else f"{spec.name}: "
    return PlanError(f"{where}{key}: {message}")


def _provenance(spec: Spec) -> Provenance:
    canonical = json.dumps(spec.canonical(), sort_keys=True, ensure_ascii=True)
    lines: list[tuple[str, str]] = []
    for node, key in (
        ("scores", "score"),
        ("fold", "mask"),
        ("sink", "sinks"),
        ("random", "dropout"),
        ("fold", "recurrence"),
    ):
        place = spec.position((key,))
        if place:
            lines.append((node, f"{place[0]}:{place[1]}"))
    return Provenance(
        name=spec.name,
        summary=spec.summary,
        spec=canonical,
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
        lines=tuple(lines),
    )


def _axes(spec: Spec) -> tuple[Axis, ...]:
    packed = spec.layout == "thd"
    in_a_row = packed and spec.cache is None
    return (
        Axis(name="B", size=symbol("batch"), symbol="b"),
        Axis(name="Hq", size=symbol("num_q_heads"), symbol="h"),
        Axis(name="Hkv", size=symbol("num_kv_heads"), symbol="hk", parent="Hq", group=spec.heads.group),
        Axis(name="Sq", size=symbol("seqlen_q"), symbol="row", origin="q_start" if packed else ""),
        Axis(name="Sk", size=symbol("seqlen_k"), symbol="j", origin="k_start" if in_a_row else ""),
        Axis(name="Dqk", size=Const(spec.head_dim.qk), symbol="d"),
        Axis(name="Dv", size=Const(spec.head_dim.v), symbol="e"),
        *([Axis(name="Seed", size=Const(2), symbol="seed_0")] if spec.dropout else []),
        *_captured_axes(spec),
    )


def _captured_axes(spec: Spec) -> list[Axis]:
    """Axes that only captured tensors have: numbers, parameters, and packed tokens."""
    found: dict[str, Axis] = {}
    for captured in spec.captured:
        for position, axis in enumerate(captured.axes):
            if axis not in _AXIS_NAMES:
                name = _axis_name(captured, position)
                found[name] = Axis(
                    name=name,
                    size=_axis_size(spec, axis),
                    symbol=f"{captured.name}_{position}",
                    origin={"Tq": "q_start", "Tk": "k_start"}.get(str(axis), ""),
                )
    return list(found.values())


def _axis_name(captured: Captured, position: int) -> str:
    axis = captured.axes[position]
    return axis if axis in _AXIS_NAMES else f"{captured.name}.{position}"


def _axis_size(spec: Spec, axis: str | int) -> Expr:
    if isinstance(axis, int):
        return Const(axis)
    if axis in ("Tq", "Tk"):
        return symbol("seqlen_q" if axis == "Tq" else "seqlen_k")
    param = next(p for p in spec.params if p.name == axis)
    return Symbol(param.name, "int") if param.value is None else Const(int(param.value))


def _inputs(spec: Spec, nodes: dict[str, Node]) -> None:
    shared: dict[str, Any] = {"dtype": "io", "dtypes": spec.dtypes, "grad": spec.grad}
    nodes["q"] = Input(axes=("B", "Hq", "Sq", "Dqk"), layout=spec.layout, **shared)
    nodes["k"] = Input(axes=("B", "Hkv", "Sk", "Dqk"), **{**shared, **_pages(spec, "k_cache")})
    if spec.head_dim.v_from_k is None:
        nodes["v"] = Input(axes=("B", "Hkv", "Sk", "Dv"), **{**shared, **_pages(spec, "v_cache")})
    else:
        nodes["v"] = Slice(operand="k", columns=spec.head_dim.v_from_k, axes=("B", "Hkv", "Sk", "Dv"))
    scale = repr(spec.head_dim.qk**-0.5)
    nodes["softmax_scale"] = Input(axes=(), dtype="float32", role="scalar", default=scale)
    if spec.sinks:
        nodes["sinks"] = Input(axes=("Hq",), dtype="float32", role="captured", grad=spec.grad)
    for param in spec.params:
        if param.value is None:
            nodes[param.name] = Input(axes=(), dtype=_SCALAR_DTYPE[param.type], role="scalar")
    for captured in spec.captured:
        axes = tuple(_axis_name(captured, p) for p in range(len(captured.axes)))
        nodes[captured.name] = Input(
            axes=axes, dtype=captured.dtype, role="captured", sorted=captured.sorted, grad=captured.grad
        )
    if spec.dropout:
        nodes["dropout_threshold"] = Input(axes=(), dtype="int32", role="scalar", default="0")
        nodes["seed"] = Input(axes=("Seed",), dtype="int64", role="seed")


def _pages(spec: Spec, argument: str) -> dict[str, Any]:
    """How keys or values lie in memory."""
    cache = spec.cache
    if cache is None:
        return {"layout": spec.layout}
    layout = {"nhd": "pshd", "hnd": "phsd"}[cache.layout]
    form = {
        "layout": layout,
        "pages": Pages(size=cache.page_size, table=cache.table, prefix=cache.prefix is not None),
        "argument": argument,
    }
    if cache.dtype is None or cache.scales is None:
        return form
    return form | {
        "dtype": _STORED.get(cache.dtype, cache.dtype),
        "scales": cache.scales.removeprefix("per_"),
    }


def _scores(spec: Spec, nodes: dict[str, Node]) -> None:
    nodes["qk"] = Contract(left="q", right="k", over="Dqk", axes=_SCORES, precision=spec.precision)
    scale = ex.apply("mul", Symbol("s", "float"), Symbol("softmax_scale", "float"))
    nodes["scaled"] = Map(operand="qk", expr=scale, axes=_SCORES)
    if spec.score is not None:
        formula = lower(spec.score, spec)
        formula = call_of("float", [formula])
        nodes["scores"] = Map(operand="scaled", expr=formula, captured=ex.tensors(formula), axes=_SCORES)


def _dropout(nodes: dict[str, Node]) -> str:
    """What multiplies the weights: 0 where a random number is below the threshold, elsewhere what keeps their mean."""
    threshold, of = symbol("dropout_threshold"), Const(65536)
    nodes["random"] = Random(seed="seed", axes=_SCORES)
    kept = ex.apply("div", of, ex.apply("sub", of, threshold))
    drops = ex.apply("lt", symbol("s"), threshold)
    nodes["dropout"] = Map(operand="random", expr=ex.apply("where", drops, Const(0.0), kept), axes=_SCORES)
    return "dropout"


def _fold(spec: Spec, nodes: dict[str, Node]) -> None:
    mask = ex.TRUE if spec.mask is None else lower(spec.mask, spec)
    nodes["fold"] = Fold(
        monoid="softmax",
        element="scores" if "scores" in nodes else "scaled",
        value="v",
        dropout=_dropout(nodes) if spec.dropout else "",
        captured=ex.tensors(mask),
        axis="Sk",
        domain=Domain(
            size=symbol("seqlen_k"),
            mask=mask,
            table=spec.mask_table,
            splits=_splits(spec),
            prefix=symbol("prefix_len") if spec.cache and spec.cache.prefix else None,
        ),
        axes=_ROWS,
        precision=spec.precision,
    )
    result = "fold"
    if spec.sinks:
        nodes["sink"] = Lift(monoid="softmax", operand="sinks", axes=("Hq",))
        nodes["with_sink"] = Merge(monoid="softmax", left="fold", right="sink", axes=_ROWS)
        result = "with_sink"
    nodes["out"] = Finish(monoid="softmax", operand=result, result="out", axes=(*_ROWS, "Dv"))
    nodes["lse"] = Finish(monoid="softmax", operand=result, result="lse", axes=_ROWS)


def _splits(spec: Spec) -> Splits | None:
    asked = spec.splits
    return None if asked is None else Splits(count=asked.count or 0, keys=asked.keys or 0)
