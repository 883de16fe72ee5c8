"""The backward's nodes, found by walking the scheduled graph; what templates cannot print is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from attngen.emit.parts import launch_of
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.linear import normal
from attngen.ir.nodes import Contract, Fold, Map, Merge, Pad, Store

S = Symbol("s", "float")
LOG2E = Const(math.log2(math.e))
ONE = Const(1.0)
_SINK = Apply("mul", (ex.Element("sinks", (Symbol("h"),), "float"), LOG2E))
SUNK = ex.apply("neg", ex.apply("mul", Apply("weight_exp2", (_SINK, Symbol("lse2", "float"))), S))
DROPPED = ex.apply("mul", S, Symbol("dropout", "float"))
DELTA_ERROR = ex.apply("sub", ex.apply("add", S, Symbol("dlse", "float")), Symbol("p_dp_rows", "float"))
DS = ex.apply("mul", Symbol("p", "float"), ex.apply("sub", S, Symbol("delta", "float")))
# the number of a diagonal of scores: they begin with that of the first row and the last key
DIAGONAL = normal(
    ex.apply("sub", ex.apply("add", ex.apply("sub", Symbol("i"), Symbol("j")), Symbol("seqlen_q")), Const(1))
)


@dataclass(frozen=True, slots=True)
class Adjoint:
    """The nodes of the backward: the weight's raw score, the slope of the score, the folds, sums per row."""

    weight: Expr  # what exp2 is taken of, without lse2; of the raw score s
    slope: Expr | None
    dq: Fold
    dk: Fold
    dv: Fold
    per_head: bool  # dk and dv are summed per query head, since formulas vary with it
    sums: tuple[tuple[str, Expr], ...]  # per row: name, and the factor of ds that is added
    added: tuple[tuple[str, Expr, ex.Element], ...]  # by atomics: name, factor, place
    sinks: str


