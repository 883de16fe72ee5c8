"""Differentiate: the adjoints of a graph are the gradients that torch's autograd finds through the oracle, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from attngen.check.problem import Problem
from attngen.check.strategies import specs_and_problems
from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.graph import graph_text
from attngen.passes.build import build
from attngen.passes.differentiate import Differentiate
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter import interpret_all
from attngen.reference.interpreter_operators import OPS
from attngen.reference.oracle import reference
from attngen.spec import Spec, load_spec
from attngen.spec.formula import FUNCTIONS
from tests.passes.gradients import NAMES, committed, compare, graph_of, inputs_of, make, with_gradients
from tests.passes.test_passes import SPEC, lines

# numbers that matter at small lengths
SMALL: dict[str, dict[str, Any]] = {
    "dilated": {"params": {"dilation": 3}},
    "gemma2_local": {"params": {"window": 6}},
    "gpt_oss_sinks": {"mask": "j <= i and i - j < 6"},
    "llama4_chunk": {"params": {"chunk": 8}},
    "natten_1d": {"params": {"kernel": 5}},
    "natten_2d": {"params": {"height": 4, "width": 5, "kernel": 3}},
    "streaming_sink": {"params": {"window": 5, "first": 2}},
    "t5_bias": {
        "score": "s + rel_bias[h, max(-8, min(j - i, 8)) + 8]",
        "captured": {"rel_bias": {"dtype": "float32", "axes": ["Hq", 17]}},
    },
}
RAGGED = Problem(name="ragged", lengths=((13, 20),) * 2)
MORE_QUERIES = Problem(name="more queries than keys", lengths=((20, 9),), seed=1)
ONE_QUERY = Problem(name="one query", lengths=((1, 17),) * 2, seed=2, strides="swapped")
ONE_KEY = Problem(name="one key", lengths=((7, 1),), seed=3)
NO_KEYS = Problem(name="no keys", lengths=((5, 0),))
NO_QUERIES = Problem(name="no queries", lengths=((0, 7),))
MIXED = ((5, 9), (0, 4), (7, 0), (6, 6), (9, 4), (1, 12))
PACKED = Problem(name="packed", lengths=MIXED, kv_heads=2)
UNUSED = Problem(name="unused keys", lengths=MIXED, used_k=(6, 0, 0, 6, 1, 9), spare=3)
TWO_KV = replace(RAGGED, kv_heads=2)


def with_params(spec: Spec, problem: Problem) -> Problem:
    values = {p.name: 5 if p.type == "int" else 0.75 for p in spec.params if p.runtime}
    return replace(problem, params=tuple(values.items()))


# ---- every spec of specs/


@pytest.mark.parametrize("name", NAMES)
def test_committed_specs(name):
    spec = committed(name, **SMALL.get(name, {}))
    packed = spec.layout == "thd"
    many = spec.heads.group > 4
    for problem in (PACKED, UNUSED) if packed else (RAGGED if many else TWO_KV, MORE_QUERIES, ONE_QUERY):
        compare(spec, with_params(spec, problem))


@pytest.mark.parametrize("read", ["x[h]", "x[h, j]", "x[b, h, row, j]"])
def test_scores_of_minus_infinity_have_no_gradient(read):
    """Of log(x) the slope is infinite where x is 0; what the mask hides has none either."""
    axes = {"x[h]": ["Hq"], "x[h, j]": ["Hq", "Sk"], "x[b, h, row, j]": ["B", "Hq", "Sq", "Sk"]}[read]
    spec = make(score=f"s + log({read})", mask="j <= i", captured={"x": {"dtype": "float32", "axes": axes}})
    x = inputs_of(spec, RAGGED)["x"].abs()
    x.flatten()[::2] = 0.0
    assert not compare(spec, RAGGED, x=x)["x"].flatten()[::2].any()


def test_values_inside_k(golden):
    """dk is the sum of what scores and values give, the latter with zeros in the columns that V lacks."""
    spec = load_spec({**SPEC, "head_dim": {"qk": 48, "v_from_k": 32}, "grad": True})
    graph = graph_of(spec)
    golden("values_inside_k", lines(graph, *(n for n in graph.nodes if n.startswith(("dk", "dv")))))
    gradients = compare(spec, with_params(spec, TWO_KV))
    assert set(gradients) == {"q", "k", "sinks"}


@pytest.mark.parametrize("head_dim", [{"qk": 48, "v_from_k": 32}, {"qk": 16, "v_from_k": 16}])
@pytest.mark.parametrize("layout", ["bshd", "thd"])
def test_values_inside_k_of_all_layouts(layout, head_dim):
    spec = make(
        heads={"q": 4, "kv": 1}, head_dim=head_dim, layout=layout, mask="j <= i", score=SOFTCAP, captured=X
    )
    for problem in (PACKED, UNUSED) if layout == "thd" else (RAGGED, MORE_QUERIES, NO_KEYS, NO_QUERIES):
        compare(spec, problem)


def test_a_graph_without_gradients_is_left_as_it_is():
    graph = build(load_spec(SPEC))
    assert Differentiate().apply(graph) is graph


def test_golden(golden):
    captured = {"bias": {**SPEC["captured"]["bias"], "grad": True}}
    graph = graph_of(load_spec({**SPEC, "grad": True, "captured": captured}))
    text = lines(graph, *(n for n in graph.nodes if n not in build(load_spec(SPEC)).nodes))
    golden("differentiate", text)
    assert graph_text(graph).count("\n") - text.count("\n") == graph_text(build(load_spec(SPEC))).count("\n")


# ---- lengths, layouts, empty rows, slots that nobody uses

SOFTCAP = "5 * tanh(s / 5) + x[h] * s"
X = {"x": {"dtype": "float32", "axes": ["Hq"]}}
EDGES = [RAGGED, TWO_KV, MORE_QUERIES, ONE_QUERY, ONE_KEY, NO_KEYS, NO_QUERIES]


@pytest.mark.parametrize("problem", EDGES, ids=lambda p: f"{p.name} {p.kv_heads}")
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_lengths(layout, sinks, problem):
    spec = make(
        heads={"q": 3, "kv": 1}, head_dim={"qk": 16, "v": 24}, layout=layout, sinks=sinks, mask="j <= i",
        score=SOFTCAP, captured=X,
    )  # fmt: skip
    compare(spec, problem)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("problem", [TWO_KV, MORE_QUERIES, ONE_KEY, NO_KEYS, PACKED], ids=lambda p: p.name)
def test_dropout(problem, number):
    """At several probabilities; delta holds with dropout, sinks and a gradient of lse."""
    spec = make(
        heads={"q": 3, "kv": 1}, head_dim={"qk": 16, "v": 24}, layout="thd" if problem is PACKED else "bshd",
        sinks=True, mask="j <= i", score=SOFTCAP, captured=X, dropout=True,
    )  # fmt: skip
    compare(spec, replace(problem, seed=number))


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("problem", [PACKED, UNUSED], ids=lambda p: p.name)
def test_packed(problem, sinks):
    captured = {
        "by_row": {"dtype": "float32", "axes": ["Hq", "Tq"]},
        "by_key": {"dtype": "bfloat16", "axes": ["Tk"]},
        "by_sequence": {"dtype": "float16", "axes": ["B", "Hkv"]},
        "near": {"dtype": "float32", "axes": [9]},
    }
    score = "s * by_row[h, row] + by_key[j] * by_sequence[b, hk] + near[max(-4, min(i - j, 4)) + 4]"
    spec = make(layout="thd", mask="j <= i", sinks=sinks, score=score, captured=captured)
    gradients = compare(spec, problem)
    if problem is UNUSED:
        starts, used = problem.starts("k"), problem.used_k
        for start, (_, length), count in zip(starts, problem.lengths, used, strict=False):
            for name, axis in (("k", 0), ("v", 0), ("by_key", 0)):
                assert not gradients[name].narrow(axis, start + count, length - count).any()


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("mask", ["j < i", "j > row + 100", "i >= 3 and j <= i"])
def test_rows_without_a_key_have_no_gradient(mask, sinks):
    spec = make(
        mask=mask,
        sinks=sinks,
        score="s * x[b, row]",
        captured={"x": {"dtype": "float32", "axes": ["B", "Sq"]}},
    )
    gradients = compare(spec, Problem(name="", lengths=((12, 9),) * 2))
    assert not gradients["q"][:, :4].any()
    assert not gradients["x"][:, :4].any()


@pytest.mark.parametrize("mask", ["j <= i", "j > row + 1", "row % 3 != 1 and j <= i"])
@pytest.mark.parametrize("level", ["semantic", "scheduled"])
def test_rows_without_a_key_may_hold_nan(mask, level):
    spec = make(mask=mask, heads={"q": 4, "kv": 2}, score="s * (1 + h)")
    graph = graph_of(spec) if level == "semantic" else schedule(spec)
    inputs = inputs_of(spec, replace(TWO_KV, lengths=((12, 9),) * 2))
    found = interpret_all(graph_of(spec), {**inputs, "dout": inputs["q"], "dlse": inputs["q"][..., 0].mT})
    keyless = found["lse"] == -torch.inf
    assert keyless.any()
    spoiled = torch.where(keyless.mT[..., None], torch.nan, inputs["q"])
    dlse = torch.where(keyless, torch.nan, inputs["q"][..., 0].mT)
    nan = interpret_all(graph, {**inputs, "q": spoiled, "dout": spoiled, "dlse": dlse}, block_m=5, block_n=7)
    for name in ("dq", "dk", "dv"):
        torch.testing.assert_close(nan[name], found[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", ["h % 2 == 1 or j < 3", "j < 4 * (h + 1)"])
def test_a_key_that_not_all_heads_of_a_group_see(mask):
    compare(make(heads={"q": 4, "kv": 2}, mask=mask), TWO_KV)


def test_unused_slots_may_hold_nan():
    captured = {
        "length": {"dtype": "int32", "axes": ["B"]},
        "x": {"dtype": "float32", "axes": ["B", "Hq", "Sk"]},
    }
    spec = make(mask="j < length[b] and j <= i", score="s + x[b, h, j]", captured=captured)
    problem = Problem(name="", lengths=((6, 11),) * 3)
    inputs, length = inputs_of(spec, problem), torch.tensor([4, 0, 11], dtype=torch.int32)
    for b, used in enumerate(length):
        inputs["k"][b, used:], inputs["v"][b, used:], inputs["x"][b, :, used:] = (float("nan"),) * 3
    gradients = compare(spec, problem, **{n: inputs[n] for n in ("k", "v", "x")}, length=length)
    assert all(not gradients[n][b, used:].any() for n in ("k", "v") for b, used in enumerate(length))
    assert all(not gradients["x"][b, :, used:].any() for b, used in enumerate(length))


def test_large_negative_scores():
    compare(make(mask="j <= i", sinks=True), Problem(name="", lengths=((9, 14),), values="large"))


# ---- where a captured tensor is read

READS = {
    "head": ("x[h]", ["Hq"]),
    "kv head": ("x[hk, b]", ["Hkv", "B"]),
    "b h row": ("x[b, h, row]", ["B", "Hq", "Sq"]),
    "b h key": ("x[b, h, j]", ["B", "Hq", "Sk"]),
    "row key": ("x[row, j]", ["Sq", "Sk"]),
    "distance": ("x[h, max(-6, min(i - j, 6)) + 6]", ["Hq", 13]),
    "buckets": ("x[bucket[b, j]]", [5]),
    "blocks": ("x[row // 4, j % 3]", [8, 3]),
    "one element": ("x[0]", [1]),
    "nobody": ("x[h, 2]", ["Hq", 7]),
    "width": ("x[j % width]", ["width"]),
}


@pytest.mark.parametrize("formula", ["s + {x}", "s * {x}", "2 * tanh(s * {x} + 0.5)"])
@pytest.mark.parametrize("read", READS)
def test_reads(read, formula):
    element, axes = READS[read]
    captured: dict[str, Any] = {"x": {"dtype": "float32", "axes": axes}}
    if "bucket" in element:
        captured["bucket"] = {"dtype": "int32", "axes": ["B", "Sk"]}
    params = {"params": {"width": "int"}} if "width" in element else {}
    score = formula.format(x=element)
    spec = make(heads={"q": 4, "kv": 2}, score=score, captured=captured, mask="j <= i + 2", **params)
    compare(spec, with_params(spec, replace(TWO_KV, lengths=((17, 13),) * 2)))


@pytest.mark.parametrize("shape", [(1, 13, 20), (2, 1, 20), (2, 13, 1), (1, 1, 20), (1, 13, 1), (1, 1, 1)])
@pytest.mark.parametrize("name", ["additive_bias", "product"])
def test_broadcast_axes(name, shape):
    """An axis of size 1 stands for all: its gradient is the sum."""
    captured = {"bias": {"dtype": "float32", "axes": ["Hq", "Sq", "Sk"]}}
    score = "s + bias[h, row, j]" if name == "additive_bias" else "s * bias[h, row, j]"
    spec = make(score=score, captured=captured, mask="j <= i")
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    compare(spec, RAGGED, bias=bias)


@pytest.mark.parametrize("shape", [(1, 1), (1, 32), (2, 1)])
def test_broadcast_axes_of_packed_tokens(shape):
    spec = make(layout="thd", score="s * x[h, j]", captured={"x": {"dtype": "float32", "axes": ["Hq", "Tk"]}})
    problem = Problem(name="", lengths=((5, 12), (0, 5), (4, 15)))
    compare(spec, problem, x=torch.linspace(0.5, 2, shape[0] * shape[1], dtype=torch.float64).reshape(shape))


def test_captured_by_the_mask_too():
    """A mask may read the same tensor: its gradient is that of the score alone."""
    spec = make(
        mask="x[h, j] > -0.5", score="s * x[h, j]", captured={"x": {"dtype": "float32", "axes": ["Hq", "Sk"]}}
    )
    compare(spec, RAGGED)


# ---- formulas

XY = {"x": {"dtype": "float32", "axes": ["Hq", "Sk"]}, "y": {"dtype": "bfloat16", "axes": ["Sq"]}}
FORMULAS = [
    "0.5 * s",
    "-s",
    "+s - -1",
    "0 * s + j",
    "3",
    "abs(s)",
    "abs(s - x[h, j]) * y[row]",
    "s * abs(i - j) / 8",
    "min(s, 0.3)",
    "max(s, -0.2, x[h, j])",
    "max(min(s, 0.5), -0.5)",
    "min(s, x[h, j] * y[row], 2 * s)",
    "max(s * x[h, j], s * y[row])",
    "min(exp(s), 1.5) + min(i, j)",
    "max(log(abs(s) + 1), 0.25)",
    "where(s > 0, s, 0.1 * s)",
    "where(j < 5, 2 * s, s - 1)",
    "s if s > x[h, j] else x[h, j] * s",
    "where(s > 0.1, log(abs(s)), sqrt(abs(s) + 1))",
    "where(not (s < 0 or j == 3) and i != j, s ** 3, x[h, j])",
    "where(-0.5 <= s < 0.5, s * s, abs(s) - 0.25)",
    "exp(0.5 * s)",
    "exp2(s - x[h, j])",
    "log(1 + exp(s))",
    "log2(2 + s ** 2) * s",
    "sqrt(s ** 2 + x[h, j] ** 2)",
    "4 * tanh(s / 4)",
    "cap * tanh((s + x[h, j]) / cap)",
    "tanh(x[h, j] * s) * y[row]",
    "s * sigmoid(s)",
    "sigmoid(s * x[h, j]) + s",
    "s / (1 + exp(-s))",
    "log(sigmoid(s))",
    "sin(s) + s * cos(x[h, j])",
    "cos(3 * s + h)",
    "floor(4 * s) * 0.25 + s",
    "s * floor(2 * x[h, j])",
    "int(3 * s) * s + float(int(x[h, j]))",
    "s + float(j // 3) * x[h, j]",
    "s * (floor(5 * s) % 3 + 1)",
    "s + (i - j) % 5 * y[row]",
    "s * int(s > 0) + int(j % 2 == 0)",
    "s * (i - j) * h * (j + 1) / 50",
    "(s + x[h, j]) ** 0 + s ** 1",
    "(s * x[h, j] + 1) ** 4 / 8",
    "s ** 8 / (1 + s ** 8)",
    "s / (x[h, j] ** 2 + 0.5)",
    "x[h, j] / (s ** 2 + y[row] ** 2 + 0.25) ** 2",
    "(s - 1) / (s ** 2 + 1) / 3 + s / 7 / (j + 1)",
    "s - temperature * x[h, j] * y[row]",
    "exp(x[h, j]) * exp(s) / exp(s / 2)",
    "s * seqlen_k / (seqlen_q + j)",
    "tanh(sin(s) + cos(tanh(x[h, j] * y[row]) + s))",
]  # fmt: skip
PARAMS = {"cap": "float", "temperature": "float"}


def of_formula(score: str, **more: Any) -> Spec:
    captured = {n: c for n, c in XY.items() if f"{n}[" in score}
    params = {n: t for n, t in PARAMS.items() if n in score}
    return make(score=score, **{k: v for k, v in (("captured", captured), ("params", params)) if v}, **more)


def test_formulas_use_all_functions():
    assert all(any(f"{name}(" in f for f in FORMULAS) for name in FUNCTIONS)


@pytest.mark.parametrize("score", FORMULAS)
def test_formulas(score):
    spec = of_formula(score, mask="j <= i")
    compare(spec, with_params(spec, RAGGED))


@pytest.mark.parametrize("score", FORMULAS)
def test_slopes_are_formulas(score):
    """Only what a kernel can print: functions of formulas, and powers with small whole exponents."""
    graph = graph_of(of_formula(score))
    for name in ("d_scaled", "ds_x", "ds_y"):
        for part in ex.walk(graph.nodes[name].expr) if name in graph.nodes else ():
            if isinstance(part, ex.Apply):
                assert part.op in ex.OPERATORS
                assert part.op != "pow" or (type(part.args[1].value) is int and part.args[1].value > 1), part


TIES = [
    "max(s, 0)", "min(s, 0)", "max(s, -s)", "abs(s)", "max(s, 2 * s, 3 * s)", "min(s, x[h, j])",
    "max(x[h, j], s, 0.5 * s)", "abs(s) + abs(x[h, j])", "where(s >= 0, 2 * s, s)", "max(min(s, 0), -1)",
]  # fmt: skip


@pytest.mark.parametrize("score", TIES)
def test_at_ties_the_gradient_is_that_of_torch(score):
    """Scores are exactly 0 for every second query, and so are the captured tensors."""
    spec = of_formula(score)
    inputs = inputs_of(spec, RAGGED)
    inputs["q"][:, ::2] = 0
    zeros = {n: torch.zeros_like(inputs[n]) for n in ("x", "y") if n in inputs}
    compare(spec, RAGGED, q=inputs["q"], **zeros)


@pytest.mark.parametrize(
    "score",
    ["where(s > 0, log(s), s)", "min(exp(s), 50)", "max(log(s), -2) if s > 0 else s", "s * sigmoid(s)"],
)
def test_what_is_not_selected_never_counts(score):
    """torch gives NaN for some of these: there the slope at the other side is infinite, and 0 * inf is not 0."""
    graph = graph_of(make(score=score))
    slope = graph.nodes["d_scaled"].expr
    scores = torch.tensor([0.0, -1.0, 0.5, 800.0, -800.0], dtype=torch.float64)
    found = ex.evaluate(slope, {"s": torch.tensor(1.0).double(), "scaled": scores}, OPS)
    assert torch.isfinite(torch.as_tensor(found)).all()


# ---- drawn formulas and drawn specs

UNHURRIED = settings(
    derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
NUMBERS = st.sampled_from(["s", "s", "x[h, j]", "y[row]", "0.5", "2", "1.25", "(j - i)", "h", "temperature"])
TESTS = st.sampled_from(["j < 5", "i != j", "(i + j) % 3 == 0", "h == 0"])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Formulas one operation larger; all stay within their domains, and none grows fast."""
    one = st.sampled_from(
        [
            "tanh({0})", "sin({0})", "cos({0})", "sigmoid({0})", "abs({0})", "-{0}", "({0}) ** 2 / 4",
            "exp(min({0}, 1))", "exp2(tanh({0}))", "log(abs({0}) + 0.5)", "log2(({0}) ** 2 + 1)",
            "sqrt(({0}) ** 2 + 0.25)", "floor({0})", "int({0})", "float({0})", "({0}) ** 3 / 8", "floor({0}) % 3",
        ]
    )  # fmt: skip
    two = st.sampled_from(
        [
            "({0} + {1})", "({0} - {1})", "tanh({0}) * ({1})", "({0}) / (1 + ({1}) ** 2)", "min({0}, {1})",
            "max({0}, {1})", "({0} if {0} > {1} else {1})", "where({0} <= 0.25, {0}, 2 * ({1}))",
        ]
    )  # fmt: skip
    return st.one_of(
        st.builds(str.format, one, inner),
        st.builds(str.format, two, inner, inner),
        st.builds("where({}, {}, {})".format, TESTS, inner, inner),
    )


