"""Whatever the chunk, the length and the cut, a recurrence gives the same: every kind, forward, and backward where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attngen.check.budget import EPS32, max_error, size
from attngen.check.recurrence import Call, Inputs, check_call, make_inputs
from attngen.reference.oracle import reference
from attngen.runtime.build import build
from attngen.spec import Spec, load_spec

KINDS: dict[str, dict[str, Any]] = {
    "ssd": {"kind": "ssd", "state": 16, "groups": 2, "dt_softplus": True},
    "none": {},
    "normalised": {"feature": "elu(x) + 1", "normalise": True},
    "formula": {"decay": "log(1 - exp2(-5.0 - h))"},
    "scalar": {"decay": "scalar"},
    "vector": {"decay": "vector"},
    "delta": {"transition": "delta"},
    "gated delta": {"transition": "delta", "decay": "scalar"},
}
CHUNKS = {kind: (16, 64) if "delta" in kind else (16, 64, 128, 256) for kind in KINDS}
SLOW = dict.fromkeys(("none", "normalised", "formula"), pytest.mark.slow)
LENGTHS = (1, 63, 64, 65)
Results = dict[str, Tensor]


@cache
def spec_of(kind: str, chunk: int = 64) -> Spec:
    """A small recurrence in fp32, with gradients."""
    heads = 4 if kind == "ssd" else 2
    data = {"attngen": 1, "name": "evident", "heads": heads, "head_dim": 16, "dtype": "float32"}
    data["recurrence"] = {**KINDS[kind], "chunk": chunk}
    return load_spec({**data, "grad": True})


@cache
def module_of(kind: str, chunk: int = 64) -> ModuleType:
    return build(spec_of(kind, chunk), interpret=True)


def inputs_of(kind: str, lengths: Sequence[int], *, packed: bool = False) -> Inputs:
    call = Call(name="evidence", lengths=tuple(lengths), packed=packed, heads=2)
    return make_inputs(spec_of(kind), call, torch.float32)


def names_of(kind: str) -> tuple[str, str]:
    """The arguments of initial states, and of asking for final ones."""
    ssd = kind == "ssd"
    return ("initial_states", "return_final_states") if ssd else ("initial_state", "return_final_state")


def kernels(kind: str, inputs: Inputs, chunk: int = 64) -> tuple[Tensor, Tensor]:
    module = module_of(kind, chunk)
    return getattr(module, module.MANIFEST["mechanism"])(**inputs, **{names_of(kind)[1]: True})


def oracle(kind: str, inputs: Inputs, precision: Any) -> tuple[Tensor, Tensor]:
    found = reference(spec_of(kind), precision=precision, **inputs, **{names_of(kind)[1]: True})
    assert isinstance(found, tuple)
    return found


def results_of(kind: str, inputs: Inputs, run: Any) -> Results:
    """out, states and the gradients of all inputs; `run` takes these and returns out and states."""
    names = [n for n, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]
    leaves = {n: inputs[n].detach().requires_grad_(spec_of(kind).grad) for n in names}
    out, states = run(inputs | leaves)
    found = {"out": out.detach(), "states": states.detach()}
    if spec_of(kind).grad:
        incoming = [weights(x).to(x.dtype) for x in (out, states)]
        gradients = torch.autograd.grad(
            [out, states], list(leaves.values()), incoming, materialize_grads=True
        )
        found |= {f"d{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    return found


def weights(like: Tensor) -> Tensor:
    """What gradients of results are: the same numbers for each token, whatever the cut."""
    return torch.cos(torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape)


def truth_of(kind: str, inputs: Inputs) -> tuple[Results, dict[str, float]]:
    """The oracle's results in float64, and how far fp32 may be from them: twice as far as eager torch, and some ulp."""
    wide = {
        n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in inputs.items()
    }
    exact = results_of(kind, wide, lambda given: oracle(kind, given, "float64"))
    eager = results_of(kind, inputs, lambda given: oracle(kind, given, "same"))
    return exact, {n: 2 * max_error(eager[n], x) + 8 * EPS32 * size(x) for n, x in exact.items()}


def assert_close(found: Results, truth: tuple[Results, dict[str, float]], lost: float = 0.0) -> None:
    """Within budgets; `lost` is what sums of decays lose, relative to a tensor's size."""
    exact, budget = truth
    assert found.keys() == exact.keys()
    allowed = {n: budget[n] + lost * size(x) for n, x in exact.items()}
    over = {n: max_error(found[n], x) for n, x in exact.items() if not_within(found[n], x, allowed[n])}
    assert over == {}


def lost_in_sums(kind: str, inputs: Inputs, chunk: int) -> float:
    """An ulp of the largest sum of logarithms of decays in a chunk: fp32 keeps no more of it, and exp makes that relative."""
    if kind == "ssd":
        decays = torch.nn.functional.softplus(inputs["dt"] + inputs["dt_bias"]) * inputs["A"]
    elif "g" in inputs:
        decays = inputs["g"]
    else:
        return 0.0
    return EPS32 * max(float(part.abs().sum(1).max()) for part in decays.split(chunk, 1))


