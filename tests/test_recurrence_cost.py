"""What recurrences cost is linear in the number of tokens: operations and bytes of the plan, work and memory of the kernels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from attngen.check.recurrence import Call as Problem
from attngen.check.recurrence import make_inputs
from attngen.ir.chunk_counts import Call, Cost, between, costs
from attngen.ir.graph import Graph
from attngen.passes.pipeline import schedule
from attngen.runtime.build import build
from attngen.runtime.cpu import triton_modules
from attngen.spec import Spec, load_spec

SSD: dict[str, Any] = {"kind": "ssd", "state": 32, "groups": 2, "dt_softplus": True}
NORMALISED = {"feature": "elu(x) + 1", "normalise": True}
DELTA = {"transition": "delta"}
KINDS: dict[str, dict[str, Any]] = {
    "ssd": {"grad": True, "recurrence": SSD},
    "ssd, no gradients": {"recurrence": SSD},
    "none": {"recurrence": {}},
    "normalised": {"grad": True, "recurrence": NORMALISED},
    "formula": {"grad": True, "recurrence": {"decay": "log(1 - exp2(-5.0 - h))"}},
    "scalar": {"grad": True, "recurrence": {"decay": "scalar"}},
    "vector": {"grad": True, "recurrence": {"decay": "vector"}},
    "delta": {"grad": True, "recurrence": DELTA},
    "gated delta": {"grad": True, "recurrence": {**DELTA, "decay": "scalar"}},
}
LENGTHS = (256, 512, 1024, 2048, 4096)
CHUNK = 64


def spec_of(kind: str) -> Spec:
    small = {"attngen": 1, "name": "cost", "heads": 4, "head_dim": 16, "dtype": "float32"}
    fields = KINDS[kind]
    recurrence = {"kind": "linear", "chunk": CHUNK, **fields["recurrence"]}
    return load_spec({**small, **fields, "recurrence": recurrence})


def call(length: int, heads: int = 4) -> Call:
    return Call(batch=1, seqlen=length, heads=heads, element=4)


def is_linear(counts: list[int], lengths: tuple[int, ...] = LENGTHS) -> bool:
    """Whether whole numbers lie on one line a + b L, to the last digit, with at most one chunk's work at L = 0."""
    slope = (counts[1] - counts[0]) / (lengths[1] - lengths[0])
    start = counts[0] - slope * lengths[0]
    on_line = all(start + slope * n == x for n, x in zip(lengths, counts, strict=True))
    return on_line and slope >= 0 and 0 <= start <= CHUNK * slope


# ---- the plan


@pytest.mark.parametrize("kind", KINDS)
def test_operations_and_bytes_of_the_plan_are_linear(kind):
    graph = schedule(spec_of(kind))
    found = [costs(graph, call(n)) for n in LENGTHS]
    for name in found[0]:
        for field in ("operations", "read", "written"):
            counts = [getattr(cost[name], field) for cost in found]
            assert is_linear(counts), f"{name}: {field} {counts}"
    assert is_linear([sum(between(graph, call(n)).values()) for n in LENGTHS])


def edited(graph: Graph, name: str, **changes: Any) -> Graph:
    return graph.with_nodes({name: replace(graph.nodes[name], **changes)})


def test_a_fold_over_all_earlier_tokens_would_be_counted_as_quadratic():
    graph = edited(schedule(spec_of("none")), "within", chunk=4096)
    found = [costs(graph, call(n))["kernel"].operations for n in LENGTHS]
    assert not is_linear(found)
    assert found[-1] > 100 * found[0]


