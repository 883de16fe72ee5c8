"""The backward kernels of a scheduled graph, as finished records: rows, dq, dk and dv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

from attngen.emit.addresses import Hull, chunks, columns, descriptors
from attngen.emit.adjoint import ONE, Adjoint, S
from attngen.emit.loops import (
    conjuncts,
    hull_of,
    mask_body,
    named,
    tile_positions,
    walked_positions,
    whole_tile,
    with_positions,
    words,
)
from attngen.emit.parts import Parts, launch_of
from attngen.emit.printer import Body, Captured, Printer, place_of
from attngen.emit.records import Backward, BackwardKernel, BackwardLoop, Chunk, RowSum
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Input, Load
from attngen.ir.proofs import at_most, tile_facts
from attngen.ir.tile_ranges import LARGEST_BLOCK, SMALLEST_BLOCKS, Range, Ranges, ranges_along
from attngen.ir.tiles import Interval

J = Symbol("j")


def backward(
    graph: Graph, adjoint: Adjoint, parts: Parts, captured: Mapping[str, Captured], helpers: set[str]
) -> Backward:
    """Return everything that the backward part of a module prints."""
    by_rows = Printer(captured, helpers=helpers)
    by_keys = Printer(captured, helpers=helpers, walks="rows")
    per_head = adjoint.per_head
    gradients = _gradients(graph, parts.packed)
    cut = _cut(graph, parts, "dk_heads" if per_head else "dk")
    dq, dkdv = _kernel(graph, "dq", adjoint, parts, by_rows), _kernel(graph, "dk", adjoint, cut, by_keys)
    own, sums = ("k",) if parts.v_in_k else ("k", "v"), ("dk",) if parts.v_in_k else ("dk", "dv")
    beside = bool(adjoint.sums or adjoint.added or adjoint.sinks)
    return Backward(
        dq=dq,
        dkdv=dkdv,
        row_bases=bases(parts, ("out", "dout")),
        dq_bases=bases(parts, ("q", *own, "dout", "dq"), per_row=bool(adjoint.sums or adjoint.sinks)),
        dkdv_bases=bases(parts, ("q", *own, "dout", *sums), "hk" if not per_head else "h"),
        dkdv_columns=columns(cut),
        v_columns=tuple(line for line in columns(parts) if line.startswith("e_")),
        own_k_chunks=_flagged(cut, chunks(cut.k, "d", "", owner="key_valid")),
        own_v_chunks=_flagged(cut, chunks(cut.v, "e", "", _values(parts), owner="key_valid")),
        v_in_k=parts.v_in_k,
        scale=ex.text(adjoint.dq.factor) if adjoint.dq.factor is not None else "1.0",
        has_slope=adjoint.slope is not None,
        keeps_ds=beside,
        slope_later=adjoint.slope is not None and beside,
        captured=(),
        places=(),
        dp_precision=adjoint.dp.precision,
        dq_precision=adjoint.dq.precision,
        dk_precision=adjoint.dk.precision,
        dv_precision=adjoint.dv.precision,
        padding=LARGEST_BLOCK,
        has_dropout=parts.has_dropout,
        dv_weight="weight" if parts.has_dropout else "p",
        sums=tuple(RowSum(name, factor and f" * {factor}") for name, factor in _sum_factors(adjoint)),
        has_p_dp=bool(adjoint.sums or adjoint.sinks),
        sinks=parts.sink.operand if parts.sink and adjoint.sinks else "",
        sinks_rows=adjoint.sinks,
        per_head=per_head,
        walk_group="" if per_head or graph.axis("Hkv").group == 1 else str(graph.axis("Hkv").group),
        reduces=any("_reduced(" in value for value in gradients),
        by_sequence=any("_by_sequence(" in value for value in gradients),
        results=", ".join(gradients),
    )


def _cut(graph: Graph, parts: Parts, result: str) -> Parts:
    """The parts as a kernel loads them: chunks that are too wide for one accumulator are cut."""
    _, launch = launch_of(graph, result)

    def narrowed(load: Load) -> Load:
        pieces = [
            (place, min(width, launch.widest))
            for start, width in load.chunks
            for place in range(start, start + width, launch.widest)
        ]
        return replace(load, chunks=tuple(pieces))

    return replace(parts, k=narrowed(parts.k), v=narrowed(parts.v))


def _flagged(parts: Parts, found: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
    """Chunks of dk with the flag of the launch that adds them up: about half of the columns each."""
    middle = parts.k.columns // 2
    lows = [n for n, (start, width) in enumerate(parts.k.chunks) if n == 0 or start + width <= middle]
    return tuple(replace(x, want="WANT_LOW" if x.index in lows else "WANT_HIGH") for x in found)


def _sum_factors(adjoint: Adjoint) -> list[tuple[str, str]]:
    return [(name, "" if factor == ONE else f"factor_{name}") for name, factor in adjoint.sums]


def _gradients(graph: Graph, packed: bool) -> list[str]:
    """Per differentiable input, in the order of the graph: the launcher's expression for its gradient."""
    found: list[str] = []
    for name, node in graph.all(Input):
        if not node.grad:
            continue
        fold = graph.nodes[f"d{name}"]
        if not isinstance(fold, Fold) or not fold.into:
            found.append(f"d{name}")
            continue
        if _in_place(fold):
            found.append(f"d{name}.to({name}.dtype)")
            continue
        places = [index.name for index in fold.at if isinstance(index, ex.Symbol)]
        rows, axes = fold.element, ["h", "row"] if packed else ["b", "h", "row"]
        if packed and "b" in places:
            rows, axes = f"_by_sequence({rows}, cu_seqlens_q)", ["b", "h"]
        summed = [n for n, axis in enumerate(axes) if axis not in places]
        kept = [axis for axis in axes if axis in places]
        found.append(f"_reduced({rows}, {summed}, {[kept.index(place) for place in places]}, {name})")
    return found


