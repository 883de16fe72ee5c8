"""How often the threads of a program compute the same elements of a product, by the layout that Triton chose (TTGIR).

A layout covers a tile with its warps: where the tile is smaller than what they cover, several of them compute, and hold,
the same elements. 64 rows on two groups of four warps that lie along rows (64 rows each) are computed twice. Of a load,
threads of one warp that ask for the same element cost memory nothing, while each warp asks for itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from attngen.errors import InternalError
from attngen.inspect.assembly import Source


@dataclass(frozen=True, slots=True)
class Dot:
    """A product in Triton's IR: its FLOPs, and how often the program computes each element of the result.

    `loop` numbers the innermost loop around it; None outside of all.
    """

    source: Source
    flops: int
    repeats: int
    loop: int | None


_LAYOUT = re.compile(r"#(\w+) = #ttg\.\w+<\{(.*)\}>")
_ANY_LAYOUT = re.compile(r"(?m)^#(\w+) = #ttg\.(\w+)<\{(.*)\}>")
_LANES = re.compile(r'"ttg.threads-per-warp" = (\d+)')
_LOAD = re.compile(r"= (?:tt\.load|ttg\.async_copy_global_to_local|amd\w+\.buffer_load\w*) .*loc\((#\w+)\)$")
_POINTERS = re.compile(r"tensor<((?:\d+x)+)!tt\.ptr<\w+>, (.+?)> (?:->|loc)")
_SLICE = re.compile(r"#ttg\.slice<\{dim = (\d), parent = #(\w+)\}>")
Steps = tuple[tuple[int, int, int], ...]
_FIELD = re.compile(r"(\w+) = \[([\d, ]+)\]")
_PRODUCT = r"(?:tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma) "
_DOT = re.compile(rf"{_PRODUCT}.* : (.*) loc\((#\w+)\)$")
_OPERAND = re.compile(r"(?:tensor|memdesc)<(\d+)x(\d+)x\w+, #([\w.]+)")
_PLACE = re.compile(r"(#loc\d*) = loc\((.*)\)$")
_FILE = re.compile(r'"([^"]+)":(\d+):')


def has_dots(ttgir: str) -> bool:
    """Whether a kernel has products, without reading them."""
    return re.search(_PRODUCT, ttgir) is not None


def dots(ttgir: str) -> list[Dot]:
    """The products of a kernel in their order. Raises InternalError for a layout that is not known."""
    covered = dict(_layouts(ttgir))
    places = {m[1]: m[2] for line in ttgir.splitlines() if (m := _PLACE.match(line))}
    found: list[Dot] = []
    for line, loop in _lines_in_loops(ttgir):
        if match := _DOT.search(line):
            found.append(_dot(match[1], _source(match[2], places), loop, covered))
    return found


def one_turn(found: Sequence[Dot], file: str, first: int, last: int) -> list[Dot]:
    """The products of one turn of the loop that spans lines of a file, without copies that run before or after it."""
    turns: dict[int, list[Dot]] = {}
    for dot in found:
        if dot.loop is not None and dot.source[0] == file and first <= dot.source[1] <= last:
            turns.setdefault(dot.loop, []).append(dot)
    return max(turns.values(), key=lambda turn: sum(dot.flops for dot in turn), default=[])


def shares(ttgir: str) -> dict[Source, float]:
    """Per source line with loads: how much of what threads ask for is left when those of a warp that share an element
    ask once. A layout that is not known shares nothing."""
    layouts = {name: _steps(kind, _fields(text)) for name, kind, text in _ANY_LAYOUT.findall(ttgir)}
    places = {m[1]: m[2] for line in ttgir.splitlines() if (m := _PLACE.match(line))}
    lanes = int(found[1]) if (found := _LANES.search(ttgir)) else 32
    asked: dict[Source, float] = {}
    issued: dict[Source, float] = {}
    for line in ttgir.splitlines():
        if match := _LOAD.search(line):
            source = _source(match[1], places)
            registers, apart = _asks(line, layouts, lanes)
            asked[source] = asked.get(source, 0.0) + registers * apart
            issued[source] = issued.get(source, 0.0) + registers * lanes
    return {source: asked[source] / issued[source] for source in issued}


def _asks(line: str, layouts: Mapping[str, Steps], lanes: int) -> tuple[int, int]:
    """Elements that each thread of a load asks for, and how many lanes of a warp ask for elements of their own."""
    tensor = _POINTERS.search(line)
    if tensor is None:
        return 1, 1  # a scalar
    shape = [int(n) for n in tensor[1].rstrip("x").split("x")]
    cut = _SLICE.match(tensor[2])
    steps = layouts.get(cut[2] if cut else tensor[2].lstrip("#"), ())
    kept = [step for dim, step in enumerate(steps) if cut is None or dim != int(cut[1])]
    if len(kept) != len(shape):
        return math.prod(shape), lanes
    registers = [
        size * math.ceil(n / (size * wide * warps))
        for n, (size, wide, warps) in zip(shape, kept, strict=True)
    ]
    apart = [min(wide, math.ceil(n / size)) for n, (size, wide, _) in zip(shape, kept, strict=True)]
    return math.prod(registers), math.prod(apart)


def _steps(kind: str, fields: Mapping[str, list[int]]) -> Steps:
    """A layout as, per axis, elements in a row that one thread holds, lanes, and warps; nothing where it is not known."""
    warps = fields.get("warpsPerCTA", [])
    if kind == "blocked":
        return tuple(zip(fields["sizePerThread"], fields["threadsPerWarp"], warps, strict=True))
    if len(warps) != 2 or "instrShape" not in fields:
        return ()
    rows, columns = fields["instrShape"][:2]
    if kind == "nvidia_mma":
        return ((2, 8, warps[0]), (columns // 4, 4, warps[1]))
    if (
        kind == "amd_mfma" and "isTransposed" in fields
    ):  # 64 lanes: a row each, in 64 / rows groups of columns
        return ((1, rows, warps[0]), (columns * rows // 64, 64 // rows, warps[1]))
    return ()


def _fields(text: str) -> dict[str, list[int]]:
    """The lists of numbers of a layout, and its flags."""
    found = {key: [int(n) for n in numbers.split(",")] for key, numbers in _FIELD.findall(text)}
    return found | {flag: [1] for flag in re.findall(r"(\w+) = true", text)}


def _lines_in_loops(ttgir: str) -> Iterator[tuple[str, int | None]]:
    """The lines, each with the line number of the innermost loop around it."""
    around: list[tuple[int, int]] = []  # indentation and number
    for number, line in enumerate(ttgir.splitlines()):
        indent = len(line) - len(line.lstrip())
        if around and indent == around[-1][0] and line.startswith("}", indent):
            around.pop()
        yield line, around[-1][1] if around else None
        if "scf.for " in line:
            around.append((indent, number))


def _layouts(ttgir: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Rows and columns that the warps of a program cover, by the name of the layout."""
    for name, text in _LAYOUT.findall(ttgir):
        fields = _fields(text)
        units = [
            fields[key]
            for key in ("warpsPerCTA", "instrShape", "sizePerThread", "threadsPerWarp")
            if key in fields
        ]
        if "warpsPerCTA" in fields and len(fields["warpsPerCTA"]) == 2:
            yield name, (math.prod(u[0] for u in units), math.prod(u[1] for u in units))


def _dot(types: str, source: Source, loop: int | None, covered: Mapping[str, tuple[int, int]]) -> Dot:
    """A product by the types of its operands. One thread starts a product of tensor memory (`memdesc`): no repeats."""
    operands = _OPERAND.findall(types)
    if len(operands) != 3:
        raise InternalError(f"inspect: the shapes of a product are not known: {types}")
    (_, depth, _), _, (rows, columns, layout) = operands
    flops = 2 * int(rows) * int(columns) * int(depth)
    if "-> tensor<" not in types:
        return Dot(source, flops, 1, loop)
    if layout not in covered:
        raise InternalError(f"inspect: the layout of a product is not known: {types}")
    high, wide = covered[layout]
    return Dot(source, flops, max(1, high // int(rows)) * max(1, wide // int(columns)), loop)


def _source(name: str, places: Mapping[str, str]) -> Source:
    """The file and line that a location leads to."""
    text = places.get(name, "")
    while not (found := _FILE.search(text)):
        inner = re.search(r"#loc\d*", text)
        if inner is None:
            return "", 0
        text = places.get(inner[0], "")
    return PurePath(found[1]).name, int(found[2])
