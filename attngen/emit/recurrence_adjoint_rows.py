"""Finished strings of the backward of recurrences whose states decay row by row (arXiv:2312.06635, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from attngen.emit.faces import KernelFace
from attngen.emit.records_recurrence import (
    AdjointFaces,
    AdjointRead,
    AdjointSide,
    ChunkProducts,
    ColumnChunk,
    Launched,
    Tile,
)
from attngen.emit.recurrence_lines import columns, feature, text_of
from attngen.emit.recurrence_parts import Parts
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Map

SLOT: Final = "(slot.to(tl.int64) * num_heads + h)"


@dataclass(frozen=True, slots=True)
class Walk:
    """How a gradient goes over the tokens of a chunk; {} is where what it asks for lies."""

    pair: str  # place of the product of a row m and a token n
    far_edge: str
    has_far_edge: str
    far_begin: str
    far_end: str
    to_edge: str
    from_edge: str
    near_edge: str
    near_begin: str
    near_end: str
    near: str
    here: str
    here_apart: str
    to_state: str


EARLIER: Final = Walk(
    pair="{m} * {chunk} + {n}",
    far_edge="start_m - 1",
    has_far_edge="(start_m > 0)",
    far_begin="0",
    far_end="start_m",
    to_edge="edge - sums",
    from_edge="own_sums - edge",
    near_edge="start_n + 15",
    near_begin="start_m",
    near_end="tl.minimum(start_m + BLOCK_M, length) - 16",
    near="(m >= start_n + 16)[:, None]",
    here="n < m",
    here_apart="own_sums - sums",
    to_state="own_sums",
)
"""What queries read: the state before the chunk, and tokens before them."""
LATER: Final = Walk(
    pair="{n} * {chunk} + {m}",
    far_edge="start_m + BLOCK_M - 1",
    has_far_edge="",
    far_begin="start_m + BLOCK_M",
    far_end="length",
    to_edge="sums - edge",
    from_edge="edge - own_sums",
    near_edge="start_n - 1",
    near_begin="start_m + 16",
    near_end="tl.minimum(start_m + BLOCK_M, length)",
    near="(m < start_n)[:, None] & (n < length)[None, :]",
    here="(n > m) & (n < length)",
    here_apart="sums - own_sums",
    to_state="{last} - own_sums",
)
"""What reads keys: tokens after them, and the states after the chunk."""


def faded_queries(parts: Parts) -> tuple[str, ...]:
    """Queries of tokens n and columns d as the state before the chunk is seen by them: with the decay since then."""
    if not parts.has_rows:
        return ()
    weighed = f"queries * _left({_decays(parts, 'n[:, None]')})"
    return (f"queries = ({weighed}).to({parts.q.operand}.dtype.element_ty)",)


def faded_keys(parts: Parts, tile: Tile) -> Tile:
    """A tile of keys as the state after the chunk is seen by them: with the decay until then."""
    columns = parts.k.columns
    own, last = (
        f"tl.load(total_base + {at} * {columns} + {tile.columns}[None, :]{tile.masked})"
        for at in ("m[:, None]", str(parts.chunk - 1))
    )
    weighed = f"{tile.name} * _left({last} - {own})"
    return replace(
        tile, lines=(*tile.lines, f"{tile.name} = ({weighed}).to({parts.k.operand}.dtype.element_ty)")
    )


def _limit(parts: Parts) -> str:
    """The test that columns d are there, where a tile of them may reach past the last."""
    columns = parts.k.columns
    return f"(d < {columns})[None, :]" if columns & (columns - 1) or columns < 16 else ""


def _masked(*limits: str) -> str:
    found = " & ".join(limit for limit in limits if limit)
    return f", mask={found}, other=0.0" if found else ""


def _decays(parts: Parts, token: str, there: str = "") -> str:
    """The load of the decays from the start of the chunk up to tokens; 0 where they are not there."""
    mask = _masked(there, _limit(parts))
    return f"tl.load(total_base + {token} * {parts.k.columns} + d[None, :]{mask})"


def value_products(
    parts: Parts, face: KernelFace, tiles: tuple[tuple[Tile, ...], tuple[Tile, ...]]
) -> ChunkProducts:
    """The kernel that stores products of gradients of what is read and values."""
    query, partner = tiles
    return ChunkProducts(
        face=face,
        doc="One program makes a tile of gradients values^T of a chunk and head, 0 where the value is later.",
        heads="num_heads",
        head="(tl.program_id(0) // tiles % num_heads).to(tl.int64)",
        place="slot.to(tl.int64) * num_heads + h",
        columns=columns("e", parts.v_spans),
        bases=(parts.base("v"), parts.base("dread")),
        query=query,
        partner=partner,
        result="adjoint_pairs",
    )


def side(
    graph: Graph, parts: Parts, face: KernelFace, which: str, state: tuple[tuple[Tile, ColumnChunk], ...]
) -> AdjointSide:
    """The kernel of the gradient of queries (``which`` is q) or of keys (k); ``state`` are the tiles that meet states."""
    walk, is_query = (EARLIER, True) if which == "q" else (LATER, False)
    load, other = (parts.q, parts.k) if is_query else (parts.k, parts.q)
    other_name, other_map = ("k", parts.key_map) if is_query else ("q", parts.query_map)
    chunk, masked = parts.chunk, _masked(_limit(parts))

    def pair(m: str, n: str, mask: str) -> str:
        at = walk.pair.format(m=m, n=n, chunk=chunk)
        return f"tl.load(pairs_base + {at}, mask={mask}, other=0.0)"

    return AdjointSide(
        face=face,
        doc=f"One program makes some rows and columns of the gradient of {'queries' if is_query else 'keys'}.",
        io=f"{parts.first}.dtype.element_ty",
        inside="(m < length)[:, None]" + f" & {_limit(parts)}" * bool(_limit(parts)),
        bases=(
            *(parts.base(name) for name in ("q", "k", "dread" if is_query else "v")),
            f"total_base = total + {SLOT} * {chunk * parts.k.columns}",
            f"pairs_base = adjoint_pairs + {SLOT} * {chunk**2}",
            f"state_base = {'chunk_states' if is_query else 'chunk_adjoints'} + {SLOT} * {parts.k.columns * parts.wide}",
        ),
        other=f"tl.load({other_name}_base + near[:, None] * stride_{other.operand}t + d[None, :]{masked})",
        other_lines=feature(other_map, "other", other.operand, ""),
        sums=_decays(parts, "n[:, None]"),
        own=f"tl.load({which}_base + row[:, None] * stride_{load.operand}t + d[None, :]{masked}).to(tl.float32)",
        own_sums=_decays(parts, "m[:, None]"),
        own_pairs=pair("m", "m", "m < length"),
        far_edge=_decays(parts, f"({walk.far_edge})", walk.has_far_edge),
        far_begin=walk.far_begin,
        far_end=walk.far_end,
        far_pairs=pair("m[:, None]", "n[None, :]", "(n < length)[None, :]"),
        to_edge=walk.to_edge,
        from_edge=walk.from_edge,
        near_edge=_decays(parts, f"({walk.near_edge})"),
        near_begin=walk.near_begin,
        near_end=walk.near_end,
        near_pairs=pair("m[:, None]", "n[None, :]", walk.near),
        here_pairs=pair("m", "n", walk.here),
        here_apart=walk.here_apart,
        of_state=tuple(_of_state(parts, state)),
        to_state=walk.to_state.format(last=_decays(parts, str(chunk - 1))),
        products=tuple(_products(graph, parts, which)),
        finish=tuple(_finish(graph, parts, which)),
    )


def _of_state(parts: Parts, tiles: tuple[tuple[Tile, ColumnChunk], ...]) -> Iterator[str]:
    """Rows of tiles times the columns of a state's rows d."""
    io, precision = f"{parts.first}.dtype.element_ty", parts.contract.precision
    for tile, chunk in tiles:
        yield f"{tile.name} = tl.load({tile.base} + row[:, None] * ({tile.stride}) + {tile.columns}[None, :]{tile.masked})"
        yield from tile.lines
        mask = _masked(_limit(parts), chunk.of_state.replace("[None, :]", "[:, None]"))
        yield f"state = tl.load(state_base + d[None, :] * {parts.wide} + {tile.columns}[:, None]{mask})"
        yield f'of_state = tl.dot({tile.name}, state.to({io}), of_state, input_precision="{precision}")'


