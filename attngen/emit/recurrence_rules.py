"""What each node of a recurrence's chunks has to be: what the templates of prefill would not print is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attngen.emit.rules import Rule, node_of, rule
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Contract,
    Domain,
    Finish,
    Fold,
    Input,
    Launch,
    Load,
    Map,
    Merge,
    Pad,
    Read,
    Solve,
    Store,
    symbol,
)

Found = Iterator[tuple[str, Rule]]
S = Symbol("s", "float")
TOKENS = ("B", "L", "H")
OF_CHUNKS = ("B", "C", "H")
TOKEN_DOMAIN = Domain(size=symbol("seqlen"))


@dataclass(frozen=True, slots=True)
class Shape:
    """Which nodes the chunks of a recurrence are made of, by name; '' where there is none."""

    graph: Graph
    mamba: bool
    delta: bool
    rows: bool  # a decay per row of a state
    tensors: tuple[str, str, str]  # the arguments that queries, keys and values come from
    queries: str
    keys: str
    values: str  # what is written to an empty state
    read_values: str  # and what queries read of it
    wide: str  # the axis of a state's columns
    heads: str  # of queries and keys: groups or heads
    decay: str
    late: str
    step: str
    init: str
    chunk: int
    precision: str

    @property
    def total(self) -> str:
        """The sums of decays of a chunk."""
        return "total" if self.decay else ""

    @property
    def of_tokens(self) -> tuple[str, ...]:
        """The axes of sums of decays."""
        return ("B", "H", "L", "K") if self.rows else ("B", "H", "L")

    @property
    def state(self) -> tuple[str, ...]:
        """The axes of a state of chunks."""
        return (*OF_CHUNKS, "K", self.wide)

    def cut(self, order: str, carrier: str) -> dict[str, Any]:
        """How a fold of chunks is cut."""
        return {"level": "chunk", "order": order, "carrier": carrier, "chunk": self.chunk}

    @property
    def raw_keys(self) -> str:
        """Keys as products of whole rows read them."""
        return self.raw(self.keys)

    def raw(self, name: str) -> str:
        """What a tile is brought in of; other nodes are themselves."""
        node = self.graph.nodes.get(name)
        return node.operand if isinstance(node, Load) else name

    def maps(self, name: str, others: Sequence[str] = (), **more: Any) -> Found:
        """A map whose formula is printed."""
        yield name, rule(Map, "expr", **{"others": tuple(others), "axes": TOKENS, **more})


def shape_of(graph: Graph) -> Shape:
    """Return the names that a graph's nodes should have."""
    nodes = graph.nodes
    mamba, delta = "dt" in nodes, "beta" in nodes
    tensors = ("C", "B", "x") if mamba else ("q", "k", "v")
    q, k, v = (f"{name}_tile" for name in tensors)
    late = "late" if "late" in nodes else ""
    values = "value" if "value" in nodes and not late else v
    decay = "decay" if "decay" in nodes else "g" if "g" in nodes else ""
    return Shape(
        graph=graph,
        mamba=mamba,
        delta=delta,
        rows="K" in getattr(nodes.get(decay), "axes", ()),
        tensors=tensors,
        queries="queries" if "queries" in nodes else q,
        keys="keys" if "keys" in nodes else k,
        values="writes" if delta else values,
        read_values="written_tile" if delta else values,
        wide="W" if isinstance(nodes.get("value"), Pad) else "V",
        heads="G" if mamba else "H",
        decay=decay,
        late=late,
        step="step" if mamba else "",
        init="initial_states" if mamba else "initial_state",
        chunk=node_of(graph, "chunk_states", Fold).chunk,
        precision=node_of(graph, "pairs", Contract).precision,
    )


def forward_rules(s: Shape) -> Found:
    """The rules of a forward."""
    yield from _tensors(s)
    yield from _tokens(s)
    if s.decay:
        yield from _sums(s)
    if s.delta:
        yield from _solved(s)
    yield from _states(s)
    yield from reads(s, "read", s.queries, s.keys, s.read_values, "fold")
    yield from _epilogue(s)
    for name, stored, tile_axis, programs in _kernels(s):
        yield from kernel(s.graph, name, stored, tile_axis, programs)


# ---- what goes in


def _tensors(s: Shape) -> Found:
    """Tiles of arguments, and what becomes of them. Queries and keys are cut alike, and all values are."""
    q, k, v = s.tensors
    alike = {q: k, k: q, v: "written" if s.delta else v}
    for name, axes in ((q, (s.heads, "K")), (k, (s.heads, "K")), (v, ("H", "V"))):
        yield f"{name}_tile", _tile(s, name, alike[name], ("B", "L", *axes))
    if s.delta:
        yield "written_tile", _tile(s, "written", v, (*TOKENS, "V"))
    for name, tensor in (("queries", q), ("keys", k)):
        if getattr(s, name) == name:
            yield from s.maps(name, operand=f"{tensor}_tile", axes=(*TOKENS, "K"))
    if s.wide == "W":
        yield "value", rule(Pad, operand="v_tile", fill=1.0, axes=(*TOKENS, "W"))
    if s.mamba:
        times = ex.apply("mul", S, Symbol("step", "float"))
        yield "value", rule(Map, operand="x_tile", others=("step",), expr=times, axes=(*TOKENS, "V"))