def _in_place(fold: Fold) -> bool:
    """Whether kernels leave the gradient as it is returned; else the launcher adds up what they store per row."""
    return fold.carrier != "buffer" or fold.axis == "Sd"


def _kernel(graph: Graph, result: str, adjoint: Adjoint, parts: Parts, printer: Printer) -> BackwardKernel:
    """The statements of a kernel whose programs own rows (dq) or keys (dk and dv)."""
    fold = adjoint.dq if result == "dq" else adjoint.dk
    assert fold.tiles is not None
    plan = ranges_along(fold.axis, fold.tiles, SMALLEST_BLOCKS)
    used = {n for _, e in plan.bindings for n in ex.symbols(e)}
    used |= {n for r in (*plan.full, *plan.partial) for n in ex.symbols(r.lo) | ex.symbols(r.hi)}
    tile_positions(printer, used)
    for name, bound in plan.bindings:
        printer.assign(name, bound)
    hull = hull_of(fold.tiles, printer)
    if is_plain(adjoint.weight):
        printer.assign("factor", plain_factor(adjoint.weight))
    _, launch = launch_of(graph, result + ("_heads" if result == "dk" and adjoint.per_head else ""))
    loops: list[BackwardLoop] = []
    merged: tuple[BackwardLoop, ...] = ()
    if any(config.merged for _, choices in launch.configs for config in choices):
        merged = (_merged(plan, fold, adjoint, parts, printer, hull),)
    if plan.full:
        loops.append(_separate("full", plan.full, fold, adjoint, parts, printer, hull))
    if plan.partial:
        loops.append(_separate("partial", plan.partial, fold, adjoint, parts, printer, hull))
    seen = _seen(fold, printer) if result == "dk" else ()
    lines = [
        *(
            x
            for loop in (*merged, *loops)
            for x in (*loop.before_loads, *loop.formula, *loop.added, *loop.mask)
        ),
        *seen,
    ]
    prologue = printer.prologue
    found = descriptors(parts, hull) if result == "dq" else _row_descriptors(parts, adjoint, hull)
    if all(loop.by_pointer for loop in (*merged, *loops)):  # their tests name the hull, if anything does
        found = ()
        tested = words(loop.valid for loop in (*merged, *loops))
        prologue = [x for x in prologue if not x.startswith("hull_") or x.split(" ")[0] in tested]
    return BackwardKernel(
        prologue=with_positions(prologue, lines, walks=printer.walks),
        descriptors=found,
        offsets=() if result == "dq" else _row_offsets(parts),
        seen=seen,
        merged=merged,
        loops=tuple(loops),
        weight="qk * factor" if is_plain(adjoint.weight) else "qk",
    )


