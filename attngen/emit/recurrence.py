"""From the scheduled graph of a recurrence to the finished context of its module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from attngen.emit.format import json_text
from attngen.emit.interface_recurrence import Faces, faces
from attngen.emit.records_recurrence import ChunkProducts, ColumnChunk, ReadProduct, RecurrenceContext, Tile
from attngen.emit.recurrence_adjoint import adjoint
from attngen.emit.recurrence_delta import blocks, solved
from attngen.emit.recurrence_delta_adjoint import kind_of
from attngen.emit.recurrence_lines import columns, feature, place_in_state, text_of
from attngen.emit.recurrence_parts import Parts, find_parts
from attngen.emit.recurrence_refusals import refuse_others
from attngen.emit.recurrence_rows import across, last, sizes, state_keys
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Finish, Input, Map


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kernel stands: the text of what it reads of tokens and heads, and of rows and columns of out."""

    token: str
    token_mask: str
    head: str
    head_mask: str
    state_row: str  # of a decay per row of the state
    of_heads: str  # from numbers per head to a tile of tokens and heads
    row: str  # from a tensor of tokens to the rows of a tile; {} is its name
    row_mask: str
    of_rows: str  # from numbers per row to a tile of out
    of_columns: str
    columns_axis: int


@dataclass(frozen=True, slots=True)
class Columns:
    """What the end of a kernel needs to know of columns of out; see `ColumnChunk`."""

    index: int
    columns: str
    loaded: str
    fill: str


TILES: Final = Place(
    token="(first + t[:, None]).to(tl.int64)",
    token_mask=", mask=valid, other=0.0",
    head="h[None, :]",
    head_mask=", mask=h < num_heads, other=0.0",
    state_row="d.to(tl.int64)[None, :]",
    of_heads="[None, :]",
    row=" + first.to(tl.int64) * stride_{0}t + h * stride_{0}h + m.to(ROW_INDEX)[:, None] * stride_{0}t",
    row_mask="(m < length)[:, None]",
    of_rows="[:, None]",
    of_columns="[None, :]",
    columns_axis=1,
)
"""Chunks: tiles of tokens and heads, and of tokens and columns."""
TOKEN: Final = Place(
    token="t64",
    token_mask="",
    head="h",
    head_mask="",
    state_row="d.to(tl.int64)",
    of_heads="",
    row=" + t64 * stride_{0}t + h * stride_{0}h",
    row_mask="",
    of_rows="",
    of_columns="",
    columns_axis=0,
)
"""Decode: one token and head, and a vector of columns."""


