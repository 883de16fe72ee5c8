"""Flash decoding: the keys of a row shared between programs, merged in fp32; and splits that make batches invisible."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from paged import BASE, TILES, build, check, draw, run, spec_of

import attngen
from attngen.errors import InternalError, SpecError

DECODE = ((1, 70), (1, 0), (1, 200), (1, 3))
VARIANTS: dict[str, Any] = {
    "causal": {},
    "sinks, softcap, window": {
        "sinks": True,
        "mask": "j <= i and i - j < 20",
        "score": "30 * tanh(s / 30)",
    },
    "sink columns": {"mask": "j <= i and (j < 4 or i - j < 16)"},
    "head dims": {"head_dim": {"qk": 40, "v": 24}},
    "odd group": {"heads": {"q": 10, "kv": 2}},
    "values in keys": {"head_dim": {"qk": 48, "v_from_k": 32}},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("splits", ["auto", 3, {"keys": 64}])
def test_split_folds_are_what_the_formula_says(splits: Any, name: str) -> None:
    spec = spec_of(16, splits=splits, **VARIANTS[name])
    for lengths in (DECODE, ((20, 31), (0, 9), (3, 0), (33, 150))):
        for number in (1, 2, 7) if splits == "auto" else (0,):
            check(spec, draw(spec, lengths), **({"num_splits": number} if number else {}))


def test_a_csr_table_can_be_split() -> None:
    spec = spec_of(3, cache={"table": "csr"}, splits="auto")
    check(spec, draw(spec, DECODE), num_splits=4)


def test_what_splits_leave_behind_is_never_read_unwritten() -> None:
    """Partial results are allocated, not cleared: here they are NaN until a kernel writes them."""
    spec = spec_of(16, splits="auto", sinks=True)
    inputs = draw(spec, (*DECODE, (0, 5)))
    inputs["q"] = torch.nn.functional.pad(inputs["q"], (0, 0, 0, 0, 0, 2))  # tokens of no sequence
    expected = run(spec, inputs, num_splits=1)
    module = build(spec)

    def poisoned(shape: Any, *, dtype: Any, **more: Any) -> torch.Tensor:
        return torch.full(shape, 99 if dtype == torch.int32 else float("nan"), dtype=dtype, **more)

    names = {name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")}
    with patch.object(module, "torch", SimpleNamespace(**{**names, "empty": poisoned})):
        found = module.launch(*arguments(module, inputs), config={**TILES, "num_splits": 5})
    assert not any(t.isnan().any() for t in found)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=2e-6)


def arguments(module: Any, inputs: Any) -> list[Any]:
    """The arguments of `launch`, in order."""
    names = ("q", "k_cache", "v_cache", "page_table", "cache_seqlens", "cu_seqlens_q", "max_seqlen_q")
    scale = module.SPEC["head_dim"]["qk"] ** -0.5
    return [*(inputs[name] for name in names), scale, *([inputs["sinks"]] if "sinks" in inputs else [])]


def test_a_short_sequence_shares_its_own_keys() -> None:
    """The number of keys of each split follows the sequence, not the longest of the batch: 4 tiles for 4 programs."""
    spec = spec_of(16, splits=4)
    partial_out, _ = partial_results(spec, draw(spec, ((1, 64), (1, 640))))
    assert partial_out.isfinite().all()


def partial_results(spec: Any, inputs: Any, **config: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(partial_out, partial_lse) of a call, [splits, tokens, heads, columns] and without the last; NaN where no program has
    written."""
    module, kept = build(spec), list[torch.Tensor]()

    def poisoned(shape: Any, *, dtype: Any, **more: Any) -> torch.Tensor:
        kept.append(torch.full(shape, -7 if dtype == torch.int32 else float("nan"), dtype=dtype, **more))
        return kept[-1]

    names = {name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")}
    with patch.object(module, "torch", SimpleNamespace(**{**names, "empty": poisoned})):
        module.launch(*arguments(module, inputs), config=TILES | config)
    return kept[0], kept[1]


# ---- lengths decide


def splits_of(lengths: Any, spec: Any = None, *, width: int = 0, **config: int) -> list[int]:
    """The number of splits of each token, by what programs store; checked against the formula. The table has `width` columns
    more than it needs."""
    spec = spec or spec_of(16, splits="auto")
    inputs = draw(spec, lengths)
    inputs["page_table"] = torch.nn.functional.pad(inputs["page_table"], (0, width), value=-1)
    check(spec, inputs, **config)
    partial_out, partial_lse = partial_results(spec, inputs, **config)
    written = ~partial_lse.isnan()
    found = written.sum(0)[:, 0]
    assert (written.sum(0) == found[:, None]).all()  # of all heads
    assert (written == (torch.arange(len(written))[:, None, None] < found[:, None])).all()  # the first ones
    assert partial_out[~written].isnan().all()
    return found.tolist()


def test_short_sequences_in_a_wide_table_have_one_split_and_a_long_one_has_many() -> None:
    """16 units and two kv heads: (1 + 3 + 1 + 125) tiles twice are 17.9 for each unit, with a margin of a tenth."""
    assert splits_of(((1, 16), (1, 40), (1, 1), (1, 2000))) == [1, 1, 1, 7]


def test_lengths_and_not_the_width_of_the_table_decide() -> None:
    """Four equal sequences share 16 units with two heads: two each, but for the margin; alone, one has all of them."""
    assert splits_of([(1, 320)] * 4) == [2] * 4  # 20 tiles, 11 for each unit
    assert splits_of([(1, 320)]) == [7]  # 3 tiles each
    assert splits_of([(1, 320)] * 16) == [1] * 16  # programs enough
    assert splits_of([(1, 320)] * 4, width=500) == [2] * 4


def test_sequences_of_nearly_one_length_stay_whole() -> None:
    """Of 160 tiles twice each unit gets 20; a sequence of 21 is not split for the sake of one, but one of 23 is."""
    nearly = [(1, 320)] * 6
    assert splits_of([(1, 336), *nearly, (1, 304)]) == [1] * 8
    assert splits_of([(1, 368), *nearly, (1, 272)]) == [2] + [1] * 7


def test_keys_that_a_window_leaves_out_count_for_nothing() -> None:
    """Of 100 tiles a window of 160 leaves 10, which 16 units share as if there were no others: two each, of 20."""
    window = spec_of(16, splits="auto", mask="j <= i and i - j < 160")
    assert splits_of([(1, 1600)], window) == [5]


def test_a_prompt_beside_decoding_sequences() -> None:
    """Tiles of rows of one sequence see different numbers of keys, and are split as those ask for."""
    found = splits_of(((1, 30), (40, 640), (1, 2000)), BLOCK_M=64)
    assert found[0] == 1
    assert found[1:41] == sorted(found[1:41])
    assert found[41] > found[40] > 1


def test_a_long_sequence_in_a_csr_table_is_split_by_its_own_length() -> None:
    """Shapes tell the number of all pages alone; the batch's average would leave the long one whole."""
    spec = spec_of(16, cache={"table": "csr"}, splits="auto")
    inputs = draw(spec, [(1, 1000), *[(1, 16)] * 15])
    check(spec, inputs)
    module, grids = build(spec), list[Any]()
    original = module._attention_forward

    class Recorder:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid)
            return original[grid]

    with patch.object(module, "_attention_forward", Recorder()):
        run(spec, inputs)
    assert grids == [(16 * 2,), (16 * 2 * 7,)]