def _tile(s: Shape, name: str, like: str, axes: tuple[str, ...]) -> Rule:
    """A tile, cut into the chunks of another one."""
    size = s.graph.axis(axes[-1]).size
    columns = int(size.value) if isinstance(size, Const) else 0
    chunks = node_of(s.graph, f"{like}_tile", Load).chunks
    followed = "chunks" if like == name else ""
    given: dict[str, Any] = {"columns": columns, "axes": axes, "tile_axis": "L", "address": "strided"}
    return rule(Load, followed, operand=name, chunks=chunks, **given)


def _tokens(s: Shape) -> Found:
    """From what a caller gives per token to decays."""
    if s.mamba:
        yield from s.maps("biased", ["dt_bias"], operand="dt", given="dt_bias")
        if "positive" in s.graph.nodes:
            yield from s.maps("positive", operand="biased")
        yield from s.maps("step", operand=raw_step(s))
        yield from s.maps("decay", ["A"], operand="step")
    elif s.decay == "decay":
        yield from s.maps("decay")


def raw_step(s: Shape) -> str:
    """What Mamba-2 clamps."""
    return "positive" if "positive" in s.graph.nodes else "biased"


def _sums(s: Shape) -> Found:
    whole = {"axis": "L", "domain": TOKEN_DOMAIN, **s.cut("sequential", "buffer")}
    axes = s.of_tokens
    yield (
        "total",
        rule(Fold, "factor", monoid="sum", element=s.decay, prefix="i+1", base="2", axes=axes, **whole),
    )
    if s.late:
        less = ex.apply("sub", S, ex.apply("log2", Symbol("step", "float")))
        yield "late", rule(Map, operand="total", others=("step",), expr=less, axes=axes)


def _solved(s: Shape) -> Found:
    """What the tokens of a chunk write and erase."""
    precision: dict[str, Any] = {"precision": s.precision}
    yield (
        "alike",
        rule(Contract, left=s.keys, right=s.keys, over="K", axes=("B", "H", "L", "J"), **precision),
    )
    faded = "faded" if s.decay else "beta"
    if s.decay:
        yield from s.maps("faded", ["total"], operand="beta")
    system: dict[str, Any] = {
        "matrix": "alike", "scale": "beta", "decay": s.total, "chunk": s.chunk, "block": 16
    }  # fmt: skip
    yield "writes", rule(Solve, rhs="v_tile", weight="beta", axes=(*TOKENS, "V"), **system)
    yield "erases", rule(Solve, rhs=s.keys, weight=faded, axes=(*TOKENS, "K"), **system)
    yield "taken", rule(Read, query="erases", state="fold", axes=(*TOKENS, "V"))
    left = ex.apply("sub", S, Symbol("taken", "float"))
    yield "written", rule(Map, operand="writes", others=("taken",), expr=left, axes=(*TOKENS, "V"))


# ---- states, and what is read of them


def _states(s: Shape) -> Found:
    local = s.cut("sequential", "register") if s.delta else s.cut("parallel", "buffer")
    erase = "erases" if s.delta else ""
    yield "chunk_states", states_of_chunks(s, s.keys, s.values, late=s.late, erase=erase, **local)
    yield "fold", scan(s, "chunk_states", s.init)
    yield "states", rule(Finish, monoid="decay", operand="fold", result="states", axes=final_axes(s))


def states_of_chunks(s: Shape, element: str, value: str, **more: Any) -> Rule:
    """The state that each chunk alone leaves."""
    given: dict[str, Any] = {"decay": s.total, "axes": s.state, "precision": s.precision}
    return rule(
        Fold, monoid="decay", element=element, value=value, axis="L", domain=TOKEN_DOMAIN, **given, **more
    )


def scan(s: Shape, element: str, init: str, *, reverse: bool = False) -> Rule:
    """The fold over chunks."""
    order = "sequential" if s.delta else "scan"
    whole: dict[str, Any] = {"domain": Domain(size=symbol("num_chunks")), "axes": s.state, "reverse": reverse}
    cut = s.cut(order, "buffer")
    return rule(Fold, monoid="decay", element=element, decay=s.total, init=init, axis="C", **whole, **cut)


def final_axes(s: Shape) -> tuple[str, ...]:
    """The axes of a state that a caller sees."""
    return ("B", "H", "V", "K") if s.mamba else ("B", "H", "K", s.wide)


