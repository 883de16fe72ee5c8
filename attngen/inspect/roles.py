"""What a loop is for: its source line leads to a `for` of the generated module, and the manifest says what that computes."""

from __future__ import annotations

import ast
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attngen.errors import InternalError
from attngen.inspect.assembly import Source
from attngen.target.requests import manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the plan says of one tile of a loop, for a whole program: FLOPs of its products, and bytes that it loads.

    `padded_flops` are those of the products as they are cut into powers of two; idle columns are not useful work.
    """

    role: str
    node: str
    useful_flops: int
    padded_flops: int
    load_bytes: int


@dataclass(frozen=True, slots=True)
class SourceLoop:
    """A `for` of a kernel: the lines it spans, and its work."""

    first: int
    last: int
    work: Work


@functools.cache
def _read_module(module: Path, changed: int) -> tuple[dict[str, Any], ast.Module]:
    """A module's manifest and syntax tree; `changed` is when the file was."""
    return manifest(module), ast.parse(module.read_text(encoding="utf-8"))


def source_loops(
    module: Path, kernel: str, sizes: Mapping[str, Any], element_bytes: int
) -> tuple[SourceLoop, ...]:
    """Return the loops of a kernel in the order of the source; none if the manifest does not describe them.

    `sizes` gives the value of the names that the manifest uses (BLOCK_M, ...).
    """
    told, tree = _read_module(module, module.stat().st_mtime_ns)
    described: Sequence[dict[str, Any]] = told["kernels"][kernel].get("loops", ())
    found = _for_statements(tree, kernel)
    if len(described) != len(found):
        raise InternalError(
            f"{module}: the manifest describes {len(described)} loops of {kernel}, not {len(found)}"
        )
    return tuple(
        SourceLoop(line.lineno, line.end_lineno or line.lineno, _work(loop, sizes, element_bytes))
        for line, loop in zip(found, described, strict=True)
    )


def _for_statements(tree: ast.Module, kernel: str) -> list[ast.For]:
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == kernel]
    found = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.For)]
    return sorted(found, key=lambda n: n.lineno)


def _work(loop: dict[str, Any], sizes: Mapping[str, Any], element_bytes: int) -> Work:
    def area(names: Sequence[str]) -> int:
        return math.prod(int(sizes[name]) for name in names)

    products = [
        p for p in loop["products"] if sizes.get(p.get("when", ""), True)
    ]  # a flag may leave some out
    loads = loop["loads"]
    return Work(
        role=loop["role"],
        node=loop["node"],
        useful_flops=sum(2 * area(p["tile"]) * p["columns"] for p in products),
        padded_flops=sum(2 * area(p["tile"]) * p["padded"] for p in products),
        load_bytes=sum(area(x["tile"]) * x["padded"] * element_bytes for x in loads),
    )


def loop_of(sources: Mapping[Source, int], file: str, loops: Sequence[SourceLoop]) -> SourceLoop | None:
    """The source loop that most instructions come from: each counts for the innermost loop around its line.

    Lines of other files (helpers) do not count.
    """
    votes: Counter[SourceLoop] = Counter()
    for (name, line), instructions in sources.items():
        around = [x for x in loops if name == file and x.first <= line <= x.last]
        if around:
            votes[min(around, key=lambda x: x.last - x.first)] += instructions
    return max(votes, key=lambda x: (votes[x], x.first), default=None)