def _map(graph: Graph, name: str) -> Map:
    node = graph.nodes.get(name)
    if not isinstance(node, Map):
        raise InternalError(f"{graph.provenance.name}: the templates need: {name} is a map")
    return node


def check_products(graph: Graph) -> None:
    """A row's own token is in what queries read and in what reads keys. No kernel counts it, so that no edit may either.

    Raises:
        InternalError: products, or their difference, which are not plain.
    """
    for name, op in (("of_queries", "mul"), ("of_keys", "mul"), ("of_both", "sub")):
        node = _map(graph, name)
        if node.expr != ex.apply(op, Symbol("s", "float"), Symbol(node.others[0], "float")):
            raise InternalError(
                f"{graph.provenance.name}: the templates need: {name} is s {_SIGNS[op]} the other"
            )


_SIGNS: Final = {"mul": "*", "sub": "-"}


def _products(graph: Graph, parts: Parts, which: str) -> Iterator[str]:
    """What decays did: the row itself times what is read for it."""
    node = parts.query_map if which == "q" else parts.key_map
    own = f"({text_of(node.expr, {'s': 'own'})})" if node else "own"
    read = {"of_queries": "(acc + of_state)"} if which == "q" else {"of_keys": "acc", "of_states": "of_state"}
    yield f"own_place = ({SLOT} * {parts.chunk} + m[:, None]) * {parts.k.columns} + d[None, :]"
    for name, value in read.items():
        product = _map(graph, name)
        text = text_of(product.expr, {"s": own, product.others[0]: value})
        yield f"tl.store({name} + own_place, {text}, mask=inside)"


