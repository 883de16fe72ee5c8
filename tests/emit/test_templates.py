"""Templates decide nothing: flags, loops and finished strings only; every field they name exists and is used."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jinja2.nodes as jn
import pytest

from attngen.emit.faces import (
    BackwardFace,
    CapturedArgument,
    CapturedFace,
    ForwardLaunch,
    Interface,
    KernelFace,
    ScalarArgument,
)
from attngen.emit.records import (
    Backward,
    BackwardKernel,
    BackwardLoop,
    CapturedKernel,
    Chunk,
    Context,
    Loop,
    Piece,
    PlaceKernel,
    RowSum,
    Table,
)
from attngen.emit.records_recurrence import (
    Adjoint,
    AdjointFaces,
    AdjointRead,
    AdjointSide,
    ChunkProducts,
    Decode,
    DeltaAdjoint,
    Launched,
    RecurrenceContext,
    Solved,
    Term,
    Tile,
)
from attngen.emit.render import environment, templates

FILES = sorted(templates().rglob("*.jinja"))
OF_ATTENTION = [path for path in FILES if not path.name.startswith("recurrence")]
OF_RECURRENCE = [path for path in FILES if path.name.startswith("recurrence")]
LOGIC = (jn.BinExpr, jn.Compare, jn.And, jn.Or, jn.CondExpr, jn.Assign, jn.AssignBlock, jn.Test)
RECORDS = {"c": Context, "face": Interface}
NESTED = {("c", "backward"): Backward, ("face", "backward"): BackwardFace}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_logic(path: Path):
    tree = environment().parse(path.read_text())
    found = [(type(n).__name__, n.lineno) for kind in LOGIC for n in tree.find_all(kind)]
    filters = {n.name for n in tree.find_all(jn.Filter)}
    assert found == []
    assert filters <= {"block"}
    assert len(path.read_text().splitlines()) <= 170


def test_calls_are_macros_only():
    for path in FILES:
        tree = environment().parse(path.read_text())
        macros = {m.name for m in tree.find_all(jn.Macro)} | {
            n for i in tree.find_all(jn.FromImport) for n in i.names if isinstance(n, str)
        }
        called = {n.node.name for n in tree.find_all(jn.Call) if isinstance(n.node, jn.Name)}
        assert called <= macros, path


def test_every_field_is_used_and_exists():
    used: dict[str, set[str]] = {name: set() for name in RECORDS}
    for path in OF_ATTENTION:
        for node in environment().parse(path.read_text()).find_all(jn.Getattr):
            if isinstance(node.node, jn.Name) and node.node.name in RECORDS:
                used[node.node.name].add(node.attr)
    for name, record in RECORDS.items():
        fields = {f.name for f in dataclasses.fields(record)}
        assert used[name] <= fields, f"templates name fields that {record.__name__} lacks"
        assert fields - used[name] <= {"interface", "kernel_types", "table_types", "combine_types"}, (
            f"{record.__name__} has fields no template prints"
        )


def test_every_field_of_the_backward_is_used_and_exists():
    used: dict[tuple[str, str], set[str]] = {path: set() for path in NESTED}
    text = "".join(path.read_text() for path in OF_ATTENTION)
    for owner, name in NESTED:
        used[owner, name] = set(re.findall(rf"\b{owner}\.{name}\.(\w+)", text))
    used["c", "backward"] |= set(re.findall(r"\bb\.(\w+)", text))  # macros get it as b
    for path, record in NESTED.items():
        fields = {f.name for f in dataclasses.fields(record)}
        assert used[path] == fields, path
    for name, record in (("walk", BackwardLoop), ("kernel", KernelFace), ("sum", RowSum)):
        printed = set(re.findall(rf"\b{name}\.(\w+)", text))
        missing = {f.name for f in dataclasses.fields(record)} - printed - {"types", "values", "kind"}
        assert missing == set(), f"{record.__name__} has fields no template prints"


def test_every_field_of_a_recurrence_is_used_and_exists():
    text = "".join(path.read_text() for path in OF_RECURRENCE)
    owners = {
        "c": RecurrenceContext,
        r"c\.adjoint": Adjoint,
        r"c\.adjoint_face": AdjointFaces,
        "decode": Decode,
        r"c\.adjoint\.delta": DeltaAdjoint,
        "s": Solved,
        "r": AdjointRead,
        "side": AdjointSide,
        "p": ChunkProducts,
        "launched": Launched,
        "term": Term,
        "tile": Tile,
    }
    unprinted = {
        "adjoint_face": {"pairs", "out", "states", "scan", "queries", "keys", "values", "tokens", "delta"}
    }
    for owner, record in owners.items():
        used = set(re.findall(rf"\b{owner}\.(\w+)", text))
        fields = {f.name for f in dataclasses.fields(record)}
        if owner != "tile":
            assert used <= fields, f"templates name {used - fields}, which {record.__name__} lacks"
        missing = fields - used - unprinted.get(owner.removeprefix(r"c\."), set())
        assert missing == set(), f"{record.__name__} has fields no template prints"


def test_records_hold_finished_values():
    plain = ("str", "bool", "int", "tuple[str, ...]", "tuple[tuple[str, str], ...]", "Interface", "Table")
    plain += (
        "tuple[Loop, ...]",
        "tuple[Chunk, ...]",
        "tuple[CapturedArgument, ...]",
        "tuple[ScalarArgument, ...]",
        "tuple[tuple[int, str, str], ...]",
        "tuple[tuple[str, str, str], ...]",
        "tuple[BackwardLoop, ...]",
        "tuple[RowSum, ...]",
        "tuple[CapturedKernel, ...]",
        "tuple[PlaceKernel, ...]",
        "tuple[CapturedFace, ...]",
        "tuple[ForwardLaunch, ...]",
        "tuple[Piece, ...]",
        "BackwardKernel",
        "KernelFace",
        "Backward | None",
        "BackwardFace | None",
    )
    forward = (Context, Interface, Loop, Chunk, Table, CapturedArgument, ScalarArgument, ForwardLaunch, Piece)
    backward = (Backward, BackwardFace, BackwardKernel, BackwardLoop, KernelFace, RowSum)
    backward += (CapturedFace, CapturedKernel, PlaceKernel)
    for record in (*forward, *backward):
        assert {str(f.type) for f in dataclasses.fields(record)} <= set(plain)
