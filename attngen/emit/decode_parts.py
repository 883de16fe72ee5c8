"""The nodes of the kernel that decodes a recurrence, found by walking the scheduled graph."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.emit.rules import broken, node_of, rule
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Domain, Finish, Fold, Input, Launch, Load, Map, Pad, Read, Store, symbol


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor that a token brings: its name, how many heads share a row, its columns, and what becomes of them."""

    tensor: str
    group: int
    columns: int
    chunks: tuple[tuple[int, int], ...]  # powers of two that cover the columns, where a load says them
    map: Map | None
    pad: Pad | None


@dataclass(frozen=True, slots=True)
class DecodeParts:
    """The nodes of the kernel that decodes."""

    is_mamba: bool
    q: Row
    k: Row
    v: Row
    wide: int  # columns of a state
    whole: bool  # a program holds all columns of a state, since one of them divides the others
    spans: tuple[tuple[int, int], ...]  # the pieces in which it does
    decay: str
    decay_has_rows: bool  # a decay per row of the state
    log2e: str  # what makes decays exponents of two
    erase: str
    init: str
    states_axes: tuple[str, ...]
    epilogue: tuple[tuple[str, Map | Finish], ...]
    kernel: Launch


def find_decode(graph: Graph) -> DecodeParts:
    """Return the nodes of the kernel that decodes."""
    kernel = node_of(graph, "decode_kernel", Launch)
    fold, read = node_of(graph, "token_fold", Fold), node_of(graph, "token_read", Read)
    states = node_of(graph, "token_states", Finish)
    _check(graph, fold)
    decay = getattr(graph.nodes[fold.decay], "axes", ()) if fold.decay else ()
    v, wide = _row(graph, fold.value), _columns(graph, fold.axes[-1])
    return DecodeParts(
        is_mamba="dt" in graph.nodes,
        q=_row(graph, read.query),
        k=_row(graph, fold.element),
        v=v,
        wide=wide,
        whole=v.pad is not None,
        spans=_spans(v) if v.pad else (),
        decay=fold.decay,
        decay_has_rows="K" in decay,
        log2e=ex.text(fold.factor or Const(1.0)),
        erase=fold.erase,
        init=fold.init,
        states_axes=states.axes,
        epilogue=_epilogue(graph),
        kernel=kernel,
    )


def _check(graph: Graph, fold: Fold) -> None:
    """Refuse what the template would not print."""
    stores = ("store_token_out", "store_token_states")
    cut = {"level": "token", "order": "sequential", "carrier": "register"}
    whole = Domain(size=symbol("seqlen"))
    base = "2" if fold.decay else "e"
    wanted = {
        "token_fold": rule(
            Fold,
            "element value decay erase init axes factor",
            monoid="decay",
            axis="L",
            domain=whole,
            base=base,
            **cut,
        ),
        "token_read": rule(Read, "query axes", state="token_fold"),
        "token_states": rule(Finish, "axes", monoid="decay", operand="token_fold", result="states"),
        stores[0]: rule(Store, "axes", operand="token_out", name="out", dtype="io"),
        stores[1]: rule(Store, "axes", operand="token_states", name="states", dtype="own"),
        "decode_kernel": rule(
            Launch, "tile_axis configs", stores=stores, program_axes=("B", "H"), rows="states"
        ),
    }
    wrong = broken(graph, wanted)
    if wrong:
        raise InternalError(f"{graph.provenance.name}: the templates of decode need: {'; '.join(wrong)}")


def _row(graph: Graph, name: str) -> Row:
    made: Map | None = None
    pad: Pad | None = None
    chunks: tuple[tuple[int, int], ...] = ()
    while not isinstance(node := graph.nodes[name], Input):
        match node:
            case Map():
                made = node
            case Pad():
                pad = node
            case Load():
                chunks = node.chunks
            case _:
                raise InternalError(
                    f"{graph.provenance.name}: the templates need: {name} is made of an input alone"
                )
        name = node.operand
    group = graph.axis("G").group if "G" in node.axes else 1
    return Row(name, group, _columns(graph, node.axes[-1]), chunks, made, pad)


def _spans(v: Row) -> tuple[tuple[int, int], ...]:
    """Pieces of the columns of values and one more."""
    start, width = v.chunks[-1]
    return v.chunks if start + width > v.columns else (*v.chunks, (v.columns, 16))


def _columns(graph: Graph, axis: str) -> int:
    size = graph.axis(axis).size
    assert isinstance(size, Const)
    return int(size.value)


def _epilogue(graph: Graph) -> tuple[tuple[str, Map | Finish], ...]:
    """What becomes of what is read, in order."""
    found: list[tuple[str, Map | Finish]] = []
    name = "token_out"
    while not isinstance(node := graph.nodes[name], Read):
        assert isinstance(node, Map | Finish)
        found.append((name, node))
        name = node.operand
    return tuple(reversed(found))
