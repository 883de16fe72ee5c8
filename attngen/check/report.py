"""What a check found, as data that prints and that turns into JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Layer = Literal["spec", "build", "passes", "emission"]
LAYERS: tuple[Layer, ...] = ("spec", "build", "passes", "emission")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One equality on one problem: how far apart, and how far it may be."""

    layer: Layer
    what: str  # "interpreter(semantic) = oracle", "kernel 16x32 = oracle", ...
    tensor: str  # out | lse | states | d<input> | <name>_cache
    problem: str
    dtype: str
    error: float
    budget: float

    @property
    def holds(self) -> bool:
        return self.error <= self.budget

    @property
    def share(self) -> float:
        """The part of the budget that is used."""
        if self.error == 0.0:
            return 0.0
        return self.error / self.budget if self.budget else math.inf

    def __str__(self) -> str:
        numbers = f"differs by {self.error:.3g}, allowed is {self.budget:.3g}"
        return f"{self.what}: {self.tensor} {numbers} ({self.dtype})"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong: the first equality that breaks, on the smallest problem found."""

    layer: Layer
    message: str
    problem: dict[str, Any]
    dtype: str
    spec_yaml: str


@dataclass(kw_only=True)
class SpecReport:
    """The check of one spec (or of one dtype of it, before reports are joined)."""

    name: str
    path: str
    dtypes: list[str]
    problems: int = 0
    seconds: float = 0.0
    worst: list[Comparison] = field(default_factory=list[Comparison])
    faults: list[Fault] = field(default_factory=list[Fault])

    @property
    def passed(self) -> bool:
        return not self.faults

    def add(self, found: Iterable[Comparison]) -> None:
        """Keep the comparison that uses most of its budget, per equality, tensor and dtype."""
        kept = {(c.what, c.tensor, c.dtype): c for c in self.worst}
        for one in found:
            key = one.what, one.tensor, one.dtype
            if key not in kept or one.share > kept[key].share:
                kept[key] = one
        self.worst = list(kept.values())

    def as_json(self) -> dict[str, Any]:
        """JSON-able data; an infinite error is null."""
        return {
            "name": self.name,
            "path": self.path,
            "passed": self.passed,
            "dtypes": self.dtypes,
            "problems": self.problems,
            "seconds": round(self.seconds, 2),
            "comparisons": [_finite(asdict(c) | {"share": c.share}) for c in self.worst],
            "faults": [asdict(fault) for fault in self.faults],
        }


def joined(reports: list[SpecReport]) -> SpecReport:
    """Join the reports of the dtypes of one spec."""
    first = reports[0]
    result = SpecReport(name=first.name, path=first.path, dtypes=[d for r in reports for d in r.dtypes])
    for report in reports:
        result.problems += report.problems
        result.seconds += report.seconds
        result.add(report.worst)
        result.faults += report.faults
    return result


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
