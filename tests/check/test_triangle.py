"""A check finds planted mistakes, and names the layer that made them."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import attngen.check.triangle as triangle
from attngen.check.budget import max_error, truth
from attngen.check.inputs import make_inputs
from attngen.check.problem import Problem
from attngen.check.triangle import Broken, Subject, check_problem, guilty_pass
from attngen.generate import generate
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.tiles import Interval
from attngen.passes.pipeline import PIPELINE
from attngen.runtime.load import load_module
from attngen.spec import load_spec

SPEC = load_spec(
    {
        "attngen": 1,
        "name": "causal",
        "heads": {"q": 4, "kv": 2},
        "head_dim": 16,
        "dtype": ["bfloat16", "float32"],
        "mask": "j <= i",
    }
)
PROBLEM = Problem(name="ragged", lengths=((23, 41),), kv_heads=2)
MORE_QUERIES = Problem(name="more queries", lengths=((40, 17),))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(SPEC)


def broken(subject: Subject, problem: Problem = PROBLEM, dtype: str = "bfloat16") -> Broken:
    with pytest.raises(Broken) as caught:
        check_problem(subject, problem, dtype)
    return caught.value


def mutated(tmp_path: Path, old: str, new: str) -> ModuleType:
    text = generate(SPEC)
    assert text.count(old) >= 1, text
    path = tmp_path / "mutated.py"
    path.write_text(text.replace(old, new))
    return load_module(path, interpret=True)


def test_a_right_spec_passes_with_room_and_the_comparisons_are_there(subject: Subject) -> None:
    found = check_problem(subject, PROBLEM, "float32")
    assert {c.what for c in found} == {
        "interpreter(semantic) = oracle",
        "interpreter(scheduled 16x16) = oracle",
        "interpreter(scheduled 5x7) = oracle",
        "kernel 16x16 = oracle",
        "kernel 32x32 by descriptor = oracle",
        "attention() = oracle",
    }
    assert all(c.holds for c in found)
    assert 0 < max(c.share for c in found if c.layer == "emission") < 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("(key_end - start_n)", "(key_end - start_n + 1)", id="mask off by one"),
        pytest.param("l_i = l_i * alpha", "l_i = l_i", id="no rescaling of the sum"),
        pytest.param("* 0.6931471805599453", "* 1.0", id="lse in base 2"),
        pytest.param("hk = h // 2", "hk = h % 2", id="order of heads"),
        pytest.param("1.0 / tl.where(l_i == 0.0, 1.0, l_i)", "1.0 / l_i", id="row without keys"),
    ],
)
def test_a_wrong_kernel_is_the_fault_of_emission(
    old: str, new: str, subject: Subject, tmp_path: Path
) -> None:
    wrong = replace(subject, module=mutated(tmp_path, old, new))
    problem = MORE_QUERIES if "l_i == 0" in old else PROBLEM
    assert broken(wrong, problem).layer == "emission"


def test_a_kernel_with_p_rounded_too_early_is_over_budget(subject: Subject, tmp_path: Path) -> None:
    """An error of the size of a bf16 ulp in an fp32 kernel."""
    module = mutated(tmp_path, "p = tl.math.exp2(", "p = 1.003 * tl.math.exp2(")
    assert "lse differs" in str(broken(replace(subject, module=module), PROBLEM, "float32"))


def edited(graph: Graph, **changes: Any) -> Graph:
    name, fold = "fold", graph.nodes["fold"]
    return graph.with_nodes({name: replace(fold, **changes)})


def test_a_wrong_plan_is_the_fault_of_the_passes(subject: Subject) -> None:
    tiles = subject.scheduled.nodes["fold"].tiles
    assert tiles is not None
    too_much = replace(tiles, must=(Interval(Const(0), tiles.may[0].hi),))
    found = broken(replace(subject, scheduled=edited(subject.scheduled, tiles=too_much)))
    assert found.layer == "passes"
    assert "interpreter(scheduled 16x16)" in str(found)


def test_a_wrong_graph_is_the_fault_of_build(subject: Subject) -> None:
    fold = subject.semantic.nodes["fold"]
    wrong = edited(subject.semantic, domain=replace(fold.domain, mask=Const(True)))
    assert broken(replace(subject, semantic=wrong)).layer == "build"


def test_the_guilty_pass_is_named(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoil:
        name = "spoil"

        def apply(self, graph: Graph) -> Graph:
            return edited(graph, factor=Const(1.0))

    assert guilty_pass(subject, PROBLEM, "float32") == ""
    monkeypatch.setattr(triangle, "PIPELINE", (*PIPELINE[:4], Spoil(), *PIPELINE[4:]))
    assert guilty_pass(subject, PROBLEM, "float32") == "spoil"


def test_a_read_outside_a_tensor_is_the_fault_of_the_spec() -> None:
    captured = {"table": {"dtype": "float32", "axes": [5]}}
    spec = load_spec(SPEC.canonical() | {"score": "s + table[j]", "captured": captured})
    found = broken(Subject.of(spec, kernel=False))
    assert found.layer == "spec"
    assert "index 5 is outside axis 0 of captured tensor 'table'" in str(found)


def test_a_formula_that_gives_nan_is_the_fault_of_the_spec() -> None:
    spec = load_spec(SPEC.canonical() | {"score": "sqrt(s)"})
    assert str(broken(Subject.of(spec, kernel=False))) == "the formula itself gives NaN"


# ---- what a kernel may return, by a stand-in for the module


class Stub(SimpleNamespace):
    """A module whose kernel returns what `change` makes of the oracle's results."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change
        self.calls = 0

    def launch(self, q: Any, k: Any, v: Any, softmax_scale: float, config: Any = None) -> Any:
        self.calls += 1
        known = truth(SPEC, {"q": q, "k": k, "v": v})
        out, lse = known.out.clone(), known.lse.clone()
        return self.change(out, lse, self.calls)

    def attention(self, **inputs: Any) -> Any:
        del inputs["return_lse"]
        return self.launch(**inputs, softmax_scale=1.0)


