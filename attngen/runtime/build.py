"""Generate a module into the cache and import it."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from attngen.cache import cache_dir
from attngen.emit.writer import write
from attngen.generate import generate
from attngen.runtime.load import load_module
from attngen.spec import Spec, load_spec


def build(spec: Spec | str | Path | dict[str, Any], *, interpret: bool | None = None) -> ModuleType:
    """Return the imported module of a spec; the file's name carries the digest of its text, so versions coexist.

    `interpret` is that of `load_module`.
    """
    made = spec if isinstance(spec, Spec) else load_spec(spec)
    text = generate(made)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return load_module(_place(f"{made.name}_{digest}.py", text), interpret=interpret)


def _place(name: str, text: str) -> Path:
    """Write to the cache, or to a temporary folder where the cache cannot be written."""
    try:
        return write(cache_dir() / "modules" / name, text).path
    except OSError:
        return write(Path(tempfile.mkdtemp(prefix="attngen-")) / name, text).path
