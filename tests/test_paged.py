"""Keys in pages: one kernel for decode, chunked prefill and mixed batches, whatever the page size, layout and table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from paged import BASE, MIXED, TILES, addresses, build, check, draw, moved, run, same, slots, spec_of, watched

import attngen
from attngen.emit.render import render
from attngen.errors import InternalError, PlanError, SpecError, TensorError
from attngen.passes.pipeline import schedule

CACHES = [(1, {}), (3, {}), (16, {}), (48, {}), (64, {}), (256, {})]
CACHES += [(3, {"layout": "hnd"}), (16, {"table": "csr"}), (64, {"layout": "hnd", "table": "csr"})]


@pytest.mark.parametrize(("page_size", "cache"), CACHES)
def test_a_mixed_batch_is_what_the_formula_says(page_size: int, cache: Any) -> None:
    spec = spec_of(page_size, cache=cache)
    check(spec, draw(spec))
    check(spec, draw(spec, ((1, 70), (1, 0), (1, 33))))  # decode
    check(spec, draw(spec, seed=1), BLOCK_M=32, BLOCK_N=64)


@pytest.mark.parametrize(("q", "kv"), [(1, 1), (5, 1), (14, 2), (6, 2), (40, 2), (48, 1)])
def test_groups_of_any_size_share_a_tile(q: int, kv: int) -> None:
    """Odd groups leave rows of a tile idle, large ones need several tiles."""
    spec = spec_of(heads={"q": q, "kv": kv})
    check(spec, draw(spec, kv_heads=kv))
    check(spec, draw(spec, ((1, 40), (1, 17)), kv_heads=kv), BLOCK_M=32)


VARIANTS: dict[str, Any] = {
    "window": {"mask": "j <= i and i - j < 20"},
    "a window per head": {"mask": "j <= i and i - j < 4 + 3 * h"},
    "heads without keys": {"mask": "j <= i and (h % 2 == 0 or j < 4)"},
    "sink columns": {"mask": "j <= i and (j < 4 or i - j < 16)"},
    "dilated": {"mask": "j <= i and (i - j) % 3 == 0"},
    "bidirectional": {"mask": None},
    "sinks and softcap": {"sinks": True, "score": "30 * tanh(s / 30)"},
    "slopes": {
        "score": "s + slopes[h] * (j - i)",
        "captured": {"slopes": {"dtype": "float32", "axes": ["Hq"]}},
    },
    "per token": {
        "score": "s + bias[row, h]",
        "captured": {"bias": {"dtype": "float32", "axes": ["Tq", "Hq"]}},
    },
    "prefix": {"mask": "j <= i or j < prefix[b]", "captured": {"prefix": {"dtype": "int32", "axes": ["B"]}}},
    "head dims": {"head_dim": {"qk": 40, "v": 24}},
    "values in keys": {"head_dim": {"qk": 48, "v_from_k": 32}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_formula_works_with_pages(name: str) -> None:
    spec = spec_of(8, **VARIANTS[name])
    check(spec, draw(spec), tolerance=4e-6)


def test_the_keys_of_a_tile_are_found_once_where_all_heads_see_the_same() -> None:
    """A plan that varies with the head has programs per head; any other holds the group's heads side by side."""
    assert "head_offsets" in build_text(VARIANTS["window"])
    assert "head_offsets" not in build_text(VARIANTS["a window per head"])


def build_text(keys: Any) -> str:
    from attngen.generate import generate

    return generate(spec_of(8, **keys))


def test_bf16_and_strides() -> None:
    spec = spec_of(16)
    inputs = draw(spec, dtype=torch.bfloat16)
    both = torch.stack([inputs["k_cache"], inputs["v_cache"]], 1)  # interleaved: pages of keys and values
    found = run(spec, {**inputs, "k_cache": both[:, 0], "v_cache": both[:, 1]})
    assert all(torch.equal(a, b) for a, b in zip(found, run(spec, inputs), strict=True))
    other = inputs["v_cache"].transpose(1, 2).contiguous().transpose(1, 2)  # strides other than the keys'
    found = run(spec, {**inputs, "v_cache": other})
    assert all(torch.equal(a, b) for a, b in zip(found, run(spec, inputs), strict=True))