def test_partial_results_take_no_more_than_256_mib() -> None:
    count = build(spec_of(16, splits="auto"))._num_splits
    found = [count(1, 100, columns, 128) for columns in (2**10, 2**22, 2**25, 2**26, 2**28)]
    assert found == [85, 14, 2, 1, 1]  # of at most 100, 16, 2 and 1


# ---- batch invariance


@pytest.mark.parametrize("at", range(4))
def test_a_request_has_the_same_bits_alone_and_in_any_batch(at: int) -> None:
    """With splits of a fixed size: other requests, prompts among them, a wider table, another order."""
    spec = spec_of(16, splits={"keys": 64}, sinks=True)
    module = build(spec)
    inputs = draw(spec, ((1, 200), (1, 63), (30, 130), (1, 65)))
    out, lse = module.attention(**inputs, return_lse=True)
    begin, end = (int(n) for n in inputs["cu_seqlens_q"][at : at + 2])
    pages = -(-int(inputs["cache_seqlens"][at]) // 16)
    alone = {
        **inputs,
        "q": inputs["q"][begin:end],
        "page_table": inputs["page_table"][at : at + 1, :pages],
        "cache_seqlens": inputs["cache_seqlens"][at : at + 1],
        "cu_seqlens_q": torch.tensor([0, end - begin], dtype=torch.int32),
        "max_seqlen_q": end - begin,
    }
    found, found_lse = module.attention(**alone, return_lse=True)
    assert torch.equal(found, out[begin:end])
    assert torch.equal(found_lse, lse[:, begin:end])


def test_splits_of_a_fixed_size_have_one_schedule_for_all_calls() -> None:
    module = build(spec_of(16, splits={"keys": 64}))
    assert not hasattr(module, "DECODE_CONFIGS")
    assert all(64 % config["BLOCK_N"] == 0 for found in module.CONFIGS.values() for config in found)


# ---- how many


@pytest.mark.parametrize(
    ("programs", "tiles", "splits"),
    [
        (13, 100, 1),  # programs fill 80 % of 16 units
        (12, 100, 4),  # 48 programs: three whole waves
        (1, 4, 1),  # too few keys to share
        (1, 100, 14),  # 14 of 16 is at least 0.85 of all
        (1, 8, 7),
        (5, 100, 3),  # 15 of 16
        (0, 100, 1),
    ],
)
def test_the_number_of_splits_fills_the_machine(programs: int, tiles: int, splits: int) -> None:
    module = build(spec_of(16, splits="auto"))
    assert module._num_splits(programs, tiles, 1024, 16) == splits


def test_the_launcher_reads_no_value() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec = spec_of(16, splits="auto")
    module, inputs = build(spec), draw(spec, ((1, 300),))
    grids: list[Any] = []

    class Recorder:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid)
            return lambda *args, **kwargs: None

    with FakeTensorMode() as mode, pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_attention_forward", Recorder())
        patched.setattr(module, "_combine", Recorder())
        patched.setattr(module, "_check_cpu", lambda dtype: None)
        given = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments(module, inputs)]
        module.launch(*given, config=TILES)
    assert grids == [(1 * 2,), (1 * 2 * 7,), (1,)]  # 22 tiles by the table's width; 14 programs of 16


