"""The loops over key tiles: which tiles, and what is computed between the two products."""

from __future__ import annotations

from collections.abc import Iterable

from attngen.emit.addresses import Hull, chunks
from attngen.emit.faces import Interface
from attngen.emit.paged import find_keys, find_values
from attngen.emit.parts import Parts
from attngen.emit.printer import Body, Printer
from attngen.emit.records import Loop, Table
from attngen.emit.split import clipped, split_lines
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.tile_ranges import Range, Ranges, tile_ranges
from attngen.ir.tiles import Tiles


def range_loops(parts: Parts, printer: Printer) -> tuple[tuple[Loop, ...], Hull]:
    """Return the loops over the planned ranges, all full tiles, then all partial ones; and the hull of their keys."""
    plan = _planned(parts, printer)
    hull = hull_of(_tiles(parts), printer)
    if parts.splits is not None:
        printer.prologue += split_lines(parts.splits, hull)
    _factor(parts, printer)
    loops: list[Loop] = []
    if plan.full:
        loops.append(_loop("full", plan.full, _full_scores(parts, printer), parts, printer, hull))
    if plan.partial:
        loops.append(_loop("partial", plan.partial, _partial_scores(parts, printer), parts, printer, hull))
    return tuple(loops), hull


def hull_of(tiles: Tiles, printer: Printer) -> Hull:
    """Name the hull of the keys that a program may see, or of the rows that may see its keys (rows between two intervals see
    other keys)."""
    may, letter = tiles.may, "n" if printer.walks == "keys" else "m"
    if not may:
        return Hull("", "0", letter=letter)
    begin, end = may[0].lo, may[0].hi
    for interval in may[1:]:
        begin, end = ex.apply("min", begin, interval.lo), ex.apply("max", end, interval.hi)
    tile_positions(printer, ex.symbols(begin) | ex.symbols(end))
    names = [
        (named(printer, f"may_lo_{n}", x.lo), named(printer, f"may_hi_{n}", x.hi))
        for n, x in enumerate(may if len(may) > 1 and letter == "n" else ())
    ]
    first = "" if begin == Const(0) else named(printer, "hull_begin", begin)
    end_name = named(printer, "hull_end", end)
    searched = any(isinstance(e, ex.Search) for end in (begin, end) for e in ex.walk(end))
    return Hull(first, end_name, tuple(names), _usable(tiles, printer), letter, searched)


def conjuncts(expr: Expr) -> list[Expr]:
    return (
        [p for a in expr.args for p in conjuncts(a)]
        if isinstance(expr, Apply) and expr.op == "and"
        else [expr]
    )


def _usable(tiles: Tiles, printer: Printer) -> tuple[str, ...]:
    """Statements for the conditions of the residual that vary along the walked axis alone (padding): nothing that they
    exclude is loaded."""
    conditions = [c for c in conjuncts(tiles.residual) if printer.place_of(c) == printer.walks]
    if not conditions:
        return ()
    body = Body(printer, printer.walks)
    lines = [*body.lines, f"usable = {' & '.join(f'({body.text(c)})' for c in conditions)}"]
    positions = ["j = start_n + rows_n"] if printer.walks == "keys" else walked_positions(lines, printer)
    return (*positions, *lines)


def tile_positions(printer: Printer, used: Iterable[str]) -> None:
    """Name the positions of the program's first and last row or key, once, where something uses them."""
    rows = printer.row_block
    if printer.shares_prefix:  # positions of a program's rows stand in front
        return
    lines = {
        "i_lo": f"i_lo = tile_m * {rows} + shift",
        "i_hi": f"i_hi = tl.minimum(tile_m * {rows} + {rows}, seqlen_q) - 1 + shift",
        "j_lo": "j_lo = tile_n * BLOCK_N",
        "j_hi": "j_hi = tl.minimum(tile_n * BLOCK_N + BLOCK_N, seqlen_k) - 1",
    }
    printer.prologue += [
        line for name, line in lines.items() if name in used and line not in printer.prologue
    ]


def _factor(parts: Parts, printer: Printer) -> None:
    if parts.fold.factor is not None:
        printer.assign("factor", parts.fold.factor)


def _planned(parts: Parts, printer: Printer) -> Ranges:
    """Print what the ranges of tiles are made of, and return them."""
    assert parts.fold.tiles is not None
    plan = tile_ranges(parts.fold.tiles, known_least={"BLOCK_N": 16})  # a product needs 16 keys
    used = {name for _, e in plan.bindings for name in ex.symbols(e)}
    used |= {name for r in (*plan.full, *plan.partial) for name in ex.symbols(r.lo) | ex.symbols(r.hi)}
    tile_positions(printer, used)
    for name, bound in plan.bindings:
        printer.assign(name, bound)
    return plan