def is_plain(weight: Expr) -> bool:
    """Whether a weight is the raw score times a positive factor: its product meets lse in one multiply-add, after the mask."""
    return (
        isinstance(weight, Apply)
        and weight.op == "mul"
        and weight.args[0] == S
        and _is_positive(weight.args[1])
    )


def _is_positive(factor: Expr) -> bool:
    """Whether a factor is known to be positive: the mask's -inf must stay one (launchers refuse other scales)."""
    match factor:
        case Const(value):
            return value > 0
        case Apply("mul", args):
            return all(_is_positive(a) for a in args)
        case _:
            return factor == Symbol("softmax_scale", "float")


def plain_factor(weight: Expr) -> Expr:
    assert isinstance(weight, Apply)
    return weight.args[1]


def formula_lines(adjoint: Adjoint, printer: Printer, body: Body) -> list[str]:
    """Statements that need the raw score, which the last of them replaces: slope, factors of sums, the exponent."""
    lines: list[str] = []
    if adjoint.slope is not None:
        lines.append(f"slope = {whole_tile(body, adjoint.slope)}")
    if printer.walks == "keys":
        factors = [(name, factor) for name, factor, *_ in (*adjoint.sums, *adjoint.added)]
        for name, factor in factors:
            lines += [f"factor_{name} = {whole_tile(body, factor)}"] if factor != ONE else []
    if not is_plain(adjoint.weight):
        lines.append(f"qk = {whole_tile(body, adjoint.weight)}")
    return [*body.lines, *lines]


def _additions(adjoint: Adjoint, printer: Printer, body: Body) -> tuple[str, ...]:
    """Add ds where a captured tensor was read, in any order: what shares a place within the tile is added up first."""
    found: list[str] = []
    for name, factor, element in adjoint.added if printer.walks == "keys" else ():
        place = place_of(element)
        own = body if place == "tile" else Body(printer, place, "", body.ragged)
        pointer, mask = own.address(element)
        value = "ds" if factor == ONE else f"ds * factor_{name}"
        value = {"tile": value, "rows": f"tl.sum({value}, 1)", "keys": f"tl.sum({value}, 0)"}.get(
            place, f"tl.sum({value})"
        )
        guard = f", mask={mask}" if mask else ""
        found += [*(own.lines if own is not body else ()), f"tl.atomic_add({pointer}, {value}{guard})"]
    return tuple(found)


def hidden_lines(adjoint: Adjoint, printer: Printer) -> list[str]:
    """Statements that take out what the mask forbids. A weight of 0 does, unless what it meets is infinite."""
    lines = ['qk = tl.where(allowed, qk, float("-inf"))']
    return lines + [f"{name} = tl.where(allowed, {name}, 0.0)" for name in _unbounded(adjoint, printer)]


def _unbounded(adjoint: Adjoint, printer: Printer) -> list[str]:
    """The slope and the factors of sums, by name, that may be infinite for a finite score."""
    named = [("slope", adjoint.slope)] if adjoint.slope is not None else []
    if printer.walks == "keys":
        factors = [(name, factor) for name, factor, *_ in (*adjoint.sums, *adjoint.added)]
        named += [(f"factor_{name}", factor) for name, factor in factors if factor != ONE]
    return [name for name, formula in named if any(_may_be_infinite(e) for e in ex.walk(formula))]


def _may_be_infinite(expr: Expr) -> bool:
    match expr:
        case Apply("div", (_, divisor)):
            return not isinstance(divisor, Const)
        case Apply("exp" | "exp2" | "log" | "log2"):
            return True
        case _:
            return False


