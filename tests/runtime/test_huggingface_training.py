"""Models of Hugging Face transformers trained on generated kernels: the loss curve is that of eager attention.

The text is README.md, byte by byte. Backward kernels run in Triton's interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("transformers")

import transformers

import attngen
from attngen.errors import TensorError
from attngen.runtime.huggingface import register

ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "attn_implementation": "eager",
}  # fmt: skip
STEPS = 20
BATCH, LENGTH = 2, 60
WINDOW = 12
CAP = 4.0
LOSSES, WEIGHTS = 5e-6, 5e-4
"""Relative differences that are rounding: noise of 1e-7 on eager attention leaves up to 1.3e-6 and 1.2e-4 after 20 steps."""


@functools.cache
def built(name: str, **changes: Any) -> Any:
    """The module of a committed spec with its backward, in fp32 and for the heads of these models."""
    spec = attngen.load_spec(ROOT / "specs" / f"{name}.yaml").canonical()
    spec |= {"heads": {"q": 4, "kv": 2}, "head_dim": 32, "dtype": "float32", "grad": True}
    return attngen.build(spec | {key: dict(v) if key == "params" else v for key, v in changes.items()})


def llama(**more: Any) -> Any:
    return made(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES | more))


def gemma2(**more: Any) -> Any:
    given = {"sliding_window": WINDOW, "attn_logit_softcapping": CAP, "query_pre_attn_scalar": 24, **more}
    config = transformers.Gemma2Config(**SIZES | given)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    return made(transformers.Gemma2ForCausalLM, config)


def made(make: Any, config: Any) -> Any:
    """A model whose scores are large enough for windows and caps to matter (fresh weights give nearly 0)."""
    torch.manual_seed(11)
    model = make(config).train()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, projection).weight.normal_(std=0.2)
    return model


def gemma2_modules() -> list[Any]:
    score = f"{CAP:g} * tanh(s / {CAP:g})"
    return [
        built("gemma2_local", score=score, params=(("window", WINDOW),)),
        built("gemma2_global", score=score),
    ]


def gpt_oss(**more: Any) -> Any:
    """Sinks are weights of every layer. Each token goes to all experts: rounding must not choose between them."""
    given = {"sliding_window": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 2, **more}
    config = transformers.GptOssConfig(**SIZES | given)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    return made(transformers.GptOssForCausalLM, config)


def gpt_oss_modules() -> list[Any]:
    params = (("window", WINDOW),)
    return [
        built("gpt_oss_sinks", mask="j <= i and i - j < window", params=params),
        built("llama3_causal", sinks=True),
    ]


@dataclass(frozen=True)
class Case:
    """A model, the modules that its layers need, and how many of its layers each module serves."""

    model: Callable[..., Any]
    modules: Callable[[], list[Any]]
    layers: tuple[int, ...]


CASES = {
    "llama": Case(llama, lambda: [built("llama3_causal")], (2,)),
    "gemma2": Case(gemma2, gemma2_modules, (1, 1)),
    "gpt_oss": Case(gpt_oss, gpt_oss_modules, (1, 1)),
}
SLOW = {"gpt_oss": pytest.mark.slow}


@dataclass(frozen=True)
class Run:
    """What a training run leaves: the loss of every step, and the weights."""

    losses: torch.Tensor
    weights: dict[str, torch.Tensor]


def train(model: Any, steps: int = STEPS) -> Run:
    """Steps of AdamW on the text, each on pieces not seen before; eps keeps it from scaling up rounding errors."""
    text = torch.frombuffer(bytearray((ROOT / "README.md").read_bytes()), dtype=torch.uint8).long()
    size = BATCH * LENGTH
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-6)
    losses = []
    for step in range(steps):
        ids = text[step * size : (step + 1) * size].view(BATCH, LENGTH)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
    return Run(torch.stack(losses), {k: v.detach().double() for k, v in model.state_dict().items()})


@functools.cache
def eager(name: str) -> Run:
    return train(CASES[name].model())


def curves(found: Run, expected: Run) -> str:
    """Both curves and how far they are apart, for the message of an assertion."""
    pairs = zip(found.losses.tolist(), expected.losses.tolist(), strict=True)
    rows = [f"{i:4} {x:11.7f} {y:11.7f} {x - y:9.1e}" for i, (x, y) in enumerate(pairs)]
    worst = max((apart(found.weights[k], expected.weights[k]), k) for k in expected.weights)
    weights = f"the weights farthest apart, relative: {worst[0]:.1e} in {worst[1]}"
    return "\n".join(["step   generated       eager difference", *rows, weights])


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def losses_apart(found: Run, expected: Run) -> float:
    return float(((found.losses - expected.losses).abs() / expected.losses).max())


@pytest.fixture
def counted(monkeypatch):
    """Count the launches of modules' kernels: [forward, backward] of each module."""

    def count(modules: list[Any]) -> list[list[int]]:
        calls = [[0, 0] for _ in modules]

        def wrap(number: list[int], which: int, original: Any) -> Any:
            def launch(*args: Any, **kwargs: Any) -> Any:
                number[which] += 1
                return original(*args, **kwargs)

            return launch

        for number, module in zip(calls, modules, strict=True):
            for which, name in enumerate(("launch", "launch_backward")):
                monkeypatch.setattr(module, name, wrap(number, which, getattr(module, name)))
        return calls

    return count


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CASES])
def test_training_follows_eager_attention(name, counted):
    case, expected = CASES[name], eager(name)
    model, modules = case.model(), case.modules()
    calls = counted(modules)
    register("attngen-training", modules)
    model.set_attn_implementation("attngen-training")
    found = train(model)
    message = curves(found, expected)

    assert calls == [[STEPS * layers] * 2 for layers in case.layers]
    assert losses_apart(found, expected) < LOSSES, message
    assert expected.losses[-3:].mean() < 0.8 * expected.losses[0], message
    assert found.losses[-3:].mean() < 0.8 * found.losses[0], message
    for weight, value in expected.weights.items():
        assert apart(found.weights[weight], value) < WEIGHTS, f"{weight}\n{message}"


