"""Counts that are kept beside the code they are of: counting takes longer than all else that a second run does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from attngen.cache import write_atomic
from attngen.inspect.assembly import Source
from attngen.inspect.layouts import Dot
from attngen.inspect.loops import CountedLoop
from attngen.target.compile import CompileReport
from attngen.target.seal import seal, unseal

_BY_LINE = ("sources", "loads")
FORMAT = 3  # raise it when counts of the same code change


@dataclass(frozen=True, slots=True)
class Counts:
    """What is read off the code of a kernel, and its products as Triton's IR has them."""

    code_bytes: int
    matrix_instructions: int
    loops: tuple[CountedLoop, ...]
    dots: tuple[Dot, ...]
    shares: Mapping[Source, float]


def kept_counts(compiled: CompileReport, count: Callable[[], Counts]) -> Counts:
    """The counts of an earlier run, without the loops' instructions; or new ones, which are kept."""
    path = _place(compiled)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return _read(json.loads(unseal(path.read_bytes())))
    found = count()
    with contextlib.suppress(OSError):
        write_atomic(path, seal(json.dumps(_data(found))))
    return found


def are_kept(compiled: CompileReport) -> bool:
    """Whether an earlier run has kept counts, damaged or not."""
    return _place(compiled).exists()


def _place(compiled: CompileReport) -> Path:
    code = compiled.artifacts.get("cubin") or compiled.artifacts["amdgcn"]
    return Path(code).with_suffix(".loops")


def _data(counts: Counts) -> dict[str, Any]:
    loops: list[dict[str, Any]] = []
    for loop in counts.loops:
        plain = {f.name: getattr(loop, f.name) for f in fields(loop) if f.name not in (*_BY_LINE, "code")}
        maps = {name: dict(value) for name, value in plain.items() if hasattr(value, "items")}
        by_line = {name: [[*source, n] for source, n in getattr(loop, name).items()] for name in _BY_LINE}
        loops.append(plain | maps | by_line)
    head = {"format": FORMAT, "code_bytes": counts.code_bytes, "matrix": counts.matrix_instructions}
    shared = [[*source, share] for source, share in counts.shares.items()]
    return head | {
        "loops": loops,
        "dots": [[*d.source, d.flops, d.repeats, d.loop] for d in counts.dots],
        "shares": shared,
    }


def _read(data: dict[str, Any]) -> Counts:
    if data["format"] != FORMAT:
        raise ValueError("counts of another format")
    loops: list[CountedLoop] = []
    for loop in data["loops"]:
        sources, loads = (_lines(loop.pop(name)) for name in _BY_LINE)
        loops.append(CountedLoop(**loop, sources=sources, loads=loads, code=()))
    dots = tuple(Dot((file, line), *rest) for file, line, *rest in data["dots"])
    return Counts(data["code_bytes"], data["matrix"], tuple(loops), dots, _lines(data["shares"]))


def _lines(rows: list[Any]) -> dict[Source, Any]:
    return {(file, line): value for file, line, value in rows}
