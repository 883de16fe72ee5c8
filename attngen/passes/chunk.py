"""Chunk: cut the folds of a recurrence into chunks of tokens (SSD's block decomposition, arXiv:2405.21060, section 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Axis,
    Contract,
    Domain,
    Fold,
    Input,
    Load,
    Map,
    Merge,
    Node,
    Pad,
    Read,
    symbol,
)
from attngen.passes.chunk_delta import by_delta_rule
from attngen.passes.chunk_launches import launches
from attngen.passes.chunk_rows import NARROW, by_rows
from attngen.passes.columns import cover, narrow
from attngen.passes.decode import decode_nodes
from attngen.passes.schedules_recurrence import is_large

LOG2E: Final = math.log2(math.e)
WIDEST: Final = 1024
OF_CHUNKS: Final = ("B", "C", "H")
CHUNKS: Final = {"fold": "chunk_states", "dfold": "chunk_adjoints"}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Needs: the semantic graph of a recurrence. Leaves: a scheduled graph of up to five launches, as many backward, and one
    that decodes.

    A fold over L becomes one per chunk, a scan over the chunks by the monoid's merge, and what is read: of the state where
    the chunk begins (in reverse: ends), plus, since reading is linear and moves inside the fold, products of queries and
    the other tokens of the chunk. Decays are summed up from each chunk's start, in base two. What a decay per column and a
    delta rule change in that is in files of their own.
    """

    size: int
    name: str = "chunk"

    def apply(self, graph: Graph) -> Graph:
        """Return the scheduled graph."""
        cut = _Cut(graph, self.size)
        fold = cut.fold
        cut.tiles()
        cut.decays()
        for name, node in graph.all(Fold):
            cut.states(name, node) if node.monoid == "decay" else cut.sums(name, node)
        for name, node in graph.all(Read):
            cut.read(name, node)
        axes = (
            Axis(name="C", size=symbol("num_chunks"), symbol="c"),
            Axis(name="J", size=symbol("seqlen"), symbol="j", origin="start"),
        )
        made = replace(graph, axes=(*graph.axes, *axes)).with_nodes(cut.nodes, level="scheduled")
        made = made.without({"edge"} & set(made.nodes) if "edges" in made.nodes else set())
        made = made.with_nodes(launches(made, self.size) | decode_nodes(graph, cut.loaded))
        if fold.decay and "K" in cut.axes(fold.decay):
            return by_rows(made)
        return by_delta_rule(made, fold.erase) if fold.erase else made


