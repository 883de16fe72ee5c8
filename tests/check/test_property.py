"""Whatever spec is drawn: oracle = semantic graph = scheduled graph, and the kernel is within its budget."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from attngen.check.problem import Problem
from attngen.check.strategies import specs_and_problems
from attngen.check.triangle import Subject, check_problem
from attngen.spec import Spec

torch.set_num_threads(1)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def check(spec: Spec, problem: Problem, *, kernel: bool) -> None:
    compared = check_problem(
        Subject.of(spec, kernel=kernel), problem, spec.dtypes[0], number=problem.seed % 3
    )
    assert len(compared) >= (12 if kernel else 6)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(specs_and_problems())
def test_graphs_of_any_spec_mean_what_the_oracle_says(drawn: tuple[Spec, Problem]) -> None:
    check(*drawn, kernel=False)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(specs_and_problems())
def test_kernels_of_any_spec_are_within_budget(drawn: tuple[Spec, Problem]) -> None:
    check(*drawn, kernel=True)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, print_blob=True, suppress_health_check=SLOW)
@given(specs_and_problems())
def test_kernels_of_many_specs_are_within_budget(drawn: tuple[Spec, Problem]) -> None:
    check(*drawn, kernel=True)