@settings(UNHURRIED, max_examples=150)
@given(st.recursive(NUMBERS, larger, max_leaves=8), st.booleans())
def test_drawn_formulas(score, as_it_is):
    assume(len(score) < 1_500)
    score = score if as_it_is else f"s + {score}"
    spec = of_formula(score, mask="j <= i")
    compare(spec, with_params(spec, Problem(name="", lengths=((7, 9),))), floor=1e-13)


@settings(UNHURRIED, max_examples=150)
@given(specs_and_problems())
def test_drawn_specs(drawn):
    spec, problem = drawn
    assume(spec.cache is None)
    compare(with_gradients(spec.canonical()), replace(problem, values="normal"), floor=1e-15)


# ---- what has no gradient says so


@pytest.mark.parametrize(
    "name",
    ["p", "ds", "dp", "delta", "dout", "dlse", "out_dout", "dq", "dv", "d_scaled", "d_qk", "dx", "ds_x"],
)
@pytest.mark.parametrize("kind", ["param", "captured"])
def test_names_that_the_backward_needs(name, kind):
    tensor = {"dtype": "float32", "axes": ["Hq"]}
    captured = {"x": tensor}
    score = f"s * x[h] * {name}"
    more: dict[str, Any] = {"params": {name: "float"}, "captured": captured}
    if kind == "captured":
        score, more = f"{score}[h]", {"captured": {**captured, name: tensor}}
    with pytest.raises(PlanError, match=rf"^x: '{name}' would be taken for .*; rename the param or captured"):
        graph_of(make(score=score, **more))


