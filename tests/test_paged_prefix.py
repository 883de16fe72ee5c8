"""A prefix that groups of sequences share: kept and folded once per group, merged with what each sequence finds behind it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from paged import BASE, MIXED, TILES, addresses, build, check, committed, draw, run, same, spec_of

import attngen
from attngen.emit.render import render
from attngen.errors import InternalError, PlanError, SpecError, TensorError
from attngen.passes.build import build as semantic
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter import interpret
from attngen.spec import Spec

DECODE = ((1, 70), (1, 90), (1, 64), (1, 33), (1, 200), (1, 100))
VARIANTS: dict[str, Any] = {
    "causal": {},
    "window": {"mask": "j <= i and i - j < 20"},
    "sink columns": {"mask": "j <= i and (j < 4 or i - j < 16)"},
    "chunks": {"mask": "j <= i and i // 24 == j // 24"},
    "dilated": {"mask": "j <= i and (i - j) % 3 == 0"},
    "bidirectional": {"mask": None},
    "a window per head": {"mask": "j <= i and i - j < 4 + 3 * h"},
    "sinks and softcap": {"sinks": True, "score": "30 * tanh(s / 30)"},
    "slopes": {
        "score": "s + slopes[h] * (j - i)",
        "captured": {"slopes": {"dtype": "float32", "axes": ["Hq"]}},
    },
    "values in keys": {"head_dim": {"qk": 48, "v_from_k": 32}},
    "odd group": {"heads": {"q": 10, "kv": 2}},
    "int8": {"cache": {"dtype": "int8"}},
}


def shared(page_size: int = 8, *, cache: Any = (), splits: Any = "auto", **keys: Any) -> Spec:
    return spec_of(page_size, cache={"prefix": "shared"} | dict(cache), splits=splits, **keys)


CASES = [
    *((name, "auto") for name in VARIANTS),
    ("causal", 3),
    ("causal", {"keys": 64}),
]


@pytest.mark.parametrize(("name", "splits"), CASES)
def test_groups_are_what_the_formula_says(name: str, splits: Any) -> None:
    """Groups of one, two and three, with no prefix, most of what the shortest has, or all of it; ragged behind it."""
    spec = shared(splits=splits, **VARIANTS[name])
    number = {"num_splits": 2} if splits == "auto" else {}
    for seed, lengths in enumerate((MIXED, DECODE, MIXED)):
        check(spec, draw(spec, lengths, seed=seed), tolerance=4e-6, **number)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_graph_says_the_same_before_and_after_the_cut(name: str) -> None:
    spec = shared(**VARIANTS[name])
    inputs = draw(spec)
    exact = attngen.reference(spec, **inputs, return_lse=True)
    for graph in (semantic(spec), schedule(spec)):
        torch.testing.assert_close(interpret(graph, inputs), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("page_size", "layout"), [(1, "nhd"), (3, "hnd"), (16, "nhd"), (64, "hnd")])
def test_any_page_size_and_layout(page_size: int, layout: str) -> None:
    """A prefix need not fill its last page: keys behind it begin pages of their own."""
    spec = shared(page_size, cache={"layout": layout})
    check(spec, draw(spec, DECODE), num_splits=2)
    check(spec, draw(spec), BLOCK_M=32, BLOCK_N=64)


# ---- the same attention with the prefix's pages in every sequence's table


def whole_pages(lengths: Any = ((1, 70), (3, 90), (1, 64), (2, 48)), kv_heads: int = 2) -> tuple[Any, Any]:
    """A call of groups of two with prefixes of 48 and 32 keys, and the same without: the table lists the prefix's pages first."""
    plain = spec_of(16, splits="auto")
    inputs = draw(plain, lengths, kv_heads=kv_heads)
    table = inputs["page_table"].clone()
    prefixes, groups = torch.tensor([48, 32], dtype=torch.int32), torch.tensor([0, 2, 4], dtype=torch.int32)
    for b, pages in ((1, 3), (3, 2)):  # all members of a group have the pages of its first
        table[b, :pages] = table[b - 1, :pages]
    own = inputs["cache_seqlens"] - prefixes.repeat_interleave(2)
    behind = torch.stack([torch.roll(row, -pages) for row, pages in zip(table, (3, 3, 2, 2), strict=True)])
    cascade = {
        **inputs,
        "page_table": behind,
        "cache_seqlens": own,
        "prefix_table": table[::2, :3].contiguous(),
        "prefix_seqlens": prefixes,
        "cu_groups": groups,
    }
    return cascade, {**inputs, "page_table": table}


def test_equal_to_the_prefix_repeated_in_every_table() -> None:
    cascade, repeated = whole_pages()
    found = run(shared(16), cascade, num_splits=2)
    want = run(spec_of(16, splits="auto"), repeated, num_splits=2)
    torch.testing.assert_close(found, want, rtol=2e-6, atol=2e-6)


