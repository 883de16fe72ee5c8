"""How the programs of a launch run: one after another, in an order that a check can reverse."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from attngen.runtime.cpu import triton_modules


class _Settings:
    reverse = False


# The interpreter keeps the running program's index in one place per process, so launches take turns.
_launching = threading.RLock()


@contextmanager
def reversed_grid() -> Generator[None]:
    """Runs interpreted grids from the last program to the first.

    Programs of a correct kernel do not see each other, so the results must be the same bits in both orders.
    """
    previous, _Settings.reverse = _Settings.reverse, True
    try:
        yield
    finally:
        _Settings.reverse = previous


@contextmanager
def overflow_checks(on: bool) -> Generator[None]:
    """Whether interpreted kernels fail on integer overflow (`AssertionError` inside an `InterpreterError`).

    Off unless asked for: it halves the speed. Asserts of the kernel itself (`tl.device_assert`) follow it.
    """
    builder = triton_modules.interpreter().interpreter_builder
    previous = builder.options
    # The sanitizer reports through device asserts, which run in debug mode only.
    builder.options = dataclasses.replace(previous, sanitize_overflow=on, debug=on)
    try:
        yield
    finally:
        builder.options = previous


def install(interpreter: Any) -> None:
    """Replaces how a launch numbers its programs; switches the costly overflow checks off."""
    interpreter.InterpreterBuilder.set_grid_idx = _set_grid_idx(interpreter.InterpreterBuilder.set_grid_idx)
    interpreter.GridExecutor.__call__ = _launch(interpreter.GridExecutor.__call__)
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _set_grid_idx(original: Callable[..., None]) -> Callable[..., None]:
    def set_grid_idx(builder: Any, *index: int) -> None:
        if _Settings.reverse:
            index = tuple(size - 1 - i for size, i in zip(builder.grid_dim, index, strict=True))
        original(builder, *index)

    return set_grid_idx


def _launch(original: Callable[..., None]) -> Callable[..., None]:
    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        # Overflow, division by zero and NaN are values on a GPU, not warnings.
        with _launching, np.errstate(all="ignore"):
            original(executor, *args, **kwargs)

    return launch