# ---- mistakes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"splits": "many"}, "splits: expected auto, a number or {keys: ...}, got 'many'"),
        ({"splits": 0}, "splits.count: must be at least 1, got 0"),
        ({"splits": {"keys": 100}}, "splits.keys: must be a power of two, got 100"),
        ({"splits": {"keys": 64, "count": 2}}, "splits: give count or keys, not both"),
        (
            {"splits": {"keys": 64}, "schedule": {"block_n": 128}},
            "schedule.block_n: a tile of keys lies in one split of 64 keys",
        ),
        (
            {"splits": {"keys": 64}, "cache": {"kind": "paged", "page_size": 16, "table": "csr"}},
            "splits: splits of a fixed size need a dense page table, whose width bounds the keys; got csr",
        ),
    ],
)
def test_wrong_splits(keys: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        attngen.load_spec({**BASE, "cache": {"kind": "paged", "page_size": 16}, **keys})
    assert str(caught.value).startswith(message)


def test_splits_need_pages() -> None:
    with pytest.raises(
        SpecError, match="splits: splits are for keys in pages; add a cache, or leave splits out"
    ):
        attngen.load_spec({**BASE, "splits": "auto"})


@pytest.mark.parametrize("splits", ["auto", 3, {"keys": 64}])
def test_a_spec_with_splits_keeps_its_form(splits: Any) -> None:
    spec = spec_of(16, splits=splits)
    assert spec.canonical()["splits"] == splits
    assert attngen.load_spec(spec.canonical()) == spec


def test_every_field_of_a_split_is_printed_or_refused() -> None:
    from dataclasses import replace

    from attngen.emit.render import render
    from attngen.ir.nodes import Splits
    from attngen.passes.pipeline import schedule
    from attngen.reference.interpreter import interpret

    spec = spec_of(16, splits={"keys": 64})
    graph = schedule(spec)
    fold = graph.nodes["fold"]
    for change in (Splits(keys=128), Splits(count=2)):
        other = graph.with_nodes({"fold": replace(fold, domain=replace(fold.domain, splits=change))})
        assert render(other) != render(graph)
        inputs = draw(spec, DECODE)
        torch.testing.assert_close(interpret(other, inputs), interpret(graph, inputs), rtol=0, atol=1e-12)
    for name, change in (
        ("fold", {"domain": replace(fold.domain, splits=Splits())}),  # nothing counts its tiles
        ("fold", {"level": "tile"}),
        ("combine", {"rows": "search"}),
        ("combine", {"program_axes": ("Hkv",)}),
        ("store_partial_out", {"dtype": "io"}),
        ("store_partial_lse", {"operand": "out"}),
    ):
        with pytest.raises(InternalError):
            render(graph.with_nodes({name: replace(graph.nodes[name], **change)}))
