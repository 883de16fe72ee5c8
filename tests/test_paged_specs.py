"""Committed specs of special shape: trees of drafts, and all query heads on one latent key (MLA)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged import build, check, committed, draw, moved, run, same
from torch import Tensor

import attngen
from attngen.errors import PlanError
from attngen.passes.pipeline import schedule
from attngen.spec import Spec

SMALL = {"heads": {"q": 8, "kv": 2}, "head_dim": 16, "dtype": ["float32", "bfloat16"]}
NODES = 12
# (drafts, keys): trees of several sizes, one without earlier keys, a sequence that waits, one without drafts' tree
TREES = ((7, 40), (12, 31), (0, 9), (1, 1), (5, 5), (12, 64), (2, 19))


def tree_spec(page_size: int = 16, **keys: Any) -> Spec:
    return committed("spec_decode_tree", cache={"kind": "paged", "page_size": page_size}, **SMALL, **keys)


def parents(drafts: int, seed: int) -> list[int]:
    """A random tree: the parent of each node, -1 at a root; parents come first, as EAGLE sorts them."""
    draws = torch.Generator().manual_seed(seed)
    return [int(torch.randint(-1, n, (), generator=draws)) if n else -1 for n in range(drafts)]


def path_to(node: int, tree: list[int]) -> list[int]:
    """The nodes from a root to a node."""
    found = []
    while node >= 0:
        found.append(node)
        node = tree[node]
    return found[::-1]


def forest(lengths: Any = TREES, nodes: int = NODES) -> tuple[list[list[int]], Tensor]:
    """A tree per sequence, and the mask of all drafts: [Tq, nodes]."""
    trees = [parents(drafts, seed) for seed, (drafts, _) in enumerate(lengths)]
    rows = torch.zeros(sum(len(tree) for tree in trees), nodes, dtype=torch.bool)
    for row, (node, tree) in zip(rows, ((n, t) for t in trees for n in range(len(t))), strict=True):
        row[path_to(node, tree)] = True
    return trees, rows


def tree_call(spec: Spec, lengths: Any = TREES, **more: Any) -> tuple[list[list[int]], Any]:
    trees, ancestors = forest(lengths)
    return trees, {**draw(spec, lengths, nodes=NODES, **more), "ancestors": ancestors}


@pytest.mark.parametrize("splits", ["auto", 3, {"keys": 64}])
@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
def test_trees_of_drafts(page_size: int, splits: Any) -> None:
    spec = tree_spec(page_size, splits=splits)
    _, inputs = tree_call(spec)
    check(spec, inputs, **({"num_splits": 2} if splits == "auto" else {}))
    check(spec, inputs, BLOCK_M=32, BLOCK_N=64)


def test_a_draft_sees_what_it_would_see_were_its_path_the_sequence() -> None:
    """The same attention from earlier keys and the keys of the path, one query, without any tree."""
    spec = tree_spec()
    trees, inputs = tree_call(spec)
    out, lse = run(spec, inputs)
    row = 0
    for b, ((drafts, keys), tree) in enumerate(zip(TREES, trees, strict=True)):
        k, v = (rows_of(inputs, f"{t}_cache", b, keys) for t in "kv")
        for node in range(drafts):
            seen = [*range(keys - drafts), *(keys - drafts + n for n in path_to(node, tree))]
            scores = torch.einsum(
                "hd,khd->hk", inputs["q"][row].double(), k[seen].repeat_interleave(4, 1)
            ) * (16**-0.5)
            want = torch.einsum("hk,khd->hd", scores.softmax(-1), v[seen].repeat_interleave(4, 1))
            torch.testing.assert_close(out[row].double(), want, rtol=0, atol=4e-6)
            torch.testing.assert_close(lse[:, row].double(), scores.logsumexp(-1), rtol=1e-6, atol=2e-6)
            row += 1
    assert row == len(out)


def rows_of(inputs: Any, name: str, b: int, keys: int) -> Tensor:
    """The keys or values of a sequence, in fp64."""
    pages = inputs["page_table"][b, : -(-keys // 16)].long()
    return inputs[name][pages].flatten(0, 1)[:keys].double()


def test_a_chain_is_causal() -> None:
    spec = tree_spec()
    causal = tree_spec(mask="j <= i", params={}, captured={})
    inputs = draw(causal, TREES)
    chains = torch.cat([torch.ones(drafts, NODES).tril() for drafts, _ in TREES]).bool()
    found, want = run(spec, {**inputs, "nodes": NODES, "ancestors": chains}), run(causal, inputs)
    torch.testing.assert_close(found, want, rtol=0, atol=2e-6)


def test_a_static_tree_for_all_sequences() -> None:
    """Medusa's mask, [nodes, nodes], is repeated; a transposed view needs no copy."""
    spec = tree_spec()
    lengths = ((NODES, 40), (NODES, 17))
    _, one = forest(lengths[:1])
    inputs = {**draw(spec, lengths, nodes=NODES), "ancestors": one.repeat(2, 1)}
    check(spec, inputs)
    turned = inputs["ancestors"].T.contiguous().T
    assert same(run(spec, {**inputs, "ancestors": turned}), run(spec, inputs))


