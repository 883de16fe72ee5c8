"""From a scheduled graph to what a template needs: one frozen record of finished strings and flags."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from attngen.emit.interface import Interface, interface
from attngen.emit.printer import Body, Captured, Printer
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Config,
    Contract,
    Finish,
    Fold,
    Input,
    Launch,
    Lift,
    Load,
    Map,
    Merge,
    Slice,
    Store,
)
from attngen.ir.tile_ranges import Range, Ranges, tile_ranges


@dataclass(frozen=True, slots=True)
class Chunk:
    """A power-of-two slice of the head dimension: a tile is loaded, multiplied and stored chunk by chunk."""

    index: int
    start: int
    width: int
    columns: str  # name of the vector of column indices
    mask: str  # what a pointer load of this chunk adds after the pointer
    stored: str  # mask of a whole row of queries
    plus: str  # the accumulator argument of the product: nothing for the first chunk
    value: str  # name of the V tile


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop over key tiles: how tiles are counted and found, and what is computed between the two products."""

    comment: str
    before: tuple[str, ...]
    counter: str
    begin: str
    end: str
    find_tile: tuple[str, ...]
    masked: bool
    scores: tuple[str, ...]
    k_chunks: tuple[Chunk, ...]
    v_chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The block-table kernel: its prologue and loops, its row for a program of the main kernel, and its extent."""

    prologue: tuple[str, ...]
    full: tuple[Loop, ...]
    partial: tuple[Loop, ...]
    row: str
    heads: str
    batch: str


@dataclass(frozen=True, slots=True)
class Context:
    """Everything `attention.py.jinja` prints."""

    name: str
    version: str
    regenerate: str
    title: str
    description: str
    digest: str
    spec_json: str
    manifest_json: str
    interface: Interface
    group: int
    qk_dim: int
    v_dim: int
    dtypes: str
    mask_text: str
    batch_word: str
    is_packed: bool
    prologue: tuple[str, ...]
    columns: tuple[str, ...]
    bases: tuple[str, ...]
    out_bases: tuple[str, ...]
    descriptors: tuple[str, ...]
    offsets: tuple[str, ...]
    k_chunks: tuple[Chunk, ...]
    v_chunks: tuple[Chunk, ...]
    loops: tuple[Loop, ...]
    factor: str
    precision: str
    loads_v: bool
    has_sink: bool
    has_table: bool
    table: Table
    has_search: bool
    has_floordiv: bool
    has_tanh: bool


@dataclass(frozen=True, slots=True)
class _Parts:
    """The nodes of a forward kernel, found by walking from its launch to its loads."""

    launch: Launch
    fold: Fold
    score: Map | None
    contract: Contract
    q: Load
    k: Load
    v: Load
    v_in_k: bool
    sink: Lift | None


def _parts(graph: Graph) -> _Parts:
    _, launch = graph.only(Launch)
    stores = [graph.nodes[s] for s in launch.stores]
    finishes = [graph.nodes[s.operand] for s in stores if isinstance(s, Store)]
    results = {f.operand for f in finishes if isinstance(f, Finish)}
    if len(results) != 1:
        raise InternalError(f"a forward kernel stores results of one fold, found {sorted(results)}")
    node = graph.nodes[results.pop()]
    sink = None
    if isinstance(node, Merge):
        sink = graph.nodes[node.right]
        node = graph.nodes[node.left]
    assert isinstance(node, Fold)
    element = graph.nodes[node.element]
    score = element if isinstance(element, Map) else None
    contract = graph.nodes[score.operand] if score else element
    assert isinstance(contract, Contract)
    loads = [graph.nodes[n] for n in (contract.left, contract.right, node.value)]
    q, k, v = (load for load in loads if isinstance(load, Load))
    assert sink is None or isinstance(sink, Lift)
    return _Parts(launch, node, score, contract, q, k, v, isinstance(graph.nodes[v.operand], Slice), sink)


def context(graph: Graph, *, version: str, regenerate: str) -> Context:
    """Return the finished context of a scheduled graph."""
    parts = _parts(graph)
    face = interface(graph)
    printer = Printer(_captured(graph))
    table = _table(parts, face, printer) if parts.fold.domain.table else Table((), (), (), "", "", "")
    loops = _table_loops(parts, printer) if parts.fold.domain.table else _loops(parts, printer)
    provenance = graph.provenance
    return Context(
        name=provenance.name,
        version=version,
        regenerate=regenerate,
        title=f"{provenance.name}: {provenance.summary}" if provenance.summary else provenance.name,
        description=_description(graph, parts),
        digest=graph.digest(),
        spec_json=json.dumps(json.loads(provenance.spec), indent=2, sort_keys=True, ensure_ascii=True),
        manifest_json=json.dumps(_manifest(graph, parts, face), indent=2, ensure_ascii=True),
        interface=face,
        group=graph.axis("Hkv").group,
        qk_dim=parts.k.columns,
        v_dim=parts.v.columns,
        dtypes=", ".join(json.loads(provenance.spec)["dtype"]),
        mask_text=ex.text(parts.fold.domain.mask),
        batch_word="sequence" if parts.launch.rows == "packed" else "batch entry",
        is_packed=parts.launch.rows == "packed",
        prologue=_with_positions(printer.prologue, loops),
        columns=_columns(parts),
        bases=_bases(parts)[:-2],
        out_bases=_bases(parts)[-2:],
        descriptors=_descriptors(parts),
        offsets=_offsets(parts),
        k_chunks=_chunks(parts.k, "d", ""),
        v_chunks=_chunks(parts.v, "e", ""),
        loops=loops,
        factor="" if parts.fold.factor is None else " * factor",
        precision=parts.contract.precision,
        loads_v=not parts.v_in_k,
        has_sink=parts.sink is not None,
        has_table=parts.fold.domain.table,
        table=table,
        has_search="search" in printer.helpers,
        has_floordiv="floordiv" in printer.helpers,
        has_tanh="tanh" in printer.helpers,
    )


def _captured(graph: Graph) -> dict[str, Captured]:
    found: dict[str, Captured] = {}
    for name, node in graph.all(Input):
        if node.role == "captured":
            strides = tuple(f"stride_{name}_{p}" for p in range(len(node.axes)))
            found[name] = Captured(name, strides, tuple(graph.axis(a) for a in node.axes), node.dtype)
    return found


# ---- the two loops


def _loops(parts: _Parts, printer: Printer) -> tuple[Loop, ...]:
    plan = _planned(parts, printer)
    _factor(parts, printer)
    loops: list[Loop] = []
    if plan.full:
        loops.append(_loop("full", plan.full, _full_scores(parts, printer), parts, printer))
    if plan.partial:
        loops.append(_loop("partial", plan.partial, _partial_scores(parts, printer), parts, printer))
    return tuple(loops)


def _factor(parts: _Parts, printer: Printer) -> None:
    if parts.fold.factor is not None:
        printer.assign("factor", parts.fold.factor)


def _planned(parts: _Parts, printer: Printer) -> Ranges:
    """Print what the ranges of tiles are made of, and return them."""
    assert parts.fold.tiles is not None
    plan = tile_ranges(parts.fold.tiles)
    used = {name for _, e in plan.bindings for name in ex.symbols(e)}
    used |= {name for r in (*plan.full, *plan.partial) for name in ex.symbols(r.lo) | ex.symbols(r.hi)}
    if "i_lo" in used:
        printer.prologue.append("i_lo = tile_m * BLOCK_M + shift")
    if "i_hi" in used:
        printer.prologue.append("i_hi = tl.minimum(tile_m * BLOCK_M + BLOCK_M, seqlen_q) - 1 + shift")
    for name, bound in plan.bindings:
        printer.assign(name, bound)
    return plan


def _table(parts: _Parts, face: Interface, main: Printer) -> Table:
    """The kernel that looks at the elements of undecided tiles, once per (b, h) that the mask depends on."""
    printer = Printer(main.captured, helpers=main.helpers)
    plan = _planned(parts, printer)
    full = (_loop("full", plan.full, (), parts, printer),) if plan.full else ()
    partial = (
        (_loop("partial", plan.partial, _mask_lines(parts, printer)[0], parts, printer),)
        if plan.partial
        else ()
    )
    names = ex.symbols(parts.fold.domain.mask)
    by_head, by_batch = bool(names & {"h", "hk"}), "b" in names or parts.launch.rows == "packed"
    rows = {(True, True): "program", (True, False): "b * num_tiles_m + tile_m"}
    rows |= {(False, True): "h * num_tiles_m + tile_m", (False, False): "tile_m"}
    return Table(
        _with_positions(printer.prologue, (*full, *partial)),
        full,
        partial,
        rows[by_batch, by_head],
        face.launch_heads if by_head else "1",
        face.launch_batch if by_batch else "1",
    )


def _table_loops(parts: _Parts, printer: Printer) -> tuple[Loop, ...]:
    """Loops over listed tiles: full ones from the front of a row of the table, partial ones from its back."""
    _factor(parts, printer)
    loops: list[Loop] = []
    for kind, scores, count, place in (
        ("full", _full_scores(parts, printer), "table_row", "table_row + 2 + step"),
        ("partial", _partial_scores(parts, printer), "table_row + 1", "table_row + stride_table - 1 - step"),
    ):
        find = (f"tile_n = tl.load({place})",)
        loops.append(_walk(kind, (), "step", "0", f"tl.load({count})", find, scores, parts))
    return tuple(loops)


def _loop(
    kind: str, found: tuple[Range, ...], scores: tuple[str, ...], parts: _Parts, printer: Printer
) -> Loop:
    bounds = [
        (_named(printer, f"{kind}_lo_{n}", r.lo), _named(printer, f"{kind}_hi_{n}", r.hi))
        for n, r in enumerate(found)
    ]
    if len(bounds) == 1:
        return _walk(kind, (), "tile_n", *bounds[0], (), scores, parts)
    before = [f"{kind}_end_0 = tl.maximum({bounds[0][1]} - {bounds[0][0]}, 0)"]
    find = [f"tile_n = {bounds[0][0]} + step"]
    for n, (begin, end) in list(enumerate(bounds))[1:]:
        before.append(f"{kind}_end_{n} = {kind}_end_{n - 1} + tl.maximum({end} - {begin}, 0)")
        find.append(
            f"tile_n = tl.where(step < {kind}_end_{n - 1}, tile_n, {begin} + step - {kind}_end_{n - 1})"
        )
    last = f"{kind}_end_{len(bounds) - 1}"
    return _walk(kind, tuple(before), "step", "0", last, tuple(find), scores, parts)


def _walk(
    kind: str,
    before: tuple[str, ...],
    counter: str,
    begin: str,
    end: str,
    find: tuple[str, ...],
    scores: tuple[str, ...],
    parts: _Parts,
) -> Loop:
    masked = kind == "partial"
    comment = (
        "tiles that the mask cuts, or that reach past the last key"
        if masked
        else "full tiles: no mask arithmetic"
    )
    valid = "key_valid" if masked else ""
    values = _chunks(parts.v, "e", valid, "k" if parts.v_in_k else "v")
    return Loop(
        comment, before, counter, begin, end, find, masked, scores, _chunks(parts.k, "d", valid), values
    )


def _named(printer: Printer, name: str, bound: Expr) -> str:
    if isinstance(bound, Const):
        return repr(bound.value)
    if isinstance(bound, Symbol):
        return bound.name
    printer.assign(name, bound)
    return name


def _full_scores(parts: _Parts, printer: Printer) -> tuple[str, ...]:
    if parts.score is None:
        return ()
    body = Body(printer, "tile", guard="full", ragged=False)
    value = body.text(parts.score.expr)
    return (*_needs_j(body, value), *body.lines, f"qk = {value}")


def _mask_lines(parts: _Parts, printer: Printer) -> tuple[tuple[str, ...], Body]:
    lines, masks = _mask_body(parts, printer)
    return (*(["j = start_n + rows_n"] if _mentions_j(lines) else []), *lines), masks


def _mask_body(parts: _Parts, printer: Printer) -> tuple[list[str], Body]:
    """Statements that leave `allowed`, the mask of a partial tile, and the body that named its parts."""
    tiles = parts.fold.tiles
    assert tiles is not None
    tests = _row_limits(tiles.row.lo, tiles.row.hi, printer)
    masks = Body(printer, "tile")
    if tiles.residual != ex.TRUE:
        tests.append(f"({masks.text(tiles.residual)})")
    return [*masks.lines, f"allowed = {' & '.join(tests)}"], masks


def _partial_scores(parts: _Parts, printer: Printer) -> tuple[str, ...]:
    """Mask first (it guards what the score reads), then the score, then -inf where nothing is allowed."""
    lines, masks = _mask_body(parts, printer)
    if parts.score is not None:
        body = Body(printer, "tile", guard="allowed", named=masks.named)
        value = body.text(parts.score.expr)
        lines += [*body.lines, f"qk = {value}"]
    lines.append('qk = tl.where(allowed, qk, float("-inf"))')
    return (*(["j = start_n + rows_n"] if _mentions_j(lines) else []), *lines)


def _needs_j(body: Body, value: str) -> list[str]:
    return ["j = start_n + rows_n"] if _mentions_j([*body.lines, value]) else []


def _words(lines: Iterable[str]) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in " ".join(lines)).split())


def _mentions_j(lines: list[str]) -> bool:
    return "j" in _words(lines)


def _with_positions(prologue: list[str], loops: tuple[Loop, ...]) -> tuple[str, ...]:
    """Put the rows' positions on the key axis in front, where anything uses them."""
    used = _words([*prologue, *(line for loop in loops for line in loop.scores)])
    lines = ["shift = seqlen_k - seqlen_q"] if used & {"i", "shift"} else []
    return (*lines, *(["i = row + shift"] if "i" in used else []), *prologue)