def _finish(graph: Graph, parts: Parts, which: str) -> Iterator[str]:
    """The slope of the feature map, and the store."""
    load, node = (parts.q, parts.query_map) if which == "q" else (parts.k, parts.key_map)
    tensor = load.operand
    if node is not None:
        slope = _map(graph, f"d{tensor}")
        yield f"acc = {text_of(slope.expr, {'s': 'acc', tensor: 'own'})}"
    yield (
        f"own_base = d{tensor} + batch.to(tl.int64) * stride_d{tensor}b"
        f" + first.to(tl.int64) * stride_d{tensor}t + h * stride_d{tensor}h"
    )
    at = f"own_base + m.to(ROW_INDEX)[:, None] * stride_d{tensor}t + d[None, :]"
    yield f"tl.store({at}, acc.to(d{tensor}.dtype.element_ty), mask=inside)"


def launched(parts: Parts, faces: AdjointFaces, reads: tuple[AdjointRead, ...]) -> tuple[Launched, ...]:
    """The kernels that read for the backward, in order."""
    rows = 'CHUNK // config["BLOCK_M"]'
    found = [Launched(face=r.face, programs=f"slots * (num_heads // {r.heads}) * ({rows})") for r in reads]
    if faces.pairs is None:
        return tuple(found)
    both = " * ".join(f'triton.cdiv(CHUNK, config["BLOCK_{x}"])' for x in "MN")
    columns = {x: f'triton.cdiv({parts.k.columns}, config["BLOCK_{x}"])' for x in "MN"}
    side = f"slots * num_heads * ({rows}) * {columns['N']}"
    return (
        Launched(face=faces.pairs, programs=f"slots * num_heads * {both}"),
        Launched(face=faces.queries, programs=side),
        Launched(face=faces.keys, programs=side),
        *found,
        Launched(face=faces.tokens, programs=f"slots * num_heads * {columns['M']}"),
    )
