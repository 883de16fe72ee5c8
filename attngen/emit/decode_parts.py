"""The nodes of the kernel that decodes a recurrence, found by walking the scheduled graph."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.emit.rules import Rule, broken, node_of, rule
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Domain, Finish, Fold, Input, Launch, Load, Map, Pad, Read, Store, symbol

TOKENS = ("B", "L", "H")


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
    _check(graph)
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


def _check(graph: Graph) -> None:
    """Refuse what the template would not print."""
    wrong = broken(graph, decode_rules(graph))
    if wrong:
        raise InternalError(f"{graph.provenance.name}: the templates of decode need: {'; '.join(wrong)}")


def decode_rules(graph: Graph) -> dict[str, Rule]:
    """What each node of the kernel that decodes has to be."""
    names = _operands(graph)
    queries, wide = names.pop("query"), "W" if "W" in (a.name for a in graph.axes) else "V"
    stores = ("store_token_out", "store_token_states")
    cut = {"level": "token", "order": "sequential", "carrier": "register"}
    wanted = {
        "token_fold": rule(
            Fold,
            "factor" if names["decay"] else "",
            monoid="decay",
            axis="L",
            axes=("B", "H", "K", wide),
            domain=Domain(size=symbol("seqlen")),
            base="2" if names["decay"] else "e",
            **names,
            **cut,
        ),
        "token_read": rule(Read, query=queries, state="token_fold", axes=(*TOKENS, wide)),
        "token_states": rule(
            Finish,
            monoid="decay",
            operand="token_fold",
            result="states",
            axes=("B", "H", "V", "K") if "dt" in graph.nodes else ("B", "H", "K", wide),
        ),
        stores[0]: _stored(graph, "out", "io"),
        stores[1]: _stored(graph, "states", "own"),
        "decode_kernel": rule(
            Launch, "configs", tile_axis=wide, stores=stores, program_axes=("B", "H"), rows="states"
        ),
    }
    return wanted | _epilogue_rules(graph, wide)


def _operands(graph: Graph) -> dict[str, str]:
    """What a token's fold is of, and what reads it: tiles and maps by their names, or the arguments themselves."""
    mamba = "dt" in graph.nodes
    q, k, v = ("C", "B", "x") if mamba else ("q", "k", "v")

    def first(*names: str) -> str:
        return next((name for name in names if name in graph.nodes), "")

    return {
        "query": first("queries", f"{q}_tile", q),
        "element": first("keys", f"{k}_tile", k),
        "value": first("value", f"{v}_tile", v),
        "decay": first("decay", "g"),
        "erase": first("beta"),
        "init": first("initial_states", "initial_state"),
    }


def _stored(graph: Graph, name: str, dtype: str) -> Rule:
    axes = getattr(graph.nodes.get(f"token_{name}"), "axes", ())
    return rule(Store, operand=f"token_{name}", name=name, dtype=dtype, axes=axes)


def _epilogue_rules(graph: Graph, wide: str) -> dict[str, Rule]:
    """What becomes of what is read: formulas, of Mamba-2 also of what it skips and gates by."""
    read = (*TOKENS, wide)
    if "dt" in graph.nodes:
        skipped = rule(Map, "expr", operand="token_read", others=("x", "D"), given="D", axes=read)
        gated = rule(Map, "expr", operand="token_skipped", others=("z",), given="z", axes=read)
        return {"token_skipped": skipped, "token_out": gated}
    scaled = rule(Map, "expr", operand="token_read", axes=read)
    if wide == "V":
        return {"token_out": scaled}
    divided = rule(Finish, monoid="decay", operand="token_scaled", result="out", axes=(*TOKENS, "V"))
    return {"token_scaled": scaled, "token_out": divided}


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