def test_no_prefix_is_no_prefix() -> None:
    """Length 0: bit for bit what the kernel without prefixes gives, whatever the groups."""
    plain = spec_of(16, splits=2)
    inputs = draw(plain, DECODE)
    for groups in ([0, 6], [0, 1, 2, 3, 4, 5, 6], [0, 0, 4, 6, 6]):
        count = len(groups) - 1
        cascade = {
            **inputs,
            "prefix_table": torch.full((count, 2), -7, dtype=torch.int32),
            "prefix_seqlens": torch.zeros(count, dtype=torch.int32),
            "cu_groups": torch.tensor(groups, dtype=torch.int32),
        }
        assert same(run(shared(16, splits=2), cascade), run(plain, inputs))


def test_the_prefix_of_a_group_of_one() -> None:
    cascade, repeated = whole_pages()
    alone = {**cascade, "cu_groups": torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32)}
    for name in ("prefix_table", "prefix_seqlens"):
        alone[name] = cascade[name].repeat_interleave(2, 0)
    found = run(shared(16), alone, num_splits=2)
    torch.testing.assert_close(found, run(spec_of(16, splits="auto"), repeated), rtol=2e-6, atol=2e-6)


def test_tokens_of_no_sequence_stay_zero() -> None:
    spec = shared()
    inputs = draw(spec)
    padded = {**inputs, "q": torch.nn.functional.pad(inputs["q"], (0, 0, 0, 0, 0, 5))}
    (out, lse), (found, found_lse) = run(spec, inputs), run(spec, padded)
    torch.testing.assert_close((found[:-5], found_lse[:, :-5]), (out, lse), rtol=2e-6, atol=2e-6)
    assert (found[-5:] == 0).all()
    assert (found_lse[:, -5:] == -torch.inf).all()


# ---- once for a group, and what a request may see of its neighbours


def test_the_prefix_is_folded_once_for_a_group() -> None:
    """Four sequences with a query each: their rows are one tile of the prefix's launch, so it loads each key once."""
    spec = shared(16, splits=1)
    inputs = draw(spec_of(16), ((1, 5),) * 4)
    pages = inputs["page_table"][:1, :1]
    inputs |= {
        "prefix_table": pages.repeat(1, 2),
        "prefix_seqlens": torch.tensor([16], dtype=torch.int32),
        "cu_groups": torch.tensor([0, 4], dtype=torch.int32),
        "cache_seqlens": torch.zeros(4, dtype=torch.int32),
    }
    inputs["k_cache"], inputs["v_cache"] = (torch.randn_like(inputs[n]) for n in ("k_cache", "v_cache"))
    loaded: list[int] = []
    from triton.runtime import interpreter

    original = interpreter._interpreter
    keys = addresses(inputs["k_cache"][:, :, 0, 0])

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
            touched = np.broadcast_to(pointers, mask.shape)[mask].astype(np.int64)
            loaded.append(int(np.isin(touched, keys).sum()))
            return original.load(pointers, mask, *rest)

    with patch.object(interpreter, "_interpreter", Counting()):
        run(spec, inputs)
    assert sum(loaded) == 16  # of one kv head, each key once for four sequences


def test_the_bits_of_a_request_do_not_depend_on_its_group() -> None:
    """With splits of a fixed size, one schedule serves all calls: its group's other sequences change nothing."""
    spec = shared(16, splits={"keys": 64})
    cascade, _ = whole_pages()
    module = build(spec)
    out, lse = module.attention(**cascade, return_lse=True)
    begin, end = (int(n) for n in cascade["cu_seqlens_q"][1:3])
    alone = {
        **cascade,
        "q": cascade["q"][begin:end],
        "cu_seqlens_q": torch.tensor([0, end - begin], dtype=torch.int32),
        "page_table": cascade["page_table"][1:2],
        "cache_seqlens": cascade["cache_seqlens"][1:2],
        "prefix_table": cascade["prefix_table"][:1],
        "prefix_seqlens": cascade["prefix_seqlens"][:1],
        "cu_groups": torch.tensor([0, 1], dtype=torch.int32),
    }
    found, found_lse = module.attention(**alone, return_lse=True)
    assert torch.equal(found, out[begin:end])
    assert torch.equal(found_lse, lse[:, begin:end])


