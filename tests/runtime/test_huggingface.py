"""Models of Hugging Face transformers with random weights, on generated kernels against their own eager attention."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("transformers")

import transformers

import attngen
from attngen.errors import LoadError, TensorError
from attngen.runtime.huggingface import register

SPECS = Path(__file__).parents[2] / "specs"
SIZES = {"vocab_size": 97, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
WINDOW = 20
TOKENS = 70


@functools.cache
def built(name: str, **changes: Any) -> Any:
    """The module of a committed spec, with some keys changed."""
    spec = attngen.load_spec(SPECS / f"{name}.yaml").canonical()
    spec |= {"heads": {"q": 4, "kv": 2}, "head_dim": 64, "dtype": ["float32", "bfloat16"]}
    return attngen.build(
        spec | {key: dict(value) if key == "params" else value for key, value in changes.items()}
    )


def llama(**more: Any) -> Any:
    config = transformers.LlamaConfig(
        **SIZES,
        hidden_size=64,
        num_key_value_heads=2,
        attn_implementation="eager",
        **{"head_dim": 64, **more},
    )
    return sharpened(transformers.LlamaForCausalLM, config)


def mistral(**more: Any) -> Any:
    config = transformers.MistralConfig(
        **SIZES, hidden_size=64, num_key_value_heads=2, head_dim=64, sliding_window=WINDOW,
        attn_implementation="eager", **more,
    )  # fmt: skip
    return sharpened(transformers.MistralForCausalLM, config)


def gemma2(**more: Any) -> Any:
    config = transformers.Gemma2Config(
        **SIZES, hidden_size=64, num_key_value_heads=2, head_dim=64, sliding_window=WINDOW,
        query_pre_attn_scalar=48, attn_logit_softcapping=50.0, attn_implementation="eager", **more,
    )  # fmt: skip
    assert config.layer_types == ["sliding_attention", "full_attention"]
    return sharpened(transformers.Gemma2ForCausalLM, config)


def sharpened(make: Any, config: Any) -> Any:
    """A model whose scores are large enough for windows, scales and caps to matter (fresh weights give nearly 0)."""
    torch.manual_seed(7)
    model = make(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.q_proj.weight.normal_(std=0.5)
            attention.k_proj.weight.normal_(std=0.5)
            attention.v_proj.weight.normal_(std=0.2)
            attention.o_proj.weight.normal_(std=0.2)
    return model


@dataclass(frozen=True)
class Case:
    """A model and the specs its layers need; `calls` counts each module's launches in one forward pass."""

    model: Any
    modules: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    calls: tuple[int, ...]

    def built(self) -> list[Any]:
        return [built(name, **dict(changes)) for name, changes in self.modules]


LOCAL = ("gemma2_local", (("params", (("window", WINDOW),)),))
CASES = {
    "llama3": Case(llama, (("llama3_causal", ()),), (2,)),
    "mistral": Case(mistral, (("mistral_window", ()),), (2,)),
    "gemma2": Case(gemma2, (("gemma2_global", ()), LOCAL), (1, 1)),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    torch.set_num_threads(1)
    return CASES[request.param]


@pytest.fixture
def counted(monkeypatch):
    """Count the calls of modules' public functions."""

    def count(modules: list[Any]) -> list[int]:
        calls = [0] * len(modules)

        def wrap(index: int, original: Any) -> Any:
            def attention(*args: Any, **kwargs: Any) -> Any:
                calls[index] += 1
                return original(*args, **kwargs)

            return attention

        for index, module in enumerate(modules):
            monkeypatch.setattr(module, "attention", wrap(index, module.attention))
        return calls

    return count


def tokens(batch: int = 1, length: int = TOKENS) -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    return model(ids, **more).logits.double()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_fp32_logits_are_those_of_eager_attention(case, counted):
    model, modules = case.model(), case.built()
    ids = tokens(batch=2)
    expected = logits(model, ids)
    calls = counted(modules)
    register("attngen-test", modules)
    model.set_attn_implementation("attngen-test")

    assert distance(logits(model, ids, attention_mask=torch.ones_like(ids)), expected) < 1e-5
    assert calls == list(case.calls)


def test_bf16_logits_are_as_good_as_eager_attention(case, counted):
    model, modules = case.model().bfloat16(), case.built()
    ids = tokens()
    eager = logits(model, ids)
    exact = logits(model.float(), ids)
    calls = counted(modules)
    register("attngen-test", modules)
    model.bfloat16().set_attn_implementation("attngen-test")
    found = logits(model, ids)

    assert distance(eager, exact) > 1e-3, "bf16 must show"
    assert distance(found, exact) <= 2 * distance(eager, exact)
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max()
    assert calls == list(case.calls)


def test_a_prefill_and_decode_steps_give_what_one_pass_gives(case):
    """One query at the end of the keys, and three: causal and window are aligned to the last key."""
    model = case.model()
    ids = tokens(length=46)
    expected = logits(model, ids)
    register("attngen-test", case.built())
    model.set_attn_implementation("attngen-test")
    cache = transformers.DynamicCache(config=model.config)
    parts = [
        logits(model, step, past_key_values=cache, use_cache=True) for step in ids.split([40, 1, 1, 3, 1], 1)
    ]

    assert distance(torch.cat(parts, 1), expected) < 1e-5


@pytest.mark.slow
def test_generate_writes_the_tokens_of_eager_attention(case):
    model = case.model()
    ids = tokens(length=30)
    arguments: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": -1,
    }
    expected = model.generate(ids, **arguments)
    register("attngen-test", case.built())
    model.set_attn_implementation("attngen-test")
    assert torch.equal(model.generate(ids, **arguments), expected)