def test_counts_of_linear_attention_by_hand():
    tokens, heads, columns = 256, 4, 16
    states = heads * tokens // CHUNK * columns * columns
    rows = tokens * heads * columns
    pairs = heads * (tokens // CHUNK) * CHUNK * (CHUNK + 1) // 2
    final = heads * columns * columns
    found = costs(schedule(spec_of("none")), call(tokens))
    assert found["chunk_states_kernel"] == Cost(2 * rows * columns, 8 * rows, 4 * states)
    assert found["scan_kernel"] == Cost(2 * states, 4 * (states + final), 4 * (states + final))
    # of the state, of pairs and of their values; two sums; times scale
    read = 2 * rows * columns + 4 * pairs * columns + 2 * rows
    assert found["kernel"] == Cost(read, 4 * (3 * rows + states), 4 * rows)


def test_counts_of_a_delta_rule_by_hand():
    """Gradients of states get two outer products per token, and from them each token reads what it brought."""
    tokens, heads, columns = 256, 4, 16
    chunks = heads * tokens // CHUNK * columns * columns
    rows = tokens * heads * columns
    found = costs(schedule(spec_of("delta")), call(tokens))
    assert found["scan_kernel"].operations == 4 * rows * columns + rows + 2 * chunks
    # beside these: a formula of two tensors each for what erases, what is written, and values
    assert found["adjoint_scan_kernel"].operations == 6 * rows * columns + 3 * rows + 2 * chunks
    # a token's state: what it finds, what it writes
    assert found["decode_kernel"].operations >= 6 * rows * columns


@pytest.mark.parametrize(("element", "sums"), [(2, 4), (4, 8)])
def test_sums_of_decays_per_column_are_counted_in_their_dtype(element, sums):
    found = between(schedule(spec_of("vector")), replace(call(256), element=element))
    assert found["total"] == sums * 256 * 4 * 16


def test_states_of_chunks_are_four_bytes_a_number():
    """README says so: K times V numbers per chunk and head, and as many of their gradients."""
    graph = schedule(spec_of("ssd"))
    found = between(graph, call(1024))
    of_chunks = 4 * 1024 // CHUNK * 4 * 32 * 16
    assert (found["fold"], found["dfold"]) == (of_chunks, of_chunks)
    assert found["pairs"] == 4 * 1024 * CHUNK * 2


# ---- the kernels


@pytest.fixture
def work(monkeypatch) -> Counter[str]:
    """What Triton's interpreter multiplies, loads and stores, counted in elements."""
    found: Counter[str] = Counter()
    build(spec_of("none"), interpret=True)  # whose CPU layer has replaced the methods that are counted
    builder = triton_modules.interpreter().InterpreterBuilder
    dot, load, store = builder.create_dot, builder.create_masked_load, builder.create_masked_store

    def counted_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        found["operations"] += 2 * a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest)

    def counted_load(self: Any, at: Any, mask: Any, *rest: Any) -> Any:
        found["read"] += int(mask.data.sum())
        return load(self, at, mask, *rest)

    def counted_store(self: Any, at: Any, value: Any, mask: Any, *rest: Any) -> Any:
        found["written"] += int(mask.data.sum())
        return store(self, at, value, mask, *rest)

    monkeypatch.setattr(builder, "create_dot", counted_dot)
    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)
    return found


def run(spec: Spec, module: Any, length: int) -> None:
    """A call of as few heads as may be, and its gradients where the spec asks for them."""
    inputs = make_inputs(spec, Problem(name="long", lengths=(length,), heads=1), torch.float32)
    if spec.grad:
        inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    out = getattr(module, module.MANIFEST["mechanism"])(**inputs)
    if spec.grad:
        out.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_work_of_the_kernels_is_linear(kind, work):
    spec = spec_of(kind)
    module, found = build(spec, interpret=True), list[Counter[str]]()
    lengths = (256, 1024, 4096)
    for length in lengths:
        work.clear()
        run(spec, module, length)
        found.append(Counter(work))
    for what in ("operations", "read", "written"):
        assert found[0][what] > 0
        assert is_linear([counts[what] for counts in found], lengths), what


@pytest.mark.parametrize("kind", KINDS)
def test_work_of_the_kernels_is_near_that_of_the_plan(kind, work):
    """Multiplied are whole tiles, and columns that fill powers of two up; the inverses of a delta rule are made of products."""
    spec = spec_of(kind)
    run(spec, build(spec, interpret=True), 256)
    heads = 2 if "ssd" in kind else 1
    planned = costs(schedule(spec), call(256, heads))
    planned.pop("decode_kernel")
    assert 1 < work["operations"] / sum(cost.operations for cost in planned.values()) < 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_the_kernels_is_that_of_the_plan(kind, monkeypatch):
    """What launchers allocate, results apart, is what lies between launches."""
    spec = spec_of(kind)
    module, made = build(spec, interpret=True), list[int]()
    empty, like = torch.empty, torch.empty_like

    def counted(*shape: Any, **more: Any) -> torch.Tensor:
        made.append((found := empty(*shape, **more)).nbytes)
        return found

    def counted_like(tensor: torch.Tensor, **more: Any) -> torch.Tensor:
        made.append(tensor.nbytes)
        return like(tensor, **more)

    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(torch, "empty_like", counted_like)
    found: list[int] = []
    for length in (256, 512, 1024):
        made.clear()
        run(spec, module, length)
        found.append(sum(made))
    assert is_linear(found, (256, 512, 1024))
    heads = 2 if "ssd" in kind else 1
    if not spec.grad:
        results = 4 * heads * 16 * (1024 + (32 if "ssd" in kind else 16))  # out, states
        assert found[-1] == results + sum(between(schedule(spec), call(1024, heads)).values())