def not_within(found: Tensor, exact: Tensor, budget: float) -> bool:
    return not bool(found.isfinite().all()) or max_error(found, exact) > budget


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, ())) for kind in KINDS])
def test_chunks_of_any_size_give_the_same(kind):
    """300 tokens: up to 19 chunks, and two at least."""
    inputs = inputs_of(kind, (300,))
    truth = truth_of(kind, inputs)
    for chunk in CHUNKS[kind]:
        found = results_of(kind, inputs, lambda given, chunk=chunk: kernels(kind, given, chunk))
        assert_close(found, truth, lost_in_sums(kind, inputs, chunk))


@pytest.mark.parametrize("length", [*LENGTHS, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_around_a_chunk(kind, length):
    call = Call(name="length", lengths=(length,), heads=2)
    check_call(spec_of(kind), module_of(kind), call, "float32")


def test_a_thousand_tokens():
    check_call(spec_of("ssd"), module_of("ssd"), Call(name="long", lengths=(1000,), heads=2), "float32")


@pytest.mark.parametrize("cut", [64, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_two_calls_that_hand_a_state_on_are_one(kind, cut):
    """Gradients pass through the state between them."""
    inputs = inputs_of(kind, (130,))
    start = names_of(kind)[0]

    def run(given: Inputs) -> tuple[Tensor, Tensor]:
        first, second = ({n: part(n, x, s) for n, x in given.items()} for s in (slice(cut), slice(cut, None)))
        out, middle = kernels(kind, first)
        rest, states = kernels(kind, second | {start: middle})
        return torch.cat([out, rest], 1), states

    def part(name: str, x: Tensor, tokens: slice) -> Tensor:
        return x[:, tokens] if x.dim() > 2 and name != start else x

    truth = truth_of(kind, inputs)
    assert_close(results_of(kind, inputs, run), truth)
    assert_close(results_of(kind, inputs, lambda given: kernels(kind, given)), truth)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_those_that_run_alone(kind):
    """To the bit, but for gradients of what sequences share."""
    lengths = (3, 0, 64, 65, 1)
    inputs = inputs_of(kind, lengths, packed=True)
    start = names_of(kind)[0]
    found = results_of(kind, inputs, lambda given: kernels(kind, given))
    ends = inputs["cu_seqlens"].tolist()
    rest = {n: x for n, x in inputs.items() if n != "cu_seqlens"}

    def alone(given: Inputs) -> tuple[Tensor, Tensor]:
        parts = [
            kernels(kind, {n: one(n, x, b, slice(*place)) for n, x in given.items()})
            for b, place in enumerate(pairwise(ends))
        ]
        return torch.cat([out for out, _ in parts], 1), torch.cat([states for _, states in parts])

    def one(name: str, x: Tensor, b: int, tokens: slice) -> Tensor:
        if name == start:
            return x[b : b + 1]
        return x[:, tokens] if x.dim() > 2 else x

    apart = results_of(kind, rest, alone)
    shared = {"dA", "dD", "ddt_bias"}
    assert [n for n in found if n not in shared and not torch.equal(found[n], apart[n])] == []
    exact, budget = truth_of(kind, inputs)
    for results in (found, apart):
        assert [n for n in shared & found.keys() if not_within(results[n], exact[n], budget[n])] == []


@pytest.mark.parametrize("kind", ["ssd", "scalar", "vector", "gated delta"])
def test_decays_that_leave_nothing_stay_finite(kind):
    """A = -16 and dt = 0.1 over chunks of 256 (a delta rule's: 64): logarithms down to -410, sums of which exp has none."""
    chunk = max(CHUNKS[kind])
    inputs = inputs_of(kind, (270,))
    if kind == "ssd":
        inputs |= {"A": torch.full_like(inputs["A"], -16.0), "dt": torch.full_like(inputs["dt"], -2.2521685)}
        inputs["dt_bias"] = torch.zeros_like(inputs["dt_bias"])
        assert torch.allclose(torch.nn.functional.softplus(inputs["dt"]), torch.tensor(0.1))
    else:
        inputs["g"] = torch.full_like(inputs["g"], -1.6)
    found = results_of(kind, inputs, lambda given: kernels(kind, given, chunk))
    assert_close(found, truth_of(kind, inputs), lost_in_sums(kind, inputs, chunk))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_after_a_prompt_is_a_prompt_of_one_more(kind):
    inputs = {n: x for n, x in inputs_of(kind, (66,)).items() if n not in ("D", "z", "dt_bias")}
    start = names_of(kind)[0]
    with torch.no_grad():
        whole, after = kernels(kind, inputs)
        prompt = {n: x[:, :65] if x.dim() > 2 and n != start else x for n, x in inputs.items()}
        _, state = kernels(kind, prompt)
        last = {n: x[:, 65] if x.dim() > 2 else x for n, x in inputs.items() if n != start}
        step = getattr(module_of(kind), "ssd_step" if kind == "ssd" else "recurrence_step")
        out = step(state, **last)
    exact, budget = truth_of(kind, inputs)
    assert max_error(out, exact["out"][:, 65]) <= budget["out"]
    assert max_error(out, whole[:, 65].double()) <= 2 * budget["out"]
    assert max_error(state, exact["states"]) <= budget["states"]
    assert max_error(state, after.double()) <= 2 * budget["states"]
