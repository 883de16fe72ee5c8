"""What a loop is for: its source line leads to a `for` of the generated module, and the manifest says what that computes."""

from __future__ import annotations

import ast
import functools
import math
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attngen.errors import InternalError
from attngen.inspect.assembly import Source
from attngen.target.requests import manifest

BYTES = {
    "int4": 0.5,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int32": 4,
    "float32": 4,
}  # others are those of the products
# Python counts the depth of trees that it makes for all threads together: a garbage collection in between lets another
# thread in, and the first fails with "AST constructor recursion depth mismatch" (python/cpython issue 106905).
_PARSING = threading.Lock()
PASSES = {"tf32x3": 3}  # products of fp32 as sums of rounded ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the plan says of one tile of a loop, for a whole program: FLOPs of its products, and bytes that it loads.

    `padded_flops` are those of the products as they are cut into powers of two, each done as often as its precision asks;
    idle columns and further passes are not useful work. `least_bytes` is what its `keys` need, read once; both are 0 where
    the manifest does not list all that is read.
    """

    role: str
    node: str
    useful_flops: int
    padded_flops: int
    load_bytes: int
    keys: int = 0
    least_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class SourceLoop:
    """A `for` of a kernel: the lines it spans, and its work."""

    first: int
    last: int
    work: Work


@functools.cache
def _read_module(module: Path, changed: int) -> tuple[dict[str, Any], str]:
    """A module's manifest and text; `changed` is when the file was."""
    return manifest(module), module.read_text(encoding="utf-8")


def source_loops(
    module: Path, kernel: str, sizes: Mapping[str, Any], element_bytes: int
) -> tuple[SourceLoop, ...]:
    """Return the loops of a kernel in the order of the source; none if the manifest does not describe them.

    `sizes` gives the value of the names that the manifest uses (BLOCK_M, ...).
    """
    told, text = _read_module(module, module.stat().st_mtime_ns)
    described: Sequence[dict[str, Any]] = told["kernels"][kernel].get("loops", ())
    found = _for_statements(text, kernel)
    if len(described) != len(found):
        raise InternalError(
            f"{module}: the manifest describes {len(described)} loops of {kernel}, not {len(found)}"
        )
    precision = told.get("compiled_in", {}).get("precision")
    passes = PASSES.get(precision, 1) if element_bytes == 4 else 1
    return tuple(
        SourceLoop(first, last, _work(loop, sizes, element_bytes, passes))
        for (first, last), loop in zip(found, described, strict=True)
    )


def _for_statements(text: str, kernel: str) -> list[tuple[int, int]]:
    """First and last line of each loop of a function. The rest of the module is not parsed: that is what takes time."""
    function = re.search(rf"^def {kernel}\(.*?(?=^[@\w]|\Z)", text, re.MULTILINE | re.DOTALL)
    if function is None:
        return []
    above = text.count("\n", 0, function.start())
    with _PARSING:
        tree = ast.parse(function[0])
    loops = _loops_in(tree.body)
    return sorted((above + x.lineno, above + (x.end_lineno or x.lineno)) for x in loops)


def _loops_in(statements: Sequence[ast.stmt]) -> list[ast.For]:
    """All loops but those over `share`, which only number what the loop in them does."""
    found: list[ast.For] = []
    for statement in statements:
        found += (
            [statement] if isinstance(statement, ast.For) and ast.unparse(statement.target) != "share" else []
        )
        for block in ("body", "orelse"):
            found += _loops_in(getattr(statement, block, ()))
    return found


def _work(loop: dict[str, Any], sizes: Mapping[str, Any], element_bytes: int, passes: int) -> Work:
    def area(names: Sequence[str]) -> int:
        return math.prod(int(sizes[name]) for name in names)

    products = [
        p for p in loop["products"] if sizes.get(p.get("when", ""), True)
    ]  # a flag may leave some out
    loads = [x for x in loop["loads"] if "dtype" not in x or x["tensor"] in ("k", "v")]
    listed = [x for x in loop["loads"] if "dtype" in x]
    return Work(
        role=loop["role"],
        node=loop["node"],
        useful_flops=sum(2 * area(p["tile"]) * p["columns"] for p in products),
        padded_flops=passes * sum(2 * area(p["tile"]) * p["padded"] for p in products),
        load_bytes=sum(area(x["tile"]) * x["padded"] * element_bytes for x in loads),
        keys=max((area(x["tile"]) for x in listed), default=0),
        least_bytes=sum(
            area(x["tile"]) / x.get("keys", 1) * x["columns"] * BYTES.get(x["dtype"], element_bytes)
            for x in listed
        ),
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
