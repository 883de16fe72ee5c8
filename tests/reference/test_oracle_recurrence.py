"""The oracle of recurrences: known formulas, chunks against tokens, calls cut in two, packed sequences, mistakes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from attngen.errors import TensorError
from attngen.reference.oracle import reference
from attngen.spec import Spec, load_spec

KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "normalised": {"feature": "elu(x) + 1", "normalise": True},
    "retnet": {"decay": "log(1 - exp2(-5 - h))"},
    "simple gla": {"decay": "scalar"},
    "gla": {"decay": "vector"},
    "deltanet": {"transition": "delta"},
    "gated deltanet": {"transition": "delta", "decay": "scalar"},
    "ssd": {"kind": "ssd", "state": 12, "groups": 2, "dt_softplus": True},
}
HEADS, KEYS, VALUES = 4, 12, 10


def spec_of(name: str, chunk: int = 16) -> Spec:
    dims = VALUES if name == "ssd" else {"qk": KEYS, "v": VALUES}
    shared = {"attngen": 1, "name": "recurrent", "heads": HEADS, "head_dim": dims, "dtype": "float32"}
    return load_spec({**shared, "recurrence": {"chunk": chunk, **KINDS[name]}})


def inputs_of(name: str, batch: int = 2, length: int = 37, seed: int = 0) -> dict[str, Any]:
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    def below_zero(*shape: int) -> Tensor:
        return -torch.rand(*shape, generator=make, dtype=torch.float64)

    tokens = (batch, length)
    if name == "ssd":
        return {
            "x": normal(*tokens, HEADS, VALUES),
            "dt": normal(*tokens, HEADS),
            "A": 4 * below_zero(HEADS),
            "B": normal(*tokens, 2, KEYS),
            "C": normal(*tokens, 2, KEYS),
            "D": normal(HEADS),
            "z": normal(*tokens, HEADS, VALUES),
            "dt_bias": normal(HEADS),
            "initial_states": normal(batch, HEADS, VALUES, KEYS),
        }
    found = {"q": normal(*tokens, HEADS, KEYS), "k": normal(*tokens, HEADS, KEYS) / 3}
    found |= {"v": normal(*tokens, HEADS, VALUES)}
    found["initial_state"] = normal(batch, HEADS, KEYS, VALUES + (name == "normalised"))
    if name in ("simple gla", "gated deltanet", "gla"):
        found["g"] = below_zero(*tokens, HEADS, *([KEYS] if name == "gla" else []))
    if "delta" in name:
        found["beta"] = -below_zero(*tokens, HEADS)
    return found


def both(name: str, inputs: dict[str, Any], chunk: int = 16, **more: Any) -> tuple[Tensor, Tensor]:
    wanted = "return_final_states" if name == "ssd" else "return_final_state"
    found = reference(spec_of(name, chunk), **inputs, **{wanted: True}, **more)
    assert isinstance(found, tuple)
    return found


def state_name(name: str) -> str:
    return "initial_states" if name == "ssd" else "initial_state"


def along_tokens(inputs: dict[str, Any], part: slice) -> dict[str, Any]:
    """The tokens of a call, without its state."""
    length = inputs["x" if "x" in inputs else "q"].shape[1]
    return {
        n: x[:, part] if x.dim() > 2 and x.shape[1] == length else x
        for n, x in inputs.items()
        if not n.startswith("initial")
    }


def weights(q: Tensor, k: Tensor, log_decay: Tensor) -> Tensor:
    """q k^T times the decay between, [B, H, L, L]: 1 on the diagonal, 0 above it; log_decay [B, L, H]."""
    total = log_decay.cumsum(1).transpose(1, 2)
    between = torch.exp(total[..., :, None] - total[..., None, :]).tril()
    return torch.einsum("bihk,bjhk->bhij", q, k) * between


def test_mamba_2_is_a_semiseparable_matrix():
    """Y = (L o C B^T) X (arXiv:2405.21060, section 6)."""
    call = inputs_of("ssd")
    del call["initial_states"]
    dt = torch.log1p(torch.exp(call["dt"] + call["dt_bias"])).clamp(0.1, 2.0)
    queries, keys = (call[n].repeat_interleave(2, 2) for n in "CB")
    out = torch.einsum("bhij,bjhp->bihp", weights(queries, keys, dt * call["A"]), call["x"] * dt[..., None])
    out = (out + call["x"] * call["D"][:, None]) * call["z"] * torch.sigmoid(call["z"])
    torch.testing.assert_close(reference(spec_of("ssd"), **call, dt_limit=(0.1, 2.0)), out)


@pytest.mark.parametrize("name", ["linear", "retnet", "simple gla"])
def test_linear_attention_with_a_decay_per_head(name):
    call = inputs_of(name)
    del call["initial_state"]
    decay = call.get("g", torch.zeros(2, 37, HEADS, dtype=torch.float64))
    if name == "retnet":
        decay = decay + torch.log(1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64)))
    out = torch.einsum("bhij,bjhv->bihv", weights(call["q"], call["k"], decay), call["v"]) * 0.5
    torch.testing.assert_close(reference(spec_of(name), **call, scale=0.5), out)


def test_normalised_linear_attention():
    """Katharopoulos et al. 2020, equation 9; a weight is the share of phi(q) phi(k)."""
    call = inputs_of("normalised")
    del call["initial_state"]
    q, k = (torch.nn.functional.elu(call[n]) + 1 for n in "qk")
    shares = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    out = torch.einsum("bhij,bjhv->bihv", shares / shares.sum(-1, keepdim=True), call["v"])
    torch.testing.assert_close(reference(spec_of("normalised"), **call), out)


def test_nothing_seen_is_zero_and_not_nan():
    call = inputs_of("normalised", length=3)
    call |= {
        "k": torch.full_like(call["k"], -torch.inf),
        "initial_state": torch.zeros_like(call["initial_state"]),
    }
    assert reference(spec_of("normalised"), **call).eq(0).all()


def test_delta_rule_overwrites():
    """Writing to the same unit key with beta 1 leaves the last value (arXiv:2406.06484, section 2)."""
    call = inputs_of("deltanet", length=5)
    key = torch.nn.functional.normalize(call["k"][:, :1], dim=-1).expand_as(call["k"])
    call |= {"k": key, "q": key, "beta": torch.ones_like(call["beta"]), "scale": 1.0}
    torch.testing.assert_close(reference(spec_of("deltanet"), **call), call["v"])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("chunk", [16, 64])
def test_chunks_compute_what_tokens_do(name, chunk):
    """Two algorithms: the yardstick's in chunks, the oracle's token by token."""
    call = inputs_of(name)
    for found, want in zip(both(name, call, chunk, precision="same"), both(name, call, chunk), strict=True):
        assert (found - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 20, 37])
def test_a_call_cut_in_two_that_hands_its_state_on(name, cut):
    call = inputs_of(name)
    out, state = both(name, call)
    first, middle = both(name, along_tokens(call, slice(cut)) | {state_name(name): call[state_name(name)]})
    second, last = both(name, along_tokens(call, slice(cut, None)) | {state_name(name): middle})
    torch.testing.assert_close(torch.cat([first, second], 1), out)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("name", KINDS)
def test_packed_sequences_are_as_if_alone(name):
    call = inputs_of(name, batch=1)
    starts = [0, 1, 1, 20, 37]
    states = inputs_of(name, batch=4, length=1)[state_name(name)]
    packed = call | {state_name(name): states, "cu_seqlens": torch.tensor(starts)}
    out, last = both(name, packed)
    for n, (start, end) in enumerate(pairwise(starts)):
        alone = along_tokens(call, slice(start, end)) | {state_name(name): states[n : n + 1]}
        one, state = both(name, alone)
        torch.testing.assert_close(out[:, start:end], one)
        torch.testing.assert_close(last[n : n + 1], state)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_differences(name):
    call = inputs_of(name, batch=1, length=4)
    names = list(call)

    def outputs(*values: Tensor) -> tuple[Tensor, Tensor]:
        return both(name, dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(outputs, [x.requires_grad_() for x in call.values()])


def test_no_tokens():
    call = inputs_of("ssd", length=0)
    out, state = both("ssd", call)
    assert out.shape == (2, 0, HEADS, VALUES)
    assert torch.equal(state, call["initial_states"])


def test_strong_decay_stays_finite():
    """A = -16 and dt = 0.1 over a chunk of 256: the logarithms reach -410."""
    call = inputs_of("ssd", length=300)
    call |= {"A": torch.full((HEADS,), -16.0), "dt": torch.full_like(call["dt"], 0.1), "dt_bias": None}
    exact, same = both("ssd", call, 256), both("ssd", call, 256, precision="same")
    assert all(x.isfinite().all() for x in (*exact, *same))


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "dt": ("ssd", {"dt": torch.ones(2, 37, 3)}, "dt has shape [2, 37, 3], expected [B, L, H] = [2, 37, 4]"),
    "groups": (
        "ssd",
        {"B": torch.ones(2, 37, 1, KEYS), "C": torch.ones(2, 37, 1, KEYS)},
        "2 heads per group",
    ),
    "no dt": ("ssd", {"dt": None}, "missing argument 'dt'; recurrent takes x, dt, A, B, C"),
    "other": ("ssd", {"g": torch.ones(2)}, "unknown argument 'g' for recurrent"),
    "no g": ("gla", {"g": None}, "missing argument 'g'"),
    "g": ("gla", {"g": torch.ones(2, 37, HEADS)}, "g has shape [2, 37, 4], expected [B, L, H, K]"),
    "dtype": ("linear", {"k": torch.ones(2, 37, HEADS, KEYS)}, "k is torch.float32, q is torch.float64"),
    "batch": ("linear", {"cu_seqlens": torch.tensor([0, 37])}, "packed sequences are a batch of one"),
    "limit": ("ssd", {"dt_limit": (2, 1)}, "dt_limit is (least, greatest), got (2, 1)"),
    "states": ("linear", {"initial_state": torch.ones(1, HEADS, KEYS, VALUES)}, "initial_state has shape"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    name, change, message = MISTAKES[mistake]
    with pytest.raises(TensorError) as error:
        reference(spec_of(name), **{**inputs_of(name), **change})
    assert message in str(error.value)


def test_packed_bounds_rise():
    call = inputs_of("linear", batch=1)
    with pytest.raises(TensorError, match=r"cu_seqlens must rise from 0 to 37"):
        reference(spec_of("linear"), **call, cu_seqlens=torch.tensor([0, 9, 5, 37]))
