"""Importing a generated module, for the GPU or for the CPU."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from attngen.errors import LoadError
from attngen.runtime import cpu
from attngen.runtime.cpu import triton_modules

_importing = threading.RLock()


def load_module(path: Path, *, interpret: bool | None = None) -> ModuleType:
    """Imports the generated file `path`.

    The module's name comes from the file's place, its text and the way its kernels run, so versions of one
    file and both ways live side by side. Loading the same text again returns the same module.

    Args:
        path: a Python file; Triton reads the source of kernels from it.
        interpret: run kernels on the CPU in Triton's interpreter, made value-correct. None: if torch finds no
        GPU (CUDA
            or ROCm), or Triton was told to interpret by its own setting TRITON_INTERPRET.

    Raises:
        LoadError: the file or a package it needs is missing, the file does not import, or it cannot be
        compiled here.
    """
    source = _read(path)
    _require_packages(path)
    if interpret is None:
        interpret = _must_interpret()
    name = _module_name(path, source, interpret)
    with _importing:
        if name not in sys.modules:
            with _decorating_for(interpret, path):
                _import(name, path, interpret)
        return sys.modules[name]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path}: cannot read the generated module: {error.strerror}") from error


def _require_packages(path: Path) -> None:
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(f"{path}: running a kernel needs {' and '.join(missing)}; pip install 'attngen[run]'")


def _must_interpret() -> bool:
    torch: Any = importlib.import_module("torch")
    # torch.cuda is ROCm in a ROCm build.
    return bool(triton_modules.settings().interpret) or not torch.cuda.is_available()


def _module_name(path: Path, source: bytes, interpret: bool) -> str:
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
    stem = re.sub(r"\W", "_", path.stem)
    return f"attngen_generated_{stem}_{digest}_{'cpu' if interpret else 'gpu'}"


@contextmanager
def _decorating_for(interpret: bool, path: Path) -> Generator[None]:
    """Has `@triton.jit` make interpreted or compiled functions.

    The setting is changed in this process only: through Triton's interface it would reach the environment,
    and with it worker processes that compile.
    """
    # Whatever decorates kernels of its own does so before the setting changes.
    for name in ("torch", "triton.language"):
        importlib.import_module(name)
    if interpret:
        cpu.enable()
    elif triton_modules.is_interpreted_build():
        problem = "cannot compile: triton was imported under TRITON_INTERPRET=1"
        raise LoadError(f"{path}: {problem}; unset it and start again")
    with patch.dict(vars(triton_modules.settings()), {"interpret": interpret}):
        yield


def _import(name: str, path: Path, interpret: bool) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path}: not a Python file; a generated module ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        if interpret:
            _read_kernels(module)
    except Exception as error:
        del sys.modules[name]
        problem = f"cannot import the generated module: {type(error).__name__}: {error}"
        raise LoadError(f"{path}: {problem}") from error


def _read_kernels(module: ModuleType) -> None:
    """Rewrites the kernels for the interpreter now: the file may change before the first launch."""
    interpreted = triton_modules.interpreter().InterpretedFunction
    for value in vars(module).copy().values():
        # An autotuner holds its kernel in `fn`.
        kernel: Any = value if isinstance(value, interpreted) else getattr(value, "fn", None)
        if isinstance(kernel, interpreted):
            kernel.rewrite()
