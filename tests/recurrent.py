"""Calls of recurrences for tests: specs, inputs, and how far kernels may be from the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attngen.check.budget import EPS32, max_error, size
from attngen.emit.render import render
from attngen.ir.graph import Graph
from attngen.passes.build import build as semantic
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter_recurrence import interpret_recurrence
from attngen.reference.oracle import reference
from attngen.runtime.build import build
from attngen.runtime.load import load_module
from attngen.spec import Spec, load_spec

DTYPES = ["float32", "bfloat16", "float16"]
STARTS = [0, 0, 1, 64, 128, 193, 393]
"""Packed sequences of 0, 1, 63, 64, 65 and 200 tokens."""
Call = dict[str, Any]


def spec_of(
    heads: int = 2, keys: int = 16, values: int = 16, *, grad: bool = False, **recurrence: Any
) -> Spec:
    """A recurrence of kind linear, for all dtypes."""
    shared = {"attngen": 1, "name": "recurrent", "heads": heads, "dtype": DTYPES, "grad": grad}
    return load_spec({**shared, "head_dim": {"qk": keys, "v": values}, "recurrence": recurrence})


@cache
def module_of(spec: Spec) -> ModuleType:
    """The generated module of a spec, on the CPU."""
    return build(spec, interpret=True)


def draw(
    spec: Spec, length: int = 37, starts: list[int] | None = None, batch: int = 2, seed: int = 0
) -> Call:
    """Arguments of a call with initial states, q, k and v in fp32; `starts` packs sequences into a batch of one."""
    make = torch.Generator().manual_seed(seed)
    recurrence, heads, sequences = spec.recurrence, spec.heads.q, batch
    assert recurrence is not None
    if starts is not None:
        batch, length, sequences = 1, starts[-1], len(starts) - 1
    tokens, keys, values = (batch, length, heads), spec.head_dim.qk, spec.head_dim.v
    found: Call = {
        name: torch.randn(*tokens, columns, generator=make)
        for name, columns in (("q", keys), ("k", keys), ("v", values))
    }
    if recurrence.transition == "delta":
        found["k"] = torch.nn.functional.normalize(found["k"], dim=-1)
        found["beta"] = torch.rand(*tokens, generator=make)
    if isinstance(recurrence.decay, str):
        found["g"] = -torch.rand(*tokens, *[keys] * (recurrence.decay == "vector"), generator=make)
    state = torch.randn(sequences, heads, keys, values + recurrence.normalise, generator=make)
    found["initial_state"] = state.abs() if recurrence.normalise else state
    if starts is not None:
        found["cu_seqlens"] = torch.tensor(starts, dtype=torch.int32)
    return found


def cast(call: Call, dtype: str) -> Call:
    """The call with q, k and v of a dtype."""
    return call | {name: call[name].to(getattr(torch, dtype)) for name in "qkv"}


def part(call: Call, tokens: slice) -> Call:
    """Some tokens of a call."""
    length = call["q"].shape[1]
    return {
        name: x[:, tokens] if x.dim() > 2 and x.shape[1] == length and name != "initial_state" else x
        for name, x in call.items()
        if name != "cu_seqlens"
    }


def one_of(call: Call, index: int) -> Call:
    """A sequence of a packed call, alone."""
    start, end = call["cu_seqlens"][index : index + 2].tolist()
    return part(call, slice(start, end)) | {"initial_state": call["initial_state"][index : index + 1]}


def run(spec: Spec, call: Call) -> tuple[Tensor, Tensor]:
    """out and the final states of the kernels."""
    return module_of(spec).recurrence(**call, return_final_state=True)


def oracle(spec: Spec, call: Call, **how: Any) -> tuple[Tensor, Tensor]:
    """out and the final states, token by token in float64."""
    found = reference(spec, **call, return_final_state=True, **how)
    assert isinstance(found, tuple)
    return found


def budgets(spec: Spec, call: Call) -> tuple[float, float]:
    """How far out and states may be from the oracle: twice as far as eager torch, and half an ulp; in fp32 two ulp more."""
    found: list[float] = []
    for same, exact in zip(oracle(spec, call, precision="same"), oracle(spec, call), strict=True):
        half_an_ulp = (torch.finfo(same.dtype).eps / 2 + 2 * EPS32) * size(exact)
        found.append(2 * max_error(same, exact) + half_an_ulp)
    return found[0], found[1]


def check(spec: Spec, call: Call) -> tuple[Tensor, Tensor]:
    """Run kernels and compare out and states with the oracle."""
    results = run(spec, call)
    for found, exact, allowed in zip(results, oracle(spec, call), budgets(spec, call), strict=True):
        assert found.isfinite().all()
        assert max_error(found, exact) <= allowed
    return results


def with_schedules_of(module: ModuleType, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU run the tiles of a GPU."""
    for kernel in module.MANIFEST["kernels"].values():
        configs = kernel["configs"]
        monkeypatch.setitem(configs, "cpu", configs.get(target, configs["default"]))


def fill_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have memory that nobody wrote hold NaN."""
    empty, like = torch.empty, torch.empty_like

    def full_of_nan(*shape: Any, **more: Any) -> Tensor:
        made = empty(*shape, **more)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", full_of_nan)
    monkeypatch.setattr(torch, "empty_like", lambda t, **more: like(t, **more).fill_(float("nan")))


def check_graphs(spec: Spec, call: Call) -> None:
    """Oracle = semantic graph = scheduled graph, in float64."""
    exact = oracle(spec, call)
    for graph in (semantic(spec), schedule(spec)):
        found = interpret_recurrence(graph, call)
        for value, want in zip((found["out"], found["states"]), exact, strict=True):
            assert max_error(value, want) <= 1e-12 * max(1.0, size(want))


def check_packed(spec: Spec, call: Call) -> None:
    """Packed sequences have the bits that each has alone."""
    out, states = run(spec, call)
    for index, (start, end) in enumerate(pairwise(call["cu_seqlens"].tolist())):
        alone, state = run(spec, one_of(call, index))
        assert torch.equal(out[:, start:end], alone)
        assert torch.equal(states[index : index + 1], state)


def check_split(spec: Spec, call: Call, cut: int) -> None:
    """Two calls, the second with the states of the first, are one call."""
    allowed, of_states = budgets(spec, call)
    out, states = run(spec, call)
    first, middle = run(spec, part(call, slice(cut)))
    second, last = run(spec, part(call, slice(cut, None)) | {"initial_state": middle})
    assert max_error(torch.cat([first, second], 1), out) <= 2 * allowed
    assert max_error(last, states) <= 2 * of_states


def check_edited(spec: Spec, call: Call, edit: Callable[[Graph], Graph], folder: Path) -> None:
    """An edited node changes the interpreter and the kernels alike."""
    graph = schedule(spec)
    path = folder / "edited.py"
    path.write_text(render(edit(graph)), encoding="utf-8")
    before, after = (interpret_recurrence(g, call)["out"] for g in (graph, edit(graph)))
    found = load_module(path, interpret=True).recurrence(**call)
    assert max_error(before, after) > 1e-2 * size(before)
    assert max_error(found, after) < 1e-5 * size(after)
