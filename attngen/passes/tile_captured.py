"""How gradients of captured tensors are cut: what a formula reads at decides who adds it up, always in a fixed order.

| read at | programs own | added up |
|---|---|---|
| b, h, row | rows (in the kernel of dq) | over keys in registers, then by the launcher |
| b, h, j | keys | over rows, and over the b and h that it lacks |
| b, h, row, j | rows and keys | over the b and h that it lacks |
| b, h, f(i - j) | a diagonal of tiles, with the same i - j in each | along it, then over the i - j of one f(i - j) |
| anything else | rows (in the kernel of dq) | by atomics, if the spec says ``deterministic: false`` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import networkx as nx

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.delta import DELTA_ERROR, DELTA_RIGHT, P_DP
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import Graph, name_taken
from attngen.ir.linear import linear, normal
from attngen.ir.nodes import Axis, Fold, Map, Node
from attngen.passes.plan_masks import ROW_FROM_I

ROWS = ("B", "Hq", "Sq")
AT_I, AT_J = Symbol("i"), Symbol("j")
DIAGONAL = Symbol("diagonal")
DIAGONALS = Axis(
    name="Sd",
    size=ex.apply("sub", ex.apply("add", Symbol("seqlen_q"), Symbol("seqlen_k")), Const(1)),
    symbol="diagonal",
)
# the i - j of a diagonal: they begin with that of the first row and the last key
DIFFERENCE = ex.apply("add", ex.apply("sub", DIAGONAL, Symbol("seqlen_q")), Const(1))
S = Symbol("s", "float")
Kind = Literal["rows", "keys", "elements", "diagonals", "anywhere"]


@dataclass(slots=True)
class Cut:
    """What the gradient of one captured tensor adds to a graph: nodes, an axis, and its stores by kernel.

    ``tiles`` are the axes whose tiles the programs of a kernel of its own own; () if it has none.
    """

    nodes: dict[str, Node]
    stores: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    tiles: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = ()


def cut_captured(graph: Graph, name: str, fold: Fold, *, deterministic: bool) -> Cut:
    """Cut the fold of one captured gradient; raise `PlanError` for a place that has no fixed order, unless atomics may do."""
    if getattr(graph.nodes[fold.element], "axes", ()) == ROWS:
        return _sinks(graph, name, fold)
    match _kind(graph, fold, deterministic):
        case "rows":
            return _rows(graph, name, fold)
        case "keys":
            return _owned(graph, name, fold, ("Sk",))
        case "elements":
            return _owned(graph, name, fold, ("Sq", "Sk"))
        case "diagonals":
            return _diagonals(graph, name, fold)
        case "anywhere":
            added = replace(fold, level="tile", order="full-then-partial", carrier="atomic")
            return Cut({name: added}, {"dq": (name,)})


def _kind(graph: Graph, fold: Fold, deterministic: bool) -> Kind:
    used = _symbols(fold.at)
    positions = set(used & {"i", "row", "j"})
    packed = any(a.origin for a in map(graph.axis, fold.axes)) or _layout(graph) == "thd"
    plain = all(isinstance(index, Symbol | Const) for index in fold.at)
    reason = "it needs a place of its own for each b, h, row or j (not hk), or a function of i - j alone"
    if plain and used <= {"b", "h", "row", "j", "i"}:
        if positions <= {"row"} and len(used) == len(fold.at) > 0:
            if not ({"b", "row"} <= used and any(a.origin for a in map(graph.axis, fold.axes))):
                return "rows"
            reason = "a packed token is of one sequence: read it by b or by row"
        elif positions == {"j"}:
            return "keys"
        elif "j" in positions and ("i" not in positions or not packed):
            return "elements"
    elif {"i", "row"} & positions and _moves_along_diagonals(graph, fold, packed=packed):
        if not (packed and "dropout" in graph.nodes):
            return "diagonals"
        reason = "diagonals of packed sequences begin anywhere, and dropout draws for 16 rows together"
    if not deterministic:
        return "anywhere"
    read = ", ".join(ex.text(i) for i in fold.at)
    raise PlanError(
        f"{graph.provenance.name}: captured: no gradient of {fold.into}, read at [{read}], in a fixed order: {reason};"
        " 'deterministic: false' allows atomics"
    )


def _moves_along_diagonals(graph: Graph, fold: Fold, *, packed: bool) -> bool:
    """Whether each index is b, h, or depends on positions by i - j alone."""
    indices = [_by_place(index) for index in fold.at]
    others = [x for x in indices if x not in (Symbol("b"), Symbol("h"))]
    lengths = {"seqlen_q", "seqlen_k"} if packed else set[str]()
    return all(
        _is_of_difference(x) and not ex.tensors(x) and not (_symbols((x,)) & ({"b", "h", "hk"} | lengths))
        for x in others
    )


def _by_place(index: Expr) -> Expr:
    """An index in terms of i and j: a row is i - seqlen_k + seqlen_q."""
    return normal(ex.substitute(index, {"row": ROW_FROM_I}))


def _is_of_difference(expr: Expr) -> bool:
    """Whether a formula depends on i and j by their difference alone."""
    match expr:
        case Apply("lt" | "le" | "gt" | "ge" | "eq" | "ne", (a, b)) if (
            ex.type_of(a) == ex.type_of(b) == "int"
        ):
            return _is_of_difference(ex.apply("sub", a, b))
        case _ if ex.type_of(expr) == "int":
            form = linear(expr)
            rest = [term for term in form.terms if term not in (AT_I, AT_J)]
            balanced = form.terms.get(AT_I, 0) + form.terms.get(AT_J, 0) == 0
            return balanced and all(_is_of_difference(part) for term in rest for part in ex.children(term))
        case _:
            return all(_is_of_difference(part) for part in ex.children(expr))


def _rows(graph: Graph, name: str, fold: Fold) -> Cut:
    """Sums per row beside dq, which the launcher adds up.

    What rounding of out did to delta, times p, is in every ds of a row; a slope that is large there makes a large error of
    it, where dq and dk have a small one. Beside dq the row is seen whole: the sum of p dp is what delta should be, less dlse.
    """
    part, about, weights = f"{name}_rows", f"{name}_about", f"{name}_weights"
    per_row = replace(
        fold, at=(), into="", axes=ROWS, level="tile", order="full-then-partial", carrier="register"
    )
    slope = _map(graph, fold.element)
    nodes: dict[str, Node] = {
        **_delta_error(graph),
        about: per_row,
        weights: replace(per_row, element="p"),
    }
    if fold.element != "ds":
        nodes[f"p_{fold.into}"] = replace(slope, operand="p")
        nodes[weights] = replace(per_row, element=f"p_{fold.into}")
    moved = ex.apply("mul", Symbol("delta_error", "float"), Symbol(weights, "float"))
    nodes[part] = Map(
        operand=about, others=("delta_error", weights), expr=ex.apply("add", S, moved), axes=ROWS
    )
    return Cut({**nodes, name: _over_buffer(graph, fold, part, "Sq", fold.at)}, {"dq": (part,)})


def _delta_error(graph: Graph) -> dict[str, Node]:
    """What rounding of out did to delta, from the keys that dq visits."""
    ds, dq = _map(graph, "ds"), graph.nodes["dq"]
    assert isinstance(dq, Fold)
    per_row = replace(dq, element="p_dp", value="", axes=ROWS, factor=None, precision="ieee")
    return {
        "p_dp": Map(operand=ds.operand, others=("p",), expr=P_DP, axes=ds.axes),
        "p_dp_rows": replace(per_row, level="tile", order="full-then-partial", carrier="register"),
        "delta_error": Map(operand="delta", others=("dlse", "p_dp_rows"), expr=DELTA_ERROR, axes=ROWS),
        "delta_right": Map(operand="delta", others=("delta_error",), expr=DELTA_RIGHT, axes=ROWS),
    }


def with_right_delta(graph: Graph, cut: Mapping[str, Node]) -> dict[str, Node]:
    """Kernels that run after dq's take delta from there, where it is without error: what they add up is of ds_right."""
    shared = graph.nodes["dq"]
    assert isinstance(shared, Fold)
    found: dict[str, Node] = {}
    for name, fold in cut.items():
        if not isinstance(fold, Fold) or fold.level != "tile" or fold.carrier == "atomic":
            continue
        later = fold.axes != ROWS and name != "dq"
        if later and "ds" in {fold.element, *nx.ancestors(graph.dag, fold.element)}:
            element = fold.element + "_right" * (fold.element in ("ds", shared.element))
            found |= {element: replace(_map(graph, fold.element), operand="ds_right")}
            found |= {name: replace(fold, element=element)}
    ds = _map(graph, "ds")
    expr = ex.substitute(ds.expr, {"delta": Symbol("delta_right", "float")})
    found["ds_right"] = replace(ds, others=("p", "delta_right"), expr=expr)
    for name in ("ds_right", f"{shared.element}_right"):
        if name in graph.nodes:
            raise name_taken(graph.provenance.name, name.removeprefix("ds_"), name)
    return found