def _separate(
    kind: str,
    found: tuple[Range, ...],
    fold: Fold,
    adjoint: Adjoint,
    parts: Parts,
    printer: Printer,
    hull: Hull,
) -> BackwardLoop:
    assert fold.tiles is not None
    masked = kind == "partial"
    mask: list[str] = []
    body = Body(printer, "tile", guard="full", ragged=False)
    if masked:
        moved = printer.walks == "keys"  # a tile of dk has more keys than rows
        mask, masks = mask_body(
            fold.tiles, printer, ends=_needs_ends(adjoint, fold, printer, hull), moved=moved
        )
        body = Body(printer, "tile", guard="allowed", named=masks.named)
    formula = [*mask, *formula_lines(adjoint, printer, body)]
    known = len(body.lines)
    added = _additions(adjoint, printer, body)
    formula += [*body.lines[known:], *(hidden_lines(adjoint, printer) if mask else [])]
    comment = (
        "tiles that the mask cuts, or that reach past the end" if masked else "full tiles: no mask arithmetic"
    )
    formula = [*walked_positions([*formula, *added], printer), *formula]
    return _loop(kind, comment, found, tuple(formula), added, (), "", parts, printer, hull)


def _needs_ends(adjoint: Adjoint, fold: Fold, printer: Printer, hull: Hull) -> bool:
    """Whether rows past the last need a test. Their weights are 0 already, of keys without NaN; but captured elements must
    not be read there."""
    assert fold.tiles is not None
    if _unbounded(adjoint, printer) or hull.searched:
        return True
    formulas = [adjoint.weight, fold.tiles.residual, *([] if adjoint.slope is None else [adjoint.slope])]
    elements = [e for f in formulas for e in ex.walk(f) if isinstance(e, ex.Element)]
    return printer.walks == "keys" or any(place_of(e) == "tile" for e in elements)


def _merged(
    plan: Ranges, fold: Fold, adjoint: Adjoint, parts: Parts, printer: Printer, hull: Hull
) -> BackwardLoop:
    """One loop over all tiles, the mask under a branch: fewer registers than two loops where descriptors load."""
    assert fold.tiles is not None
    span, tests = _span(plan, printer)
    formula = formula_lines(adjoint, printer, Body(printer, "tile", guard="", ragged=True))
    mask, _ = mask_body(fold.tiles, printer, ends=_needs_ends(adjoint, fold, printer, hull))
    mask = [*mask, *hidden_lines(adjoint, printer)] if mask else []
    positions = walked_positions([*formula, *mask], printer)
    comment = "all tiles: those that the mask cuts, or that reach past the end, take the branch"
    test = " | ".join(tests)
    return _loop(
        "merged", comment, (span,), (*positions, *formula), (), tuple(mask), test, parts, printer, hull
    )


def _span(plan: Ranges, printer: Printer) -> tuple[Range, list[str]]:
    """The tiles that one interval visits, and the tests of those outside its full tiles."""
    tile, unit = ("tile_n", "") if printer.walks == "keys" else ("start_m", " * BLOCK_M")
    if not plan.full:
        [whole] = plan.partial
        return whole, [f"{tile} >= 0"]
    [full] = plan.full
    lo, hi, tests = full.lo, full.hi, list[str]()
    for part in plan.partial:
        if part.hi == full.lo:
            lo = part.lo
            tests.append(f"({tile} < {named(printer, 'full_lo_0', full.lo)}{unit})")
        elif part.lo == full.hi:
            hi = part.hi
            tests.append(f"({tile} >= {named(printer, 'full_hi_0', full.hi)}{unit})")
        else:
            raise InternalError("a merged loop needs the tiles of one interval")
    return Range(lo, hi), tests or [f"({tile} < 0)"]


