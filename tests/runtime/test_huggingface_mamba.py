"""Mamba-2 of Hugging Face transformers with random weights, on generated kernels against its PyTorch path."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("transformers")

import transformers

import attngen
from attngen.errors import LoadError, TensorError
from attngen.runtime.huggingface_mamba import restore, use

PROMPT, STEPS = 70, 32
SPEC = {"attngen": 1, "name": "mamba2_small", "heads": 4, "head_dim": 64, "dtype": ["float32", "bfloat16"]}


@functools.cache
def built(groups: int = 1, **changes: Any) -> Any:
    recurrence = {"kind": "ssd", "state": 128, "groups": groups, "chunk": 64, "dt_softplus": True, **changes}
    return attngen.build({**SPEC, "recurrence": recurrence})


@functools.cache
def mamba2(groups: int = 1, chunk: int = 64) -> Any:
    """mamba2-130m with 2 layers of 24, hidden size 128 of 768 and fewer words."""
    torch.manual_seed(3)
    config = transformers.Mamba2Config(
        vocab_size=101, hidden_size=128, num_heads=4, head_dim=64, state_size=128, n_groups=groups,
        num_hidden_layers=2, chunk_size=chunk,
    )  # fmt: skip
    return transformers.Mamba2ForCausalLM(config).eval()


def tokens(batch: int) -> torch.Tensor:
    return torch.randint(3, 101, (batch, PROMPT + STEPS), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def decoded(model: Any, given: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt, and of the tokens after it one by one."""
    result = model(given[:, :PROMPT], use_cache=True)
    logits = [result.logits]
    for t in range(PROMPT, given.shape[1]):
        result = model(given[:, t : t + 1], cache_params=result.cache_params, use_cache=True)
        logits.append(result.logits)
    return torch.cat(logits, 1)


@functools.cache
def expected(groups: int = 1) -> tuple[torch.Tensor, float]:
    """Logits of PyTorch's prefill and decode, and how far its prefill of all tokens, the same numbers, is from them."""
    model, given = mamba2(groups), tokens(2)
    logits = decoded(model, given)
    with torch.no_grad():
        rounding = float((model(given).logits - logits).abs().max())
    assert 0 < rounding < 1e-5 * logits.abs().max()
    return logits, rounding


@pytest.mark.parametrize("groups", [1, 2])
def test_prefill_and_decode_are_those_of_pytorch(groups):
    logits, rounding = expected(groups)
    model = copy.deepcopy(mamba2(groups))
    assert use(model, built(groups)) == 2
    assert (decoded(model, tokens(2)) - logits).abs().max() <= 2 * rounding


def test_what_states_hold_is_seen_in_logits():
    """By much more than rounding: a kernel that forgot the prompt would not pass."""
    model, given = mamba2(), tokens(2)
    with torch.no_grad():
        cache = model(given[:, :PROMPT], use_cache=True).cache_params
        for layer in range(2):
            cache.get_recurrent_state(layer, state_idx=0).zero_()
        logits = model(given[:, PROMPT : PROMPT + 1], cache_params=cache, use_cache=True).logits
    seen, rounding = expected()
    assert (logits - seen[:, PROMPT : PROMPT + 1]).abs().max() > 1000 * rounding


def test_generate_writes_the_same_tokens_and_restore_gives_pytorch_back():
    model, prompt = copy.deepcopy(mamba2()), tokens(1)[:, :20]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(prompt, **settings)
    use(model, built())
    assert torch.equal(model.generate(prompt, **settings), expected)
    restore(model)
    assert all("forward" not in vars(part) for part in model.modules())


def test_a_prompt_in_two_parts_carries_its_state():
    logits, rounding = expected()
    model, given = copy.deepcopy(mamba2()), tokens(2)
    use(model, built())
    with torch.no_grad():
        first = model(given[:, :40], use_cache=True)
        second = model(given[:, 40:], cache_params=first.cache_params, use_cache=True)
    found = torch.cat([first.logits, second.logits], 1)
    assert (found - logits).abs().max() <= 2 * rounding


def test_gradients_of_a_training_step():
    """The yardstick is how far PyTorch's gradients move when each weight does by one unit in its last place."""
    truth = gradients(mamba2())
    others = [gradients(nudged(mamba2(), seed)) for seed in range(4)]
    model = copy.deepcopy(mamba2())
    use(model, built_with_gradients())
    found = gradients(model)
    for name, gradient in truth.items():
        moved = max((other[name] - gradient).abs().max() for other in others)
        assert (found[name] - gradient).abs().max() <= 2 * moved, name


def nudged(model: Any, seed: int) -> Any:
    """A model whose weights are one unit in the last place larger or smaller, at random."""
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in changed.parameters():
            x.mul_(1 + torch.finfo(x.dtype).eps * torch.randn(x.shape, generator=generator).sign())
    return changed


def built_with_gradients() -> Any:
    recurrence = {"kind": "ssd", "state": 128, "groups": 1, "chunk": 64, "dt_softplus": True}
    return attngen.build({**SPEC, "name": "mamba2_trained", "grad": True, "recurrence": recurrence})


def gradients(model: Any) -> dict[str, torch.Tensor]:
    given = tokens(1)[:, :40]
    model.zero_grad()
    model(given, labels=given).loss.backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: built(2), "heads per group 4, mamba2_small has 2"),
        (lambda: built(state=64), "state 128, mamba2_small has 64"),
        (lambda: built(dt_softplus=False), "add `dt_softplus: true`"),
        (lambda: attngen.build({**SPEC, "name": "none"}), "is no Mamba-2"),
    ],
)
def test_modules_that_compute_something_else_are_refused(module, message):
    with pytest.raises(LoadError, match=message):
        use(mamba2(), module())


def test_models_without_mixers_are_refused():
    with pytest.raises(LoadError, match="Linear has no mixer that calls mamba2_chunk_scan"):
        use(torch.nn.Linear(2, 2), built())


def test_packed_sequences_are_refused():
    from attngen.runtime.huggingface_mamba import _Functions

    functions = _Functions(built(), (0.0, float("inf")))
    with pytest.raises(TensorError, match="seq_idx: packed sequences"):
        functions.scan(None, None, None, None, None, 64, dt_softplus=True, seq_idx=torch.zeros(1))