@pytest.mark.slow
def test_the_head_dim_of_llama_3():
    model = llama(head_dim=128)
    ids = tokens()
    expected = logits(model, ids)
    register("attngen-test", built("llama3_causal", head_dim=128))
    model.set_attn_implementation("attngen-test")
    assert distance(logits(model, ids), expected) < 1e-5


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_params_of_the_layer_reach_a_module_in_either_layout(layout, counted):
    """Window and soft cap as run-time arguments: one module serves the local layer, another the global one."""
    changes: dict[str, Any] = {"layout": layout, "score": "softcap * tanh(s / softcap)"}
    local = built("gemma2_local", **changes, params=(("sliding_window", "int"), ("softcap", "float")),
                  mask="i >= j and j > i - sliding_window")  # fmt: skip
    everywhere = built("gemma2_global", **changes, params=(("softcap", "float"),))
    model, ids = gemma2(), tokens(length=40)
    expected = logits(model, ids)
    calls = counted([local, everywhere])
    register("attngen-test", [local, everywhere])
    model.set_attn_implementation("attngen-test")
    assert distance(logits(model, ids), expected) < 1e-5
    assert calls == [1, 1]


def test_sinks_of_gpt_oss():
    """Sinks come as s_aux, a param of each layer."""
    spec = {"attngen": 1, "name": "sinks", "heads": {"q": 4, "kv": 2}, "head_dim": 32, "dtype": "float32",
            "mask": "j <= i", "sinks": True}  # fmt: skip
    q, k, v = (torch.randn(1, heads, 9, 32) for heads in (4, 2, 2))
    sinks = torch.randn(4)
    out = attend([attngen.build(spec)], q, k, v, s_aux=sinks)
    x, y, z = (t.transpose(1, 2) for t in (q, k, v))
    torch.testing.assert_close(
        out.double(), attngen.reference(spec, q=x, k=y, v=z, sinks=sinks), rtol=1e-5, atol=1e-6
    )


def attend(modules: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: Any) -> torch.Tensor:
    """Call what is registered, as a layer of transformers does."""
    register("attngen-test", modules)
    layer = torch.nn.Module()
    layer.is_causal = True  # type: ignore[assignment]
    function = transformers.AttentionInterface()["attngen-test"]
    return function(layer, q, k, v, **{"attention_mask": None, **more})[0]


@functools.cache
def small(**changes: Any) -> Any:
    spec = {"attngen": 1, "name": "small", "heads": {"q": 4, "kv": 2}, "head_dim": 32, "dtype": "float32"}
    return attngen.build(
        {**spec, "mask": "j <= i", **{k: dict(v) if k == "params" else v for k, v in changes.items()}}
    )


QKV = [torch.ones(1, heads, 4, 32) for heads in (4, 2, 2)]


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("attention_mask", {"attention_mask": torch.zeros(1, 1, 4, 4)}),
        ("output_attentions", {"output_attentions": True}),
        ("position_bias", {"position_bias": torch.zeros(1, 4, 4, 4)}),
        ("cu_seq_lens_q", {"cu_seq_lens_q": torch.tensor([0, 4])}),
        ("cache", {"cache": object()}),
        ("head_mask", {"head_mask": torch.ones(4)}),
    ],
)
def test_what_a_module_cannot_do_is_refused_by_name(argument, given):
    with pytest.raises(TensorError, match=argument):
        attend([small()], *QKV, **given)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"sliding_window": 3}, r"causal, window 3.*small has the mask `j <= i`"),
        ({"softcap": 30.0}, r"softcap 30.*small has the score `s`"),
        ({"s_aux": torch.zeros(4)}, "sinks.*small has no sinks"),
        (
            {"dropout": 0.1},
            "dropout.*small has no dropout .add `dropout: true`, or set attention_dropout to 0",
        ),
        ({"is_causal": False}, r"bidirectional.*small has the mask `j <= i`"),
    ],
)
def test_a_layer_that_no_module_computes_is_refused(needs, message):
    with pytest.raises(TensorError, match=message):
        attend([small()], *QKV, **needs)


