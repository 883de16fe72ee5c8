"""From the scheduled graph of a recurrence to the finished context of its kernel and function that decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attngen.emit.decode_parts import DecodeParts, Row, find_decode
from attngen.emit.interface_recurrence import decode_face, decode_function
from attngen.emit.records_recurrence import ColumnChunk, Decode
from attngen.emit.recurrence import TOKEN, finish_lines, mapped, token_lines
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
        state_columns=parts.wide,
        state_rows=rows,
        padded_rows=padded,
        bases=tuple(_bases(parts)),
        place="e.to(tl.int64)[:, None] * stride_stater + d[None, :]"
        if parts.states_axes[-1] == "K"
        else "d.to(tl.int64)[None, :] * stride_stater + e[:, None]",
        rows=tuple(_rows(parts, by_row)),
        token_lines=made,
        value_lines=tuple(_values(parts)),
        decay=f"tl.math.exp2({name} * {parts.log2e})" + "[None, :]" * parts.decay_has_rows if name else "",
        erase="share" if parts.erase else "",
        finish=tuple(finish_lines(graph, parts.epilogue, parts.v.columns, (_columns(parts),), TOKEN)),
        out_columns=parts.v.columns,
    )


def _bases(parts: DecodeParts) -> Iterator[str]:
    """Where the rows of a head's first token begin."""
    for row in dict.fromkeys((parts.k, parts.v, parts.q)):
        head = "h64" if row.group == 1 else f"h64 // {row.group}"
        yield f"{row.tensor}_base = {row.tensor} + batch.to(tl.int64) * stride_{row.tensor}b + {head} * stride_{row.tensor}h"


def _rows(parts: DecodeParts, by_row: str) -> Iterator[str]:
    """The keys, values and queries of a token, keys and queries through their maps; rows that fill a state up are 0."""
    ragged = f"d < {parts.k.columns}" if by_row else ""
    for name, row in (("keys", parts.k), ("queries", parts.q)):
        yield f"{name} = tl.load({_at(row)} + d{by_row}).to(tl.float32)"
        if row.map is not None:
            value = mapped(row.map, s=name)
            yield f"{name} = tl.where({ragged}, {value}, 0.0)" if ragged else f"{name} = {value}"
    yield f"values = tl.load({_at(parts.v)} + e, mask=e < {parts.v.columns}, other=0.0).to(tl.float32)"


def _at(row: Row) -> str:
    return f"{row.tensor}_base + t64 * stride_{row.tensor}t"


def _values(parts: DecodeParts) -> Iterator[str]:
    """What is written of a token's values."""
    if parts.v.map is not None:
        yield f"values = {mapped(parts.v.map, s='values', **{name: name for name in parts.v.map.others})}"
    if parts.v.pad is not None:
        yield f"values = tl.where(e == {parts.v.columns}, {parts.v.pad.fill}, values)"


def _columns(parts: DecodeParts) -> ColumnChunk:
    return ColumnChunk(
        index=0,
        width=0,
        columns="e",
        loaded=f" & (e < {parts.v.columns})",
        masked="",
        mask="",
        fill="ones" if parts.v.pad else "",
        of_state="",
        plus="",
        plus_acc="",
        query_lines=(),
    )
