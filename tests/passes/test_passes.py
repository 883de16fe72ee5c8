"""Each pass on one small spec, as IR text: what it needs above, what it leaves below."""

from __future__ import annotations

import pytest

from attngen.ir.expr import text
from attngen.ir.graph import graph_text
from attngen.ir.nodes import Launch
from attngen.passes.base_two import BaseTwo
from attngen.passes.build import build
from attngen.passes.differentiate import Differentiate
from attngen.passes.page import Page
from attngen.passes.pipeline import PIPELINE, run
from attngen.passes.plan_masks import PlanMasks
from attngen.passes.share import Share
from attngen.passes.split import Split
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


def test_dropout(golden):
    spec = {k: v for k, v in SPEC.items() if k not in ("score", "captured", "params", "sinks", "mask")}
    graph = Differentiate().apply(build(load_spec({**spec, "dropout": True, "grad": True})))
    names = ("dropout_threshold", "seed", "random", "dropout", "fold", "p_dropout", "dp_dropout", "ds", "dv")
    golden("dropout", lines(graph, *names))


MASKS = {
    "causal": "j <= i",
    "window": "j <= i and i - j < 256",
    "prefix": "j <= i or j < 100",
    "chunk": "i // 512 == j // 512 and j <= i",
    "sinks": "j <= i and (j < 4 or i - j < 256)",
    "dilated": "j <= i and (i - j) % 3 == 0",
}


def test_plan_masks(golden):
    rows: list[str] = []
    for name, mask in MASKS.items():
        spec = {k: v for k, v in SPEC.items() if k not in ("score", "captured", "params")}
        fold = PlanMasks().apply(build(load_spec({**spec, "name": name, "mask": mask}))).nodes["fold"]
        tiles = fold.tiles
        rows.append(
            f"{name}: may {' '.join(map(str, tiles.may))} must {' '.join(map(str, tiles.must)) or 'nothing'}"
        )
        rows.append(f"    row {tiles.row} residual {text(tiles.residual)} exact {tiles.exact}")
    golden("plan_masks", "\n".join(rows) + "\n")


def test_base_two(golden):
    scores = ["s", "2 * s", "30 * tanh(s / 30)", "s + bias[h, j - i + 64]", "-s", "exp(s) * s"]
    rows: list[str] = []
    for score in scores:
        used = SPEC if "bias" in score else {k: v for k, v in SPEC.items() if k != "captured"}
        rows.append(
            f"{score}:\n"
            + lines(BaseTwo().apply(build(load_spec({**used, "score": score}))), "scores", "scaled", "fold")
        )
    golden("base_two", "".join(rows))


def test_tile(golden):
    graph = run(build(load_spec(SPEC)), (PlanMasks(), BaseTwo(), Tile()))
    golden("tile", lines(graph, "q_tile", "k_tile", "v_tile", "qk", "store_out", "store_lse"))


def test_page(golden):
    cache = {"kind": "paged", "page_size": 16, "table": "csr"}
    semantic = build(load_spec({**SPEC, "cache": cache}))
    graph = run(semantic, (PlanMasks(), BaseTwo(), Tile(), Page()))
    by_head = {**SPEC, "mask": "j <= i and i - j < window + h", "cache": cache}
    [_, launch] = run(build(load_spec(by_head))).only(Launch)
    rows = [lines(semantic, "k"), lines(graph, "q_tile", "k_tile", "v_tile", "store_out")]
    kernel = lines(graph, "kernel").partition(" configs=")[0]
    rows += [f"{kernel}\n", f"a plan that varies with h: program_axes={launch.program_axes}\n"]
    golden("page", "".join(rows))


def test_split(golden):
    cache = {"kind": "paged", "page_size": 16}
    graph = run(build(load_spec({**SPEC, "cache": cache, "splits": {"keys": 512}})))
    rows = lines(
        graph, "fold", "with_sink", "store_partial_out", "store_partial_lse", "store_out", "kernel", "combine"
    )
    golden(
        "split",
        "".join(f"{line.partition(' tiles=')[0].partition(' configs=')[0]}\n" for line in rows.splitlines()),
    )


def test_share(golden):
    cache = {"kind": "paged", "page_size": 16, "prefix": "shared"}
    semantic = build(load_spec({**SPEC, "cache": cache, "splits": "auto"}))
    shared = run(semantic, (Share(),))
    tiles = run(shared, (PlanMasks(),)).nodes["fold"].tiles
    plan = f"may {' '.join(map(str, tiles.may))} must {' '.join(map(str, tiles.must))} row {tiles.row}\n"
    golden("share", lines(semantic, "k") + lines(shared, "scores", "fold") + plan)


def test_a_graph_without_pages_is_left_alone():
    graph = run(build(load_spec(SPEC)), (PlanMasks(), BaseTwo(), Tile()))
    assert Page().apply(graph) is graph
    assert Split().apply(graph) is graph
    assert Share().apply(graph) is graph


def test_pipeline_names():
    assert [step.name for step in PIPELINE] == [
        "differentiate",
        "share",
        "plan-masks",
        "base-two",
        "tile",
        "page",
        "split",
    ]


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
