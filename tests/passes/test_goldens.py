"""Each pass on one small spec, as IR text: what it needs above, what it leaves below."""

from __future__ import annotations

import pytest

from attngen.ir.graph import graph_text
from attngen.passes.base_two import BaseTwo
from attngen.passes.build import build
from attngen.passes.pipeline import PIPELINE, run
from attngen.passes.plan_masks import PlanMasks
from attngen.passes.tile import Tile, cover
from attngen.spec import load_spec

SPEC = {
    "attngen": 1,
    "name": "golden",
    "heads": {"q": 4, "kv": 2},
    "head_dim": 72,
    "dtype": "bfloat16",
    "score": "30 * tanh(s / 30) + bias[h, j - i + 64]",
    "mask": "j <= i and i - j < window",
    "params": {"window": "int"},
    "captured": {"bias": {"dtype": "float32", "axes": ["Hq", 128]}},
    "sinks": True,
}


def lines(graph, *ids: str) -> str:
    """The lines of some nodes (a golden shows what a pass touches, not the whole graph)."""
    return "".join(
        f"{line}\n" for line in graph_text(graph).splitlines() if line.split(" ")[0].removeprefix("%") in ids
    )


def test_build(golden):
    golden("build", graph_text(build(load_spec(SPEC))))


def test_plan_masks(golden):
    golden("plan_masks", lines(PlanMasks().apply(build(load_spec(SPEC))), "fold"))


def test_base_two(golden):
    graph = build(load_spec(SPEC))
    plain = build(load_spec({k: v for k, v in SPEC.items() if k not in ("score", "captured")}))
    text = lines(BaseTwo().apply(graph), "scores", "fold") + lines(BaseTwo().apply(plain), "qk", "fold")
    golden("base_two", text)


def test_tile(golden):
    graph = run(build(load_spec(SPEC)), (PlanMasks(), BaseTwo(), Tile()))
    golden("tile", lines(graph, "q_tile", "k_tile", "v_tile", "qk", "store_out", "store_lse"))


def test_pipeline_names():
    assert [step.name for step in PIPELINE] == ["plan-masks", "base-two", "tile"]


@pytest.mark.parametrize(
    ("columns", "chunks"),
    [
        (64, ((0, 64),)),
        (72, ((0, 64), (64, 16))),
        (80, ((0, 64), (64, 16))),
        (96, ((0, 64), (64, 32))),
        (192, ((0, 128), (128, 64))),
        (576, ((0, 512), (512, 64))),
        (16, ((0, 16),)),
        (40, ((0, 32), (32, 16))),
    ],
)
def test_head_dims_are_covered_by_powers_of_two(columns, chunks):
    assert cover(columns) == chunks
