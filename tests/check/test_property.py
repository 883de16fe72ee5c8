"""Whatever spec is drawn: oracle = semantic graph = scheduled graph, and the kernel is within its budget."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from attngen.check.problem import Problem
from attngen.check.strategies import specs_and_problems
from attngen.check.triangle import Subject, check_problem
from attngen.spec import Spec

torch.set_num_threads(1)
UNHURRIED = settings(
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# A failure of the fast tier is reported as drawn: to shrink it takes minutes.
FAST = settings(UNHURRIED, derandomize=True, phases=[Phase.explicit, Phase.generate])


def check(spec: Spec, problem: Problem, *, kernel: bool) -> None:
    compared = check_problem(
        Subject.of(spec, kernel=kernel), problem, spec.dtypes[0], number=problem.seed % 3
    )
    expected = {"build", "passes", "emission"} if kernel else {"build", "passes"}
    assert {one.layer for one in compared} == expected
    assert all(one.holds for one in compared)


@settings(FAST, max_examples=60)
@given(specs_and_problems())
def test_graphs_of_any_spec_mean_what_the_oracle_says(drawn: tuple[Spec, Problem]) -> None:
    check(*drawn, kernel=False)


@settings(FAST, max_examples=15)
@given(specs_and_problems())
def test_kernels_of_any_spec_are_within_budget(drawn: tuple[Spec, Problem]) -> None:
    check(*drawn, kernel=True)


@pytest.mark.slow
@settings(UNHURRIED, max_examples=150, print_blob=True)
@given(specs_and_problems())
def test_kernels_of_many_specs_are_within_budget(drawn: tuple[Spec, Problem]) -> None:
    check(*drawn, kernel=True)
