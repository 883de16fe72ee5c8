"""Spec in, text of a module out: the driver that reads as its steps."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from attngen.cache import cache_dir
from attngen.emit.render import render
from attngen.emit.writer import write
from attngen.ir.graph import Graph
from attngen.passes.pipeline import schedule
from attngen.spec import Spec


def plan(spec: Spec) -> Graph:
    """Return the scheduled graph of a spec."""
    return schedule(spec)


def generate(spec: Spec, *, regenerate: str = "") -> str:
    """Return the source of the stand-alone module of a spec; its header says to run ``regenerate``."""
    return render(plan(spec), regenerate=regenerate)


def generate_to_cache(spec: Spec) -> Path:
    """Generate into the cache, or a temporary folder where that cannot be written; return the file.

    Its name carries the digest of its text, so versions coexist.
    """
    text = generate(spec)
    name = f"{spec.name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    try:
        return write(cache_dir() / "modules" / name, text).path
    except OSError:
        return write(Path(tempfile.mkdtemp(prefix="attngen-")) / name, text).path