def test_pages_of_a_prefix_outside_the_window_are_not_read() -> None:
    """Windows of 24 over prefixes of 48 and 32 keys: what no query of a group sees is poison, in caches and tables."""
    cascade, _ = whole_pages(((1, 70), (1, 60), (1, 64), (1, 48)))
    spec = shared(16, mask="j <= i and i - j < 24")
    first = cascade["prefix_table"].clone()
    poisoned = {**cascade, "prefix_table": first}
    first[:, 0] = 2**31 - 1
    module = build(spec)
    names = (
        "q",
        "k_cache",
        "v_cache",
        "page_table",
        "cache_seqlens",
        "prefix_table",
        "prefix_seqlens",
        "cu_groups",
    )
    arguments = [*(poisoned[n] for n in names), cascade["cu_seqlens_q"], 1, 0.25]
    out, lse = module.launch(*arguments, config=TILES)
    want = attngen.reference(spec, **cascade, softmax_scale=0.25, return_lse=True)
    torch.testing.assert_close((out.double(), lse.double()), want, rtol=0, atol=5e-6)


def test_what_prefixes_leave_behind_is_never_read_unwritten() -> None:
    spec = shared(splits=2, sinks=True)
    inputs = draw(spec)
    expected = run(spec, inputs)
    module = build(spec)

    def poisoned(shape: Any, *, dtype: Any, **more: Any) -> torch.Tensor:
        return torch.full(shape, 99 if dtype == torch.int32 else float("nan"), dtype=dtype, **more)

    names = {name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")}
    with patch.object(module, "torch", SimpleNamespace(**{**names, "empty": poisoned})):
        found = run(spec, inputs)
    assert same(found, expected)


def test_the_launcher_reads_no_value() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec = shared(16)
    cascade, _ = whole_pages()
    module = build(spec)
    grids: list[Any] = []

    class Recorder:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid)
            return lambda *args, **kwargs: None

    names = (
        "q",
        "k_cache",
        "v_cache",
        "page_table",
        "cache_seqlens",
        "prefix_table",
        "prefix_seqlens",
        "cu_groups",
    )
    with FakeTensorMode() as mode, pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_attention_forward", Recorder())
        patched.setattr(module, "_combine", Recorder())
        patched.setattr(module, "_check_cpu", lambda dtype: None)
        fakes = [mode.from_tensor(cascade[n]) for n in (*names, "cu_seqlens_q")]
        out, _ = module.launch(*fakes, 3, 0.25, config={**TILES, "num_splits": 1})
    # 7 tokens in tiles of 8 queries, 2 kv heads: a tile per group (and sequence) at most, counted, then folded; 28 rows to merge
    assert grids == [(4 * 2,), (2 * 2,), (2 * 2,), (4 * 2,), (2,)]
    assert out.shape == cascade["q"].shape


