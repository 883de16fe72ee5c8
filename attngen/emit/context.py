"""From a scheduled graph to the finished context of a module."""

from __future__ import annotations

import json

from attngen.emit.addresses import bases, chunks, columns, descriptors, offsets, row_places
from attngen.emit.adjoint import find_adjoint
from attngen.emit.backward import backward
from attngen.emit.captured import with_captured
from attngen.emit.cascade import position_lines
from attngen.emit.format import json_text
from attngen.emit.interface import interface
from attngen.emit.loops import range_loops, table_kernel, table_loops, with_positions, words
from attngen.emit.manifest import description, manifest, mask_text
from attngen.emit.paged import LARGEST, scale_lines, sequence_lines, stored_dtype, value_scale
from attngen.emit.parts import SMALLEST_TILE, Parts, find_parts
from attngen.emit.printer import Captured, Printer
from attngen.emit.records import Context, Table
from attngen.emit.split import merged, partial_doc
from attngen.ir.graph import Graph
from attngen.ir.nodes import Input


def context(graph: Graph, *, version: str, regenerate: str) -> Context:
    """Return the finished context of a scheduled graph."""
    parts = find_parts(graph)
    adjoint = find_adjoint(graph, parts) if "dq" in graph.nodes else None
    face = interface(graph)
    printer = Printer(_captured(graph))
    if parts.heads_in_rows:
        printer.row_symbols |= {"h"}
        printer.row_block = "BLOCK_Q"
    printer.shares_prefix = parts.shares_prefix
    listed = parts.fold.domain.table
    table = table_kernel(parts, face, printer) if listed else Table((), (), (), "", "", "")
    loops, hull = table_loops(parts, printer) if listed else range_loops(parts, printer)
    provenance = graph.provenance
    reverse = None
    if adjoint and face.backward:
        found = printer.captured, printer.helpers
        reverse = backward(graph, adjoint, parts, *found)
        reverse = with_captured(reverse, graph, adjoint, parts, face.backward, *found)
    return Context(
        name=provenance.name,
        version=version,
        regenerate=regenerate,
        title=f"{provenance.name}: {provenance.summary}" if provenance.summary else provenance.name,
        description=description(graph, parts),
        digest=graph.digest(),
        spec_json=json_text(json.loads(provenance.spec)),
        manifest_json=json_text(manifest(graph, parts, face, loops, (*table.full, *table.partial), reverse)),
        interface=face,
        group=graph.axis("Hkv").group,
        qk_dim=parts.k.columns,
        v_dim=parts.v.columns,
        dtypes=", ".join(_dtypes(graph, parts)),
        mask_text=mask_text(parts),
        batch_word="sequence" if parts.packed else "batch entry",
        is_packed=parts.packed,
        is_paged=parts.pages is not None,
        heads_in_rows=parts.heads_in_rows,
        head_tiles=parts.group > SMALLEST_TILE,
        sequence=() if parts.pages is None else (*sequence_lines(parts.pages), *scale_lines(parts)),
        value_scale=value_scale(parts),
        largest=LARGEST.get(stored_dtype(graph), ""),
        needs_sm_89=stored_dtype(graph) == "float8_e4m3fn",
        rounds=stored_dtype(graph) in ("int8", "int4"),
        packs=parts.k.halves,
        cache_qk_dim=parts.k.columns // (2 if parts.k.halves else 1),
        cache_v_dim=parts.v.columns // (2 if parts.k.halves else 1),
        per_key_scales=parts.scales == "token_head",
        scale_of_all="scale + h" if parts.scales == "head" else "scale",
        q_rows=row_places(parts, "q"),
        out_rows=row_places(parts, "o"),
        has_splits=parts.splits is not None,
        has_prefix=parts.shares_prefix,
        part="(first_part + split)" if parts.shares_prefix else "split",
        partial_doc=partial_doc(parts.splits, parts.v.columns),
        counting=merged(parts.splits, prefix=parts.shares_prefix)[0],
        pieces=merged(parts.splits, prefix=parts.shares_prefix)[1],
        combine_columns=tuple(line for line in columns(parts) if line.startswith("e_")),
        combine_warps=parts.combine.configs[0][1][0].num_warps if parts.combine else 0,
        combine_rows="row_offsets * stride_os + head_offsets * stride_oh",
        partial_chunks=chunks(parts.v, "e", "", owner="filled"),
        lse_rows="row + h * stride_lh" if parts.heads_in_rows else "row",
        prologue=_prologue(parts, printer, [line for loop in loops for line in loop.scores]),
        columns=columns(parts),
        bases=bases(parts)[:-2],
        out_bases=bases(parts)[-2:],
        descriptors=descriptors(parts, hull),
        offsets=offsets(parts),
        mixes_addresses=any(loop.by_pointer for loop in loops),
        k_chunks=chunks(parts.k, "d", ""),
        v_chunks=chunks(parts.v, "e", ""),
        loops=loops,
        factor="" if parts.fold.factor is None else " * factor",
        qk_precision=parts.contract.precision,
        pv_precision=parts.fold.precision,
        loads_v=not parts.v_in_k,
        sink=parts.sink.operand if parts.sink else "",
        has_dropout=parts.has_dropout,
        has_table=listed,
        table=table,
        has_search="search" in printer.helpers,
        has_floordiv="floordiv" in printer.helpers,
        has_tanh="tanh" in printer.helpers,
        has_backward=reverse is not None,
        backward=reverse,
    )


def _prologue(parts: Parts, printer: Printer, statements: list[str]) -> tuple[str, ...]:
    """What a program names before its loops, positions first."""
    if not parts.shares_prefix:
        return with_positions(printer.prologue, statements)
    used = words([*printer.prologue, *statements])
    return (*position_lines(printer.row_block, with_start="prefix_start" in used), *printer.prologue)


def _dtypes(graph: Graph, parts: Parts) -> tuple[str, ...]:
    q = graph.nodes[parts.q.operand]
    assert isinstance(q, Input)
    return q.dtypes


def _captured(graph: Graph) -> dict[str, Captured]:
    found: dict[str, Captured] = {}
    for name, node in graph.all(Input):
        if node.role == "captured":
            strides = tuple(f"stride_{name}_{p}" for p in range(len(node.axes)))
            axes = tuple(graph.axis(a) for a in node.axes)
            found[name] = Captured(name, strides, axes, node.dtype == "int64")
            if node.grad:
                strides = tuple(f"stride_d{name}_{p}" for p in range(len(node.axes)))
                found[f"d{name}"] = Captured(f"d{name}", strides, axes)
    return found
