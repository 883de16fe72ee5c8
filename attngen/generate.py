"""Spec in, text of a module out: the driver that reads as its steps."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
from pathlib import Path

from attngen.cache import cache_dir, write_atomic
from attngen.emit.render import render, templates
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

    Its name carries the digest of its text, so versions coexist. A spec that this very version of attngen has generated
    before is looked up.
    """
    folder = cache_dir() / "modules"
    index = folder / f"{_key(spec)}.made"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known = folder / index.read_text(encoding="utf-8")
        if known.name == _name(spec, known.read_text(encoding="utf-8")):
            return known
    text = generate(spec)
    name = _name(spec, text)
    try:
        path = write(folder / name, text).path
        write_atomic(index, name)
        return path
    except OSError:
        return write(Path(tempfile.mkdtemp(prefix="attngen-")) / name, text).path


def _name(spec: Spec, text: str) -> str:
    return f"{spec.name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"


def _key(spec: Spec) -> str:
    """A digest of all that a generated text depends on."""
    said = json.dumps([spec.canonical(), spec.summary, _installed()], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


@functools.cache
def _installed() -> list[str]:
    """The files of this attngen, and when they were changed."""
    files = [*Path(__file__).parent.rglob("*.py"), *templates().rglob("*.jinja")]
    return sorted(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
