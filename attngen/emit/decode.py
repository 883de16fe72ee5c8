"""From the scheduled graph of a recurrence to the finished context of its kernel and function that decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attngen.emit.decode_parts import DecodeParts, Row, find_decode
from attngen.emit.interface_recurrence import decode_face, decode_function
from attngen.emit.records_recurrence import Decode, DecodeChunk
from attngen.emit.recurrence import TOKEN, Columns, finish_lines, mapped, token_lines
from attngen.ir.graph import Graph


def decode_context(graph: Graph) -> Decode:
    """Return the finished context of the part of a module that decodes."""
    parts = find_decode(graph)
    function = decode_function(graph, parts)
    rows = parts.k.columns
    padded = 1 << (rows - 1).bit_length()
    by_row = f", mask=d < {rows}, other=0.0" if padded > rows else ""
    place = replace(TOKEN, token_mask=by_row) if parts.decay_has_rows else TOKEN
    made = token_lines(graph, parts.decay, place) if parts.decay else ()
    if parts.erase:
        made += token_lines(graph, parts.erase, TOKEN, "share")
    name = "decay" if parts.decay else ""
    spans = [(n, start, str(width)) for n, (start, width) in enumerate(parts.spans)] or [(0, 0, "BLOCK_M")]
    return Decode(
        face=decode_face(graph, parts),
        function=function.name,
        training=function.name.removesuffix("_step"),
        op_arguments=function.op_arguments,
        op_call=function.op_call,
        public_arguments=function.public_arguments,
        tensors=function.tensors,
        token_tensors=function.token_tensors,
        all_tensors=function.all_tensors,
        state_shape=function.state_shape,
        state_doc=function.state_doc,
        sizes=(f"num_groups = num_heads // {parts.k.group}",) if parts.is_mamba else (),
        state_rows=rows,
        padded_rows=padded,
        bases=tuple(_bases(parts)),
        owned="all columns" if parts.whole else "some columns",
        tiles="1" if parts.whole else f"({parts.wide} + BLOCK_M - 1) // BLOCK_M",
        programs="" if parts.whole else f' * triton.cdiv({parts.wide}, config["BLOCK_M"])',
        chunks=tuple(_chunk(parts, *span) for span in spans),
        rows=tuple(_rows(parts, by_row)),
        token_lines=made,
        decay=f"tl.math.exp2({name} * {parts.log2e})" + "[None, :]" * parts.decay_has_rows if name else "",
        erase="share" if parts.erase else "",
        finish=tuple(
            finish_lines(
                graph, parts.epilogue, parts.v.columns, tuple(_columns(parts, *span) for span in spans), TOKEN
            )
        ),
    )


def _bases(parts: DecodeParts) -> Iterator[str]:
    """Where the rows of a head's first token begin."""
    for row in dict.fromkeys((parts.k, parts.v, parts.q)):
        head = "h" if row.group == 1 else f"h // {row.group}"
        yield f"{row.tensor}_base = {row.tensor} + batch.to(tl.int64) * stride_{row.tensor}b + {head} * stride_{row.tensor}h"


def _rows(parts: DecodeParts, by_row: str) -> Iterator[str]:
    """The keys and queries of a token through their maps; rows that fill a state up are 0."""
    ragged = f"d < {parts.k.columns}" if by_row else ""
    for name, row in (("keys", parts.k), ("queries", parts.q)):
        yield f"{name} = tl.load({_at(row)} + d{by_row}).to(tl.float32)"
        if row.map is not None:
            value = mapped(row.map, s=name)
            yield f"{name} = tl.where({ragged}, {value}, 0.0)" if ragged else f"{name} = {value}"


def _at(row: Row) -> str:
    return f"{row.tensor}_base + t64 * stride_{row.tensor}t"


def _chunk(parts: DecodeParts, n: int, start: int, width: str) -> DecodeChunk:
    """Some columns of a state: the only ones of a program, or one of the pieces that it holds."""
    e, limit = f"e_{n}", parts.v.columns
    by_columns = f"{e}.to(tl.int64)[:, None] * stride_stater + d[None, :]"
    return DecodeChunk(
        columns=e,
        start=(f"{start} + " if start else "") if parts.whole else "tl.program_id(0) % tiles * BLOCK_M + ",
        width=width,
        place=f"place_{n}",
        at=by_columns
        if parts.states_axes[-1] == "K"
        else f"d.to(tl.int64)[None, :] * stride_stater + {e}[:, None]",
        owned=f"({e} < {parts.wide})[:, None]",
        tile=f"tile_{n}",
        acc=f"acc_{n}",
        values=f"values_{n}",
        value_lines=tuple(_values(parts, f"values_{n}", e, ones=_has_ones(parts, start, width))),
        stored=f"{e} < {limit}" if start < limit else "",
    )


def _has_ones(parts: DecodeParts, start: int, width: str) -> bool:
    """Whether the column of a normaliser is among these."""
    return parts.whole and start <= parts.v.columns < start + int(width)


def _values(parts: DecodeParts, name: str, e: str, *, ones: bool) -> Iterator[str]:
    """What is written of a token's values."""
    v = parts.v
    yield f"{name} = tl.load({_at(v)} + {e}, mask={e} < {v.columns}, other=0.0).to(tl.float32)"
    if v.map is not None:
        yield f"{name} = {mapped(v.map, s=name, **{other: other for other in v.map.others})}"
    if v.pad is not None and ones:
        yield f"{name} = tl.where({e} == {v.columns}, {v.pad.fill}, {name})"


def _columns(parts: DecodeParts, n: int, start: int, width: str) -> Columns:
    return Columns(
        index=n,
        columns=f"e_{n}",
        loaded=f" & (e_{n} < {parts.v.columns})",
        fill="ones" if _has_ones(parts, start, width) else "",
    )
