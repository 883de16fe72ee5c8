"""The kernels of captured gradients that own places: keys, elements, or diagonals of tiles. As finished records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from attngen.emit.addresses import chunks
from attngen.emit.adjoint import Adjoint, factor_of
from attngen.emit.backward import (
    bases,
    formula_lines,
    hidden_lines,
    is_plain,
    plain_factor,
)
from attngen.emit.faces import BackwardFace, KernelFace
from attngen.emit.loops import mask_body, named, words
from attngen.emit.parts import LETTERS, Parts, launch_of, owned
from attngen.emit.printer import Body, Captured, Printer
from attngen.emit.records import Backward, CapturedKernel, PlaceKernel
from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.linear import normal
from attngen.ir.nodes import OWNED_AXES, Axis, Fold, Launch
from attngen.ir.tile_ranges import SMALLEST_BLOCKS, ranges_along


def with_captured(
    reverse: Backward,
    graph: Graph,
    adjoint: Adjoint,
    parts: Parts,
    face: BackwardFace,
    captured: Mapping[str, Captured],
    helpers: set[str],
) -> Backward:
    """Add the kernels of captured gradients to the backward part of a module."""
    folds = [(n, f) for n, f in graph.all(Fold) if f.level == "tile" and f.order == "sequential"]
    places = [n for n, f in graph.all(Fold) if f.axis == "Sd"]
    faces = {x.stores: x.kernel for x in face.captured}
    return replace(
        reverse,
        captured=tuple(_scores(graph, n, adjoint, parts, faces[n], captured, helpers) for n, _ in folds),
        places=tuple(_diagonals(graph, n, faces[n], captured, helpers) for n in places),
    )


def _scores(
    graph: Graph,
    stored: str,
    adjoint: Adjoint,
    parts: Parts,
    face: KernelFace,
    captured: Mapping[str, Captured],
    helpers: set[str],
) -> CapturedKernel:
    """The kernel over tiles of scores that stores a captured gradient, or its diagonals."""
    fold = graph.nodes[stored]
    assert isinstance(fold, Fold)
    assert fold.tiles is not None
    _, launch = launch_of(graph, stored)
    diagonal = launch.tile_axis == "Sd"
    printer = Printer(captured, helpers=helpers)
    if diagonal:
        del printer.least["row"]  # a tile may begin before the first row
    plan = ranges_along(fold.axis, fold.tiles, SMALLEST_BLOCKS)
    for name, bound in plan.bindings:
        printer.assign(name, bound)
    within = [
        f"((tile_n >= {named(printer, f'{kind}_lo_{n}', r.lo)}) & (tile_n < {named(printer, f'{kind}_hi_{n}', r.hi)}))"
        for kind, found in (("full", plan.full), ("partial", plan.partial))
        for n, r in enumerate(found)
    ]
    factor = factor_of(graph, fold)
    own = replace(adjoint, slope=None, sums=((stored, factor),), added=())
    if is_plain(adjoint.weight):
        printer.assign("factor", plain_factor(adjoint.weight))
    mask, masks = mask_body(fold.tiles, printer)
    body = Body(printer, "tile", guard="allowed", named=masks.named)
    formula = [*mask, "allowed = allowed & row_valid[:, None]", *formula_lines(own, printer, body)]
    formula += hidden_lines(own, printer)
    steps, owns, walked = _places(graph, launch, parts)
    place = Place("", "") if diagonal else _place(printer, captured[stored], fold, across=bool(launch.across))
    steps += [*place.lines, *printer.prologue]
    loaded = () if parts.v_in_k else ("v",)
    steps += bases(parts, ("q", "k", *loaded, "dout"), per_row=False)
    shares = " * ".join(f"shared_{letter}" for letter, _ in owns)
    share = _numbered("share", [(_NAMES[x], f"own_{_NAMES[x]} + ", f"shared_{x}") for x, _ in owns])
    turns = " * ".join(count for _, count in walked) or "1"
    turned = _numbered("turn", [(name, "", count) for name, count in walked])
    later = [*formula, *within, place.pointer, place.guard, *share, shares, *turned, turns]
    before, turn = _split(_used(steps, later), [name for name, _ in walked])
    own, shared = _split(before, [_NAMES[x] for x, _ in owns])
    return CapturedKernel(
        face=face,
        own=tuple(own),
        shares=shares,
        share=(*share, *shared),
        turns=turns,
        turn=(*turned, *turn),
        visited=f"{_exists(diagonal)} & ({' | '.join(within) or 'tile_n < 0'})",
        formula=tuple(formula),
        weight="qk * factor" if is_plain(adjoint.weight) else "qk",
        factor="" if factor == Const(1.0) else f" * factor_{stored}",
        k_chunks=chunks(parts.k, "d", "key_valid"),
        v_chunks=chunks(parts.v, "e", "key_valid", "k" if parts.v_in_k else "v"),
        is_diagonal=diagonal,
        flat_m="SHARED_M" * bool(launch.across),
        flat_n="SHARED_N" * (not diagonal),
        pointer=stored if diagonal else place.pointer,
        value="tl.sum(total, 0)" if launch.tile_axis == "Sk" else "total",
        mask=f", mask={place.guard}" if place.guard else "",
    )


def _exists(diagonal: bool) -> str:
    tests = "(start_m < seqlen_q) & (start_n < seqlen_k)"
    return f"(start_m > -BLOCK_M) & {tests}" if diagonal else tests


AT_I = Symbol("i")
_NAMES = {"n": "tile_n", "m": "tile_m", "h": "h", "b": "b"}


def _places(
    graph: Graph, launch: Launch, parts: Parts
) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]:
    """Statements that find a program's places, what it owns one of, and what it walks over: names and how many of each.

    Of an axis that it owns, all places are the program's where the tensor has size 1 there: SHARED_B and so on.
    """
    packed = parts.packed
    lines = [
        f"num_tiles_m = tl.cdiv({'max_seqlen_q' if packed else 'seqlen_q'}, BLOCK_M)",
        f"num_tiles_n = tl.cdiv({'max_seqlen_k' if packed else 'seqlen_k'}, BLOCK_N)",
    ]
    walked: list[tuple[str, str]] = []
    along_i = launch.tile_axis == "Sd" and packed  # each sequence has a shift of its own
    before = "num_tiles_m" if along_i else "num_tiles_n"
    rest = ["program"]
    if launch.tile_axis == "Sd":
        lines.append("num_diagonals = num_tiles_m + num_tiles_n + 1")
        lines.append(f"diagonal = program % num_diagonals - {before}")
        rest.append("num_diagonals")
    walked += {"Sq": [], "Sk": [("tile_m", "num_tiles_m")], "Sd": [("tile_n", "num_tiles_n")]}[
        launch.tile_axis
    ]
    counts = {"n": "num_tiles_n", "m": "num_tiles_m", "h": "num_q_heads", "b": "batch"}
    owns = [(letter, counts[letter]) for letter in owned(launch)]
    walked += [(x, counts[x]) for x in ("h", "b") if x not in dict(owns)]
    for n, (x, count) in enumerate(owns):
        lines.append(f"owned_{x} = 1 if SHARED_{x.upper()} else {count}")
        lines.append(f"shared_{x} = {count} if SHARED_{x.upper()} else 1")
        own = " // ".join(rest)
        lines.append(f"own_{_NAMES[x]} = {own}" + (f" % owned_{x}" if n < len(owns) - 1 else ""))
        rest.append(f"owned_{x}")
    lines.append(f"hk = h // {parts.group}")
    if packed:
        lines += [
            "q_start = tl.load(cu_seqlens_q + b)",
            "k_start = tl.load(cu_seqlens_k + b)",
            "seqlen_q = tl.load(cu_seqlens_q + b + 1) - q_start",
            "seqlen_k = tl.load(seqused_k + b) if HAS_SEQUSED_K else tl.load(cu_seqlens_k + b + 1) - k_start",
        ]
    first = "(tile_n + diagonal) * BLOCK_M" if launch.tile_axis == "Sd" else "tile_m * BLOCK_M"
    first += " - shift" if along_i else ""
    valid = "(row >= 0) & (row < seqlen_q)" if launch.tile_axis == "Sd" else "row < seqlen_q"
    lines += [
        "shift = seqlen_k - seqlen_q",
        f"start_m = {first}",
        "start_n = tile_n * BLOCK_N",
        "row = start_m + rows_m",
        "i = row + shift",
        "j = start_n + rows_n",
        f"row_valid = {valid}",
        "key_valid = (j < seqlen_k)[:, None]",
        "i_lo = start_m + shift",
        "i_hi = tl.minimum(start_m + BLOCK_M, seqlen_q) - 1 + shift",
    ]
    return lines, owns, walked


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program stores its sum, under which mask, and the statements before that."""

    pointer: str
    guard: str
    lines: tuple[str, ...] = ()