def reads(
    s: Shape,
    name: str,
    query: str,
    partner: str,
    summed: str,
    state: str,
    *,
    columns: str = "",
    only_within: bool = False,
    order: str = "",
) -> Found:
    """What is read of a chunk's state and of its other tokens: queries meet partners, and add up what is summed.

    ``columns`` is the axis that queries share with partners; ``order`` compares another token with the reader.
    """
    forward = name == "read"
    prefix = "" if forward else f"{name}_"
    along, reverse = columns or "K", state == "dfold"
    written = s.read_values in (query, partner, summed)
    axes = (*TOKENS, "K" if along != "K" else s.wide)
    by_rows = s.rows and along == "K"
    later: dict[str, Any] = {"reverse": True} if by_rows and reverse else {}
    heads = s.heads if along == "K" else "H"
    yield (
        f"{prefix}pairs",
        rule(
            Contract,
            left=query,
            right=partner,
            decay=s.total if by_rows else "",
            over=along,
            axes=("B", heads, "L", "J"),
            precision=s.precision,
            **later,
        ),
    )
    others = ex.apply(order or ("ge" if reverse else "le"), symbol("j"), symbol("t"))
    yield (
        f"{prefix}within",
        rule(
            Fold,
            monoid="sum",
            element=f"{prefix}pairs",
            value=summed,
            decay="" if by_rows else s.total,
            late=s.late if written else "",
            reverse=reverse,
            axis="J",
            domain=Domain(size=TOKEN_DOMAIN.size, mask=others),
            axes=axes,
            precision=s.precision,
            **s.cut("sequential", "register"),
        ),
    )
    if only_within:
        return
    late = s.late if written and reverse else ""
    yield f"{prefix}across", rule(Read, query=query, state=state, decay=s.total, late=late, axes=axes)
    yield name, rule(Merge, monoid="sum", left=f"{prefix}across", right=f"{prefix}within", axes=axes)


def _epilogue(s: Shape) -> Found:
    """From what is read to out."""
    of_values = (*TOKENS, "V")
    if s.mamba:
        yield from s.maps("skipped", ["x", "D"], operand="read", given="D", axes=of_values)
        yield from s.maps("out", ["z"], operand="skipped", given="z", axes=of_values)
        return
    yield from s.maps("scaled" if s.wide == "W" else "out", operand="read", axes=(*TOKENS, s.wide))
    if s.wide == "W":
        yield "out", rule(Finish, monoid="decay", operand="scaled", result="out", axes=of_values)


# ---- kernels

Stored = Sequence[tuple[str, str]]


def fp32(*names: str) -> list[tuple[str, str]]:
    """Stores of numbers that only kernels read, in fp32; '' is none."""
    return [(name, "float32") for name in names if name]


def _kernels(s: Shape) -> Iterator[tuple[str, Stored, str, tuple[str, ...]]]:
    """The launches of a forward: what each stores, the axis of its tiles, and those of its programs."""
    heads = ("C", "H")
    if s.decay:
        if s.rows:
            yield "totals_kernel", [("total", "sums")], "K", heads
        else:
            yield "totals_kernel", fp32("total", s.late, s.step), "H", ("C",)
    if s.delta:
        yield "solve_kernel", [*fp32("writes"), ("erases", "io")], "L", heads
        yield "scan_kernel", [*fp32("fold", "states"), ("written", "io")], "V", ("B", "H")
    else:
        yield "chunk_states_kernel", fp32("chunk_states"), "K", heads
        yield "scan_kernel", fp32("fold", "states"), "K", ("B", "H")
    if s.mamba or s.rows:
        yield "pairs_kernel", [("pairs", "io")], "L", ("C", s.heads)
    yield "kernel", [("out", "io")], "L", heads


def kernel(
    graph: Graph, name: str, stored: Stored, tile_axis: str, programs: tuple[str, ...], across: str = ""
) -> Found:
    """A launch over chunks, and its stores."""
    for node, dtype in stored:
        axes = getattr(graph.nodes.get(node), "axes", ())
        yield f"store_{node}", rule(Store, operand=node, name=node, dtype=dtype, axes=axes)
    stores = tuple(f"store_{node}" for node, _ in stored)
    owned = {"tile_axis": tile_axis, "across": across, "program_axes": programs}
    yield name, rule(Launch, "configs", stores=stores, rows="chunks", **owned)


def inputs_of_gradients(s: Shape) -> Found:
    """What autograd hands to a backward."""
    out: dict[str, Any] = {"axes": (*TOKENS, "V"), "dtype": "io", "layout": "bshd"}
    yield "dout", rule(Input, role="gradient", **out)
    yield "dstates", rule(Input, role="gradient", axes=final_axes(s), dtype="float", optional=True)