# ---- where pages lie, and what surrounds a request, changes no bit


def test_physical_pages_can_be_permuted() -> None:
    spec = spec_of(8)
    inputs = draw(spec)
    assert same(run(spec, moved(inputs)), run(spec, inputs))


@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_page_size_changes_no_bit(page_size: int) -> None:
    """The order of sums is that of tiles, and tiles do not know of pages."""
    one, other = spec_of(16), spec_of(page_size)
    assert same(run(one, draw(one)), run(other, draw(other)))


@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_request_alone_has_the_bits_it_has_in_a_batch(at: int) -> None:
    spec = spec_of(16)
    inputs = draw(spec)
    out, lse = run(spec, inputs)
    begin, end = (int(n) for n in inputs["cu_seqlens_q"][at : at + 2])
    alone = {
        **inputs,
        "q": inputs["q"][begin:end],
        "page_table": inputs["page_table"][at : at + 1],
        "cache_seqlens": inputs["cache_seqlens"][at : at + 1],
        "cu_seqlens_q": torch.tensor([0, end - begin], dtype=torch.int32),
    }
    found, found_lse = run(spec, alone)
    assert torch.equal(found, out[begin:end])
    assert torch.equal(found_lse, lse[:, begin:end])


# ---- what is not read


@pytest.mark.parametrize("layout", ["nhd", "hnd"])
def test_only_keys_inside_the_window_are_read(layout: str) -> None:
    """Pages before the window, the rest of its first page, unused slots, and table entries of none of these: all poison."""
    window, lengths = 5, ((1, 70), (3, 40), (1, 2), (2, 64))
    spec = spec_of(4, cache={"layout": layout}, mask=f"j <= i and i - j < {window}")
    inputs = draw(spec, lengths)
    seen = [(b, j) for b, (q, k) in enumerate(lengths) for j in range(max(0, k - q - window + 1), k)]
    table = torch.full_like(inputs["page_table"], 2**31 - 1)
    for b, j in seen:
        table[b, j // 4] = inputs["page_table"][b, j // 4]
    caches = [inputs["k_cache"], inputs["v_cache"]]
    allowed = [view for cache in caches for view in slots(spec, cache, inputs, seen)]
    rest = [t for n, t in inputs.items() if isinstance(t, torch.Tensor) and not n.endswith("_cache")]
    module = build(spec)
    arguments = [*(inputs[n] for n in ("q", "k_cache", "v_cache")), table]
    arguments += [inputs["cache_seqlens"], inputs["cu_seqlens_q"], 3, 0.25]
    with watched(np.unique(np.concatenate([addresses(t) for t in [*allowed, *rest, table]]))):
        out, lse = module.launch(*arguments, config=TILES)
    want, want_lse = attngen.reference(spec, **inputs, softmax_scale=0.25, return_lse=True)
    torch.testing.assert_close(out.double(), want, rtol=0, atol=5e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=2e-6)


def test_the_watch_sees_a_read_of_an_unused_slot() -> None:
    spec = spec_of(4)
    inputs = draw(spec, ((1, 6),))
    few = np.concatenate([addresses(t) for t in slots(spec, inputs["k_cache"], inputs, [(0, 0)])])
    with pytest.raises(Exception, match="outside what may be read"), watched(few):
        run(spec, inputs)


# ---- the launch path


@pytest.mark.parametrize("table", ["dense", "csr"])
def test_the_launcher_reads_no_value(table: str) -> None:
    """Fake tensors have shapes and no values: whatever asks for one (`.item()`, `bool`, `int`) raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec = spec_of(16, cache={"table": table})
    module, inputs = build(spec), draw(spec)
    grids: list[Any] = []

    class Recorder:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid)
            return lambda *args, **kwargs: None

    names = [*(n for n in ("q", "k_cache", "v_cache")), *TABLES[table], "cu_seqlens_q"]
    with FakeTensorMode() as mode, pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_attention_forward", Recorder())
        patched.setattr(module, "_check_cpu", lambda dtype: None)
        fakes = [mode.from_tensor(inputs[name]) for name in names]
        out, lse = module.launch(*fakes, inputs["max_seqlen_q"], 0.25, config=TILES)
    tokens, sequences = inputs["q"].shape[0], len(MIXED)
    assert grids == [((tokens // 8 + sequences) * 2,)]
    assert (out.shape, lse.shape) == (inputs["q"].shape, (4, tokens))


TABLES = {"dense": ("page_table", "cache_seqlens"), "csr": ("page_indptr", "page_indices", "last_page_len")}


def test_compiled_graphs_hold_the_op_whole() -> None:
    spec = spec_of(16)
    module, inputs = build(spec), draw(spec)
    compiled = torch.compile(module.attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(**inputs), module.attention(**inputs))


def test_more_tokens_than_sequences_hold_are_left_zero() -> None:
    """A CUDA graph's padding: rows after the last sequence have out 0 and lse -inf."""
    spec = spec_of(16)
    inputs = draw(spec)
    longer = {**inputs, "q": torch.nn.functional.pad(inputs["q"], (0, 0, 0, 0, 0, 5))}
    (out, lse), (found, found_lse) = run(spec, inputs), run(spec, longer)
    assert torch.equal(found[:-5], out)
    assert (found[-5:] == 0).all()
    assert (found_lse[:, -5:] == -torch.inf).all()
    assert torch.equal(found_lse[:, :-5], lse)


# ---- mistakes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grad": True}, "grad: a paged cache has no backward; leave grad out, or the cache"),
        ({"layout": "bshd"}, "layout: queries of a paged cache are packed; write thd, or leave layout out"),
        ({"mask_table": True}, "mask_table: a paged cache has no block table; leave mask_table out"),
        ({"cache": {"kind": "paged"}}, "cache.page_size: missing; add `page_size: ...`"),
        ({"cache": {"kind": "paged", "page_size": 0}}, "cache.page_size: must be at least 1, got 0"),
        (
            {"cache": {"kind": "pages", "page_size": 16}},
            "cache.kind: 'pages' is not allowed; did you mean 'paged'?",
        ),
        (
            {"cache": {"kind": "paged", "page_size": 16, "layout": "ndh"}},
            "cache.layout: 'ndh' is not allowed; did you mean 'nhd'? known: hnd, nhd",
        ),
        (
            {"mask": "keep[j]", "captured": {"keep": {"dtype": "bool", "axes": ["Tk"]}}},
            "captured.keep.axes.0: keys in pages have no axis Tk; use B and an integer param, as in [B, longest]",
        ),
    ],
)
def test_wrong_specs(keys: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        attngen.load_spec({**BASE, "cache": {"kind": "paged", "page_size": 16}, **keys})
    assert str(caught.value).startswith(message)


WRONG: dict[str, tuple[Any, str]] = {
    "page_table": (lambda t: t.long(), "page_table: expected dtype torch.int32, got torch.int64"),
    "cache_seqlens": (lambda t: t + 1000, "cache_seqlens: page_table has room for 0 to"),
    "k_cache": (
        lambda t: t.reshape(-1, 8, 2, 16),
        "k_cache: pages hold 8 keys, the kernel was generated for page_size 16",
    ),
    "v_cache": (lambda t: t[:-1], "v_cache: shape"),
    "cu_seqlens_q": (lambda t: t[:-1], "page_table: expected shape"),
    "max_seqlen_q": (
        lambda n: n - 1,
        "cu_seqlens_q: a sequence has 33 tokens, its max_seqlen argument says 32",
    ),
    "q": (lambda t: t[:, :3].contiguous(), "q has 3 heads and k_cache 2: expected 2 query heads per kv head"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(name: str) -> None:
    change, message = WRONG[name]
    spec = spec_of(16)
    inputs = draw(spec)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        run(spec, {**inputs, name: change(inputs[name])})


@pytest.mark.parametrize("wrong", [None, 40.0, torch.tensor(40)])
def test_the_longest_length_is_an_int(wrong: Any) -> None:
    """The value of a tensor would be waited for."""
    spec = spec_of(16)
    with pytest.raises(TypeError, match=f"max_seqlen_q: expected an int, got {type(wrong).__name__}"):
        run(spec, {**draw(spec), "max_seqlen_q": wrong})


def test_layouts_that_no_launcher_knows_are_refused() -> None:
    graph = schedule(spec_of(16))
    for name, layout in (("q", "htd"), ("q", "bshd"), ("k", "phsd"), ("v", "sphd")):
        with pytest.raises(InternalError, match="the forward templates need"):
            render(graph.with_nodes({name: replace(graph.nodes[name], layout=layout)}))


def test_pages_outside_the_cache_are_an_error_on_the_cpu() -> None:
    spec = spec_of(16)
    inputs = draw(spec)
    table = inputs["page_table"].clone()
    table[0, 0] = 999
    with pytest.raises(
        ValueError, match="page_table: a page that holds keys has a number outside the cache's"
    ):
        run(spec, {**inputs, "page_table": table})
    with pytest.raises(TensorError, match="sequence 0 has page 999"):
        attngen.reference(spec, **{**inputs, "page_table": table})


def test_tables_of_the_other_kind() -> None:
    spec = spec_of(16, cache={"table": "csr"})
    inputs = draw(spec)
    last = inputs["last_page_len"].clone()
    last[0] = 17
    with pytest.raises(ValueError, match="last_page_len: must lie within 1 to 16"):
        run(spec, {**inputs, "last_page_len": last})
    with pytest.raises(ValueError, match="page_indptr: must rise from 0 to at most"):
        run(spec, {**inputs, "page_indptr": inputs["page_indptr"] + 1})


def test_gradients_are_refused() -> None:
    spec = spec_of(16)
    inputs = draw(spec)
    out = build(spec).attention(**{**inputs, "q": inputs["q"].requires_grad_()})
    with pytest.raises(RuntimeError, match="keys in pages have no backward"):
        out.sum().backward()


def test_a_spec_with_pages_keeps_its_form() -> None:
    spec = spec_of(16, cache={"layout": "hnd", "table": "csr"})
    assert attngen.load_spec(spec.canonical()) == spec
    assert spec.canonical()["cache"] == {"kind": "paged", "page_size": 16, "layout": "hnd", "table": "csr"}
    assert spec.layout == "thd"


def test_emission_refuses_pages_that_are_not_the_arguments() -> None:
    from dataclasses import replace

    from attngen.emit.render import render
    from attngen.errors import InternalError
    from attngen.ir.nodes import Pages
    from attngen.passes.pipeline import schedule
    from attngen.reference.interpreter import interpret

    spec = spec_of(16)
    graph = schedule(spec)
    changed = {n: replace(graph.nodes[n], address=Pages(size=8, table="dense")) for n in ("k_tile", "v_tile")}
    with pytest.raises(InternalError, match="pages are those of the arguments"):
        render(graph.with_nodes(changed))
    inputs = draw(spec, ((2, 12),))  # the interpreter finds keys by the load's own map
    inputs["page_table"] = inputs["page_table"].clamp(0, inputs["k_cache"].shape[0] - 1)
    wrong, _ = interpret(graph.with_nodes(changed), inputs)
    assert not torch.equal(wrong.nan_to_num(), attngen.reference(spec, **inputs))


def test_a_param_cannot_take_the_name_of_a_kernels_variable() -> None:
    with pytest.raises(PlanError, match="rename it in the spec"):
        build(spec_of(16, mask="j <= i and i - j < place", params={"place": "int"}))
