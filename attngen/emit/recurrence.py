"""From the scheduled graph of a recurrence to the finished context of its module."""

from __future__ import annotations

import json
from collections.abc import Iterator

from attngen.emit.format import json_text
from attngen.emit.interface_recurrence import faces
from attngen.emit.printer import Body, Printer
from attngen.emit.records_recurrence import ColumnChunk, ReadProduct, RecurrenceContext
from attngen.emit.recurrence_delta import blocks
from attngen.emit.recurrence_parts import Parts, find_parts
from attngen.emit.recurrence_rows import across, last, sizes, state_keys
from attngen.ir import expr as ex
from attngen.ir.expr import Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Finish, Input, Map


def recurrence_context(graph: Graph, *, version: str, regenerate: str) -> RecurrenceContext:
    """Return the finished context of a scheduled graph of a recurrence."""
    parts = find_parts(graph)
    found = faces(graph, parts)
    provenance = graph.provenance
    name = provenance.name
    k_chunks, v_chunks = _key_chunks(parts), _value_chunks(parts)
    decays, steps = parts.total is not None and not parts.has_rows, parts.step is not None
    of_tokens = _of_tokens(parts)
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
        erases=parts.solve is not None,
        has_step=steps,
        has_late=parts.late is not None,
        late=_text(parts.late.expr, {"s": "sums", "step": "step"}) if parts.late else "",
        weighs_step="PRECISE" if parts.late else "True",
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
        key_columns_lines=_columns("d", parts.k_spans),
        value_columns=_columns("e", parts.v_spans),
        query_bases=(_base("q", parts.q.operand, parts.group_of(parts.q)),),
        key_bases=(_base("k", parts.k.operand, parts.group_of(parts.k)),),
        value_bases=(_base("v", parts.v.operand, 1),),
        q_name=parts.q.operand,
        v_name=parts.v.operand,
        q_stride=f"stride_{parts.q.operand}t",
        k_stride=f"stride_{parts.k.operand}t",
        v_stride=f"stride_{parts.v.operand}t",
        token_lines=_token_lines(graph, parts),
        decay="decay" if parts.total else "",
        state_key_lines=state_keys(parts, _feature(parts.key_map, "keys", parts.k.operand, "")),
        across=across(parts, k_chunks),
        blocks=blocks(parts, _text),
        decay_of_chunk=last(parts, f"d < {parts.k.columns}"),
        decay_of_state=last(parts, "inside"),
        weight_to_end=decays * f"tl.math.exp2(last - tl.load({of_tokens} + n))",
        weight_to_tile=decays * f"tl.math.exp2(before - tl.load({of_tokens} + n))",
        state_rows=f", mask=(d < {parts.k.columns})[None, :], other=0.0"
        if parts.k.columns & (parts.k.columns - 1)
        else "",
        diagonal=_diagonal(parts),
        finish=tuple(_finish(graph, parts, v_chunks)),
        init=parts.init,
        init_place=_place(graph, parts.init, "stride_init_"),
        states_place="place" if parts.states_axes[-1] != "K" else f"e * {parts.k.columns} + d",
        totals=found.totals,
        solve=found.solve,
        states=found.states,
        scan=found.scan,
        pairs=found.pairs,
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
    )


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
                query_lines=_feature(
                    parts.query_map,
                    f"queries_{n}",
                    parts.q.operand,
                    f"(d_{n} < {parts.k.columns})[None, :]" if ragged else "",
                ),
                key_lines=_feature(
                    parts.key_map,
                    "keys",
                    parts.k.operand,
                    f"(d_{n} < {parts.k.columns})[None, :]" if ragged and parts.solve else "",
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


def _columns(letter: str, spans: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    return tuple(
        f"{letter}_{n} = {f'{start} + ' if start else ''}tl.arange(0, {width})"
        for n, (start, width) in enumerate(spans)
    )


def _base(short: str, tensor: str, group: int) -> str:
    head = "h" if group == 1 else f"h // {group}"
    return (
        f"{short}_base = {tensor} + batch.to(tl.int64) * stride_{tensor}b"
        f" + first.to(tl.int64) * stride_{tensor}t + {head} * stride_{tensor}h"
    )


def _of_tokens(parts: Parts) -> str:
    return "late_base" if parts.late else "total_base"


def _diagonal(parts: Parts) -> tuple[str, ...]:
    """Scores of the tiles that hold keys later than the query; those that groups share are 0 there, so that any finite
    number may multiply them."""
    earlier = "n[None, :] <= m[:, None]"
    apart = f"total_m[:, None] - tl.load({_of_tokens(parts)} + n)[None, :]"
    if parts.total is None or parts.has_rows:
        is_masked = parts.pairs_kernel is not None and not parts.has_rows
        return () if is_masked else (f"pairs_tile = tl.where({earlier}, pairs_tile, 0.0)",)
    safe = (
        f"tl.minimum({apart}, 126.0)"
        if parts.pairs_kernel
        else f'tl.where({earlier}, {apart}, float("-inf"))'
    )
    return (f"pairs_tile = pairs_tile * tl.math.exp2({safe})",)


def _text(expr: Expr, names: dict[str, str]) -> str:
    """An expression whose symbols are variables of these names."""
    renamed = ex.substitute(expr, {name: Symbol(text, "float") for name, text in names.items()})
    return Body(Printer({}), "scalar").text(renamed)


def _feature(node: Map | None, tile: str, tensor: str, limit: str) -> tuple[str, ...]:
    """The feature map of a tile of keys or queries; columns that fill it up stay 0 in queries."""
    if node is None:
        return ()
    value = _text(node.expr, {"s": "feature"})
    value = f"tl.where({limit}, {value}, 0.0)" if limit else value
    return (f"feature = {tile}.to(tl.float32)", f"{tile} = ({value}).to({tensor}.dtype.element_ty)")


def _token_lines(graph: Graph, parts: Parts) -> tuple[str, ...]:
    """From what a caller gives per token to the decay of each token and head, and what multiplies its value."""
    if parts.total is None:
        return ()
    lines: list[str] = []
    chain = list(_chain(graph, parts.total.element))
    source = chain[0][0]
    node = graph.nodes[source]
    if isinstance(node, Input):
        at = f"batch.to(tl.int64) * stride_{source}_0 + (first + t[:, None]).to(tl.int64) * stride_{source}_1"
        at += (
            f" + h * stride_{source}_2 + d[None, :] * stride_{source}_3"
            if parts.has_rows
            else f" + h[None, :] * stride_{source}_2"
        )
        name = "decay" if len(chain) == 1 else source + "_of"
        lines.append(f"{name} = tl.load({source} + {at}, mask=valid, other=0.0).to(tl.float32)")
        current = name
    else:
        current = ""
    for name, step in chain if not isinstance(node, Input) else chain[1:]:
        assert isinstance(step, Map)
        names = {"s": current, "h": "h[None, :]"}
        for other in step.others:
            names[other] = (
                f"tl.load({other} + h * stride_{other}_0, mask=h < num_heads, other=0.0).to(tl.float32)[None, :]"
            )
        made = f"{name} = {_text(step.expr, names)}"
        optional = [o for o in step.others if (i := graph.nodes[o]) and isinstance(i, Input) and i.optional]
        if optional:
            lines += [f"{name} = {current}", f"if HAS_{optional[0].upper()}:", f"    {made}"]
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


def _finish(graph: Graph, parts: Parts, chunks: tuple[ColumnChunk, ...]) -> Iterator[str]:
    """From what is read to out: element by element, chunk by chunk of its columns."""
    for _, node in parts.epilogue:
        if isinstance(node, Finish):
            place, last = parts.v.columns, next(c for c in chunks if c.fill)
            yield f"weights = tl.sum(tl.where({last.columns}[None, :] == {place}, acc_{last.index}, 0.0), 1)"
            yield "weights = tl.where(weights == 0.0, 0.0, 1.0 / weights)"
            yield from (f"acc_{c.index} = acc_{c.index} * weights[:, None]" for c in chunks)
            continue
        inputs = {other: i for other in node.others if isinstance(i := graph.nodes[other], Input)}
        optional = [other for other, i in inputs.items() if i.optional]
        lines: list[str] = []
        for chunk in chunks:
            names = {"s": f"acc_{chunk.index}"}
            for other, given in inputs.items():
                names[other] = f"{other}_of"
                lines.append(f"{other}_of = {_read(other, given, chunk)}")
            lines.append(f"acc_{chunk.index} = {_text(node.expr, names)}")
        if optional:
            yield f"if HAS_{optional[0].upper()}:"
        yield from (f"    {line}" if optional else line for line in lines)


def _read(name: str, given: Input, chunk: ColumnChunk) -> str:
    """An input where a tile of out lies."""
    if given.role == "tensor":
        at = (
            f"{name} + batch.to(tl.int64) * stride_{name}b + first.to(tl.int64) * stride_{name}t + h * stride_{name}h"
            f" + m.to(ROW_INDEX)[:, None] * stride_{name}t + {chunk.columns}[None, :]"
        )
        return f"tl.load({at}, mask=(m < length)[:, None]{chunk.loaded}, other=0.0).to(tl.float32)"
    limit = chunk.loaded.removeprefix(" & ")
    at = f"{name} + h * stride_{name}_0 + {chunk.columns}[None, :] * stride_{name}_1"
    return f"tl.load({at}{f', mask={limit}, other=0.0' if limit else ''}).to(tl.float32)"


def _place(graph: Graph, name: str, stride: str) -> str:
    """Where a number of a state lies in a tensor with axes B, H, and K and the columns in some order."""
    node = graph.nodes[name]
    assert isinstance(node, Input)
    letters = {"K": "d"}
    return " + ".join(f"{letters.get(a, 'e')} * {stride}{n}" for n, a in enumerate(node.axes) if n > 1)
