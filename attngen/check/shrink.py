"""The smallest problem that still fails: a few simple steps, each kept if the failure stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from attngen.check.problem import Problem

MAX_STEPS: Final = 60
MAX_SECONDS: Final = 30.0


def shrink(problem: Problem, fails: Callable[[Problem], bool]) -> Problem:
    """Return the smallest problem found for which `fails` holds, as it does for `problem`."""
    deadline = time.monotonic() + MAX_SECONDS
    steps = 0
    smaller: Problem | None = problem
    while smaller is not None:
        problem, smaller = smaller, None
        for candidate in _simpler(problem):
            steps += 1
            if steps > MAX_STEPS or time.monotonic() > deadline:
                return problem
            if fails(candidate):
                smaller = candidate
                break
    return problem


def _simpler(problem: Problem) -> Iterator[Problem]:
    """Simpler problems, the boldest step first."""
    if problem.kv_heads > 1:
        yield replace(problem, kv_heads=1)
    if problem.strides != "contiguous":
        yield replace(problem, strides="contiguous")
    if problem.values != "normal":
        yield replace(problem, values="normal")
    if problem.spare:
        yield replace(problem, spare=0)
    if problem.used_k is not None:
        yield replace(problem, used_k=None)
    else:
        yield from _shorter(problem)


def _shorter(problem: Problem) -> Iterator[Problem]:
    lengths = problem.lengths
    if len(lengths) > 1:
        middle = len(lengths) // 2
        yield from (replace(problem, lengths=half) for half in (lengths[:middle], lengths[middle:]))
        if len(set(lengths)) > 1:
            yield from (replace(problem, lengths=lengths[:n] + lengths[n + 1 :]) for n in range(len(lengths)))
    for side in (0, 1):
        for change in (_half, _one_less):
            shorter = tuple(_changed(pair, side, change) for pair in lengths)
            if shorter != lengths:
                yield replace(problem, lengths=shorter)


def _changed(pair: tuple[int, int], side: int, change: Callable[[int], int]) -> tuple[int, int]:
    q, k = pair
    return (change(q), k) if side == 0 else (q, change(k))


def _half(length: int) -> int:
    return length // 2


def _one_less(length: int) -> int:
    return max(0, length - 1)