def _row_limits(lo: Expr, hi: Expr, printer: Printer) -> list[str]:
    """Bounds of each row's keys, hoisted: a compare per element remains."""
    tests: list[str] = []
    for name, bound, sign in (("key_end", hi, "<"), ("key_begin", lo, ">=")):
        if bound == Const(0):
            continue
        limit = printer.assign(name, bound)
        column = "[:, None]" if limit.endswith("[:, None]") else ""
        tests.append(f"(rows_n[None, :] {sign} ({name} - start_n){column})")
    return tests


# ---- tiles of the head dimension


def _chunks(load: Load, vector: str, valid: str, value: str = "v") -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    for index, (start, width) in enumerate(load.chunks):
        inside = "" if start + width <= load.columns else f"({vector}_{index} < {load.columns})[None, :]"
        masks = [m for m in (valid, inside) if m]
        rows = [m for m in ("row_valid[:, None]", inside) if m]
        chunks.append(
            Chunk(
                index=index,
                start=start,
                width=width,
                columns=f"{vector}_{index}",
                mask=f", mask={' & '.join(masks)}, other=0.0" if masks else "",
                stored=" & ".join(rows),
                plus=", qk" if index else "",
                value=f"{value}_{index}",
            )
        )
    return tuple(chunks)


def _columns(parts: _Parts) -> tuple[str, ...]:
    rows = [("d", parts.k), ("e", parts.v)]
    return tuple(
        f"{vector}_{n} = tl.arange({start}, {start + width})"
        for vector, load in rows
        for n, (start, width) in enumerate(load.chunks)
    )