def _loop(
    kind: str,
    comment: str,
    found: tuple[Range, ...],
    formula: tuple[str, ...],
    added: tuple[str, ...],
    mask: tuple[str, ...],
    test: str,
    parts: Parts,
    printer: Printer,
    hull: Hull,
) -> BackwardLoop:
    tile = "tile_n" if printer.walks == "keys" else "tile_m"
    bounds = [
        (named(printer, f"{kind}_lo_{n}", r.lo), named(printer, f"{kind}_hi_{n}", r.hi))
        for n, r in enumerate(found)
    ]
    before: list[str] = []
    steps = f"{bounds[0][1]} - {bounds[0][0]}" if bounds[0][0] != "0" else bounds[0][1]
    find = [f"{tile} = {bounds[0][0]} + local" if bounds[0][0] != "0" else f"{tile} = local"]
    if len(bounds) > 1:
        before.append(f"{kind}_steps_0 = tl.maximum({bounds[0][1]} - {bounds[0][0]}, 0)")
        for n, (begin, end) in list(enumerate(bounds))[1:]:
            before.append(f"{kind}_steps_{n} = {kind}_steps_{n - 1} + tl.maximum({end} - {begin}, 0)")
            find.append(
                f"{tile} = tl.where(local < {kind}_steps_{n - 1}, {tile}, {begin} + local - {kind}_steps_{n - 1})"
            )
        steps = f"{kind}_steps_{len(bounds) - 1}"
    single = len(bounds) == 1
    masked = kind != "full"
    return BackwardLoop(
        kind=kind,
        comment=comment,
        before=tuple(before),
        single=single,
        begin=bounds[0][0] if single else "0",
        end=bounds[0][1] if single else steps,
        steps=steps,
        **_carried(kind, bounds),
        find_tile=tuple(find),
        masked=masked,
        by_pointer=masked and not hull.exact(),
        before_loads=hull.usable if masked else (),
        tile_row=hull.tile_row(),
        valid=hull.valid(),
        k_chunks=_walked_chunks(parts, printer, masked)[0],
        v_chunks=_walked_chunks(parts, printer, masked)[1],
        formula=formula,
        added=added,
        mask=mask,
        partial=test,
        guards=masked and hull.searched and printer.walks == "rows",
    )


def _walked_chunks(
    parts: Parts, printer: Printer, masked: bool
) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    """The chunks of what a loop walks: k and v, or q and dout, which have as many columns."""
    if printer.walks == "keys":
        valid = "key_valid" if masked else ""
        return chunks(parts.k, "d", valid), chunks(parts.v, "e", valid, _values(parts))
    queries = chunks(parts.k, "d", "", walked=masked)
    return _flagged(parts, queries), _flagged(parts, chunks(parts.v, "e", "", _values(parts), walked=masked))


def _values(parts: Parts) -> str:
    """The name of V's tiles: K's, where V lies inside K."""
    return "k" if parts.v_in_k else "v"


def _row_descriptors(parts: Parts, adjoint: Adjoint, hull: Hull) -> tuple[str, ...]:
    """Descriptors of the heads of a group together: a loop over heads and tiles needs no descriptor of its own per head."""
    heads = "1" if adjoint.per_head else str(parts.group)
    rows = f"{hull.end} - {hull.begin}" if hull.begin else hull.end
    first = f" + tl.cast({hull.begin}, tl.int64) * stride_" if hull.begin else ""
    return tuple(
        f"{name}_descriptor_{n} = tl.make_tensor_descriptor("
        f"{name}_base{first and f'{first}{short}s'}, [{heads}, {rows}, {load.columns}],"
        f" [stride_{short}h, stride_{short}s, 1], [1, BLOCK_M, {width}])"
        for name, short, load in (("q", "q", parts.k), ("dout", "g", parts.v))
        for n, (_, width) in enumerate(load.chunks)
    )


def _row_offsets(parts: Parts) -> tuple[str, ...]:
    return tuple(
        f"{name}_offsets_{n} = rows_m[:, None] * stride_{short}s + {vector}_{n}[None, :]"
        for name, short, vector, load in (("q", "q", "d", parts.k), ("dout", "g", "e", parts.v))
        for n in range(len(load.chunks))
    )


def bases(
    parts: Parts, tensors: tuple[str, ...], keys_head: str = "hk", *, per_row: bool = True
) -> tuple[str, ...]:
    """Where a program's rows of some tensors begin, and its statistics, padded and as lse is laid out (`per_row`)."""
    packed = parts.packed
    shorts = {"out": "o", "dout": "g"}
    heads = {"k": "hk", "v": "hk", "dk": keys_head, "dv": keys_head}
    lines: list[str] = []
    for name in tensors:
        head, short = heads.get(name, "h"), shorts.get(name, name)
        start = "k_start" if name in heads else "q_start"
        first = (
            f"tl.cast({start}, tl.int64) * stride_{short}s"
            if packed
            else f"tl.cast(b, tl.int64) * stride_{short}b"
        )
        lines.append(f"{name}_base = {name} + {first} + tl.cast({head}, tl.int64) * stride_{short}h")
    where = "q_start" if packed else "tl.cast(b, tl.int64) * stride_lb"
    padded = f"{LARGEST_BLOCK} * b + q_start" if packed else "tl.cast(b, tl.int64) * stride_rb"
    statistics = f"{padded} + tl.cast(h, tl.int64) * stride_rh"
    if "dk" in tensors:
        return (*lines, *(f"{n}_base = {n} + {statistics}" for n in ("lse2", "delta")))
    own = [f"per_row = {where} + tl.cast(h, tl.int64) * stride_lh + row"] if per_row else []
    return (*lines, *own, f"padded_row = {statistics} + row")