@pytest.mark.parametrize("name", ["elta", "s_x", "out_dout", "ef", "el"])
def test_names_of_tensors_whose_gradients_have_a_name_that_is_needed(name):
    captured = {n: {"dtype": "float32", "axes": ["Hq"]} for n in ("x", name)}
    with pytest.raises(PlanError, match=rf"'{name}' would be taken for the kernel's own '.*{name}'"):
        graph_of(make(score=f"s * x[h] * {name}[h]", captured=captured))


@pytest.mark.parametrize("name", ["qk", "scaled", "scores", "fold", "sink", "with_sink"])
def test_names_that_the_forward_needs(name):
    spec = load_spec(
        {**SPEC, "score": f"s * {name} + bias[h, j - i + 64]", "params": {name: "float", "window": "int"}}
    )
    with pytest.raises(PlanError, match=rf"'{name}' would be taken for .* rename"):
        build(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "s + x[h] * x[hk]"}, r"captured\.x\.grad: the score reads x\[h\] and x\[hk\]; a gradient needs one way"),
        ({"score": "s", "mask": "x[h] > 0"}, r"captured\.x\.grad: only the mask reads x, so that its gradient is 0"),
        ({"mask": "x[h] > 0"}, r"captured\.x\.grad: only the mask reads x"),
        ({"score": "s + x[int(s) % 2]"}, r"captured\.x\.grad: where x\[int\(s\) % 2\] reads depends on the score"),
        ({"score": "x[h] + s / (s - s)"}, r"x\[h\] \+ s / \(s - s\): has no derivative, it divides by zero"),
    ],
)  # fmt: skip
def test_no_gradient(changes, message):
    with pytest.raises(PlanError, match=message):
        graph_of(make(captured=X, **changes))