def _bases(parts: _Parts) -> tuple[str, ...]:
    """Where the rows, keys and values of a program's head begin."""
    packed = parts.launch.rows == "packed"
    tensors = [("q", "q", "h"), ("k", "k", "hk"), ("v", "v", "hk"), ("out", "o", "h")]
    lines: list[str] = []
    for name, short, head in tensors:
        if name == "v" and parts.v_in_k:
            continue
        start = "q_start" if head == "h" else "k_start"
        terms = [
            f"tl.cast({start}, tl.int64) * stride_{short}s"
            if packed
            else f"tl.cast(b, tl.int64) * stride_{short}b"
        ]
        terms.append(f"tl.cast({head}, tl.int64) * stride_{short}h")
        lines.append(f"{name}_base = {name} + {' + '.join(terms)}")
    where = "q_start" if packed else "tl.cast(b, tl.int64) * stride_lb"
    lines.append(f"lse_base = lse + {where} + tl.cast(h, tl.int64) * stride_lh")
    return tuple(lines)


def _tile_loads(parts: _Parts) -> list[tuple[str, str, Load]]:
    return [("k", "d", parts.k)] + ([] if parts.v_in_k else [("v", "e", parts.v)])


def _descriptors(parts: _Parts) -> tuple[str, ...]:
    return tuple(
        f"{name}_descriptor_{n} = tl.make_tensor_descriptor("
        f"{name}_base, [seqlen_k, {load.columns}], [stride_{name}s, 1], [BLOCK_N, {width}])"
        for name, _, load in _tile_loads(parts)
        for n, (_, width) in enumerate(load.chunks)
    )


