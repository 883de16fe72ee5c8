"""`attngen explain`: the numbers that it shows are those of the mask."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import CAUSAL, good

DOCUMENTS = CAUSAL.replace("i - j < window", "doc[b, i] == doc[b, j]").replace(
    "params: {window: int}", "captured: {doc: {dtype: int32, axes: [B, Sk], sorted: true}}"
)


def explained(*arguments: str) -> dict[str, Any]:
    return json.loads(good("explain", "small", "--json", *arguments))


def dense_counts(mask: np.ndarray, block_m: int, block_n: int) -> tuple[int, int, int]:
    """Full, partial and empty tiles of a dense mask; beyond its edge nothing is allowed."""
    rows, keys = (-(-n // b) * b for n, b in zip(mask.shape, (block_m, block_n), strict=True))
    padded = np.zeros((rows, keys), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    exists = np.zeros((rows, keys), bool)
    exists[: mask.shape[0], :] = True
    tiles = (rows // block_m, block_m, keys // block_n, block_n)
    some = padded.reshape(tiles).any((1, 3))
    full = (padded | ~exists).reshape(tiles).all((1, 3))
    return int(full.sum()), int((some & ~full).sum()), int((~some).sum())


@pytest.mark.parametrize(("q", "k", "window"), [(200, 300, 70), (300, 200, 1000), (64, 64, 1), (1, 500, 100)])
def test_counts_are_those_of_the_dense_mask(q: int, k: int, window: int, here: Path) -> None:
    tiles = explained("--seqlen-q", str(q), "--seqlen-k", str(k), "-p", f"window={window}")["tiles"]
    i = np.arange(q)[:, None] + k - q
    j = np.arange(k)
    full, partial, empty = dense_counts((j <= i) & (i - j < window), tiles["block_m"], tiles["block_n"])
    assert (tiles["full"], tiles["partial"], tiles["empty"]) == (full, partial, empty)
    assert tiles["assumed"] == {"window": str(window)}


def test_counts_of_documents_are_those_of_the_dense_mask(here: Path) -> None:
    (here / "specs/small.yaml").write_text(DOCUMENTS)
    tiles = explained("--seqlen-q", "512", "--documents", "4")["tiles"]
    i, j = np.arange(512)[:, None], np.arange(512)
    mask = (j <= i) & (i * 4 // 512 == j * 4 // 512)
    full, partial, empty = dense_counts(mask, tiles["block_m"], tiles["block_n"])
    assert (tiles["full"], tiles["partial"], tiles["empty"]) == (full, partial, empty)


def test_counts_of_packed_documents_are_their_sum(here: Path) -> None:
    (here / "specs/small.yaml").write_text(
        CAUSAL.replace(" and i - j < window", "").replace("params: {window: int}", "layout: thd")
    )
    tiles = explained("--seqlen-q", "1000", "--documents", "5")["tiles"]
    expected = np.zeros(3, int)
    weights = [1, 3, 5, 2, 4]  # uneven lengths that add up
    ends = np.cumsum([0, *weights]) * 1000 // sum(weights)
    for length in np.diff(ends):
        mask = np.tri(length, dtype=bool)
        expected += dense_counts(mask, tiles["block_m"], tiles["block_n"])
    assert [tiles["full"], tiles["partial"], tiles["empty"]] == expected.tolist()
    assert tiles["pictured"] == {"seqlen_q": int(np.diff(ends).max()), "seqlen_k": int(np.diff(ends).max())}


def test_the_picture_shows_the_classes_and_fits(here: Path) -> None:
    picture = explained("--seqlen-q", "8192", "-p", "window=1024")["tiles"]["map"]
    rows = picture["rows"]
    assert len(rows) == len(rows[0]) == 64
    assert (picture["block_m"], picture["block_n"]) == (128, 128)
    assert rows[0] == "+" + "." * 63
    assert rows[20] == "." * 12 + "+" + "#" * 7 + "+" + "." * 43


def test_text_has_every_section(here: Path) -> None:
    text = good("explain", "small", "--seqlen-q", "100", "--seqlen-k", "300")
    for part in (
        "small: A small causal one",
        "mechanism: dense",
        "structure (compiled in)",
        "group     2",
        "run time (arguments of a call)",
        "window         int param",
        "may         [max(i_lo - window + 1, 0), min(i_hi + 1, seqlen_k))",
        "residual    none",
        "100 queries, 300 keys",
        "assumed: window = 75",
        ". empty, + partial, # full",
        "semantic small spec",
        "%fold = fold(%scaled, %v)",
        "plan-masks",
        "base-two",
        "scheduled small spec",
        "sm_90/16",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines() if set(line.strip()) <= set(".+#")) <= 2 + 2 + 64


def test_a_shared_prefix_is_explained(here: Path) -> None:
    """A mask of positions themselves depends on where the keys of a piece begin: here at 0."""
    paged = "cache: {kind: paged, page_size: 16, prefix: shared}\nsplits: auto\nmask: j <= i and (j < 4 or i - j < 20)"
    lines = [x for x in CAUSAL.splitlines() if not x.startswith(("mask:", "params:"))]
    (here / "specs/small.yaml").write_text("\n".join([*lines, paged]) + "\n")
    text = good("explain", "small")
    for part in (
        "per group of sequences: prefix_table, prefix_seqlens and cu_groups",
        "prefix_start = 0",
        "share ",
        "prefix=(prefix_len)",
    ):
        assert part in text


def test_a_residual_is_shown_with_the_reason(here: Path) -> None:
    (here / "specs/small.yaml").write_text(CAUSAL.replace("i - j < window", "(i - j) % window == 0"))
    found = explained()
    assert found["mask"]["residual"] == "(i - j) % window == 0"
    assert found["mask"]["exact"] is False
    assert len(found["mask"]["notes"]) >= 1


@pytest.mark.parametrize("lengths", [("0", "0"), ("0", "5"), ("5", "0"), ("1", "1")])
def test_any_length_is_explained(lengths: tuple[str, str], here: Path) -> None:
    tiles = explained("--seqlen-q", lengths[0], "--seqlen-k", lengths[1])["tiles"]
    assert tiles["full"] + tiles["partial"] + tiles["empty"] == int("0" not in lengths)


def test_committed_specs_are_explained() -> None:
    for path in sorted((Path(__file__).parents[2] / "specs").glob("*.yaml")):
        found = json.loads(good("explain", str(path), "--json"))
        if "launches" in found:
            continue  # test_explain_recurrence.py
        total = found["tiles"]["full"] + found["tiles"]["partial"] + found["tiles"]["empty"]
        if found["mechanism"] == "dense":
            assert total == (4096 // found["tiles"]["block_m"]) * (4096 // found["tiles"]["block_n"])


def test_what_dropout_takes(here: Path) -> None:
    (here / "specs/small.yaml").write_text(CAUSAL + "dropout: true\n")
    found = explained()
    assert found["compiled_in"]["dropout"] is True
    assert {"dropout_p", "seed"} <= found["run_time"].keys()
    (here / "specs/small.yaml").write_text(CAUSAL)
    found = explained()
    assert "dropout" not in found["compiled_in"]
    assert not {"dropout_p", "seed"} & found["run_time"].keys()
