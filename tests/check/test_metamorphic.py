"""Properties of kernels that need no oracle: what must not matter does not matter."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attngen.check.budget import max_error, truth
from attngen.check.kernels import Tiling, run_tiling
from attngen.runtime.build import build
from attngen.spec import Spec, load_spec

TILING = Tiling(16, 16)
Run = Callable[..., tuple[Tensor, Tensor]]
MASKS = {
    "causal": "j <= i",
    "window": "j <= i and i - j < 9",
    "chunks and sinks": "j <= i and (i // 8 == j // 8 or j < 3)",
    "residual": "(i + 2 * j) % 3 != 0",
}


def spec_of(mask: str, **more: Any) -> Spec:
    heads = more.pop("heads", {"q": 6, "kv": 2})
    data = {"attngen": 1, "name": "meta", "heads": heads, "head_dim": 24, "dtype": "bfloat16", "mask": mask}
    return load_spec(data | more)


def runner(spec: Spec) -> Run:
    module: ModuleType = build(spec, interpret=True)
    return lambda **inputs: run_tiling(spec, module, inputs, TILING)


def tensors(batch: int, q: int, k: int, seed: int = 0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)

    def make(tokens: int, heads: int) -> Tensor:
        return torch.randn(batch, tokens, heads, 24, generator=source).bfloat16()

    return {"q": make(q, 6), "k": make(k, 2), "v": make(k, 2)}


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """The same bits."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_grouped_heads_are_repeated_heads(mask: str) -> None:
    inputs = tensors(1, 20, 37)
    repeated = {name: t if name == "q" else t.repeat_interleave(3, 2) for name, t in inputs.items()}
    same(runner(spec_of(mask))(**inputs), runner(spec_of(mask, heads=6))(**repeated))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_permuted_batch_gives_permuted_results(mask: str) -> None:
    run, inputs, order = runner(spec_of(mask)), tensors(3, 19, 21), torch.tensor([2, 0, 1])
    out, lse = run(**inputs)
    same(run(**{name: t[order] for name, t in inputs.items()}), (out[order], lse[order]))


def test_permuted_key_value_heads_give_permuted_results() -> None:
    run, inputs = runner(spec_of("j <= i")), tensors(1, 19, 21)
    out, lse = run(**inputs)
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    swapped = {"q": inputs["q"][:, :, order], "k": inputs["k"].flip(2), "v": inputs["v"].flip(2)}
    same(run(**swapped), (out[:, :, order], lse[:, order]))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_packed_sequences_are_separate_sequences(mask: str) -> None:
    lengths = [(20, 31), (0, 4), (17, 17), (5, 0), (1, 40)]
    apart = [tensors(1, q, k, seed) for seed, (q, k) in enumerate(lengths)]
    packed = {name: torch.cat([one[name][0] for one in apart]) for name in ("q", "k", "v")}
    ends = torch.tensor([(0, 0), *lengths]).cumsum(0).int()
    bounds = {
        "cu_seqlens_q": ends[:, 0].contiguous(),
        "cu_seqlens_k": ends[:, 1].contiguous(),
        "max_seqlen_q": 20,
    }
    out, lse = runner(spec_of(mask, layout="thd"))(**packed, **bounds)
    dense = runner(spec_of(mask))
    results = [dense(**one) for one in apart]
    same((out, lse), (torch.cat([o[0] for o, _ in results]), torch.cat([e[0] for _, e in results], 1)))


def test_unused_keys_of_a_packed_sequence_are_as_if_they_were_not_there() -> None:
    run = runner(spec_of("j <= i", layout="thd"))
    inputs = {name: t[0] for name, t in tensors(1, 18, 30).items()}
    q_ends = torch.tensor([0, 18], dtype=torch.int32)
    used = torch.tensor([23], dtype=torch.int32)
    poisoned = {name: t.clone() for name, t in inputs.items()}
    poisoned["k"][23:] = poisoned["v"][23:] = torch.nan
    with_unused = run(
        **poisoned,
        cu_seqlens_q=q_ends,
        cu_seqlens_k=torch.tensor([0, 30], dtype=torch.int32),
        max_seqlen_q=18,
        seqused_k=used,
    )
    shorter = {"q": inputs["q"], "k": inputs["k"][:23], "v": inputs["v"][:23]}
    bounds = {
        "cu_seqlens_q": q_ends,
        "cu_seqlens_k": torch.tensor([0, 23], dtype=torch.int32),
        "max_seqlen_q": 18,
    }
    same(with_unused, run(**shorter, **bounds))


@pytest.mark.parametrize(
    ("mask", "kept"),
    [("j < 20", slice(0, 20)), ("j < 20 and j >= 0", slice(0, 32)), ("i - j < 9", slice(16, None))],
)
def test_keys_that_no_query_sees_may_be_left_out(mask: str, kept: slice) -> None:
    """Whole tiles in front shift all tiles alike; what is cut off at the end was masked."""
    spec, inputs = spec_of(mask), tensors(1, 12, 53)
    fewer = {name: t if name == "q" else t[:, kept] for name, t in inputs.items()}
    same(runner(spec)(**inputs), runner(spec)(**fewer))


@pytest.mark.parametrize("sizes", [(16, 32), (32, 16), (32, 64)])
def test_tiles_change_results_by_rounding_alone(sizes: tuple[int, int]) -> None:
    spec, inputs = spec_of(MASKS["window"]), tensors(1, 40, 70)
    module = build(spec, interpret=True)
    a = run_tiling(spec, module, inputs, TILING)
    b = run_tiling(spec, module, inputs, Tiling(*sizes))
    known = truth(spec, inputs)
    assert max_error(a[0], b[0].double()) <= known.out_budget
    assert max_error(a[1], b[1].double()) <= known.lse_budget


def test_a_constant_added_to_all_scores_moves_lse_and_not_out() -> None:
    inputs = {name: t.float() for name, t in tensors(1, 20, 37).items()}
    plain, moved = (spec_of("j <= i", dtype="float32", score=score) for score in ("s", "s + 3.0"))
    (out, lse), (moved_out, moved_lse) = runner(plain)(**inputs), runner(moved)(**inputs)
    known = truth(moved, inputs)
    assert max_error(moved_out, out.double()) <= known.out_budget
    assert max_error(moved_lse, lse.double() + 3.0) <= known.lse_budget