def test_partial_results_of_both_pieces_take_no_more_than_256_mib() -> None:
    """2048 decoding sequences of one group, with 32000 keys each before and behind, on 132 units."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = build(shared(16, heads={"q": 4, "kv": 1}, head_dim=128))
    merged: list[torch.Tensor] = []

    class Recorder:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: merged.extend(
                [kwargs["partial_out"]] if "partial_out" in kwargs else []
            )

    names = ("_attention_forward", "_combine")
    known = {
        **dict.fromkeys(names, Recorder()),
        "_check_cpu": lambda dtype: None,
        "_num_sms": lambda device: 132,
    }
    with FakeTensorMode(), patch.multiple(module, **known):
        q, cache = torch.empty(2048, 4, 128), torch.empty(9, 16, 1, 128)
        shapes = ((2048, 2000), (2048,), (1, 2000), (1,), (2,), (2049,))
        module.launch(q, cache, cache, *(torch.empty(n, dtype=torch.int32) for n in shapes), 1, 0.1)
    [partial_out] = merged
    assert 2**27 < 4 * partial_out.numel() <= 2**28


def test_the_committed_spec() -> None:
    spec = committed("cascade_prefix", heads={"q": 8, "kv": 2}, head_dim=16, dtype="bfloat16")
    inputs = draw(spec, DECODE, dtype=torch.bfloat16)
    out, lse = build(spec).attention(**inputs, return_lse=True)
    exact, exact_lse = attngen.reference(spec, **inputs, return_lse=True)
    assert float((out.double() - exact).abs().max()) < 2**-7 * float(exact.abs().max())
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


# ---- the graph


def test_rows_of_several_sequences_have_tiles_of_their_own() -> None:
    """Their positions are loaded, and need registers: on sm_80 half as many keys; elsewhere, and in decode, as without."""
    plain, prefix = (
        schedule(committed("paged_decode_llama3", cache={"kind": "paged", "page_size": 16, **more})).nodes[
            "kernel"
        ]
        for more in ({}, {"prefix": "shared"})
    )
    differing = {name for name, found in prefix.configs if found != dict(plain.configs)[name]}
    assert differing == {f"sm_{number}/16" for number in (80, 86, 89, 120)}
    [config] = dict(prefix.configs)["sm_80/16"]
    assert (config.block_m, config.block_n, config.num_warps) == (128, 32, 8)
    assert prefix.decode == plain.decode


def test_every_field_of_a_prefix_is_printed_or_refused() -> None:
    graph = schedule(shared())
    fold, kernel = graph.nodes["fold"], graph.nodes["k_tile"]
    for name, changed in (
        ("fold", replace(fold, domain=replace(fold.domain, prefix=None))),
        ("fold", replace(fold, domain=replace(fold.domain, prefix=fold.domain.size))),
        ("k_tile", replace(kernel, address=replace(kernel.address, prefix=False))),
    ):
        with pytest.raises(InternalError):
            render(graph.with_nodes({name: changed}))


# ---- mistakes


PAGES = {"kind": "paged", "page_size": 16, "prefix": "shared"}
WRONG_SPECS: dict[str, tuple[Any, str]] = {
    "no splits": (
        {"cache": PAGES},
        "cache.prefix: what a shared prefix gives is merged as splits are; add splits, as in `splits: auto`",
    ),
    "csr": (
        {"cache": {**PAGES, "table": "csr"}, "splits": 2},
        "cache.prefix: a shared prefix needs dense page tables; write table: dense, or leave prefix out",
    ),
    "word": (
        {"cache": {**PAGES, "prefix": "share"}, "splits": 2},
        "cache.prefix: 'share' is not allowed; did you mean 'shared'?",
    ),
    "row": (
        {"cache": PAGES, "splits": 2, "mask": "j <= row"},
        "mask: rows of a shared prefix belong to several sequences, 'row' to one; use i and j, or leave cache.prefix out",
    ),
    "length": (
        {"cache": PAGES, "splits": 2, "score": "s / seqlen_k"},
        "score: rows of a shared prefix belong to several sequences, 'seqlen_k' to one",
    ),
    "axis": (
        {
            "cache": PAGES,
            "splits": 2,
            "mask": "keep[i]",
            "captured": {"keep": {"dtype": "bool", "axes": ["Tq"]}},
        },
        "captured.keep.axes: rows of a shared prefix belong to several sequences; keep can have no axis B or Tq",
    ),
}


@pytest.mark.parametrize("name", WRONG_SPECS)
def test_wrong_specs(name: str) -> None:
    keys, message = WRONG_SPECS[name]
    with pytest.raises(SpecError) as caught:
        attngen.load_spec({**BASE, **keys})
    assert str(caught.value).startswith(message)


def test_a_spec_with_a_prefix_keeps_its_form() -> None:
    spec = shared(16)
    assert spec.canonical()["cache"] == PAGES
    assert attngen.load_spec(spec.canonical()) == spec


WRONG_CALLS: dict[str, tuple[str, Any, str]] = {
    "groups of all": ("cu_groups", lambda t: t[:-1], r"prefix_table: expected shape \(1, None\)"),
    "last group": (
        "cu_groups",
        lambda t: t.clamp(max=3),
        "cu_groups: must rise from 0 to 4, the number of sequences",
    ),
    "falling": ("cu_groups", lambda t: torch.tensor([0, 5, 4]).int(), "cu_groups: must rise from 0 to 4"),
    "dtype": ("cu_groups", lambda t: t.long(), "cu_groups: expected dtype torch.int32, got torch.int64"),
    "length": ("prefix_seqlens", lambda t: t + 100, "prefix_seqlens: prefix_table has room for 0 to 48 keys"),
    "page": ("prefix_table", lambda t: t + 1000, "prefix_table: a page that holds keys has a number outside"),
    "missing": ("prefix_table", lambda t: None, "prefix_table: expected an int32 tensor, got NoneType"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls(name: str) -> None:
    argument, change, message = WRONG_CALLS[name]
    cascade, _ = whole_pages()
    with pytest.raises((ValueError, TypeError), match=message):
        build(shared(16)).attention(**{**cascade, argument: change(cascade[argument])})


def test_the_oracle_refuses_wrong_groups() -> None:
    cascade, _ = whole_pages()
    groups = torch.tensor([0, 2, 3], dtype=torch.int32)
    with pytest.raises(TensorError, match="cu_groups must rise from 0 to 4, the number of sequences"):
        attngen.reference(shared(16), **{**cascade, "cu_groups": groups})


def test_the_same_bits_in_any_group_need_a_prefix_that_all_rows_see() -> None:
    """A window cuts the prefix for some rows of a group: neighbours would decide the order of sums."""
    with pytest.raises(PlanError, match="same bits in any group only where all rows see the whole prefix"):
        build(shared(16, splits={"keys": 64}, mask="j <= i and i - j < 70"))


def test_names_of_its_kernel_are_taken_in_specs_with_a_prefix_alone() -> None:
    captured: Any = {"captured": {"places": {"dtype": "float32", "axes": ["Hq"]}}, "score": "s + places[h]"}
    with pytest.raises(
        SpecError, match=r"captured\.places: 'places' is what the kernel of a shared prefix uses"
    ):
        shared(16, **captured)
    spec = spec_of(16, **captured)
    check(spec, draw(spec))