def recurrence_context(graph: Graph, *, version: str, regenerate: str) -> RecurrenceContext:
    """Return the finished context of a scheduled graph of a recurrence."""
    refuse_others(graph)
    parts = find_parts(graph)
    found = faces(graph, parts)
    provenance = graph.provenance
    name = provenance.name
    k_chunks, v_chunks = _key_chunks(parts), _value_chunks(parts)
    decays, steps = parts.total is not None and not parts.has_rows, parts.step is not None
    of_tokens = parts.of_tokens
    return RecurrenceContext(
        name=name,
        version=version,
        regenerate=regenerate,
        title=f"{name}: {provenance.summary}" if provenance.summary else name,
        description=_description(parts),
        digest=graph.digest(),
        spec_json=json_text(json.loads(provenance.spec)),
        manifest_json=json_text(found.manifest),
        chunk=parts.chunk,
        last=parts.chunk - 1,
        group=parts.group,
        has_total=parts.total is not None,
        has_decay=decays,
        has_rows=parts.has_rows,
        left="_left" if parts.has_rows else "tl.math.exp2",
        erases=parts.solve is not None,
        has_step=steps,
        has_late=parts.late is not None,
        late=text_of(parts.late.expr, {"s": "sums", "step": "step"}) if parts.late else "",
        weighs_step=parts.weighs_step,
        has_softplus=any("softplus" in ex.text(m.expr) for _, m in graph.all(Map)),
        stores_pairs=parts.pairs_kernel is not None,
        **sizes(parts),
        log2e=ex.text(parts.total.factor) if parts.total and parts.total.factor else "",
        precision=parts.contract.precision,
        key_columns=parts.k.columns,
        wide_columns=parts.wide,
        state_size=parts.k.columns * parts.wide,
        pairs_size=parts.chunk * parts.chunk,
        k_chunks=k_chunks,
        v_chunks=v_chunks,
        out_chunks=tuple(c for c in v_chunks if c.index < len(parts.v.chunks)),
        products=_products(k_chunks, v_chunks),
        key_columns_lines=columns("d", parts.k_spans),
        value_columns=columns("e", parts.v_spans),
        query_bases=(parts.base("q"),),
        key_bases=(parts.base("k"),),
        value_bases=(parts.base("v"),),
        q_name=parts.q.operand,
        v_name=parts.v.operand,
        q_stride=f"stride_{parts.q.operand}t",
        k_stride=f"stride_{parts.k.operand}t",
        v_stride=f"stride_{parts.v.operand}t",
        token_lines=_token_lines(graph, parts),
        decay="decay" if parts.total else "",
        state_key_lines=state_keys(parts, feature(parts.key_map, "keys", parts.k.operand, "")),
        across=across(parts, k_chunks),
        blocks=blocks(parts),
        decay_of_chunk=last(parts, f"d < {parts.k.columns}"),
        decay_of_state=last(parts, "inside"),
        weight_to_end=decays * f"tl.math.exp2(last - tl.load({of_tokens} + n))",
        weight_to_tile=decays * f"tl.math.exp2(before - tl.load({of_tokens} + n))",
        state_rows=f", mask=(d < {parts.k.columns})[None, :], other=0.0"
        if parts.k.columns & (parts.k.columns - 1) or parts.k.columns < 16
        else "",
        diagonal=_diagonal(parts),
        finish=tuple(_finish(graph, parts, v_chunks)),
        init=parts.init,
        init_place=place_in_state(parts.states_axes, "stride_init_"),
        states_place="place" if parts.states_axes[-1] != "K" else f"e * {parts.k.columns} + d",
        totals=found.totals,
        solve=solved(parts, found.solve) if parts.solve else None,
        states=found.states,
        scan=found.scan,
        pairs=found.pairs,
        shared_pairs=_shared_pairs(parts, found, k_chunks),
        readers_of_pairs=_readers_of_pairs(parts, found),
        read=found.read,
        op_name=f"{name}_{graph.digest()[:12]}",
        op_arguments=found.op_arguments,
        op_call=found.op_call,
        public_arguments=found.public_arguments,
        public_call=found.public_call,
        tensors=found.tensors,
        sizes=found.sizes,
        first=parts.first,
        value_tensor=parts.given.operand,
        state_shape=found.state_shape,
        large=found.large,
        function=found.function,
        documented=found.documented,
        prepared=found.prepared,
        return_flag=found.return_flag,
        states_doc=found.states_doc,
        adjoint=adjoint(
            graph, parts, found.adjoint, (k_chunks, v_chunks), _token_lines(graph, parts), kind_of(graph)
        )
        if found.adjoint
        else None,
        adjoint_face=found.adjoint,
    )


def _shared_pairs(parts: Parts, found: Faces, chunks: tuple[ColumnChunk, ...]) -> ChunkProducts | None:
    """The kernel of products of queries and keys that the heads of a group share."""
    if parts.pairs_kernel is None or parts.has_rows:
        return None

    def tile(chunk: ColumnChunk, name: str, load: str, row: str, lines: tuple[str, ...]) -> Tile:
        return Tile(
            name=name,
            index=chunk.index,
            width=chunk.width,
            columns=chunk.columns,
            base=f"{load}_base",
            walked="",
            row=row,
            stride=f"stride_{(parts.q if load == 'q' else parts.k).operand}t",
            masked=chunk.masked,
            lines=lines,
            own=f"queries_{chunk.index}",
            plus=chunk.plus_acc,
        )

    return ChunkProducts(
        face=found.pairs,
        doc="One program makes a tile of queries keys^T of a chunk and group, 0 where the key is later than the query.",
        heads="num_groups",
        head=f"(tl.program_id(0) // tiles % num_groups * {parts.group}).to(tl.int64)",
        place=f"slot.to(tl.int64) * num_groups + h // {parts.group}",
        columns=columns("d", parts.k_spans),
        bases=(parts.base("q"), parts.base("k")),
        query=tuple(tile(c, f"queries_{c.index}", "q", "row", c.query_lines) for c in chunks),
        partner=tuple(tile(c, "keys", "k", "near", c.key_lines) for c in chunks),
        result="pairs",
    )


def _readers_of_pairs(parts: Parts, found: Faces) -> tuple[str, ...]:
    if parts.pairs_kernel is None or parts.has_rows:
        return ()
    return ("_read", "_backward_values") if found.adjoint else ("_read",)


def _description(parts: Parts) -> str:
    erase = "S = T S + k v^T, out = q S: chunks of"
    return f"A recurrence, {erase} {parts.chunk} tokens, a scan over the chunks, and what each chunk reads of both."