def test_where_the_pages_of_a_tree_lie_changes_no_bit() -> None:
    spec = tree_spec()
    _, inputs = tree_call(spec)
    assert same(run(spec, moved(inputs)), run(spec, inputs))


def test_trees_in_bf16() -> None:
    spec = tree_spec()
    _, inputs = tree_call(spec, dtype=torch.bfloat16)
    out, _ = run(spec, inputs)
    exact = attngen.reference(spec, **inputs)
    assert float((out.double() - exact).abs().max()) < 2**-7 * float(exact.abs().max())


WRONG_TREES: dict[str, tuple[Any, str]] = {
    "rows": (lambda t: {"ancestors": t[1:]}, r"ancestors: expected shape \(39, 12\) .*, got \(38, 12\)"),
    "width": (lambda t: {"nodes": 13}, r"ancestors: expected shape \(39, 13\) .*, got \(39, 12\)"),
    "dtype": (lambda t: {"ancestors": t.float()}, "ancestors: expected dtype torch.bool, got torch.float32"),
    "missing": (
        lambda t: {"ancestors": None},
        r"ancestors: expected a tensor of shape \(39, 12\), got NoneType",
    ),
}


@pytest.mark.parametrize("name", WRONG_TREES)
def test_wrong_trees(name: str) -> None:
    spec = tree_spec()
    _, inputs = tree_call(spec)
    change, message = WRONG_TREES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        build(spec).attention(**{**inputs, **change(inputs["ancestors"])})


# ---- MLA


MLA = {"heads": {"q": 128, "kv": 1}, "head_dim": {"qk": 48, "v_from_k": 32}, "dtype": ["float32", "bfloat16"]}


def mla_spec(page_size: int = 64, **keys: Any) -> Spec:
    return committed("mla_decode", **{**MLA, "cache": {"kind": "paged", "page_size": page_size}, **keys})


@pytest.mark.parametrize("splits", ["auto", 3, {"keys": 64}])
@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_all_heads_read_one_latent_key(page_size: int, splits: Any) -> None:
    spec = mla_spec(page_size, splits=splits)
    inputs = draw(spec, ((1, 70), (1, 0), (1, 130), (2, 3)), kv_heads=1)
    check(spec, inputs, BLOCK_M=64, **({"num_splits": 2} if splits == "auto" else {}))


def test_latent_keys_of_the_model_s_size() -> None:
    spec = committed("mla_decode")
    inputs = draw(spec, ((1, 33), (1, 5)), kv_heads=1, dtype=torch.bfloat16)
    out, lse = run(spec, inputs, BLOCK_M=64, num_splits=2)
    exact, exact_lse = attngen.reference(spec, **inputs, return_lse=True)
    assert float((out.double() - exact).abs().max()) < 2**-7 * float(exact.abs().max())
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_where_latent_keys_lie_changes_no_bit() -> None:
    spec = mla_spec(3)
    inputs = draw(spec, ((1, 70), (1, 9)), kv_heads=1)
    assert same(run(spec, moved(inputs)), run(spec, inputs))


def test_many_heads_per_key_have_tiles_of_64_rows() -> None:
    """Each tile of rows reads all keys, so 128 heads are two tiles; a small group has no use for idle rows."""
    for group, rows in ((128, 64), (32, 64), (16, 16), (4, 16)):
        launch = schedule(mla_spec(heads={"q": group, "kv": 1}, head_dim={"qk": 576, "v_from_k": 512})).nodes[
            "kernel"
        ]
        decode = dict(launch.decode)  # pyright: ignore
        assert {decode[f"{t}/16"][0].block_m for t in ("sm_80", "sm_90", "sm_100", "gfx942")} == {rows}


def test_latent_caches_have_one_tensor() -> None:
    module = build(mla_spec())
    inputs = draw(mla_spec(), ((1, 70),), kv_heads=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'v_cache'"):
        module.attention(**inputs, v_cache=inputs["k_cache"])
    wrong = {**inputs, "q": inputs["q"][:, :64]}
    with pytest.raises(
        ValueError, match="q has 64 heads and k_cache 1: expected 128 query heads per kv head"
    ):
        module.attention(**wrong)


def test_values_are_whole_vectors_of_keys() -> None:
    with pytest.raises(PlanError, match="v_from_k is 40; a view of K needs a multiple of 16 columns"):
        attngen.build(mla_spec(head_dim={"qk": 48, "v_from_k": 40}))
