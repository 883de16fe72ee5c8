"""Write generated modules, and compare them with what is on disk."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from attngen.cache import write_atomic


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one module."""

    path: Path
    changed: bool
    difference: str = ""


def write(path: Path, text: str) -> Written:
    """Write a module if its text differs: to a temporary name first, then renamed, so that no reader sees half of it."""
    if _read(path) == text:
        return Written(path, changed=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return Written(path, changed=True)


def compare(path: Path, text: str) -> Written:
    """Return how the file on disk differs from the text, writing nothing."""
    old = _read(path)
    if old == text:
        return Written(path, changed=False)
    names = {"fromfile": f"{path} (on disk)", "tofile": f"{path} (generated now)"}
    lines = difflib.unified_diff((old or "").splitlines(True), text.splitlines(True), n=2, **names)
    return Written(path, changed=True, difference="".join(lines) if old is not None else f"{path}: missing\n")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
