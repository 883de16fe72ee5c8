"""Whole checks: reports, shrinking, worker processes, and the command around them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import attngen.check.triangle as triangle
from attngen.check.problem import Problem
from attngen.check.report import Comparison, SpecReport, joined
from attngen.check.runner import check_specs, check_task, tasks
from attngen.check.shrink import shrink
from attngen.cli.app import app
from attngen.ir.expr import Const
from attngen.spec import Spec, load_spec

SPECS = Path(__file__).parents[2] / "specs"
TEXT = "attngen: 1\nname: tiny\nheads: 1\nhead_dim: 16\ndtype: [float32, float16]\nmask: j <= i\n"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def wrong_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build forgets the mask."""
    right = triangle.build

    def build(spec: Spec) -> Any:
        graph = right(spec)
        name, fold = "fold", graph.nodes["fold"]
        return graph.with_nodes({name: replace(fold, domain=replace(fold.domain, mask=Const(True)))})

    monkeypatch.setattr(triangle, "build", build)


def test_the_command_reports_every_dtype_and_exits_0(tiny: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tiny), "--workers", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (spec,) = report["specs"]
    assert (report["passed"], spec["name"], spec["dtypes"], spec["faults"]) == (
        True,
        "tiny",
        ["float32", "float16"],
        [],
    )
    assert spec["problems"] == 22
    kernels = [c for c in spec["comparisons"] if c["layer"] == "emission"]
    assert {(c["tensor"], c["dtype"]) for c in kernels} == {
        (tensor, dtype) for tensor in ("out", "lse") for dtype in ("float32", "float16")
    }
    assert all(0 <= c["error"] <= c["budget"] for c in spec["comparisons"])
    assert max(c["share"] for c in kernels) > 0.01


@pytest.mark.usefixtures("wrong_build")
def test_a_failed_check_exits_1_and_names_layer_problem_and_spec(tiny: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tiny), "--workers", "1"])
    assert result.exit_code == 1
    assert "FAILED  tiny" in result.stdout
    assert "build (spec to semantic graph) is wrong" in result.stdout
    assert "interpreter(semantic) = oracle: out differs by" in result.stdout
    assert "smallest failing problem: ragged, lengths [[2, " in result.stdout
    assert ", dtype float32\n" in result.stdout
    assert "    name: tiny\n" in result.stdout
    assert "    mask: j <= i\n" in result.stdout
    assert result.stdout.endswith("1 of 1 specs failed\n")


@pytest.mark.usefixtures("wrong_build")
def test_the_failing_problem_is_shrunk(tiny: Path) -> None:
    (fault,) = check_task(tasks([("tiny.yaml", load_spec(tiny))])[0]).faults
    # without its mask, the smallest wrong answer has two queries on two keys, or two queries on one
    assert fault.layer == "build"
    assert fault.problem["lengths"] in ([[2, 1]], [[2, 2]])
    assert fault.problem["kv_heads"] == 1


def test_a_failed_check_as_json(tiny: Path, wrong_build: None) -> None:
    result = CliRunner().invoke(app, ["check", str(tiny), "--workers", "1", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert [fault["layer"] for fault in report["specs"][0]["faults"]] == ["build", "build"]


def test_a_layer_that_raises_is_named_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: Spec, **_: Any) -> Any:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(triangle, "build_module", fail)
    (fault,) = check_task(tasks([("tiny.yaml", load_spec(tiny))])[0]).faults
    assert (fault.layer, fault.message) == ("emission", "ZeroDivisionError: no")


def test_a_spec_without_a_kernel_exits_2(tiny: Path) -> None:
    tiny.write_text(TEXT.replace("float32, ", "") + "precision: tf32\n")
    result = CliRunner().invoke(app, ["check", str(tiny), "--workers", "1"])
    assert result.exit_code == 2
    assert "tiny.yaml:7:12: precision:" in result.stderr


@pytest.mark.slow
def test_all_committed_specs_are_right() -> None:
    result = CliRunner().invoke(app, ["check", *sorted(map(str, SPECS.glob("*.yaml")))])
    assert result.exit_code == 0, result.output


def test_workers_give_the_same_report(tiny: Path) -> None:
    loaded = [("tiny.yaml", load_spec(tiny))]
    heard: list[str] = []
    (apart,) = check_specs(loaded, workers=2, done=lambda task, _: heard.append(task.dtype))
    (alone,) = check_specs(loaded, workers=1, done=lambda *_: None)
    assert sorted(heard) == ["float16", "float32"]
    assert apart.worst == alone.worst
    assert (apart.problems, apart.passed) == (alone.problems, True)


# ---- parts


def comparison(error: float, **more: Any) -> Comparison:
    plain: dict[str, Any] = {
        "layer": "emission",
        "what": "w",
        "tensor": "out",
        "problem": "p",
        "dtype": "float32",
    }
    return Comparison(**plain | {"budget": 1.0} | more, error=error)


def test_a_report_keeps_the_worst_of_each_equality() -> None:
    a, b = (SpecReport(name="n", path="p", dtypes=[d], problems=2, seconds=1.0) for d in ("x", "y"))
    a.add([comparison(0.1), comparison(0.5, problem="q"), comparison(0.3)])
    b.add([comparison(0.2, dtype="y")])
    whole = joined([a, b])
    assert [(c.dtype, c.error, c.problem) for c in whole.worst] == [("float32", 0.5, "q"), ("y", 0.2, "p")]
    assert (whole.dtypes, whole.problems, whole.seconds) == (["x", "y"], 4, 2.0)


def test_an_infinite_error_is_json() -> None:
    report = SpecReport(name="n", path="p", dtypes=["x"])
    report.add([comparison(float("inf"))])
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["comparisons"][0]["error"] is None


def test_an_error_above_no_budget_has_an_infinite_share() -> None:
    assert comparison(0.0, budget=0.0).holds
    assert comparison(0.0, budget=0.0).share == 0.0
    assert comparison(1e-9, budget=0.0).share == float("inf")


def test_shrinking_finds_the_smallest_problem() -> None:
    problem = Problem(name="p", lengths=((20, 30), (7, 9), (3, 40)), kv_heads=2, strides="odd", spare=4)
    found = shrink(problem, lambda p: any(k >= 5 for _, k in p.lengths))
    assert found == Problem(name="p", lengths=((0, 5),))


def test_shrinking_a_dense_problem_keeps_its_batch_of_one_length() -> None:
    problem = Problem(name="p", lengths=((20, 30),) * 4, values="large")
    found = shrink(problem, lambda p: p.batch >= 2 and p.longest("q") >= 3)
    assert found == Problem(name="p", lengths=((3, 0),) * 2)