def find_adjoint(graph: Graph) -> Adjoint:
    """Walk from the stores of the backward kernels to what they add up; refuse what the templates cannot print."""
    p, ds = graph.nodes["p"], graph.nodes["ds"]
    heads = "_heads" if "dk_heads" in graph.nodes else ""
    dq, (dk, dv) = _fold(graph, "dq"), _key_folds(graph, heads)
    assert isinstance(p, Map)
    assert isinstance(ds, Map)
    slope = None
    if dq.element != "ds":
        scaled = graph.nodes[dq.element]
        assert isinstance(scaled, Map)
        slope = ex.substitute(_slope(scaled.expr), {"qk": S})
    weight, lse = p.expr.args if isinstance(p.expr, Apply) and p.expr.op == "weight_exp2" else (S, S)
    dp = graph.nodes["dp"]
    dropped = "_dropout" if "p_dropout" in graph.nodes else ""
    rules = {
        "p is exp2 of a score less lse2": lse == Symbol("lse2", "float") and p.operand == "qk",
        "ds is p times dp less delta": ds.expr == DS and ds.operand == f"dp{dropped}",
        "dp is dout times v": isinstance(dp, Contract) and (dp.left, dp.right) == ("dout_tile", "v_tile"),
        "dq and dk add the same ds": dq.element == dk.element and dv.element == f"p{dropped}",
        "dropout multiplies p and dp": not dropped or all(_is_dropped(graph, name) for name in ("p", "dp")),
        "dq adds k, dk q and dv dout": (dq.value, dk.value, dv.value) == ("k_tile", "q_tile", "dout_tile"),
        "dq and dk have one factor": dq.factor == dk.factor and dv.factor is None,
        "dk and dv are of the heads that programs own": dk.axes[1]
        == dv.axes[1]
        == ("Hq" if heads else "Hkv"),
        "dk and dv visit the same rows": dk.tiles == dv.tiles,
        **_delta_error_rules(graph, dq),
        "gradients of captured tensors add ds times a slope": all(
            _adds_ds(graph, f) for f in captured_folds(graph)
        ),
        "diagonals are of one i - j each": all(_is_of_diagonals(graph, f) for f in captured_folds(graph)),
        **_row_rules(graph),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise InternalError(f"{graph.provenance.name}: the backward templates need: {'; '.join(broken)}")
    return Adjoint(weight, slope, dq, dk, dv, bool(heads), _sums(graph), _added(graph), _sinks(graph))


def _key_folds(graph: Graph, heads: str) -> tuple[Fold, Fold]:
    """The folds of ds and of p over rows. Where V lies inside K, dk merges both."""
    match graph.nodes[f"dk{heads}"]:
        case Merge(monoid="sum", left=left, right=right) if isinstance(pad := graph.nodes[left], Pad):
            return _fold(graph, right), _fold(graph, pad.operand)
        case _:
            return _fold(graph, f"dk{heads}"), _fold(graph, f"dv{heads}")


def _is_dropped(graph: Graph, name: str) -> bool:
    node = graph.nodes[f"{name}_dropout"]
    return isinstance(node, Map) and (node.operand, node.others, node.expr) == (name, ("dropout",), DROPPED)


def _row_rules(graph: Graph) -> dict[str, bool]:
    """What the kernel over rows computes, whatever the graph says."""
    delta, lse2, total = (graph.nodes[n] for n in ("delta", "lse2", "out_dout"))
    assert isinstance(delta, Map)
    assert isinstance(lse2, Map)
    assert isinstance(total, Contract)
    sunk = graph.nodes[_sinks(graph)] if _sinks(graph) else None
    return {
        "delta is the sum of out times dout, less dlse": (total.left, total.right) == ("out", "dout")
        and (delta.operand, delta.expr) == ("out_dout", ex.apply("sub", S, Symbol("dlse", "float"))),
        "lse2 is lse in base two": (lse2.operand, lse2.expr) == ("lse", ex.apply("mul", S, LOG2E)),
        "a sink's weight times delta is taken away": sunk is None
        or (isinstance(sunk, Map) and (sunk.operand, sunk.expr) == ("delta", SUNK)),
    }


def _fold(graph: Graph, name: str) -> Fold:
    fold = graph.nodes[name]
    assert isinstance(fold, Fold)
    return fold


def captured_folds(graph: Graph) -> list[Fold]:
    """The folds of scores' gradients into captured ones, whichever kernel adds them up."""
    folds = [fold for _, fold in graph.all(Fold) if fold.level == "tile" and fold.monoid == "sum"]
    return [fold for fold in folds if not fold.value and not fold.element.startswith("p")]


def _adds_ds(graph: Graph, fold: Fold) -> bool:
    element = graph.nodes[fold.element]
    return fold.factor is None and (
        fold.element == "ds" or (isinstance(element, Map) and element.operand == "ds")
    )


def _is_of_diagonals(graph: Graph, fold: Fold) -> bool:
    """Whether a fold along diagonals, if it is one, stores at b, h and the number of its diagonal."""
    if fold.axes[-1:] != ("Sd",):
        return True
    symbols = tuple(Symbol(graph.axis(axis).symbol) for axis in fold.axes[:-1])
    return fold.at[:-1] == symbols and normal(fold.at[-1]) == DIAGONAL


def _slope(expr: Expr) -> Expr:
    match expr:
        case Apply("mul", (Symbol("s"), slope)):
            return slope
        case _:
            raise InternalError(f"a gradient of scores is ds times a slope, not {ex.text(expr)}")


def stored_by(graph: Graph, result: str) -> list[str]:
    _, launch = launch_of(graph, result)
    return [s.operand for n in launch.stores if isinstance(s := graph.nodes[n], Store)]


def _row_sums(graph: Graph) -> list[tuple[str, Map]]:
    """What the kernel of dq makes of sums per row beside it."""
    found = [(name, graph.nodes[name]) for name in stored_by(graph, "dq")[1:]]
    return [(name, node) for name, node in found if isinstance(node, Map)]


def _is_row_sum(graph: Graph, dq: Fold, name: str, node: Map) -> bool:
    """Whether a sum of ds per row is one without the error of delta, over the keys that dq visits."""
    own = name.removesuffix("_rows")
    about, weights = graph.nodes[f"{own}_about"], graph.nodes[f"{own}_weights"]
    moved = ex.apply("mul", Symbol("delta_error", "float"), Symbol(f"{own}_weights", "float"))
    if not isinstance(about, Fold) or node != Map(
        operand=f"{own}_about",
        others=("delta_error", f"{own}_weights"),
        expr=ex.apply("add", S, moved),
        axes=about.axes,
    ):
        return False
    slope = graph.nodes[about.element]
    named = "p" if about.element == "ds" else f"p_{own[1:]}"
    same_slope = about.element == "ds" or graph.nodes[named] == replace(slope, operand="p")
    return about.tiles == dq.tiles and same_slope and weights == replace(about, element=named)


def _delta_error_rules(graph: Graph, dq: Fold) -> dict[str, bool]:
    if not _row_sums(graph):
        return {}
    ds, product, total = graph.nodes["ds"], graph.nodes["p_dp"], graph.nodes["p_dp_rows"]
    assert isinstance(ds, Map)
    return {
        "sums per row are of ds with the right delta": all(
            _is_row_sum(graph, dq, *row) for row in _row_sums(graph)
        ),
        "the error of delta is delta and dlse less the sum of p dp": graph.nodes["delta_error"]
        == Map(operand="delta", others=("dlse", "p_dp_rows"), expr=DELTA_ERROR, axes=ds.axes[:-1])
        and isinstance(total, Fold)
        and (total.element, total.tiles, total.factor) == ("p_dp", dq.tiles, None)
        and product
        == Map(
            operand=ds.operand, others=("p",), expr=ex.apply("mul", S, Symbol("p", "float")), axes=ds.axes
        ),
    }


def factor_of(graph: Graph, fold: Fold) -> Expr:
    """What ds is multiplied by before a fold adds it."""
    element = graph.nodes[fold.element]
    assert isinstance(element, Map)
    return Const(1.0) if fold.element == "ds" else ex.substitute(_slope(element.expr), {"qk": S})


def _sums(graph: Graph) -> tuple[tuple[str, Expr], ...]:
    return tuple((name, factor_of(graph, _fold(graph, node.operand))) for name, node in _row_sums(graph))


def _added(graph: Graph) -> tuple[tuple[str, Expr, ex.Element], ...]:
    folds = [(name, graph.nodes[name]) for name in stored_by(graph, "dq")[1:]]
    return tuple(
        (name, factor_of(graph, fold), ex.Element(name, fold.at, "float"))
        for name, fold in folds
        if isinstance(fold, Fold)
    )


def _sinks(graph: Graph) -> str:
    """The node of the sinks' gradient per row; '' where there are none."""
    more = stored_by(graph, "lse2")[2:]
    return more[0] if more else ""