def table_kernel(parts: Parts, face: Interface, main: Printer) -> Table:
    """The kernel that looks at the elements of undecided tiles, once per (b, h) that the mask depends on."""
    printer = Printer(main.captured, helpers=main.helpers)
    plan = _planned(parts, printer)
    anywhere = Hull("", "seqlen_k")
    full = (_loop("full", plan.full, (), parts, printer, anywhere),) if plan.full else ()
    partial = (
        (_loop("partial", plan.partial, _mask_lines(parts, printer)[0], parts, printer, anywhere),)
        if plan.partial
        else ()
    )
    names = ex.symbols(parts.fold.domain.mask)
    by_head, by_batch = bool(names & {"h", "hk"}), "b" in names or parts.packed
    rows = {(True, True): "program", (True, False): "b * num_tiles_m + tile_m"}
    rows |= {(False, True): "h * num_tiles_m + tile_m", (False, False): "tile_m"}
    return Table(
        with_positions(printer.prologue, _statements((*full, *partial))),
        full,
        partial,
        rows[by_batch, by_head],
        face.launch_heads if by_head else "1",
        face.launch_batch if by_batch else "1",
    )


def table_loops(parts: Parts, printer: Printer) -> tuple[tuple[Loop, ...], Hull]:
    """Loops over listed tiles: full ones from the front of a row of the table, partial ones from its back."""
    hull = hull_of(_tiles(parts), printer)
    _factor(parts, printer)
    loops: list[Loop] = []
    for kind, scores, count, place in (
        ("full", _full_scores(parts, printer), "table_row", "table_row + 2 + step"),
        ("partial", _partial_scores(parts, printer), "table_row + 1", "table_row + stride_table - 1 - step"),
    ):
        find = (f"tile_n = tl.load({place})",)
        loops.append(_walk(kind, (), "step", "0", f"tl.load({count})", find, scores, parts, hull))
    return tuple(loops), hull


def _loop(
    kind: str, found: tuple[Range, ...], scores: tuple[str, ...], parts: Parts, printer: Printer, hull: Hull
) -> Loop:
    bounds = [
        (named(printer, f"{kind}_lo_{n}", r.lo), named(printer, f"{kind}_hi_{n}", r.hi))
        for n, r in enumerate(found)
    ]
    if parts.splits is not None:
        bounds = [clipped(*bound) for bound in bounds]
    if len(bounds) == 1:
        return _walk(kind, (), "tile_n", *bounds[0], (), scores, parts, hull)
    before = [f"{kind}_steps_0 = tl.maximum({bounds[0][1]} - {bounds[0][0]}, 0)"]
    find = [f"tile_n = {bounds[0][0]} + step"]
    for n, (begin, end) in list(enumerate(bounds))[1:]:
        before.append(f"{kind}_steps_{n} = {kind}_steps_{n - 1} + tl.maximum({end} - {begin}, 0)")
        find.append(
            f"tile_n = tl.where(step < {kind}_steps_{n - 1}, tile_n, {begin} + step - {kind}_steps_{n - 1})"
        )
    last = f"{kind}_steps_{len(bounds) - 1}"
    return _walk(kind, tuple(before), "step", "0", last, tuple(find), scores, parts, hull)


def _walk(
    kind: str,
    before: tuple[str, ...],
    counter: str,
    begin: str,
    end: str,
    find: tuple[str, ...],
    scores: tuple[str, ...],
    parts: Parts,
    hull: Hull,
) -> Loop:
    masked = kind == "partial"
    comment = (
        "tiles that the mask cuts, or that reach past the last key"
        if masked
        else "full tiles: no mask arithmetic"
    )
    valid = "key_valid" if masked else ""
    cast = ".to(q.dtype.element_ty)" if parts.scales else ""
    per_key = parts.scales == "token_head"
    values = chunks(parts.v, "e", valid, "k" if parts.v_in_k else "v", cast=cast)
    return Loop(
        comment=comment,
        before=before,
        counter=counter,
        begin=begin,
        end=end,
        find_tile=find,
        masked=masked,
        by_pointer=parts.pages is not None or (masked and not hull.exact()),
        key_rows=_key_rows(parts, hull, masked),
        value_rows=_value_rows(parts, hull, masked),
        before_loads=hull.usable if masked else (),
        row_max="tl.max(qk, 1)" if parts.fold.factor is None else "tl.max(qk, 1) * factor",
        tile_row=hull.tile_row(),
        valid=hull.valid(),
        scores=("qk = qk * k_scales[None, :]", *scores) if per_key else scores,
        value_scales="v_scales" if per_key else "",
        k_chunks=chunks(parts.k, "d", valid, cast=cast),
        v_chunks=values,
    )


def _key_rows(parts: Parts, hull: Hull, masked: bool) -> tuple[str, ...]:
    if parts.pages is not None:
        return find_keys(parts, parts.pages, hull, masked=masked)
    return ("k_rows = k_base + tl.cast(start_n, tl.int64) * stride_ks",)


def _value_rows(parts: Parts, hull: Hull, masked: bool) -> tuple[str, ...]:
    if parts.pages is not None:
        return find_values(parts, hull, masked=masked)
    return () if parts.v_in_k else ("v_rows = v_base + tl.cast(start_n, tl.int64) * stride_vs",)