def frozen(model: Any, part: str) -> Any:
    for layer in model.model.layers:
        getattr(layer.self_attn, part).requires_grad_(False)
    return model


WRONG: dict[str, tuple[str, Callable[[], Any]]] = {
    "a window one key wider": ("gemma2", lambda: gemma2(sliding_window=WINDOW + 1)),
    "no window": ("gemma2", lambda: gemma2(sliding_window=4096)),
    "no cap": ("gemma2", lambda: gemma2(attn_logit_softcapping=None)),
    "another scale": ("gemma2", lambda: gemma2(query_pre_attn_scalar=32)),
    "no dq": ("llama", lambda: frozen(llama(), "q_proj")),
    "no dk": ("llama", lambda: frozen(llama(), "k_proj")),
    "no dv": ("llama", lambda: frozen(llama(), "v_proj")),
    "no dsinks": ("gpt_oss", lambda: frozen(gpt_oss(), "sinks")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_computed_wrong_shows_in_the_curve(wrong):
    """Eager attention with a mistake leaves the curve by far more than rounding: the test above would see it."""
    name, model = WRONG[wrong]
    found, expected = train(model()), eager(name)
    assert losses_apart(found, expected) > 100 * LOSSES, curves(found, expected)


def training_llama(modules: list[Any], **more: Any) -> Any:
    register("attngen-training", modules)
    model = llama(**more)
    model.set_attn_implementation("attngen-training")
    return model


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointed_layers_train(counted):
    """Gradient checkpointing runs every layer's forward again before its backward."""
    modules = [built("llama3_causal")]
    calls = counted(modules)
    model = training_llama(modules)
    model.gradient_checkpointing_enable()
    found, expected = train(model, steps=2), train(llama(), steps=2)
    assert calls == [[8, 4]]
    assert losses_apart(found, expected) < LOSSES, curves(found, expected)


def test_dropout_is_refused_in_training_only():
    model, ids = training_llama([built("llama3_causal")], attention_dropout=0.1), torch.arange(6)[None]
    with pytest.raises(TensorError, match=r"llama3_causal has no dropout .*set attention_dropout to 0"):
        model(ids, labels=ids)
    assert model.eval()(ids, labels=ids).loss.isfinite()


def test_gpt2_trains_with_dropout():
    """Its attention drops weights in training: from torch's generator, so that a seed repeats a step, and the loss falls."""
    config = transformers.GPT2Config(
        vocab_size=256, n_embd=64, n_layer=2, n_head=2, attn_pdrop=0.2, resid_pdrop=0.0, embd_pdrop=0.0
    )
    module = built("gpt2_dropout", heads=2)
    register("attngen-test", [module])
    text = torch.tensor(list((ROOT / "README.md").read_bytes()[: BATCH * LENGTH])).view(BATCH, LENGTH)

    def trained(implementation: str, seed: int) -> list[float]:
        torch.manual_seed(11)
        model = transformers.GPT2LMHeadModel(config).train()
        model.set_attn_implementation(implementation)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        torch.manual_seed(seed)
        losses: list[float] = []
        for _ in range(4):
            loss = model(text, labels=text).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        model.eval()
        return [*losses, float(model(text, labels=text).loss.detach())]

    first, again, other = (trained("attngen-test", seed) for seed in (1, 1, 2))
    eager = trained("eager", 1)
    assert first == again
    assert first[0] != other[0]
    assert first[-1] < first[0] - 0.5
    assert first[-1] == pytest.approx(eager[-1], rel=0.05)  # other weights were dropped
