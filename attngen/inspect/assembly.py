"""Read the disassembly of NVIDIA code (`nvdisasm -c -g`) and AMD assembly into one list of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

Source = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction. `goes_to` is the label it may jump to; `ends` says that control does not pass it by itself.
    `calls` is the label of a subroutine after which control comes back.

    `source` is the line it was made from, as (file name, line).
    """

    op: str
    operands: str = ""
    guarded: bool = False  # runs only under a predicate or condition
    goes_to: str | None = None
    calls: str | None = None
    ends: bool = False
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The instructions of one kernel, and where its labels stand."""

    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]


_SASS_LABEL = re.compile(r"(\.L_[\w.]+|\$[\w.$]+):")
_SASS_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_SASS_SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)')
_SASS_TARGET = re.compile(r"`\((\.L_[\w.]+|\$[\w.$]+)\)")
_SASS_ENDS = {"EXIT", "RET", "BRX", "JMX", "KILL"}
# ptxas pads with instructions that only take an issue slot, as `@!PT LDS RZ, [RZ]`
_SASS_NEVER = {"@!PT", "@!UPT"}


def parse_sass(text: str, kernel: str) -> Listing:
    """Read one kernel of a disassembly, with its subroutines (`$__internal_0_$__cuda_sm20_div_s64`).

    A call of a `.L_` label is a jump: ptxas closes long loops with one.
    """
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    source: Source | None = None
    for line in _section(text, f".text.{kernel}"):
        if match := _SASS_SOURCE.match(line):
            source = _file_name(match[1]), int(match[2])
        elif match := _SASS_LABEL.match(line):
            labels[match[1]] = len(found)
        elif match := _SASS_LINE.match(line):
            op = "NOP" if (match[1] or "").strip() in _SASS_NEVER else match[2]
            found.append(_sass(op, match[3], bool(match[1]), source))
    return Listing(tuple(found), labels)


@cache
def _file_name(path: str) -> str:
    return PurePath(path).name


def _section(text: str, name: str) -> Iterable[str]:
    """The stripped lines of a section."""
    inside = False
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(".section\t"):
            inside = line.split()[1].split(",")[0] == name
        elif inside:
            yield line


def _sass(op: str, operands: str, guarded: bool, source: Source | None) -> Instruction:
    base = op.split(".")[0]
    match = _SASS_TARGET.search(operands) if base in ("BRA", "CALL", "JMP") else None
    target = match[1] if match else None
    called = target is not None and base == "CALL" and target.startswith("$")
    return Instruction(
        op=op,
        operands=operands,
        guarded=guarded or (target is not None and _has_condition(operands)),
        goes_to=None if called else target,
        calls=target if called else None,
        ends=(target is not None and not called) or base in _SASS_ENDS,
        source=source,
    )


def _has_condition(operands: str) -> bool:
    """Whether a jump names a predicate before its target: `BRA !P0, ...`, `BRA.U UP1, ...`, `BRA.DIV ~URZ, ...`."""
    return re.match(r"[!~]?(?:U?P\d|UR(?:\d+|Z))\s*,", operands) is not None


_AMD_LABEL = re.compile(r"(\.LBB\w+):")
_AMD_LINE = re.compile(r"\t([a-z]\w+)(?:\s+(.*))?$")
_AMD_FILE = re.compile(r'\t\.file\t(\d+) (?:"[^"]*" )?"([^"]+)"')
_AMD_SOURCE = re.compile(r"\t\.loc\t(\d+) (\d+)")
_AMD_ENDS = {"s_endpgm", "s_setpc_b64"}


def parse_amd(text: str, kernel: str) -> Listing:
    """Read one kernel of an AMD assembly text."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    files: dict[str, str] = {}
    source: Source | None = None
    inside = False
    for raw in text.splitlines():
        if match := _AMD_FILE.match(raw):
            files[match[1]] = _file_name(match[2])
        elif raw.startswith(f"{kernel}:"):
            inside = True
        elif not inside:
            continue
        elif raw.startswith((".Lfunc_end", "\t.section")):
            inside = False
        elif match := _AMD_SOURCE.match(raw):
            source = files.get(match[1], ""), int(match[2])
        elif match := _AMD_LABEL.match(raw):
            labels[match[1]] = len(found)
        elif match := _AMD_LINE.match(raw.split(";")[0].rstrip()):
            found.append(_amd(match[1], match[2] or "", source))
    return Listing(tuple(found), labels)


def _amd(op: str, operands: str, source: Source | None) -> Instruction:
    jumps = op == "s_branch" or op.startswith("s_cbranch")
    return Instruction(
        op=op,
        operands=operands,
        guarded=op.startswith("s_cbranch"),
        goes_to=operands.strip() if jumps else None,
        ends=jumps or op in _AMD_ENDS,
        source=source,
    )
