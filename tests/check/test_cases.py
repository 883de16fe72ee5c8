"""The problems of a check: the same each time, and together they reach every class of tile and row."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attngen.check.cases import problems
from attngen.check.inputs import make_inputs
from attngen.check.problem import Problem
from attngen.check.recurrence import calls
from attngen.check.uses import constants, integer_use, largest_number, must_be_positive
from attngen.ir.tile_counts import count
from attngen.passes.pipeline import schedule
from attngen.reference.oracle import reference
from attngen.spec import Spec, load_spec

FILES = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
RECURRENCES = [path for path in FILES if "recurrence:" in path.read_text()]
SPECS = [path for path in FILES if path not in RECURRENCES]
BASE: dict[str, Any] = {"attngen": 1, "name": "x", "heads": 2, "head_dim": 16, "dtype": "bfloat16"}


def spec_of(**more: Any) -> Spec:
    return load_spec(BASE | more)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_problems_are_deterministic_small_and_varied(path: Path) -> None:
    spec = load_spec(path)
    found = problems(spec)
    assert found == problems(spec)
    assert len({problem.name for problem in found}) == len(found)
    pairs = [pair for problem in found for pair in problem.lengths]
    assert any(q > k > 0 for q, k in pairs)
    assert any(0 < q < k for q, k in pairs)
    assert any(q == 1 for q, _ in pairs)
    assert any(q and not k for q, k in pairs)
    assert any(k and not q for q, k in pairs)
    assert any(not problem.lengths for problem in found)
    assert {problem.strides for problem in found} >= {"padded", "odd", "swapped", "expanded"}
    assert any(problem.values == "large" for problem in found)
    assert any(problem.kv_heads > 1 for problem in found)
    assert all(q <= 128 for q, _ in pairs)


@pytest.mark.parametrize("path", RECURRENCES, ids=lambda p: p.stem)
def test_calls_of_recurrences_are_varied(path: Path) -> None:
    spec = load_spec(path)
    assert spec.recurrence is not None
    found, chunk = calls(spec), spec.recurrence.chunk
    assert len({call.name for call in found}) == len(found)
    lengths = [n for call in found for n in call.lengths]
    assert {0, 1} <= set(lengths)
    assert any(n > chunk and n % chunk for n in lengths)
    assert any(n and n % chunk == 0 for n in lengths)
    assert {(call.packed, call.whole) for call in found} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    assert any(call.strong for call in found)
    assert max(lengths) <= 2 * chunk


@pytest.mark.parametrize(
    "name", ["llama3_causal", "mistral_window", "gemma2_local", "llama4_chunk", "streaming_sink"]
)
def test_full_partial_and_empty_tiles_occur(name: str) -> None:
    """With tiles of 16 x 16, over the problems of a spec."""
    spec = load_spec(SPECS[0].with_name(f"{name}.yaml"))
    tiles = schedule(spec).nodes["fold"].tiles
    assert tiles is not None
    full = partial = empty = 0
    for problem in problems(spec):
        for q, k in problem.lengths:
            found = count(
                tiles,
                seqlen_q=q,
                seqlen_k=k,
                block_m=16,
                block_n=16,
                env={"b": 0, "h": 0} | dict(problem.params),
            )
            full, partial, empty = full + found.full, partial + found.partial, empty + found.empty
    assert full > 10
    assert partial > 10
    assert empty > 10


@pytest.mark.parametrize("name", ["llama3_causal", "mistral_window"])
def test_rows_without_keys_occur(name: str) -> None:
    spec = load_spec(SPECS[0].with_name(f"{name}.yaml"))
    without = 0
    for problem in problems(spec):
        _, lse = reference(spec, **make_inputs(spec, problem, torch.float32), return_lse=True)
        without += int((lse == -torch.inf).any() and bool((lse != -torch.inf).any()))
    assert without >= 1


def test_lengths_pass_the_constants_of_the_mask() -> None:
    spec = spec_of(mask="j <= i and i - j < window and j % 3 < 100", params={"window": 4096})
    assert constants(spec) == [3, 100, 4096]
    lengths = [pair for problem in problems(spec) for pair in problem.lengths]
    assert max(k for q, k in lengths if q > 16) > 4096
    assert any(100 < k < 200 and q > 32 for q, k in lengths)


def test_params_that_divide_are_positive_and_others_also_zero_and_less() -> None:
    spec = spec_of(mask="j // c == i // c and i - j < w", params={"c": "int", "w": "int"})
    c, w = spec.params
    assert (must_be_positive(spec, c), must_be_positive(spec, w)) == (True, False)
    values = {name: {dict(p.params)[name] for p in problems(spec)} for name in "cw"}
    assert min(values["c"]) == 1
    assert min(values["w"]) < 0
    assert 0 in values["w"]


def test_integer_tensors_hold_what_formulas_want() -> None:
    captured = {
        "prefix": {"dtype": "int32", "axes": ["B"]},
        "bag": {"dtype": "int32", "axes": ["B", "Sk"]},
        "bucket": {"dtype": "int32", "axes": ["Sk"]},
        "table": {"dtype": "float32", "axes": [5]},
    }
    spec = spec_of(
        mask="j < prefix[b] or bag[b, j] == bag[b, 0]", score="s + table[bucket[j]]", captured=captured
    )
    uses = {c.name: integer_use(spec, c).stop for c in spec.captured if c.type == "int"}
    assert uses == {"prefix": None, "bag": 3, "bucket": 5}


def test_the_largest_number_of_a_score_is_not_an_index() -> None:
    captured = {"table": {"dtype": "float32", "axes": [1000]}}
    spec = spec_of(score="30 * tanh(s / 30) + table[min(j, 999)]", captured=captured)
    assert largest_number(spec) == 30.0


# ---- tensors


def inputs_of(spec: Spec, **more: Any) -> dict[str, Any]:
    return make_inputs(
        spec, Problem(**{"name": "x", "lengths": ((5, 7),) * 2, "kv_heads": 2} | more), torch.bfloat16
    )


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "thd"])
@pytest.mark.parametrize("strides", ["padded", "odd", "swapped", "expanded"])
def test_strides_change_memory_and_not_values(layout: str, strides: str) -> None:
    spec = spec_of(layout=layout)
    plain, other = inputs_of(spec), inputs_of(spec, strides=strides)
    for name in ("q", "k", "v"):
        assert other[name].shape == plain[name].shape
        assert other[name].stride(-1) == 1
        if strides == "expanded" and name != "q":
            assert 0 in other[name].stride()
        else:
            assert torch.equal(other[name], plain[name])
    assert not other["k"].is_contiguous()
    if strides in ("padded", "odd"):
        storage = torch.as_strided(other["k"], (other["k"].untyped_storage().nbytes() // 2,), (1,))
        assert storage.isnan().sum() == storage.numel() - plain["k"].numel()


def test_large_logits_are_large_and_tell_keys_apart() -> None:
    spec = spec_of()
    inputs = inputs_of(spec, values="large")
    scores = inputs["q"].double()[0, :, 0] @ inputs["k"].double()[0, :, 0].T / 4
    assert -2.6e5 < scores.min() < scores.max() < -2.4e5
    assert 1 < scores.max() - scores.min() < 100


def test_unused_keys_hold_nan() -> None:
    inputs = inputs_of(spec_of(layout="thd"), lengths=((2, 3), (1, 4)), used_k=(1, 4))
    assert inputs["k"].isnan().any((1, 2)).tolist() == [False, True, True, False, False, False, False]
    assert inputs["seqused_k"].tolist() == [1, 4]


def test_sorted_tensors_are_sorted() -> None:
    spec = spec_of(
        mask="doc[b, j] == doc[b, 0]",
        captured={"doc": {"dtype": "int32", "axes": ["B", "Sk"], "sorted": True}},
    )
    doc = inputs_of(spec)["doc"]
    assert doc.shape == (2, 7)
    assert (doc.diff() >= 0).all()
    assert len(doc.unique()) > 1
