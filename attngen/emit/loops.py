"""The loops over key tiles: which tiles, and what is computed between the two products."""

from __future__ import annotations

from collections.abc import Iterable

from attngen.emit.addresses import chunks
from attngen.emit.interface import Interface
from attngen.emit.parts import Parts
from attngen.emit.printer import Body, Printer
from attngen.emit.records import Loop, Table
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.tile_ranges import Range, Ranges, tile_ranges


def range_loops(parts: Parts, printer: Printer) -> tuple[Loop, ...]:
    plan = _planned(parts, printer)
    _factor(parts, printer)
    loops: list[Loop] = []
    if plan.full:
        loops.append(_loop("full", plan.full, _full_scores(parts, printer), parts, printer))
    if plan.partial:
        loops.append(_loop("partial", plan.partial, _partial_scores(parts, printer), parts, printer))
    return tuple(loops)


def _factor(parts: Parts, printer: Printer) -> None:
    if parts.fold.factor is not None:
        printer.assign("factor", parts.fold.factor)


def _planned(parts: Parts, printer: Printer) -> Ranges:
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


def table_kernel(parts: Parts, face: Interface, main: Printer) -> Table:
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
        with_positions(printer.prologue, (*full, *partial)),
        full,
        partial,
        rows[by_batch, by_head],
        face.launch_heads if by_head else "1",
        face.launch_batch if by_batch else "1",
    )


def table_loops(parts: Parts, printer: Printer) -> tuple[Loop, ...]:
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
    kind: str, found: tuple[Range, ...], scores: tuple[str, ...], parts: Parts, printer: Printer
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
    parts: Parts,
) -> Loop:
    masked = kind == "partial"
    comment = (
        "tiles that the mask cuts, or that reach past the last key"
        if masked
        else "full tiles: no mask arithmetic"
    )
    valid = "key_valid" if masked else ""
    values = chunks(parts.v, "e", valid, "k" if parts.v_in_k else "v")
    return Loop(
        comment, before, counter, begin, end, find, masked, scores, chunks(parts.k, "d", valid), values
    )


def _named(printer: Printer, name: str, bound: Expr) -> str:
    if isinstance(bound, Const):
        return repr(bound.value)
    if isinstance(bound, Symbol):
        return bound.name
    printer.assign(name, bound)
    return name


def _full_scores(parts: Parts, printer: Printer) -> tuple[str, ...]:
    if parts.score is None:
        return ()
    body = Body(printer, "tile", guard="full", ragged=False)
    value = body.text(parts.score.expr)
    return (*_needs_j(body, value), *body.lines, f"qk = {value}")


def _mask_lines(parts: Parts, printer: Printer) -> tuple[tuple[str, ...], Body]:
    lines, masks = _mask_body(parts, printer)
    return (*(["j = start_n + rows_n"] if _mentions_j(lines) else []), *lines), masks


def _mask_body(parts: Parts, printer: Printer) -> tuple[list[str], Body]:
    """Statements that leave `allowed`, the mask of a partial tile, and the body that named its parts."""
    tiles = parts.fold.tiles
    assert tiles is not None
    tests = _row_limits(tiles.row.lo, tiles.row.hi, printer)
    masks = Body(printer, "tile")
    if tiles.residual != ex.TRUE:
        tests.append(f"({masks.text(tiles.residual)})")
    return [*masks.lines, f"allowed = {' & '.join(tests)}"], masks


def _partial_scores(parts: Parts, printer: Printer) -> tuple[str, ...]:
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


def with_positions(prologue: list[str], loops: tuple[Loop, ...]) -> tuple[str, ...]:
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