def named(printer: Printer, name: str, bound: Expr) -> str:
    """Name a bound of tiles or keys; it fits 32 bits, which loops and descriptors need, whatever it is computed from."""
    if isinstance(bound, Const):
        return repr(bound.value)
    known = (
        bound.name
        if isinstance(bound, Symbol)
        else printer.assigned.get(bound) or printer.assign(name, bound)
    )
    if known not in printer.wide:
        return known
    short = f"{known}_32"
    line = f"{short} = {known}.to(tl.int32)"
    printer.prologue += [] if line in printer.prologue else [line]
    return short


def _full_scores(parts: Parts, printer: Printer) -> tuple[str, ...]:
    if parts.score is None:
        return ()
    body = Body(printer, "tile", guard="full", ragged=False)
    value = whole_tile(body, parts.score.expr)
    lines = [*body.lines, f"qk = {value}"]
    return (*walked_positions(lines, printer), *lines)


def whole_tile(body: Body, score: Expr) -> str:
    """Print a score as a tile, also where its formula varies along one axis or none."""
    text = body.text(score)
    shape = "BLOCK_M, BLOCK_N" if body.printer.walks == "keys" else "BLOCK_N, BLOCK_M"
    return text if body.printer.place_of(score) == "tile" else f"tl.zeros([{shape}], tl.float32) + ({text})"


def _mask_lines(parts: Parts, printer: Printer) -> tuple[tuple[str, ...], Body]:
    lines, masks = mask_body(_tiles(parts), printer)
    return (*walked_positions(lines, printer), *lines), masks


def _tiles(parts: Parts) -> Tiles:
    assert parts.fold.tiles is not None
    return parts.fold.tiles


def mask_body(
    tiles: Tiles, printer: Printer, *, ends: bool = True, moved: bool = True
) -> tuple[list[str], Body]:
    """Statements that leave `allowed`, the mask of a partial tile, and the body that named its parts.

    Without `ends`, places past the end of the walked axis need no test of their own. `moved` limits count from the
    tile's begin, others from the first row or key: one addition per limit, or one per place of the tile.
    """
    last = Symbol("seqlen_k" if printer.walks == "keys" else "seqlen_q")
    hi = None if not ends and tiles.row.hi == last else tiles.row.hi
    tests = _row_limits(tiles.row.lo, hi, printer, moved=moved)
    masks = Body(printer, "tile")
    for condition in conjuncts(tiles.residual) if tiles.residual != ex.TRUE else []:
        tests.append(f"({masks.text(condition)})")
    return [*masks.lines, *([f"allowed = {' & '.join(tests)}"] if tests else [])], masks


def _partial_scores(parts: Parts, printer: Printer) -> tuple[str, ...]:
    """Mask first (it guards what the score reads), then the score, then -inf where nothing is allowed."""
    lines, masks = mask_body(_tiles(parts), printer)
    if parts.score is not None:
        body = Body(printer, "tile", guard="allowed", named=masks.named)
        value = whole_tile(body, parts.score.expr)
        lines += [*body.lines, f"qk = {value}"]
    lines.append('qk = tl.where(allowed, qk, float("-inf"))')
    return (*walked_positions(lines, printer), *lines)


def _statements(loops: Iterable[Loop]) -> list[str]:
    return [line for loop in loops for line in loop.scores]


def words(lines: Iterable[str]) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in " ".join(lines)).split())


def walked_positions(lines: Iterable[str], printer: Printer) -> list[str]:
    """Name the positions along the axis that a loop walks, where a tile's statements use them."""
    used = words(lines)
    if printer.walks == "keys":
        return ["j = start_n + rows_n"] if "j" in used else []
    own = ["row = start_m + rows_m"] if used & {"row", "i"} else []
    return [*own, *(["i = row + shift"] if "i" in used else [])]


def with_positions(prologue: list[str], statements: Iterable[str], walks: str = "keys") -> tuple[str, ...]:
    """Put the rows' positions on the key axis in front, where anything uses them."""
    used = words([*prologue, *statements])
    lines = ["shift = seqlen_k - seqlen_q"] if used & {"i", "shift"} else []
    return (*lines, *(["i = row + shift"] if "i" in used and walks == "keys" else []), *prologue)


def _row_limits(lo: Expr, hi: Expr | None, printer: Printer, *, moved: bool) -> list[str]:
    """Bounds of what each row (or key, where rows are walked) may meet, hoisted: a compare per element remains."""
    tests: list[str] = []
    name, letter = ("key", "n") if printer.walks == "keys" else ("row", "m")
    for end, bound, sign in ((f"{name}_end", hi, "<"), (f"{name}_begin", lo, ">=")):
        if bound is None or bound == Const(0):
            continue
        limit = printer.assign(end, bound)
        column = "[:, None]" if limit.endswith("[:, None]") else ""
        places = f"rows_{letter}" if moved else f"(start_{letter} + rows_{letter})"
        shown = f"({end} - start_{letter})" if moved else end
        tests.append(f"({places}[None, :] {sign} {shown}{column})")
    return tests