def _map(graph: Graph, name: str) -> Map:
    node = graph.nodes[name]
    assert isinstance(node, Map)
    return node


def _sinks(graph: Graph, name: str, fold: Fold) -> Cut:
    """A sink's share per row is its weight times delta alone: beside dq, where delta's error is known."""
    moved = replace(_map(graph, fold.element), operand="delta_right")
    whole = replace(fold, tiles=None, level="split", order="sequential", carrier="buffer")
    return Cut({**_delta_error(graph), fold.element: moved, name: whole}, {"dq": (fold.element,)})


def _owned(graph: Graph, name: str, fold: Fold, tiles: tuple[str, ...]) -> Cut:
    """Programs that own tiles of places, and walk over all that is added there."""
    whole = replace(fold, level="tile", order="sequential", carrier="register")
    return Cut({name: whole}, {name: (name,)}, tiles, _kept(graph, fold))


def _diagonals(graph: Graph, name: str, fold: Fold) -> Cut:
    part = f"{name}_diagonals"
    kept = _kept(graph, fold)
    place = ex.apply("sub", ex.apply("add", ex.apply("sub", AT_I, AT_J), Symbol("seqlen_q")), Const(1))
    symbols = [Symbol(graph.axis(axis).symbol) for axis in kept]
    along = replace(
        fold,
        at=(*symbols, place),
        into="",
        axes=(*kept, "Sd"),
        level="tile",
        order="sequential",
        carrier="register",
    )
    at = tuple(normal(ex.substitute(_by_place(x), {"i": DIFFERENCE, "j": Const(0)})) for x in fold.at)
    total = _over_buffer(graph, fold, part, "Sd", at)
    total = replace(total, domain=replace(fold.domain, mask=ex.TRUE, size=DIAGONALS.size))
    return Cut({part: along, name: total}, {part: (part,), name: (name,)}, ("Sd",), kept, (DIAGONALS,))


