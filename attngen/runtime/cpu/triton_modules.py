"""The parts of Triton that this package looks into.

They are untyped and private to Triton, so they are reached through `Any` here, in one place, and every use of
them elsewhere asks whether the version at hand has what it wants to change.
"""

from __future__ import annotations

import importlib
from typing import Any

MARKER = "attngen_value_correct"


def interpreter() -> Any:
    """`triton.runtime.interpreter`; importing triton first, which that module needs."""
    importlib.import_module("triton")
    return importlib.import_module("triton.runtime.interpreter")


def jit() -> Any:
    """`triton.runtime.jit`, where compiled functions are defined."""
    return importlib.import_module("triton.runtime.jit")


def language() -> Any:
    """`triton.language`, the `tl` of a kernel."""
    return importlib.import_module("triton.language")


def settings() -> Any:
    """`triton.knobs.runtime`; its attribute `interpret` decides what `@triton.jit` makes."""
    return importlib.import_module("triton.knobs").runtime


def is_interpreted_build() -> bool:
    """Whether triton was imported under TRITON_INTERPRET=1, so that its own library cannot be compiled."""
    return not isinstance(language().standard.cdiv, jit().JITFunction)