def _key_chunks(parts: Parts) -> tuple[ColumnChunk, ...]:
    found: list[ColumnChunk] = []
    for n, (start, width) in enumerate(parts.k_spans):
        ragged = start + width > parts.k.columns
        mask = f" & (d_{n} < {parts.k.columns})" if ragged else ""
        found.append(
            ColumnChunk(
                index=n,
                width=width,
                columns=f"d_{n}",
                loaded=f"{mask}[None, :]" if ragged else "",
                masked=f", mask=(d_{n} < {parts.k.columns})[None, :], other=0.0" if ragged else "",
                mask="",
                fill="",
                of_state=f"(d_{n} < {parts.k.columns})[:, None]" if ragged else "",
                plus=", pairs_tile" if n else "",
                plus_acc=", acc" if n else "",
                query_lines=feature(
                    parts.query_map,
                    f"queries_{n}",
                    parts.q.operand,
                    f"(d_{n} < {parts.k.columns})[None, :]" if ragged else "",
                ),
                key_lines=feature(
                    parts.key_map,
                    "keys",
                    parts.k.operand,
                    f"(d_{n} < {parts.k.columns})[None, :]" if ragged else "",
                ),
                plus_scores="scores + " if n else "",
                of_tile=f"(d_{n} < {parts.k.columns})[:, None] & " * ragged + f"(e < {parts.wide})[None, :]",
            )
        )
    return tuple(found)


def _value_chunks(parts: Parts) -> tuple[ColumnChunk, ...]:
    found: list[ColumnChunk] = []
    for n, (start, width) in enumerate(parts.v_spans):
        end = start + width
        limit, wide = (
            f" & (e_{n} < {size})[None, :]" if end > size else "" for size in (parts.v.columns, parts.wide)
        )
        ones = parts.wide > parts.v.columns and start <= parts.v.columns < end
        found.append(
            ColumnChunk(
                index=n,
                width=width,
                columns=f"e_{n}",
                loaded=limit,
                masked=f", mask={limit.removeprefix(' & ')}, other=0.0" if limit else "",
                mask=wide,
                fill=f"(e_{n} == {parts.v.columns})[None, :]" if ones else "",
                of_state=f"(e_{n} < {parts.wide})[None, :]" if end > parts.wide else "",
                plus="",
                plus_acc="",
                query_lines=(),
                key_lines=(),
                plus_scores="",
                of_tile="",
            )
        )
    return tuple(found)


def _products(keys: tuple[ColumnChunk, ...], values: tuple[ColumnChunk, ...]) -> tuple[ReadProduct, ...]:
    found: list[ReadProduct] = []
    for value in values:
        for key in keys:
            limits = " & ".join(x for x in (key.of_state, value.of_state) if x)
            found.append(
                ReadProduct(
                    query=f"queries_{key.index}",
                    result=f"acc_{value.index}",
                    plus=f", acc_{value.index}" if key.index else "",
                    rows=key.columns,
                    columns=value.columns,
                    mask=f", mask={limits}, other=0.0" if limits else "",
                )
            )
    return tuple(found)


def _diagonal(parts: Parts) -> tuple[str, ...]:
    """Scores of the tiles that hold keys later than the query; those that groups share are 0 there, so that any finite
    number may multiply them."""
    earlier = "n[None, :] <= m[:, None]"
    apart = f"total_m[:, None] - tl.load({parts.of_tokens} + n)[None, :]"
    if parts.total is None or parts.has_rows:
        is_masked = parts.pairs_kernel is not None and not parts.has_rows
        return () if is_masked else (f"pairs_tile = tl.where({earlier}, pairs_tile, 0.0)",)
    safe = (
        f"tl.minimum({apart}, 126.0)"
        if parts.pairs_kernel
        else f'tl.where({earlier}, {apart}, float("-inf"))'
    )
    return (f"pairs_tile = pairs_tile * tl.math.exp2({safe})",)