@pytest.mark.parametrize(
    ("changes", "layer", "message"),
    [
        ({"mask": "j <= i and i - j < 4096"}, {}, "has the mask"),
        ({"mask": "j <= i and i - j < 4097"}, {"sliding_window": 4096}, "has the mask"),
        ({"mask": "j <= i and i // 8192 == j // 8192"}, {}, "has the mask"),
        ({"mask": "j < i"}, {}, "has the mask"),
        ({"mask": "j <= i and i - j < window", "params": (("window", "int"),)}, {}, "needs window"),
        ({"score": "30 * tanh(s / 30)"}, {}, "has the score"),
        ({"score": "30 * tanh(s / 30)"}, {"softcap": 50.0}, "has the score"),
        ({"score": "s + 0.01 * (j - i)"}, {}, "has the score"),
        ({"head_dim": 64}, {}, "has head dims"),
        ({"heads": 4}, {}, "has 1 query heads per kv head"),
        ({"dtype": "bfloat16"}, {}, "is generated for bfloat16"),
    ],
)
def test_a_module_that_computes_something_else_is_never_used(changes, layer, message):
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    with pytest.raises(TensorError, match=message):
        attend([small(**changes)], *QKV, **layer)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("eager", "llama3_causal", "choose another name"),
        ("sdpa", "llama3_causal", "choose another name"),
        ("attngen-test", "document_packed", "layout: thd does not fit transformers"),
        ("attngen-test", "alibi", "a layer has no 'slopes' to give"),
    ],
)
def test_a_registration_that_cannot_work_is_refused(name, spec, message):
    module = attngen.build(SPECS / f"{spec}.yaml")
    before = dict(transformers.AttentionInterface._global_mapping)
    with pytest.raises(LoadError, match=message):
        register(name, module)
    assert transformers.AttentionInterface._global_mapping == before


def test_other_registrations_that_cannot_work():
    unknown = small(mask="j <= i and i - j < far", params=(("far", "int"),))
    with pytest.raises(LoadError, match="a layer gives no 'far', only window, sliding_window, softcap"):
        register("attngen-test", unknown)
    with pytest.raises(LoadError, match="no modules"):
        register("attngen-test", [])
    with pytest.raises(LoadError, match="functools is not a generated module"):
        register("attngen-test", functools)


@pytest.fixture
def model():
    register("attngen-test", built("llama3_causal"))
    model = llama()
    model.set_attn_implementation("attngen-test")
    return model


def test_padding_is_refused(model):
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    with pytest.raises(TensorError, match=r"attention_mask: .* with padding is not supported"):
        model(ids, attention_mask=mask)
    with pytest.raises(TensorError, match="attention_mask"):
        model(ids, attention_mask=torch.zeros(2, 1, 6, 6))


def test_packed_positions_are_refused(model):
    with pytest.raises(TensorError, match="more than a causal mask"):
        model(tokens(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)


def test_a_cache_with_empty_slots_is_refused(model):
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    with pytest.raises(TensorError, match=r"past_key_values: queries end at 6 and keys at 32.*DynamicCache"):
        model(tokens(1, 6), past_key_values=cache)


def test_attention_weights_are_refused(model):
    with pytest.raises((TensorError, ValueError), match="output_attentions"):
        model(tokens(1, 6), output_attentions=True)


def test_chunked_masks_are_refused():
    from transformers.masking_utils import create_chunked_causal_mask

    config = transformers.LlamaConfig(**SIZES, hidden_size=64, attention_chunk_size=4)
    config._attn_implementation = "attngen-test"
    register("attngen-test", built("llama3_causal"))
    with pytest.raises(TensorError, match="more than a causal mask"):
        create_chunked_causal_mask(config, torch.zeros(1, 6, 64), None, None)


def test_training_without_a_backward_raises():
    """A loss must not silently leave the attention out."""
    register("attngen-test", built("llama3_causal", grad=False))
    model = llama()
    model.set_attn_implementation("attngen-test")
    loss = model(tokens(1, 6)).logits.sum()
    with pytest.raises(RuntimeError, match="generated without a backward: add `grad: true`"):
        loss.backward()
