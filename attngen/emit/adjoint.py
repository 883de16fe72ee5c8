"""The backward's nodes, by name; what templates cannot print is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from attngen.emit.parts import ROWS, SCORES, Parts, forward_rules, launch_of
from attngen.emit.rules import Rule, broken, node_of, rule, strangers
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.delta import DELTA_ERROR, DELTA_RIGHT, P_DP
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Contract, Domain, Fold, Input, Launch, Load, Map, Merge, Pad, Store

S = Symbol("s", "float")
LOG2E = Const(math.log2(math.e))
ONE = Const(1.0)
_SINK = Apply("mul", (ex.Element("sinks", (Symbol("h"),), "float"), LOG2E))
SUNK = ex.apply("neg", ex.apply("mul", Apply("weight_exp2", (_SINK, Symbol("lse2", "float"))), S))
DROPPED = ex.apply("mul", S, Symbol("dropout", "float"))
DS, DS_RIGHT = (
    ex.apply("mul", Symbol("p", "float"), ex.apply("sub", S, Symbol(delta, "float")))
    for delta in ("delta", "delta_right")
)
# the number of a diagonal of scores: they begin with that of the first row and the last key
DIAGONAL = ex.apply(
    "sub", ex.apply("add", ex.apply("sub", Symbol("i"), Symbol("j")), Symbol("seqlen_q")), Const(1)
)


@dataclass(frozen=True, slots=True)
class Adjoint:
    """The nodes of the backward: the weight's raw score, the slope of the score, the folds, sums per row."""

    weight: Expr  # what exp2 is taken of, without lse2; of the raw score s
    slope: Expr | None
    dp: Contract
    dq: Fold
    dk: Fold
    dv: Fold
    per_head: bool  # dk and dv are summed per query head, since formulas vary with it
    sums: tuple[tuple[str, Expr], ...]  # per row: name, and the factor of ds that is added
    added: tuple[tuple[str, Expr, ex.Element], ...]  # by atomics: name, factor, place
    sinks: str


def find_adjoint(graph: Graph, parts: Parts) -> Adjoint:
    """Take the nodes of the backward kernels by name; refuse any that the templates cannot print."""
    rules = _Rules(graph, parts)
    wanted = {**forward_rules(graph, parts), **dict(rules.all())}
    if wrong := [*broken(graph, wanted), *strangers(graph, wanted)]:
        raise _refused(graph, "; ".join(wrong))
    p, dq = node_of(graph, "p", Map), rules.dq
    slope = None if dq.element == "ds" else factor_of(graph, dq)
    match p.expr:
        case Apply("weight_exp2", (weight, Symbol("lse2"))):
            pass
        case _:
            raise _refused(graph, f"p is exp2 of a score less lse2, not {ex.text(p.expr)}")
    dp = node_of(graph, "dp", Contract)
    about = [(name, name.removesuffix("_rows") + "_about") for name in rules.row_sums]
    sums = tuple((name, factor_of(graph, node_of(graph, fold, Fold))) for name, fold in about)
    added = [(name, node_of(graph, name, Fold)) for name in rules.added]
    places = tuple((n, factor_of(graph, fold), ex.Element(n, fold.at, "float")) for n, fold in added)
    sinks = "ds_sinks" if "ds_sinks" in graph.nodes else ""
    return Adjoint(weight, slope, dp, dq, rules.dk, rules.dv, bool(rules.heads), sums, places, sinks)


