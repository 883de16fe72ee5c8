"""Tile, backward: scheduled gradients mean what the semantic ones do at any tile sizes, and kernels follow the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attngen.check.problem import Problem
from attngen.emit.render import render
from attngen.errors import InternalError, PlanError
from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold
from attngen.ir.tiles import Interval
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter import interpret_all
from attngen.spec import Spec, load_spec
from tests.passes.gradients import NAMES, autograd, committed, graph_of, inputs_of, make
from tests.passes.test_differentiate import (
    MORE_QUERIES,
    NO_KEYS,
    NO_QUERIES,
    ONE_KEY,
    ONE_QUERY,
    PACKED,
    RAGGED,
    SMALL,
    TWO_KV,
    UNUSED,
    with_params,
)

BLOCKS = [(16, 16), (5, 7), (3, 32), (64, 2)]
X = {"x": {"dtype": "float32", "axes": ["Hq"]}}


def schedulable(name: str) -> Spec:
    """A committed spec, small, with the gradients of all its captured tensors."""
    return committed(name, **SMALL.get(name, {}))


def agree(spec: Spec, problem: Problem, blocks: list[tuple[int, int]]) -> None:
    inputs = inputs_of(spec, with_params(spec, problem))
    _, dout, dlse = autograd(spec, inputs)
    inputs |= {"dout": dout, "dlse": dlse}
    want = interpret_all(graph_of(spec), inputs)
    scheduled = schedule(spec)
    for block_m, block_n in blocks:
        found = interpret_all(scheduled, inputs, block_m=block_m, block_n=block_n)
        assert found.keys() == want.keys()
        for name, right in want.items():
            torch.testing.assert_close(
                found[name],
                right,
                rtol=1e-9,
                atol=1e-11,
                msg=lambda m, n=name, b=(block_m, block_n): f"{n} {b}: {m}",
            )


@pytest.mark.parametrize("name", NAMES)
def test_committed_specs(name):
    spec = schedulable(name)
    problems = (PACKED, UNUSED) if spec.layout == "thd" else (RAGGED, MORE_QUERIES, ONE_QUERY)
    for problem in problems:
        agree(spec, problem, BLOCKS if problem in (RAGGED, PACKED) else BLOCKS[1:2])


MASKS = ["j <= i", "j <= i and i - j < 5", "abs(i - j) <= 4", "j <= i and i // 6 == j // 6", "j <= i and (i - j < 4 or j < 2)",
         "j <= i and (j * 7 + i) % 3 == 0", "j + 4 <= i", "j <= i + 2 * h", "j % 5 != 2"]  # fmt: skip


@pytest.mark.parametrize("head_dim", [16, {"qk": 48, "v_from_k": 32}], ids=["", "values inside K"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ["bshd", "thd"])
def test_masks(mask, layout, head_dim):
    spec = make(
        heads={"q": 4, "kv": 2},
        head_dim=head_dim,
        mask=mask,
        layout=layout,
        score="s + x[h] * (j - i) / 8",
        captured=X,
        sinks=True,
    )
    for problem in (
        (PACKED, UNUSED) if layout == "thd" else (TWO_KV, MORE_QUERIES, ONE_KEY, NO_KEYS, NO_QUERIES)
    ):
        agree(spec, problem, BLOCKS[:2])


# ---- an edit of the scheduled graph reaches kernel and interpreter alike, or is refused

EDITED = make(heads={"q": 2, "kv": 1}, mask="j <= i", score="s + x[h] * (j - i) / 8", captured=X, sinks=True)
PLAIN = make(heads={"q": 2, "kv": 1}, mask="j <= i")
KEY, ELEMENT, DISTANCE = (
    make(
        heads={"q": 2, "kv": 1},
        mask="j <= i",
        score=f"s * {read}",
        captured={"x": {"dtype": "float32", "axes": axes}},
    )
    for read, axes in (
        ("x[h, j]", ["Hq", "Sk"]),
        ("x[row, j]", ["Sq", "Sk"]),
        ("x[h, i - j + 64]", ["Hq", 128]),
    )
)
VIEW = make(heads={"q": 2, "kv": 1}, head_dim={"qk": 48, "v_from_k": 32}, mask="j <= i")
Edit = Callable[[Graph], Graph]


def changing(*names: str, **changes: Callable[[Any], Any]) -> Edit:
    """Change attributes of some nodes."""

    def edit(graph: Graph) -> Graph:
        nodes = {
            n: replace(
                graph.nodes[n],
                **{key: change(getattr(graph.nodes[n], key)) for key, change in changes.items()},
            )
            for n in names
        }
        return graph.with_nodes(nodes)

    return edit


def doubled(factor: ex.Expr) -> ex.Expr:
    return ex.apply("mul", factor, Const(2.0))


def from_two(tiles: Any) -> Any:
    """A plan that leaves out the first two places."""

    def later(x: Interval) -> Interval:
        return Interval(ex.apply("max", x.lo, Const(2)), x.hi)

    return replace(
        tiles, may=tuple(map(later, tiles.may)), must=tuple(map(later, tiles.must)), row=later(tiles.row)
    )


def steeper(gradient: ex.Expr) -> ex.Expr:
    """ds times twice its slope."""
    assert isinstance(gradient, ex.Apply)
    ds, slope = gradient.args
    return ex.Apply("mul", (ds, doubled(slope)))


def next_place(at: tuple[ex.Expr, ...]) -> tuple[ex.Expr, ...]:
    return (*at[:-1], ex.apply("sub", at[-1], Const(1)))


FOLLOWED: dict[str, tuple[Spec, Edit]] = {
    "factor": (PLAIN, changing("dq", "dk", factor=doubled)),
    "rows that keys meet": (PLAIN, changing("dk", "dv", tiles=from_two)),
    "keys that rows meet": (PLAIN, changing("dq", tiles=from_two)),
    "factor, values inside K": (VIEW, changing("dq", "dk_qk", factor=doubled)),
    "rows that keys meet, values inside K": (VIEW, changing("dk_qk", "dv", tiles=from_two)),
    "slope of a key": (KEY, changing("ds_x", expr=steeper)),
    "plan of a key's gradient": (KEY, changing("dx", tiles=from_two)),
    "slope of an element": (ELEMENT, changing("ds_x", expr=steeper)),
    "plan of an element's gradient": (ELEMENT, changing("dx", tiles=from_two)),
    "slope of a distance": (DISTANCE, changing("ds_x", expr=steeper)),
    "plan of a distance's gradient": (DISTANCE, changing("dx_diagonals", tiles=from_two)),
    "places of distances": (DISTANCE, changing("dx", at=next_place)),
}
REFUSED: dict[str, tuple[Spec, Edit]] = {
    "factor of dq": (PLAIN, changing("dq", factor=doubled)),
    "factor of dv": (PLAIN, changing("dv", factor=lambda _: Const(2.0))),
    "plan of dk alone": (PLAIN, changing("dk", tiles=from_two)),
    "plan of dv alone": (PLAIN, changing("dv", tiles=from_two)),
    "plan of a sum per row": (EDITED, changing("dx_about", tiles=from_two)),
    "weights of a sum per row": (EDITED, changing("dx_weights", tiles=from_two)),
    "slope of the weights of a sum per row": (EDITED, changing("p_x", expr=doubled)),
    "a sum per row": (EDITED, changing("dx_rows", expr=doubled)),
    "the error of delta": (EDITED, changing("delta_error", expr=doubled)),
    "what p dp sums": (EDITED, changing("p_dp", operand=lambda _: "ds")),
    "plan of dq under sums per row": (EDITED, changing("dq", tiles=from_two)),
    "ds": (PLAIN, changing("ds", expr=doubled)),
    "p": (PLAIN, changing("p", expr=doubled)),
    "delta": (PLAIN, changing("delta", expr=doubled)),
    "lse2": (PLAIN, changing("lse2", expr=doubled)),
    "a sink's gradient per row": (EDITED, changing("ds_sinks", expr=doubled)),
    "what delta sums": (PLAIN, changing("out_dout", right=lambda _: "out")),
    "what dv adds": (PLAIN, changing("dv", value=lambda _: "q_tile")),
    "factor of dv inside dk": (VIEW, changing("dv", factor=lambda _: Const(2.0))),
    "plan of dv inside dk": (VIEW, changing("dv", tiles=from_two)),
    "factor of a key's gradient": (KEY, changing("dx", factor=lambda _: Const(2.0))),
    "factor of a gradient per row": (EDITED, changing("dx_about", factor=lambda _: Const(2.0))),
    "what a distance's gradient adds": (DISTANCE, changing("ds_x", operand=lambda _: "p")),
    "places of diagonals": (DISTANCE, changing("dx_diagonals", at=next_place)),
    "what is filled up inside dk": (VIEW, changing("dk_v", operand=lambda _: "dk_qk")),
}


def gradients_of_kernel(
    graph: Graph, path: Path, inputs: dict[str, Any], dout: Any, dlse: Any
) -> dict[str, Any]:
    pytest.importorskip("triton")
    from attngen.runtime.load import load_module

    path.write_text(render(graph))
    module = load_module(path, interpret=True)
    leaves = {
        n: inputs[n].float().requires_grad_() for n in (*"qkv", "x") if f"d{n}" in graph.nodes and n in inputs
    }
    out, lse = module.attention(**{**inputs, **leaves}, return_lse=True)
    found = torch.autograd.grad([out, lse], list(leaves.values()), [dout.float(), dlse.float()])
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("name", FOLLOWED)
def test_kernels_follow_an_edit(name, tmp_path):
    spec, edit = FOLLOWED[name]
    graph = schedule(spec)
    inputs = inputs_of(spec, RAGGED)
    inputs = {n: x.float().double() if n in "qkv" else x for n, x in inputs.items()}
    _, dout, dlse = autograd(spec, inputs)
    dout, dlse = dout.float().double(), dlse.float().double()
    edited = edit(graph)
    before = interpret_all(graph, {**inputs, "dout": dout, "dlse": dlse})
    want = interpret_all(edited, {**inputs, "dout": dout, "dlse": dlse})
    assert any(not torch.allclose(before[n], want[n]) for n in want), "the edit changes nothing"
    found = gradients_of_kernel(edited, tmp_path / "edited.py", inputs, dout, dlse)
    for n, got in found.items():
        torch.testing.assert_close(got.double(), want[f"d{n}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_an_edit_that_templates_cannot_follow_is_refused(name):
    spec, edit = REFUSED[name]
    with pytest.raises(InternalError, match="the backward templates need"):
        render(edit(schedule(spec)))


# ---- captured tensors

PLACES = {
    "h key": ("x[h, j]", ["Hq", "Sk"], ["kernel_dx"]),
    "element": ("x[row, j]", ["Sq", "Sk"], ["kernel_dx"]),
    "position": ("x[h, i, j]", ["Hq", 64, 64], ["kernel_dx"]),
    "distance": ("x[h, max(-8, min(i - j, 8)) + 8]", ["Hq", 17], ["kernel_dx_diagonals", "kernel_dx"]),
    "row distance": ("x[b, (row - j + 64) // 3]", ["B", 50], ["kernel_dx_diagonals", "kernel_dx"]),
    "comparison": ("x[1 if i - 3 < j else 0, h]", [2, "Hq"], ["kernel_dx_diagonals", "kernel_dx"]),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_captured_tensors(name):
    element, axes, kernels = PLACES[name]
    spec = make(
        heads={"q": 4, "kv": 2},
        score=f"s * {element}",
        captured={"x": {"dtype": "float32", "axes": axes}},
        mask="j <= i + 2",
    )
    launched = [n for n in schedule(spec).nodes if n.startswith("kernel_dx")]
    assert sorted(launched) == sorted(kernels)
    agree(spec, Problem(name="", lengths=((18, 21),) * 2, kv_heads=2), BLOCKS)


PACKED_PLACES = {
    "token": ("x[h, j]", ["Hq", "Tk"]),
    "key": ("x[j]", [64]),
    "element": ("x[b, row, j]", ["B", 64, 64]),
    "row of tokens": ("x[row, j]", ["Tq", 64]),
    "distance": ("x[h, i - j + 64]", ["Hq", 128]),
    "b distance": ("x[b, i - j + 64]", ["B", 128]),
}


@pytest.mark.parametrize("name", PACKED_PLACES)
def test_places_of_packed_captured_tensors(name):
    element, axes = PACKED_PLACES[name]
    spec = make(
        layout="thd",
        score=f"s * {element}",
        captured={"x": {"dtype": "float32", "axes": axes}},
        mask="j <= i",
    )
    agree(spec, UNUSED, BLOCKS[:2])


@pytest.mark.parametrize(
    ("element", "layout"),
    [("x[i + j]", "bshd"), ("x[min(i, j)]", "bshd"), ("x[j // 2]", "bshd"), ("x[row - j + 64]", "thd")],
)
def test_what_has_no_fixed_order_needs_leave(element, layout):
    """Packed rows count from their sequences: row - j is another i - j in each."""
    spec = make(score=f"s * {element}", captured={"x": {"dtype": "float32", "axes": [128]}}, layout=layout)
    with pytest.raises(PlanError, match=r"in a fixed order: .* 'deterministic: false' allows atomics"):
        schedule(spec)
    data = {**spec.canonical(), "deterministic": False}
    folds = [fold for _, fold in schedule(load_spec(data)).all(Fold) if fold.into]
    assert [fold.carrier for fold in folds] == ["atomic"]
    problem = UNUSED if layout == "thd" else Problem(name="", lengths=((18, 21),) * 2)
    agree(load_spec(data), problem, BLOCKS[:2])


def test_distances_of_packed_sequences_with_dropout_need_leave():
    data = make(
        layout="thd",
        mask="j <= i",
        dropout=True,
        score="s * x[i - j + 64]",
        captured={"x": {"dtype": "float32", "axes": [128]}},
    ).canonical()
    with pytest.raises(
        PlanError, match="diagonals of packed sequences begin anywhere, and dropout draws for 16 rows"
    ):
        schedule(load_spec(data))
    allowed = load_spec({**data, "deterministic": False})
    assert [fold.carrier for _, fold in schedule(allowed).all(Fold) if fold.into] == ["atomic"]
    agree(allowed, UNUSED, BLOCKS[:2])


def test_packed_tokens_are_not_read_by_sequence_too():
    spec = make(
        layout="thd", score="s * x[b, row]", captured={"x": {"dtype": "float32", "axes": ["B", "Tq"]}}
    )
    with pytest.raises(PlanError, match=r"no gradient of x, .* a packed token is of one sequence"):
        schedule(spec)


@pytest.mark.parametrize(
    ("keys", "by_head"),
    [
        ({"head_dim": {"qk": 48, "v_from_k": 32}}, False),
        ({"head_dim": {"qk": 48, "v_from_k": 32}, "mask": "j <= i + h"}, True),
        ({"sinks": True}, False),
        ({"score": "s * (1 + h)"}, True),
        ({"mask": "j <= i + h"}, True),
    ],
)
def test_only_formulas_of_dk_and_dv_make_them_per_head(keys, by_head):
    spec = {
        "attngen": 1,
        "name": "x",
        "heads": {"q": 4, "kv": 2},
        "head_dim": 16,
        "dtype": "float32",
        "grad": True,
    }
    assert ("dk_heads" in schedule(load_spec({**spec, **keys})).nodes) == by_head