def token_lines(graph: Graph, top: str, place: Place, single: str = "decay") -> tuple[str, ...]:
    """From what a caller gives per token to the node `top`, the decay of each token and head, and what multiplies its value.

    An input by itself is loaded as the variable `single`.
    """
    lines: list[str] = []
    chain = list(_chain(graph, top))
    source = chain[0][0]
    node = graph.nodes[source]
    if isinstance(node, Input):
        at = f"batch.to(tl.int64) * stride_{source}_0 + {place.token} * stride_{source}_1"
        at += f" + {place.head} * stride_{source}_2" + f" + {place.state_row} * stride_{source}_3" * (
            "K" in node.axes
        )
        name = single if len(chain) == 1 else source + "_of"
        lines.append(f"{name} = tl.load({source} + {at}{place.token_mask}).to(tl.float32)")
        current = name
    else:
        current = ""
    for name, step in chain if not isinstance(node, Input) else chain[1:]:
        assert isinstance(step, Map)
        names = {"s": current, "h": place.head}
        for other in step.others:
            number = f"tl.load({other} + h * stride_{other}_0{place.head_mask}).to(tl.float32)"
            names[other] = number + place.of_heads
        made = f"{name} = {text_of(step.expr, names)}"
        if step.given:
            lines += [f"{name} = {current}", f"if HAS_{step.given.upper()}:", f"    {made}"]
        else:
            lines.append(made)
        current = name
    return tuple(lines)


def _chain(graph: Graph, top: str) -> Iterator[tuple[str, object]]:
    """The nodes below a node along operands, the lowest first."""
    node = graph.nodes[top]
    if isinstance(node, Map) and node.operand:
        yield from _chain(graph, node.operand)
    yield top, node


def mapped(node: Map, **names: str) -> str:
    """The text of a map whose symbols are variables of these names (s is its operand)."""
    return text_of(node.expr, names)


def _token_lines(graph: Graph, parts: Parts) -> tuple[str, ...]:
    if parts.total is None:
        return ()
    place = replace(TILES, head="h") if parts.has_rows else TILES
    return token_lines(graph, parts.total.element, place)


def _finish(graph: Graph, parts: Parts, chunks: tuple[ColumnChunk, ...]) -> Iterator[str]:
    """From what is read to out; the backward needs what it is before its last change."""
    *before, last = parts.epilogue
    yield from finish_lines(graph, tuple(before), parts.v.columns, chunks, TILES)
    if parts.needs_raw:
        yield "if RAW:"
        yield "    raw_base = out + batch.to(tl.int64) * stride_outb + first.to(tl.int64) * stride_outt + h * stride_outh"
        for c in chunks:
            at = f"raw_base + m.to(ROW_INDEX)[:, None] * stride_outt + {c.columns}[None, :]"
            yield f"    tl.store({at}, acc_{c.index}, mask=(m < length)[:, None])"
        yield "    return"
    yield from finish_lines(graph, (last,), parts.v.columns, chunks, TILES)


def finish_lines(
    graph: Graph,
    epilogue: tuple[tuple[str, Map | Finish], ...],
    columns: int,
    chunks: tuple[ColumnChunk | Columns, ...],
    place: Place,
) -> Iterator[str]:
    """From what is read to the `columns` of out: element by element, chunk by chunk of its columns."""
    for _, node in epilogue:
        if isinstance(node, Finish):
            last = next(c for c in chunks if c.fill)
            one = f"{last.columns}{place.of_columns} == {columns}"
            yield f"weights = tl.sum(tl.where({one}, acc_{last.index}, 0.0), {place.columns_axis})"
            yield "weights = tl.where(weights == 0.0, 0.0, 1.0 / weights)"
            yield from (f"acc_{c.index} = acc_{c.index} * weights{place.of_rows}" for c in chunks)
            continue
        inputs = {other: i for other in node.others if isinstance(i := graph.nodes[other], Input)}
        lines: list[str] = []
        for chunk in chunks:
            names = {"s": f"acc_{chunk.index}"}
            for other, given in inputs.items():
                names[other] = f"{other}_of"
                lines.append(f"{other}_of = {_read(other, given, chunk, place)}")
            lines.append(f"acc_{chunk.index} = {text_of(node.expr, names)}")
        if node.given:
            yield f"if HAS_{node.given.upper()}:"
        yield from (f"    {line}" if node.given else line for line in lines)


def _read(name: str, given: Input, chunk: ColumnChunk | Columns, place: Place) -> str:
    """An input where a tile of out lies."""
    if given.role == "tensor":
        at = f"{name} + batch.to(tl.int64) * stride_{name}b{place.row.format(name)} + {chunk.columns}{place.of_columns}"
        mask = (place.row_mask + chunk.loaded).removeprefix(" & ")
        return f"tl.load({at}, mask={mask}, other=0.0).to(tl.float32)"
    limit = chunk.loaded.removeprefix(" & ")
    at = f"{name} + h * stride_{name}_0 + {chunk.columns}.to(tl.int64){place.of_columns} * stride_{name}_1"
    return f"tl.load({at}{f', mask={limit}, other=0.0' if limit else ''}).to(tl.float32)"