class _Rules:
    """What each node of a backward has to be. Where a rule depends on other nodes, those have rules of their own."""

    def __init__(self, graph: Graph, parts: Parts) -> None:
        self.graph = graph
        self.parts = parts
        self.heads = "_heads" if "dk_heads" in graph.nodes else ""
        self.dropped = "_dropout" if "p_dropout" in graph.nodes else ""
        key = f"dk{self.heads}"
        self.dq = node_of(graph, "dq", Fold)
        self.dk = node_of(graph, "dk_qk" if parts.v_in_k else key, Fold)
        self.dv = node_of(graph, "dv" if parts.v_in_k else f"dv{self.heads}", Fold)
        self.ds = "d_scaled" if "d_scaled" in graph.nodes else "ds"
        self.captured = {n: i for n, i in graph.all(Input) if i.role == "captured" and i.grad}
        self.totals = {n: node_of(graph, f"d{n}", Fold) for n in self.captured}
        self.row_sums = self._stored("dq", [f"d{n}_rows" for n in self.captured])
        self.right = "_right" if "delta_right" in graph.nodes else ""  # kernels after dq's know delta better
        self.sinks = ["ds_sinks"] if "sinks" in self.captured else []
        self.added = self._stored("dq", [f"d{n}" for n, f in self.totals.items() if f.carrier == "atomic"])

    def _stored(self, result: str, names: list[str]) -> list[str]:
        """Which of some nodes the graph has, in the order in which a kernel stores them."""
        order = launch_of(self.graph, result)[1].stores
        found = [name for name in names if name in self.graph.nodes]
        return sorted(found, key=lambda n: order.index(f"store_{n}") if f"store_{n}" in order else len(order))

    def all(self) -> Iterator[tuple[str, Rule]]:
        """Yield the rules of all nodes of the backward."""
        yield from self._statistics()
        yield from self._scores()
        yield from self._tensors()
        if self.right:
            yield from self._delta_error()
        for tensor in self.captured:
            yield from self._sink() if tensor == "sinks" else self._captured(tensor)

    def _statistics(self) -> Iterator[tuple[str, Rule]]:
        """What the kernel over rows computes, and what it is given."""
        q = node_of(self.graph, "q", Input)
        shared: dict[str, Any] = {"dtype": "io", "dtypes": q.dtypes, "layout": q.layout}
        yield "dout", rule(Input, axes=(*ROWS, "Dv"), role="gradient", **shared)
        yield "dlse", rule(Input, axes=ROWS, role="gradient", dtype="float32")
        yield "out_dout", rule(Contract, left="out", right="dout", over="Dv", axes=ROWS)
        less = ex.apply("sub", S, Symbol("dlse", "float"))
        yield "delta", rule(Map, operand="out_dout", others=("dlse",), expr=less, axes=ROWS)
        yield "lse2", rule(Map, operand="lse", expr=ex.apply("mul", S, LOG2E), axes=ROWS)
        yield from self._kernel("rows", ("lse2", "delta"), "Sq", ("Hq", "B"))

    def _scores(self) -> Iterator[tuple[str, Rule]]:
        """The tiles of scores that dq, dk and dv share: weights, their gradients, slopes."""
        p = node_of(self.graph, "p", Map)
        yield (
            "p",
            rule(Map, "expr", operand="qk", others=("lse2",), captured=ex.tensors(p.expr), axes=SCORES),
        )
        yield "dp", rule(Contract, "precision", left="dout_tile", right="v_tile", over="Dv", axes=SCORES)
        for name in ("p", "dp") if self.dropped else ():
            yield f"{name}_dropout", rule(Map, operand=name, others=("dropout",), expr=DROPPED, axes=SCORES)
        yield "ds", self._ds("", DS)
        if self.ds != "ds":
            yield self.ds, self._slope(self.ds)
        if self.right:
            yield f"ds{self.right}", self._ds(self.right, DS_RIGHT)
            if self.ds != "ds":
                slope: dict[str, Any] = {**self._slope(self.ds, f"ds{self.right}").values}
                slope["expr"] = node_of(self.graph, self.ds, Map).expr
                yield f"{self.ds}{self.right}", rule(Map, **slope)
        of_v: dict[str, Any] = {"columns": self.parts.v.columns, "chunks": self.parts.v.chunks}
        yield (
            "dout_tile",
            rule(Load, operand="dout", axes=(*ROWS, "Dv"), tile_axis="Sq", address="strided", **of_v),
        )

    def _ds(self, right: str, expr: Expr) -> Rule:
        return rule(Map, operand=f"dp{self.dropped}", others=("p", f"delta{right}"), expr=expr, axes=SCORES)

    def _slope(self, name: str, operand: str = "ds") -> Rule:
        """ds times what a formula of the raw score says."""
        node = node_of(self.graph, name, Map)
        read = {"others": ("qk",) if "qk" in ex.symbols(node.expr) else (), "captured": ex.tensors(node.expr)}
        return rule(Map, "expr", operand=operand, axes=SCORES, **read)

    def _tensors(self) -> Iterator[tuple[str, Rule]]:
        """dq, dk and dv, the latter two per query head or per kv head."""
        owned = "Hq" if self.heads else "Hkv"
        k_axes, v_axes = (("B", owned, "Sk", columns) for columns in ("Dqk", "Dv"))
        free = "tiles precision factor"
        yield "dq", self._sum(free, element=self.ds, value="k_tile", axes=(*ROWS, "Dqk"))
        by_keys = {"axis": "Sq", "tiles": self.dk.tiles, "domain": self._domain("Sq")}
        dk = self._sum(
            "tiles precision",
            element=f"{self.ds}{self.right}",
            value="q_tile",
            axes=k_axes,
            factor=self.dq.factor,
            **by_keys,
        )
        dv = self._sum("precision", element=f"p{self.dropped}", value="dout_tile", axes=v_axes, **by_keys)
        names = [f"dk{self.heads}"] if self.parts.v_in_k else [f"dk{self.heads}", f"dv{self.heads}"]
        if self.parts.v_in_k:
            yield from (("dk_qk", dk), ("dv", dv), ("dk_v", rule(Pad, operand="dv", axes=k_axes)))
            yield names[0], rule(Merge, monoid="sum", left="dk_v", right="dk_qk", axes=k_axes)
        else:
            yield from zip(names, (dk, dv), strict=True)
        for name, axes in zip(names, (k_axes, v_axes), strict=False) if self.heads else ():
            yield (
                name.removesuffix("_heads"),
                self._after("Hq", element=name, axes=("B", "Hkv", *axes[2:])),
            )
        beside = self._stored("dq", [*self.row_sums, *self.sinks, *self.added])
        beside += ["delta_right"] if self.right else []
        yield from self._kernel("dq", ("dq", *beside), "Sq", ("Hq", "B"))
        yield from self._kernel("dkdv", tuple(names), "Sk", (owned, "B"), "configs widest")

    def _domain(self, axis: str) -> Domain:
        """Where scores exist, along one of their axes."""
        whole = self.parts.fold.domain
        return replace(whole, size=self.graph.axis(axis).size, table=False)

    def _sum(self, followed: str, **values: Any) -> Rule:
        """A fold over tiles of scores, in registers, beside those of the forward."""
        cut = {"level": "tile", "order": "full-then-partial", "carrier": "register"}
        along = {"axis": "Sk", "domain": self._domain("Sk"), "captured": self.parts.fold.captured}
        return rule(Fold, followed, monoid="sum", **{**cut, **along, **values})

    def _after(self, axis: str, **values: Any) -> Rule:
        """A fold, along a whole axis, of what kernels have stored."""
        cut = {"level": "split", "order": "sequential", "carrier": "buffer"}
        domain = Domain(size=self.graph.axis(axis).size)
        return rule(Fold, monoid="sum", axis=axis, domain=domain, **cut, **values)

    def _sink(self) -> Iterator[tuple[str, Rule]]:
        """A sink's weight times the right delta, per row, and its sum."""
        yield (
            "ds_sinks",
            rule(
                Map,
                operand="delta_right",
                others=("lse2",),
                captured=("sinks",),
                expr=SUNK,
                axes=ROWS,
            ),
        )
        at = (Symbol("h", "int"),)
        yield "dsinks", self._after("Sq", element="ds_sinks", axes=("Hq",), at=at, into="sinks")

    def _captured(self, tensor: str) -> Iterator[tuple[str, Rule]]:
        """The gradient of a captured tensor, whichever kernel adds it up."""
        name, axes, total = f"d{tensor}", self.captured[tensor].axes, self.totals[tensor]
        beside = f"{name}_rows" in self.row_sums or name in self.added
        ds = "ds" if beside else f"ds{self.right}"
        element = f"ds_{tensor}" if f"ds_{tensor}" in self.graph.nodes else ds
        if element != ds:
            yield element, self._slope(element, ds)
        read = {t for index in total.at for t in ex.tensors(index)} | set(self.parts.fold.captured)
        place: dict[str, Any] = {"axes": axes, "into": tensor, "captured": tuple(sorted(read))}
        if name in self.added:
            place |= {"at": self._at(tensor, lambda _: True), "carrier": "atomic"}
            yield name, self._sum("", element=element, tiles=self.dq.tiles, **place)
        elif f"{name}_rows" in self.row_sums:
            yield from self._row_sum(name, element)
            at = self._at(tensor, lambda x: isinstance(x, Symbol))
            yield name, self._after("Sq", element=f"{name}_rows", axes=axes, at=at, into=tensor)
        elif f"{name}_diagonals" in self.graph.nodes:
            yield from self._diagonals(name, element)
        else:
            along_rows = any(ex.symbols(index) & {"i", "row"} for index in total.at)
            at = self._at(tensor, lambda x: isinstance(x, Symbol | Const))
            yield name, self._sum("tiles", element=element, at=at, order="sequential", **place)
            tiles = ("Sq", "Sk") if along_rows else ("Sk", "")
            yield from self._kernel(name, (name,), tiles[0], self._kept(tensor), across=tiles[1])

    def _per_row(self, element: str) -> Rule:
        return self._sum("", element=element, axes=ROWS, tiles=self.dq.tiles)

    def _delta_error(self) -> Iterator[tuple[str, Rule]]:
        """What rounding did to delta: the sum of p dp over a row is what it should be, less dlse."""
        yield "p_dp", rule(Map, operand=f"dp{self.dropped}", others=("p",), expr=P_DP, axes=SCORES)
        yield "p_dp_rows", self._per_row("p_dp")
        read = ("dlse", "p_dp_rows")
        yield "delta_error", rule(Map, operand="delta", others=read, expr=DELTA_ERROR, axes=ROWS)
        yield "delta_right", rule(Map, operand="delta", others=("delta_error",), expr=DELTA_RIGHT, axes=ROWS)

    def _row_sum(self, name: str, element: str) -> Iterator[tuple[str, Rule]]:
        """A sum of ds per row without the error of delta, which has the weights of p."""
        weight, about, weights = "p", f"{name}_about", f"{name}_weights"
        if element != "ds":
            weight = f"p_{name.removeprefix('d')}"
            slope = self._slope(element)
            same: dict[str, Any] = {"operand": "p", "expr": node_of(self.graph, element, Map).expr}
            yield weight, rule(Map, **{**slope.values, **same})
        yield about, self._per_row(element)
        yield weights, self._per_row(weight)
        moved = ex.apply("mul", Symbol("delta_error", "float"), Symbol(weights, "float"))
        more: dict[str, Any] = {"others": ("delta_error", weights), "expr": ex.apply("add", S, moved)}
        yield f"{name}_rows", rule(Map, operand=about, axes=ROWS, **more)

    def _diagonals(self, name: str, element: str) -> Iterator[tuple[str, Rule]]:
        tensor, part = name.removeprefix("d"), f"{name}_diagonals"
        axes, kept = self.captured[tensor].axes, self._kept(tensor)
        at = (*(Symbol(self.graph.axis(axis).symbol) for axis in kept), DIAGONAL)
        yield (
            part,
            self._sum("tiles", element=element, axes=(*kept, "Sd"), at=at, order="sequential"),
        )
        places = self._at(tensor, lambda x: isinstance(x, Symbol) or not ex.symbols(x) & {"b", "h"})
        yield name, self._after("Sd", element=part, axes=axes, at=places, into=tensor)
        yield from self._kernel(part, (part,), "Sd", kept)
        yield from self._kernel(name, (name,), axes[-1], axes[:-1])

    def _at(self, tensor: str, is_printed: Callable[[Expr], bool]) -> tuple[Expr, ...]:
        """Where a gradient is added: an index per axis, each of a form that its kernel can print."""
        at = self.totals[tensor].at
        if len(at) != len(self.captured[tensor].axes) or not all(map(is_printed, at)):
            raise _refused(self.graph, f"d{tensor}.at is an index per axis that its kernel can print")
        return at

    def _kept(self, tensor: str) -> tuple[str, ...]:
        """Of which axes programs own one place each: those of what names places; a packed token says its sequence."""
        used = {symbol for index in self.totals[tensor].at for symbol in ex.symbols(index)}
        axes = self.captured[tensor].axes
        of_sequence = "b" in used or any(self.graph.axis(axis).origin for axis in axes)
        return (*(["B"] if of_sequence else []), *(["Hq"] if "h" in used else []))

    def _kernel(
        self,
        name: str,
        stored: tuple[str, ...],
        tile_axis: str,
        programs: tuple[str, ...],
        followed: str = "configs",
        across: str = "",
    ) -> Iterator[tuple[str, Rule]]:
        """A launch and its stores: gradients of q, k and v in their dtype, all else in fp32."""
        for n in stored:
            axes = getattr(self.graph.nodes.get(n), "axes", ())
            dtype = "io" if n in ("dq", "dk", "dv") else "float32"
            place = "delta" if n == "delta_right" else n
            yield f"store_{n}", rule(Store, operand=n, name=place, dtype=dtype, axes=axes)
        stores = tuple(f"store_{n}" for n in stored)
        more = {"tile_axis": tile_axis, "across": across, "program_axes": programs}
        yield f"kernel_{name}", rule(Launch, followed, stores=stores, **more)


def _refused(graph: Graph, what: str) -> InternalError:
    return InternalError(f"{graph.provenance.name}: the backward templates need: {what}")


def factor_of(graph: Graph, fold: Fold) -> Expr:
    """What ds is multiplied by before a fold adds it, of the raw score s."""
    if fold.element in ("ds", "ds_right"):
        return ONE
    match node_of(graph, fold.element, Map).expr:
        case Apply("mul", (Symbol("s"), slope)) if "s" not in ex.symbols(slope):
            return ex.substitute(slope, {"qk": S})
        case expr:
            raise _refused(graph, f"{fold.element} is ds times a slope, not {ex.text(expr)}")