def test_without_grad_a_tensor_may_be_read_in_many_ways():
    spec = load_spec({**make(score="s + x[h] * x[hk]", captured=X).canonical(), "captured": X})
    compare(spec, RAGGED)


# ---- the oracle's own gradients are those of its values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": "j <= i + 1", "sinks": True, "heads": {"q": 2, "kv": 1}},
        {"layout": "bhsd", "score": "5 * tanh(s / 5)", "mask": "abs(i - j) <= 2"},
        {"score": "s * sigmoid(s) + x[h] * (j - i)", "captured": X},
        {"score": "where(j % 2 == 0, s, s * x[h]) + x[h] ** 2", "captured": X, "sinks": True},
    ],
)
def test_gradcheck_of_the_oracle(changes):
    spec = make(**changes)
    inputs = inputs_of(spec, Problem(name="", lengths=((3, 4),)))
    names = [n for n in ("q", "k", "v", "x", "sinks") if n in inputs]

    def attention(*leaves: torch.Tensor) -> Any:
        return reference(spec, **{**inputs, **dict(zip(names, leaves, strict=True))}, return_lse=True)

    assert torch.autograd.gradcheck(attention, [inputs[n].clone().requires_grad_() for n in names])


def test_gradcheck_of_the_packed_oracle():
    spec = make(
        layout="thd",
        mask="j <= i + 2",
        score="s + x[j] * s",
        captured={"x": {"dtype": "float32", "axes": ["Tk"]}},
    )
    inputs = inputs_of(spec, Problem(name="", lengths=((2, 3), (0, 2), (3, 2))))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> Any:
        return reference(spec, **{**inputs, "q": q, "k": k, "v": v, "x": x}, return_lse=True)

    assert torch.autograd.gradcheck(
        attention, [inputs[n].clone().requires_grad_() for n in ("q", "k", "v", "x")]
    )