@dataclass(slots=True)
class _Cut:
    """The scheduled nodes so far, by name."""

    graph: Graph
    chunk: int
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    loaded: dict[str, str] = field(default_factory=dict[str, str])
    total: str = ""
    late: str = ""

    @property
    def fold(self) -> Fold:
        """The forward's fold."""
        node = self.graph.nodes["fold"]
        assert isinstance(node, Fold)
        return node

    def axes(self, name: str) -> tuple[str, ...]:
        return getattr(self.graph.nodes[name], "axes", ())

    @property
    def widest(self) -> int:
        """Columns of a tile: narrow where a state is so large that no program multiplies by all of it at once."""
        rows, columns = (self.graph.axis(axis).size for axis in self.fold.axes[-2:])
        assert isinstance(rows, Const) and isinstance(columns, Const)  # noqa: PT018
        return NARROW if is_large(int(rows.value), int(columns.value)) else WIDEST

    def level(self, order: str, carrier: str) -> dict[str, Any]:
        return {"level": "chunk", "order": order, "carrier": carrier, "chunk": self.chunk}

    def tiles(self) -> None:
        """Tensors that programs bring in by tiles of tokens."""
        for name, node in self.graph.all(Input):
            if node.role == "tensor" and not node.optional:
                columns = self.graph.axis(node.axes[-1]).size
                assert isinstance(columns, Const)
                self.loaded[name] = f"{name}_tile"
                self.nodes[f"{name}_tile"] = Load(
                    operand=name,
                    axes=node.axes,
                    tile_axis="L",
                    columns=int(columns.value),
                    chunks=narrow(cover(int(columns.value)), self.widest),
                    address="strided",
                )
        made = {self.fold.element, self.fold.value, *(r.query for _, r in self.graph.all(Read))}
        for name in made:
            node = self.graph.nodes[name]
            if isinstance(node, Map | Pad) and node.operand in self.loaded:
                self.nodes[name] = replace(node, operand=self.loaded[node.operand])

    def decays(self) -> None:
        """Sums of decays from the start of each chunk, and what is subtracted from them for a token that is written."""
        if not self.fold.decay:
            return
        self.total = "total"
        self.nodes[self.total] = Fold(
            monoid="sum",
            element=self.fold.decay,
            axis="L",
            domain=self.fold.domain,
            axes=("B", "H", "L"),
            prefix="i+1",
            base="2",
            factor=Const(LOG2E),
            **self.level("sequential", "buffer"),
        )
        value = self.graph.nodes[self.fold.value]
        if isinstance(value, Map) and value.others and "softplus" in self._operators(value.others[0]):
            # what multiplies values and is never negative goes into the exponent, where it costs nothing
            log = ex.apply("log2", Symbol(value.others[0], "float"))
            taken = ex.apply("sub", Symbol("s", "float"), log)
            self.late = "late"
            self.nodes[self.late] = Map(
                operand=self.total, others=value.others, expr=taken, axes=("B", "H", "L")
            )

    def _operators(self, name: str) -> set[str]:
        """The operators of a chain of maps."""
        node = self.graph.nodes[name]
        if not isinstance(node, Map):
            return set()
        own = {e.op for e in ex.walk(node.expr) if isinstance(e, Apply)}
        return own | (self._operators(node.operand) if node.operand else set())

    def tile(self, name: str) -> str:
        """A tensor as programs have it: its tile, without the factor that is in an exponent."""
        if self.late and name == self.fold.value:
            value = self.nodes[name]
            assert isinstance(value, Map)
            name = value.operand
        return self.loaded.get(name, name)

    def sums(self, name: str, node: Fold) -> None:
        """Sums over tokens begin in each chunk; all others go through memory too, but for those over columns."""
        if node.prefix:
            self.through(name, node)
        else:
            carrier = "register" if node.axis == "V" else "buffer"
            self.nodes[name] = replace(node, **self.level("sequential", carrier))

    def through(self, name: str, node: Fold) -> None:
        """The gradient of decays: of what comes through a chunk to its end, of what its earlier tokens give to that, and of
        what its tokens from this one on read of earlier ones. No large numbers cancel, as they would from the end backward."""
        edge = self.graph.nodes["edge"]
        assert isinstance(edge, Contract)
        self.nodes["of_keys"], self.nodes["of_states"] = self.of_parts("of_keys")
        columns = node.axes[len(OF_CHUNKS) :]
        self.nodes["edges"] = Contract(
            left="dfold", right="fold", over=edge.over, axes=(*OF_CHUNKS, *columns)
        )
        buffer = self.level("sequential", "buffer")
        self.nodes[f"{name}_within"] = replace(node, init="", **buffer)
        self.nodes[f"{name}_across"] = replace(
            node, element="of_states", reverse=False, prefix="i", init="edges", **buffer
        )
        self.nodes[name] = Merge(monoid="sum", left=f"{name}_within", right=f"{name}_across", axes=node.axes)

    def of_parts(self, name: str) -> tuple[Node, Node]:
        """Products of keys with what they read, apart: of later tokens of the chunk, and of the state at its end."""
        node = self.graph.nodes[name]
        if isinstance(node, Contract):
            return replace(node, right=f"{node.right}_within"), replace(node, right=f"{node.right}_across")
        assert isinstance(node, Map)
        (read,) = node.others
        within, across = (
            replace(node, others=(part,), expr=ex.substitute(node.expr, {read: Symbol(part, "float")}))
            for part in (f"{read}_within", f"{read}_across")
        )
        return within, across

    def states(self, name: str, fold: Fold) -> None:
        """A fold as one per chunk, and the scan over these."""
        axes = (*OF_CHUNKS, *fold.axes[-2:])
        self.nodes[CHUNKS[name]] = replace(
            fold,
            element=self.tile(fold.element),
            value=self.tile(fold.value),
            decay=self.total,
            late="" if fold.reverse else self.late,
            along=self.tile(fold.along) if fold.along else "",
            init="",
            axes=axes,
            **self.level("parallel", "buffer"),
        )
        self.nodes[name] = Fold(
            monoid="decay",
            element=CHUNKS[name],
            decay=self.total,
            init=fold.init,
            reverse=fold.reverse,
            axis="C",
            domain=Domain(size=symbol("num_chunks")),
            axes=axes,
            **self.level("scan", "buffer"),
        )

    def read(self, name: str, node: Read) -> None:
        """What is read of a state of a token: of that of its chunk, and of the other tokens of the chunk."""
        fold = self.graph.nodes[node.state]
        assert isinstance(fold, Fold)
        by_rows = self.axes(node.query)[-1] == "K"
        partner, summed = (fold.element, fold.value) if by_rows else (fold.value, fold.element)
        grouped = {self.axes(node.query)[2], self.axes(partner)[2]} == {"G"}
        written = self.fold.value in (node.query, fold.value)
        prefix = "" if name == "read" else f"{name}_"
        self.nodes[f"{prefix}pairs"] = Contract(
            left=self.tile(node.query),
            right=self.tile(partner),
            over="K" if by_rows else self.axes(partner)[-1],
            axes=("B", "G" if grouped else "H", "L", "J"),
        )
        which = "ge" if fold.reverse else "lt" if node.before else "le"
        others = ex.apply(which, symbol("j"), symbol("t"))
        self.nodes[f"{prefix}within"] = Fold(
            monoid="sum",
            element=f"{prefix}pairs",
            value=self.tile(summed),
            decay=self.total,
            late=self.late if written else "",
            reverse=fold.reverse,
            axis="J",
            domain=Domain(size=fold.domain.size, mask=others),
            axes=node.axes,
            **self.level("sequential", "register"),
        )
        self.nodes[f"{prefix}across"] = replace(
            node,
            query=self.tile(node.query),
            decay=self.total,
            late=self.late if written and fold.reverse else "",
        )
        self.nodes[name] = Merge(
            monoid="sum", left=f"{prefix}across", right=f"{prefix}within", axes=node.axes
        )