def _place(printer: Printer, tensor: Captured, fold: Fold, *, across: bool) -> Place:
    """The places that a program owns; place 0 of an axis of size 1, whose places it all walks over.

    ``across``: the program owns rows too.
    """
    scalars = Body(printer, "scalar")
    lines = [f"own_{x} = own_tile_{y} * BLOCK_{y.upper()} + rows_{y}" for x, y in (("row", "m"), ("j", "n"))]
    lines.append("own_i = own_row + (0 if SHARED_M else seqlen_k - seqlen_q)")
    terms, guards = [tensor.name], list[str]()
    for p, (index, axis) in enumerate(zip(fold.at, tensor.axes, strict=True)):
        letter = LETTERS.get(ex.text(index), "")
        fixed = isinstance(index, Const)
        place = ex.text(index) if fixed else f"own_{ex.text(index)}"
        size, start = scalars.text(axis.size), ""
        if axis.origin:
            start = f"own_{axis.origin}"
            lines.append(f"{start} = 0 if SHARED_B else tl.load(cu_seqlens_{axis.origin[0]} + own_b)")
            size = _own_length(axis.origin, start)
        if axis.origin or letter in ("m", "n"):
            first = f"{place} + 1" if fixed else "1"
            lines.append(f"limit_{p} = {first} if SHARED_{(letter or 'b').upper()} else {size}")
            size = f"limit_{p}"
        column = {"m": "[:, None]", "n": "[None, :]"}.get(letter, "") if across else ""
        guards += [f"({place} >= 0){column}"] if index == AT_I else []
        guards += [] if _is_on(index, axis) else [f"({place} < {size}){column}"]
        place = f"({start} + {place})" if start else place
        wide = f"{tensor.name.upper()}_INDEX" if letter in ("m", "n") else "tl.int64"
        cast = "" if fixed and not start else f"{column}.to({wide})"
        terms.append(f"{place}{cast} * {tensor.strides[p]}")
    return Place(" + ".join(terms), " & ".join(guards), tuple(lines))


