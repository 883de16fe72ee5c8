"""Generate a module into the cache and import it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from attngen.generate import generate_to_cache
from attngen.runtime.load import load_module
from attngen.spec import Spec, load_spec


def build(spec: Spec | str | Path | dict[str, Any], *, interpret: bool | None = None) -> ModuleType:
    """Return the imported module of a spec, generated into the cache.

    `interpret` is that of `load_module`.
    """
    made = spec if isinstance(spec, Spec) else load_spec(spec)
    return load_module(generate_to_cache(made), interpret=interpret)
