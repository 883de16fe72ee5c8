"""Spec in, text of a module out: the driver that reads as its steps."""

from __future__ import annotations

from attngen.emit.render import render
from attngen.ir.graph import Graph
from attngen.passes.pipeline import schedule
from attngen.spec import Spec


def plan(spec: Spec) -> Graph:
    """Return the scheduled graph of a spec."""
    return schedule(spec)


def generate(spec: Spec, *, regenerate: str = "") -> str:
    """Return the source of the stand-alone module of a spec; its header says to run ``regenerate``."""
    return render(plan(spec), regenerate=regenerate)