_CARRIED = (
    ("q_at", "q_wrap", "BLOCK_M * q_row"),
    ("dout_at", "dout_wrap", "BLOCK_M * dout_row"),
    ("row_at", "row_wrap", "BLOCK_M"),
    ("start_m", "wrap", "BLOCK_M"),
)


def _carried(kind: str, bounds: list[tuple[str, str]]) -> dict[str, Any]:
    """How a loop over rows goes from tile to tile of one range, or of two; in rows."""
    (lo, hi), rest = bounds[0], bounds[1:]
    if not rest:
        first = "0" if lo == "0" else f"{lo} * BLOCK_M"
        last = f"({hi} - 1) * BLOCK_M"
        return {"carried": _CARRIED, "first": first, "last": last, "gap": "", "gap_start": ""}
    if len(rest) > 1:
        return {"carried": (), "first": "", "last": "", "gap": "", "gap_start": ""}
    [(lo_1, hi_1)] = rest
    return {
        "carried": tuple(
            (n, wrap, f"tl.where(leaps, {step.replace('BLOCK_M', 'gap')}, {step})")
            for n, wrap, step in _CARRIED
        ),
        "first": f"tl.where({kind}_steps_0 > 0, {lo}, {lo_1}) * BLOCK_M",
        "last": f"(tl.where({kind}_steps_1 > {kind}_steps_0, {hi_1}, {hi}) - 1) * BLOCK_M",
        "gap": f"({lo_1} - {hi} + 1) * BLOCK_M",
        "gap_start": f"({hi} - 1) * BLOCK_M",
    }


def _seen(fold: Fold, printer: Printer) -> tuple[str, ...]:
    """The keys that any query may see: others may hold NaN, which no gradient may take up."""
    assert fold.tiles is not None
    tiles = fold.tiles
    tests: list[Expr] = []
    own = Interval(ex.apply("max", tiles.row.lo, Const(0)), tiles.row.hi)
    if not _always_seen(own):
        tests.append(ex.apply("lt", own.lo, own.hi))
    if tiles.residual != ex.TRUE and not any(_always_seen(interval) for interval in tiles.may):
        some = [ex.apply("lt", interval.lo, interval.hi) for interval in tiles.may]
        anywhere = reduce(lambda a, b: ex.apply("or", a, b), some, ex.FALSE)
        if not any(isinstance(e, ex.Search) for e in ex.walk(anywhere)):  # searches are of tiles, not of keys
            tests.append(ex.substitute(anywhere, {"j_lo": J, "j_hi": J}))
    tests += [c for c in conjuncts(tiles.residual) if place_of(c) == "keys"]
    if not tests:
        return ()
    body = Body(printer, "keys")
    shown = [body.text(test) for test in tests]
    column = "[:, None]" if any(place_of(test) == "keys" for test in tests) else ""
    return (*body.lines, f"seen = ({' & '.join(f'({x})' for x in shown)}){column}")


def _always_seen(interval: Interval) -> bool:
    """Whether it is proved that some row may see every key (where there are rows and keys at all)."""
    facts = tile_facts("j", Symbol("seqlen_k"), Symbol("BLOCK_M"), {"j_lo": 0, "seqlen_q": 1, "seqlen_k": 1})
    lo, hi = (
        ex.substitute(x, {"j": Symbol("j_lo"), "j_hi": Symbol("j_lo")}) for x in (interval.lo, interval.hi)
    )
    return at_most(ex.apply("add", lo, Const(1)), hi, facts)
