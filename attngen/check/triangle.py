"""The equalities of one problem: oracle = semantic graph = scheduled graph; the kernel is within its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from attngen.check.append import append_errors
from attngen.check.budget import Truth, max_error, truth
from attngen.check.gradients import gradient_truth, of_graph, of_kernels, wanted
from attngen.check.inputs import Inputs, make_inputs
from attngen.check.kernels import Results, run_reversed, variants
from attngen.check.problem import Problem
from attngen.check.report import Comparison, Layer
from attngen.errors import CheckError, LoadError, PlanError
from attngen.ir.graph import Graph
from attngen.passes.build import build
from attngen.passes.differentiate import Differentiate
from attngen.passes.pipeline import PIPELINE, run
from attngen.reference.interpreter import interpret
from attngen.runtime.build import build as build_module
from attngen.spec import Spec

BLOCKS: Final = ((16, 16), (5, 7))
"""Tile sizes of the interpreter: those of a kernel, and sizes that no kernel has."""


class Broken(Exception):
    """An equality that does not hold, or a layer that failed before there was a number."""

    def __init__(self, layer: Layer, message: str) -> None:
        super().__init__(message)
        self.layer: Layer = layer


@dataclass(frozen=True)
class Subject:
    """What is checked: a spec, its graphs and its module."""

    spec: Spec
    semantic: Graph
    scheduled: Graph
    module: ModuleType | None

    @classmethod
    def of(cls, spec: Spec, *, kernel: bool = True) -> Subject:
        """Build the graphs of a spec, and its module unless only graphs are wanted.

        Raises:
            UserError: the spec has no kernel in this version.
            Broken: a layer fails.
        """
        semantic = guarded("build", lambda: build(spec))
        scheduled = guarded("passes", lambda: run(semantic))
        module = guarded("emission", lambda: build_module(spec, interpret=True)) if kernel else None
        return cls(spec, semantic, scheduled, module)


def check_problem(subject: Subject, problem: Problem, dtype: str, number: int = 0) -> list[Comparison]:
    """Return the comparisons of one problem.

    Args:
        number: chooses the kernel's tilings.

    Raises:
        Broken: at the first equality that does not hold.
    """
    inputs = make_inputs(subject.spec, problem, getattr(torch, dtype))
    try:
        known = truth(subject.spec, inputs)
    except CheckError as error:
        raise Broken("spec", str(error)) from None
    if known.out.isnan().any() or known.lse.isnan().any():
        raise Broken("spec", "the formula itself gives NaN")
    done: list[Comparison] = []
    for layer, what, results in _results(subject, inputs, number):
        budgets = known.exact if layer != "emission" else {"out": known.out_budget, "lse": known.lse_budget}
        for tensor, found, expected in zip(("out", "lse"), results, (known.out, known.lse), strict=True):
            error = max_error(found, expected)
            one = Comparison(
                layer=layer,
                what=f"{what} = oracle",
                tensor=tensor,
                problem=problem.name,
                dtype=dtype,
                error=error,
                budget=budgets[tensor],
            )
            done.append(one)
            if not one.holds:
                raise Broken(layer, f"{one}{_where(found, expected)}")
        _check_empty_rows(layer, what, results, known, subject.spec.layout)
    if subject.spec.cache is not None and subject.module is not None:
        done += _appended(subject.spec, subject.module, problem, dtype, number)
    if subject.spec.grad:
        done += _gradients(subject, problem, dtype, inputs, known)
    return done


def _appended(spec: Spec, module: ModuleType, problem: Problem, dtype: str, number: int) -> list[Comparison]:
    """What `append_kv` writes is what it should be; errors in units of what each number may be off by."""
    found = guarded(
        "emission", lambda: [*append_errors(spec, module, problem, getattr(torch, dtype), number)]
    )
    done: list[Comparison] = []
    for tensor, error in found:
        one = Comparison(
            layer="emission",
            what="append_kv = oracle",
            tensor=tensor,
            problem=problem.name,
            dtype=dtype,
            error=error,
            budget=1.0,
        )
        done.append(one)
        if not one.holds:
            raise Broken("emission", str(one))
    return done


def _gradients(
    subject: Subject, problem: Problem, dtype: str, inputs: Inputs, known: Truth
) -> list[Comparison]:
    """The same equalities for gradients."""
    names = wanted(subject.semantic)
    right = gradient_truth(subject.spec, names, inputs, known)
    runs: list[tuple[Layer, str, Callable[[], dict[str, Tensor]]]] = [
        ("build", "adjoints", lambda: of_graph(Differentiate().apply(subject.semantic), inputs, right)),
        (
            "passes",
            "scheduled adjoints",
            lambda: of_graph(subject.scheduled, inputs, right, block_m=5, block_n=7),
        ),
    ]
    module = subject.module
    if module is not None:
        runs.append(("emission", "backward kernels", lambda: of_kernels(module, inputs, right)))
    done: list[Comparison] = []
    for layer, what, action in runs:
        found = guarded(layer, action)
        for name, expected in right.expected.items():
            one = Comparison(
                layer=layer,
                what=f"{what} = oracle",
                tensor=f"d{name}",
                problem=problem.name,
                dtype=dtype,
                error=max_error(found[name], expected),
                budget=(right.budget if layer == "emission" else right.exact)[name],
            )
            done.append(one)
            if not one.holds:
                raise Broken(layer, f"{one}{_where(found[name], expected)}")
    return done


def _results(subject: Subject, inputs: Inputs, number: int) -> Iterator[tuple[Layer, str, Results]]:
    """Run everything that the oracle is compared with, the layers in order."""
    yield "build", "interpreter(semantic)", guarded("build", lambda: interpret(subject.semantic, inputs))
    for m, n in BLOCKS:
        what = f"interpreter(scheduled {m}x{n})"
        yield "passes", what, guarded("passes", lambda: _scheduled(subject, inputs, m, n))  # noqa: B023
    if subject.module is not None:
        yield from _kernels(subject.spec, subject.module, inputs, number)


def _scheduled(subject: Subject, inputs: Inputs, m: int, n: int) -> Results:
    return interpret(subject.scheduled, inputs, block_m=m, block_n=n)


def _kernels(
    spec: Spec, module: ModuleType, inputs: Inputs, number: int
) -> Iterator[tuple[Layer, str, Results]]:
    runs = variants(spec, module, inputs, number)
    first: Results | None = None
    while (found := guarded("emission", lambda: next(runs, None))) is not None:
        what, results = found
        first = first or results
        yield "emission", what, results
    backward = guarded("emission", lambda: run_reversed(spec, module, inputs, number))
    if first is not None and not all(_same_bits(a, b) for a, b in zip(first, backward, strict=True)):
        raise Broken("emission", "programs see each other: the grid in reverse order gives other bits")


def guarded(layer: Layer, action: Callable[[], Any]) -> Any:
    """Run a layer; whatever it raises is that layer's fault, except what the user can mend."""
    try:
        return action()
    except (PlanError, LoadError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise Broken(layer, f"{type(cause).__name__}: {cause}") from error


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _check_empty_rows(layer: Layer, what: str, results: Results, known: Truth, layout: str) -> None:
    """Rows without keys are exactly 0 and -inf."""
    out, lse = results
    empty = known.lse == -torch.inf
    rows = out if layout == "bhsd" else out.transpose(-2, -3)  # [(B,) H, S, D]
    if rows.shape[:-1] == empty.shape and (rows[empty] != 0).any():
        raise Broken(layer, f"{what}: out is not 0 in rows without keys")
    if (lse[empty] != -torch.inf).any():
        raise Broken(layer, f"{what}: lse is not -inf in rows without keys")


def _where(found: Tensor, expected: Tensor) -> str:
    """The worst element."""
    if found.shape != expected.shape:
        return f"; shape {list(found.shape)}, expected {list(expected.shape)}"
    difference = (found.double() - expected).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    difference = torch.where(found.double() == expected, 0.0, difference)
    place = torch.unravel_index(difference.argmax(), difference.shape)
    index = ", ".join(str(int(p)) for p in place)
    return f"; at [{index}] found {float(found[place]):.6g}, expected {float(expected[place]):.6g}"


def guilty_pass(subject: Subject, problem: Problem, dtype: str) -> str:
    """Return the name of the first pass after which the graph's numbers change, or ''."""
    inputs = make_inputs(subject.spec, problem, getattr(torch, dtype))
    known = truth(subject.spec, inputs)
    graph = subject.semantic
    for step in PIPELINE:
        graph = step.apply(graph)
        for m, n in BLOCKS:
            try:
                out, lse = interpret(graph, inputs, block_m=m, block_n=n)
            except Exception:
                return step.name
            errors = {"out": max_error(out, known.out), "lse": max_error(lse, known.lse)}
            if any(error > known.exact[tensor] for tensor, error in errors.items()):
                return step.name
    return ""