def test_results_equal_to_the_oracle_pass(subject: Subject) -> None:
    stub: Any = Stub(lambda out, lse, _: (out, lse))
    assert len(check_problem(replace(subject, module=stub), PROBLEM, "float32")) == 12


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda out, lse, n: (out * torch.nan, lse), "out differs by inf"),
        (lambda out, lse, n: (out, torch.where(lse > 3, torch.nan, lse)), "lse differs by inf"),
        (lambda out, lse, n: (out[:, :1], lse), "; shape [1, 1, 4, 16], expected [1, 23, 4, 16]"),
        (lambda out, lse, n: (out, lse + 1e-5 * (n == 4)), "reverse order gives other bits"),
        (
            lambda out, lse, n: (out + 1e-3 * (n == 2), lse),
            "kernel 32x32 by descriptor = oracle: out differs",
        ),
        (lambda out, lse, n: [][0], "IndexError"),
    ],
    ids=["nan", "nan in lse", "shape", "order", "second tiling", "exception"],
)
def test_wrong_results_are_found(change: Any, part: str, subject: Subject) -> None:
    stub: Any = Stub(change)
    found = broken(replace(subject, module=stub), PROBLEM, "float32")
    assert found.layer == "emission"
    assert part in str(found)


@pytest.mark.parametrize(("out", "lse"), [(1e-9, 0.0), (0.0, 1.0)])
def test_rows_without_keys_are_exact(out: float, lse: float, subject: Subject) -> None:
    def change(o: Any, e: Any, _: int) -> Any:
        empty = e == -torch.inf
        return o + out * empty.transpose(1, 2)[..., None], torch.where(empty & (lse > 0), -1e30, e)

    stub: Any = Stub(change)
    text = str(broken(replace(subject, module=stub), MORE_QUERIES, "float32"))
    assert "rows without keys" in text or "lse differs by inf" in text


# ---- budgets


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-6), ("bfloat16", 8e-3)])
def test_budgets_are_of_the_size_of_the_dtypes_rounding(dtype: str, share: float) -> None:
    known = truth(SPEC, make_inputs(SPEC, PROBLEM, getattr(torch, dtype)))
    scale = float(known.out.abs().max())
    assert 0.1 * share * scale < known.out_budget < 3 * share * scale
    assert 1e-8 < known.lse_budget < 2e-5


def test_large_logits_leave_a_budget_that_still_means_something() -> None:
    """An eager bf16 model is wrong by the size of the values themselves there."""
    known = truth(SPEC, make_inputs(SPEC, replace(PROBLEM, values="large"), torch.bfloat16))
    assert known.out_budget < 0.15 * float(known.out.abs().max())


def test_equal_infinities_do_not_differ_and_nan_does() -> None:
    a = torch.tensor([-torch.inf, 1.0])
    assert max_error(a, a.double()) == 0.0
    assert max_error(a, torch.tensor([0.0, 1.0])) == torch.inf
    assert max_error(a * torch.nan, a) == torch.inf
    assert max_error(a[:1], a) == torch.inf
    assert max_error(a[:0], a[:0]) == 0.0