def _is_on(index: Expr, axis: Axis) -> bool:
    """Whether a place is known to be on its axis: graphs, or public functions, refuse numbers outside."""
    if isinstance(index, Const):
        return isinstance(axis.size, Const) or axis.name in OWNED_AXES
    return axis.name in ("B", "Hq") and index == Symbol(axis.symbol)


def _own_length(origin: str, start: str) -> str:
    """The length of the sequence that a program owns tokens of."""
    if origin == "q_start":
        return f"tl.load(cu_seqlens_q + own_b + 1) - {start}"
    whole = f"tl.load(cu_seqlens_k + own_b + 1) - {start}"
    return f"tl.load(seqused_k + own_b) if HAS_SEQUSED_K else {whole}"


_READ = ("start_m", "start_n", "row", "j", "row_valid", "key_valid", "seqlen_q", "seqlen_k")


def _used(steps: list[str], later: Iterable[str]) -> list[str]:
    """The statements that something after them reads."""
    needed = words(later) | set(_READ) | {f"{name}_base" for name in ("q", "k", "v", "dout")} | {"padded_row"}
    kept: list[str] = []
    for line in reversed(steps):
        name, _, value = line.partition(" = ")
        if name in needed:
            kept.append(line)
            needed |= words([value])
    return kept[::-1]


def _split(steps: list[str], walked: Iterable[str]) -> tuple[list[str], list[str]]:
    """Statements that hold for a whole program, and those that vary with what it walks over."""
    varying = set(walked)
    before: list[str] = []
    turn: list[str] = []
    for line in steps:
        name, _, value = line.partition(" = ")
        if words([value]) & varying:
            varying.add(name)
            turn.append(line)
        else:
            before.append(line)
    return before, turn


def _numbered(turn: str, walked: list[tuple[str, str, str]]) -> list[str]:
    """Which of the walked places a turn is: names, what comes before, and how many of each. The first varies fastest."""
    lines: list[str] = []
    for n, (name, first, count) in enumerate(walked):
        lines.append(f"{name} = {first}{turn}" + (f" % {count}" if n < len(walked) - 1 else ""))
        turn = f"{turn} // {count}"
    return lines


def _diagonals(
    graph: Graph, gradient: str, face: KernelFace, captured: Mapping[str, Captured], helpers: set[str]
) -> PlaceKernel:
    """The kernel that adds up the diagonals of each place of a captured gradient."""
    fold = graph.nodes[gradient]
    assert isinstance(fold, Fold)
    part = graph.nodes[fold.element]
    assert isinstance(part, Fold)
    printer = Printer(captured, helpers=helpers)
    printer.least.pop("row")
    lines: list[str] = []
    rest = "program"
    for n in reversed(range(len(fold.at))):
        lines.append(f"at_{n} = {rest} % size_{n}" if n else f"at_0 = {rest}")
        rest = f"{rest} // size_{n}"
    known = {x.name: f"at_{n}" for n, x in enumerate(fold.at) if x in (Symbol("b"), Symbol("h"))}
    symbols = [graph.axis(axis).symbol for axis in part.axes[:-1]]
    kept = "0"
    for symbol in symbols:
        kept = known[symbol] if kept == "0" else f"({kept} * kept_{symbol} + {known[symbol]})"
    exists = "".join(f" & ({known[x]} < kept_{x})" for x in symbols)
    body = Body(printer, "rows")
    tests = [
        f"((size_{n} == 1) | (({body.text(_of_difference(x))}) == at_{n}))"
        for n, x in enumerate(fold.at)
        if f"at_{n}" not in known.values()
    ]
    return PlaceKernel(
        face=face,
        diagonals=fold.element,
        gradient=gradient,
        own=(*lines, *printer.prologue),
        kept=kept,
        exists=exists,
        shift="" if graph.packed else " + seqlen_k - seqlen_q",
        match=" & ".join(tests),
    )


def _of_difference(index: Expr) -> Expr:
    """An index of a diagonal as one of i - j, which the kernel calls i."""
    diagonal = Apply("sub", (Apply("add", (Symbol("i"), Symbol("seqlen_q"))), Const(1)))
    return normal(ex.substitute(index, {"diagonal": diagonal}))
