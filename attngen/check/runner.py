"""Checking specs: each dtype of each spec is one task; tasks run in worker processes."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from attngen.check.report import Fault, Layer, SpecReport, joined
from attngen.spec import Spec

if TYPE_CHECKING:
    from attngen.check.problem import Problem
    from attngen.check.triangle import Broken, Subject


@dataclass(frozen=True)
class Task:
    """One dtype of one spec."""

    path: str
    spec: Spec
    dtype: str


def tasks(loaded: Sequence[tuple[str, Spec]]) -> list[Task]:
    """Return the tasks of specs, in order."""
    return [Task(path, spec, dtype) for path, spec in loaded for dtype in spec.dtypes]


def check_specs(
    loaded: Sequence[tuple[str, Spec]], *, workers: int, done: Callable[[Task, SpecReport], None]
) -> list[SpecReport]:
    """Check specs and return a report each; `done` hears of every task as it ends."""
    todo = tasks(loaded)
    found: dict[int, SpecReport] = {}
    for index, report in _run_all(todo, min(workers, len(todo))):
        found[index] = report
        done(todo[index], report)
    ordered = iter([found[index] for index in range(len(todo))])
    return [joined([next(ordered) for _ in spec.dtypes]) for _, spec in loaded]


def _run_all(todo: Sequence[Task], workers: int) -> Iterator[tuple[int, SpecReport]]:
    """Yield the index and the report of each task as it ends."""
    if workers <= 1:
        yield from ((index, check_task(task)) for index, task in enumerate(todo))
        return
    # A fresh process each: torch's threads and Triton's interpreter do not survive a fork.
    others = set(multiprocessing.active_children())
    # Ctrl-C reaches the workers too; they end without a word.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        running = {pool.submit(check_task, task): index for index, task in enumerate(todo)}
        waiting: set[Future[SpecReport]] = set(running)
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from ((running[future], future.result()) for future in ended)
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise


def check_task(task: Task) -> SpecReport:
    """Check one dtype of one spec: all problems, until the first that fails."""
    import torch

    from attngen.check.cases import problems
    from attngen.check.triangle import Broken, Subject, check_problem

    torch.set_num_threads(1)
    start = time.monotonic()
    report = SpecReport(name=task.spec.name, path=task.path, dtypes=[task.dtype])
    if task.spec.recurrence is not None:
        _check_recurrence(task, report)
        report.seconds = time.monotonic() - start
        return report
    try:
        subject = Subject.of(task.spec)
    except Broken as broken:
        report.faults.append(_described(task, broken.layer, str(broken), {}))
        return report
    for number, problem in enumerate(problems(task.spec)):
        report.problems += 1
        try:
            report.add(check_problem(subject, problem, task.dtype, number))
        except Broken as broken:
            report.faults.append(_fault(subject, task, number, broken))
            break
    report.seconds = time.monotonic() - start
    return report


def _check_recurrence(task: Task, report: SpecReport) -> None:
    """Check one dtype of a recurrence: all calls, until the first that fails."""
    from attngen.check.recurrence import calls, check_calls, smaller
    from attngen.check.triangle import Broken

    todo = calls(smaller(task.spec))
    try:
        for _, found in check_calls(task.spec, task.dtype):
            report.problems += 1
            report.add(found)
    except Broken as broken:
        failed = todo[min(report.problems, len(todo) - 1)]
        report.faults.append(_described(task, broken.layer, str(broken), failed.as_json()))


def _fault(subject: Subject, task: Task, number: int, broken: Broken) -> Fault:
    """Shrink a failing problem and describe it."""
    from attngen.check.cases import problems
    from attngen.check.shrink import shrink
    from attngen.check.triangle import Broken, check_problem, guilty_pass

    last = broken

    def fails(candidate: Problem) -> bool:
        nonlocal last
        try:
            check_problem(subject, candidate, task.dtype, number)
        except Broken as error:
            if error.layer == broken.layer:
                last = error
                return True
        return False

    smallest = shrink(problems(task.spec)[number], fails)
    message = str(last)
    if broken.layer == "passes" and (name := guilty_pass(subject, smallest, task.dtype)):
        message = f"pass {name}: {message}"
    return _described(task, broken.layer, message, smallest.as_json())


def _described(task: Task, layer: Layer, message: str, problem: dict[str, Any]) -> Fault:
    text = yaml.safe_dump(task.spec.canonical(), sort_keys=False)
    return Fault(layer=layer, message=message, problem=problem, dtype=task.dtype, spec_yaml=text)