def _offsets(parts: _Parts) -> tuple[str, ...]:
    return tuple(
        f"{name}_offsets_{n} = rows_n[:, None] * stride_{name}s + {vector}_{n}[None, :]"
        for name, vector, load in _tile_loads(parts)
        for n in range(len(load.chunks))
    )


# ---- what the module says of itself


def _description(graph: Graph, parts: _Parts) -> str:
    tiles = parts.fold.tiles
    assert tiles is not None
    lines = [
        f"Softmax attention over keys j with: {ex.text(parts.fold.domain.mask)}.",
        "A tile of queries at positions i_lo..i_hi meets keys in "
        + " and ".join(str(i) for i in tiles.may)
        + (f"; all are allowed in {' and '.join(str(i) for i in tiles.must)}." if tiles.must else "."),
    ]
    return "\n".join(lines)


def _manifest(graph: Graph, parts: _Parts, face: Interface) -> dict[str, object]:
    tiles = parts.fold.tiles
    assert tiles is not None
    spec = json.loads(graph.provenance.spec)
    return {
        "mechanism": "packed" if parts.launch.rows == "packed" else "dense",
        "compiled_in": _compiled_in(graph, spec),
        "run_time": [
            n for n, kind in face.kernel_types if not kind.startswith("*") and not n.startswith("stride")
        ],
        "mask": {
            "may": [str(i) for i in tiles.may],
            "must": [str(i) for i in tiles.must],
            "residual": ex.text(tiles.residual),
            "exact": tiles.exact,
            "notes": list(tiles.notes),
        },
        "configs": {target: [_config(c) for c in choices] for target, choices in parts.launch.configs},
        "kernels": _kernels(parts, face),
    }


def _kernels(parts: _Parts, face: Interface) -> dict[str, object]:
    """Per kernel: argument types ("*io" points to the tensors' dtype) and compile-time constants, in order."""
    kernels: dict[str, object] = {
        "_attention_forward": {"arguments": dict(face.kernel_types), "constants": list(face.kernel_constants)}
    }
    if parts.fold.domain.table:
        kernels["_mask_table"] = {
            "arguments": dict(face.table_types),
            "constants": list(face.table_constants),
        }
    return kernels


def _compiled_in(graph: Graph, spec: dict[str, object]) -> dict[str, object]:
    heads = graph.axis("Hkv").group
    keys = ("layout", "head_dim", "mask", "score", "sinks", "precision")
    return {"group": heads} | {key: spec[key] for key in keys if key in spec}


def _config(config: Config) -> dict[str, object]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "USE_DESCRIPTORS": config.use_descriptors,
    }