def _over_buffer(graph: Graph, fold: Fold, part: str, axis: str, at: tuple[Expr, ...]) -> Fold:
    size = DIAGONALS.size if axis == "Sd" else graph.axis(axis).size
    return Fold(
        monoid="sum",
        element=part,
        axis=axis,
        domain=replace(fold.domain, mask=ex.TRUE, size=size),
        axes=fold.axes,
        at=at,
        into=fold.into,
        level="split",
        order="sequential",
        carrier="buffer",
    )


def _kept(graph: Graph, fold: Fold) -> tuple[str, ...]:
    """The axes of which each place of the tensor has one: they become programs; a packed token says its sequence."""
    used = _symbols(fold.at)
    of_sequence = "b" in used or any(a.origin for a in map(graph.axis, fold.axes))
    return (*(["B"] if of_sequence else []), *(["Hq"] if "h" in used else []))


def _symbols(indices: tuple[Expr, ...]) -> frozenset[str]:
    return frozenset(name for index in indices for name in ex.symbols(index))


def _layout(graph: Graph) -> str:
    return str(getattr(graph.nodes["q"], "layout", ""))


def merged_stores(
    stores: Mapping[str, tuple[str, ...]], more: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The stores of all kernels, with those that one more gradient adds."""
    return {kernel: (*stores.get(kernel, ()), *more.get(kernel, ())) for kernel in {**stores, **more}}
