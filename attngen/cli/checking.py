"""`attngen check`: progress on stderr, results on stdout."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from attngen.check.problem import in_words
from attngen.check.report import Fault, SpecReport
from attngen.check.runner import Task, check_specs, tasks
from attngen.cli.output import columns, print_json
from attngen.errors import LoadError
from attngen.spec import Spec


def check_and_show(loaded: Sequence[tuple[Path, Spec]], *, as_json: bool, workers: int) -> bool:
    """Check specs, print what was found, and return whether all is well."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        needs = " and ".join(missing)
        raise LoadError(f"a check runs kernels, which needs {needs}; pip install 'attngen[run]'")
    named = [(str(path), spec) for path, spec in loaded]
    reports = _with_progress(named, workers)
    passed = all(report.passed for report in reports)
    if as_json:
        print_json({"passed": passed, "specs": [report.as_json() for report in reports]})
        return passed
    print(columns([_row(report) for report in reports]))
    for report in reports:
        for fault in report.faults:
            print(f"\n{_fault(report, fault)}")
    if passed:
        print("\nall is right")
    else:
        print(f"\n{sum(not report.passed for report in reports)} of {len(reports)} specs failed")
    return passed


def _with_progress(named: Sequence[tuple[str, Spec]], workers: int) -> list[SpecReport]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    what = TextColumn("{task.description}")
    shown = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), what)
    console = Console(file=sys.stderr)
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(tasks(named)))

        def done(task: Task, report: SpecReport) -> None:
            verdict = "" if report.passed else " failed"
            progress.update(bar, advance=1, description=f"{task.spec.name} {task.dtype}{verdict}")

        return check_specs(named, workers=workers, done=done)


LABELS = ("out", "lse", "states", "append_kv", "gradients")


def _of(tensor: str) -> str:
    """What a compared tensor is called in a line: all gradients are one, and so is all that is written to a cache."""
    if tensor.endswith(("_cache", "_scale")):
        return "append_kv"
    return tensor if tensor in LABELS else "gradients"


def _row(report: SpecReport) -> list[str]:
    verdict = "ok" if report.passed else "FAILED"
    shares: dict[str, float] = {}
    for one in report.worst:
        if one.layer == "emission":
            shares[_of(one.tensor)] = max(one.share, shares.get(_of(one.tensor), 0.0))
    found = ", ".join(f"{label} {shares[label]:.0%}" for label in LABELS if label in shares)
    used = f"of the error budget: {found}" if report.passed else ""
    return [
        verdict,
        report.name,
        ", ".join(report.dtypes),
        f"{report.problems} problems",
        f"{report.seconds:.1f} s",
        used,
    ]


def _fault(report: SpecReport, fault: Fault) -> str:
    guilty = {
        "spec": "the spec asks for something that has no value",
        "build": "build (spec to semantic graph) is wrong",
        "passes": "the passes (semantic to scheduled graph) are wrong",
        "emission": "emission (scheduled graph to kernel) is wrong",
    }[fault.layer]
    problem = dict(fault.problem)
    smallest = f"smallest failing problem: {problem.pop('name')}, {in_words(problem)}, " if problem else ""
    lines = [
        f"{report.path}: {guilty}",
        f"  {fault.message}",
        f"  {smallest}dtype {fault.dtype}",
        "  spec:",
        *(f"    {line}" for line in fault.spec_yaml.splitlines()),
    ]
    return "\n".join(lines)
