"""Mistakes in the key `recurrence`: each message has file, line, column and key, and says what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attngen.errors import SpecError
from attngen.spec import load_spec

FORM = """\
# A small one
attngen: 1
name: small
heads: 6
head_dim: 16
dtype: float32
recurrence:
  {}
"""
SSD = "kind: ssd\n  state: 16\n  "


@pytest.mark.parametrize(
    ("keys", "line", "key", "said"),
    [
        ("chunk: 48", 8, "recurrence.chunk", "must be a power of two, got 48"),
        ("chunk: 8", 8, "recurrence.chunk", "must be at least 16, got 8"),
        ("chunk: 2048", 8, "recurrence.chunk", "must be at most 1024, got 2048"),
        (SSD + "groups: 4", 10, "recurrence.groups", "6 heads cannot share 4 groups evenly"),
        ("kind: ssd", 8, "recurrence", "ssd needs state, the columns of B and C, as in {kind: ssd, state: 128}"),
        ("groups: 2", 8, "recurrence.groups", "groups is of kind ssd, this is linear"),
        (SSD + "decay: scalar", 10, "recurrence.decay", "decay is of kind linear, this is ssd"),
        ("kind: sdd", 8, "recurrence.kind", "ssd"),
        ("decay: sclar", 8, "recurrence.decay", "sclar"),
        ("transition: delta\n  decay: vector", 9, "recurrence.decay", "delta goes with a decay per head"),
        ("transition: delta\n  normalise: true", 9, "recurrence.normalise", "a delta rule has no normaliser"),
        ("feature: elu(y) + 1", 8, "recurrence.feature", "unknown symbol 'y'"),
        ('feature: "1"', 8, "recurrence.feature", "a feature map reads x"),
        ("chunks: 64", 8, "recurrence.chunks", "did you mean 'chunk'"),
    ],
)  # fmt: skip
def test_a_message_has_its_place_and_the_cure(
    keys: str, line: int, key: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(FORM.format(keys))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert re.search(rf"{re.escape(str(path))}:{line}:\d+: {re.escape(key)}\b", message), message
    assert said in message


@pytest.mark.parametrize(
    ("more", "key", "said"),
    [
        ("mask: j <= i", "mask", "a recurrence has no mask; leave it out, or the recurrence"),
        ("layout: thd", "layout", "packed sequences are a batch of one and cu_seqlens"),
        ("sinks: true", "sinks", "a recurrence has no sinks"),
        ("params: {beta: float}", "params.beta", "'beta' is an argument of generated functions"),
        ("params: {late: float}", "params.late", "'late' is what kernels call something else"),
        ("params: {CHUNK: int}", "params.CHUNK", "'CHUNK' is what kernels call something else"),
        ("schedule: {warps: [8]}", "schedule", "a recurrence has no schedule"),
    ],
)
def test_keys_of_softmax_attention_are_refused(more: str, key: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(FORM.format("decay: scalar") + more + "\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert re.search(rf":9:\d+: {re.escape(key)}\b", str(caught.value)), str(caught.value)
    assert said in str(caught.value)
