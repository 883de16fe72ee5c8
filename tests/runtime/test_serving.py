"""Continuous batching of a Hugging Face model over pages: the tokens are those that `generate` writes for each request alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("transformers")

import transformers

import attngen
from attngen.errors import LoadError, TensorError, UserError
from attngen.runtime.pages import OutOfPages
from attngen.runtime.serving import PagedCache, register_paged

SPEC: dict[str, Any] = {
    "attngen": 1,
    "name": "served",
    "heads": {"q": 4, "kv": 2},
    "head_dim": 16,
    "dtype": "float32",
    "mask": "j <= i",
    "cache": {"kind": "paged", "page_size": 4},
    "splits": "auto",
}
WORDS = 97


def llama() -> Any:
    """Two layers with random weights, wide enough apart that greedy choices are no matter of rounding."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, attn_implementation="eager", tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=weight.shape[1] ** -0.5 * 1.5)
    return model


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, WORDS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(model: Any, tokens: list[int], new: int) -> list[int]:
    """What `generate` writes after some tokens, with transformers' own attention and dynamic cache."""
    model.set_attn_implementation("eager")
    made = model.generate(
        torch.tensor([tokens]), max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert isinstance(made.past_key_values, transformers.DynamicCache)
    best = torch.stack(made.logits).topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4  # no choice that rounding could turn
    return made.sequences[0, len(tokens) :].tolist()


class Server:
    """Greedy decoding of requests that come and go; each step holds every request's next token, or its whole prompt."""

    def __init__(self, model: Any, cache: PagedCache) -> None:
        register_paged("attngen-served")
        model.set_attn_implementation("attngen-served")
        self.model, self.cache = model, cache
        self.waiting: dict[int, list[int]] = {}  # tokens that the cache does not hold yet
        self.written: dict[int, list[int]] = {}
        self.mixed = 0  # steps with a prompt and a decoding request

    def begin(self, tokens: list[int]) -> int:
        request = self.cache.pool.allocate()
        self.waiting[request], self.written[request] = tokens, []
        return request

    def fork(self, request: int, tokens: list[int]) -> int:
        """Another continuation: what the cache holds of a request, then these tokens."""
        other = self.cache.pool.fork(request)
        self.waiting[other], self.written[other] = tokens, []
        return other

    def end(self, request: int) -> list[int]:
        self.cache.pool.free(request)
        del self.waiting[request]
        return self.written.pop(request)

    @torch.no_grad()
    def step(self) -> None:
        lengths = {len(new) for new in self.waiting.values()}
        self.mixed += 1 in lengths and len(lengths) > 1
        step = self.cache.step(self.waiting)
        best = self.model(**step.arguments).logits[0, step.last].argmax(-1)
        for request, token in zip([*self.waiting], best.tolist(), strict=True):
            self.waiting[request] = [token]
            self.written[request].append(token)


def serve(new: int, **cache: Any) -> None:
    """Four requests, `new` tokens each: two at once, one later, a fork of the first, and one in pages that others left."""
    model = llama()
    module = attngen.build({**SPEC, "cache": {**SPEC["cache"], **cache}})
    pages = PagedCache(module, layers=2, kv_heads=2, num_pages=(4 * new + 60) // 4)
    server = Server(model, pages)
    one, two, three, branch = (prompt(n, seed=n) for n in (14, 30, 1, 3))
    early = new // 4
    a, b = server.begin(one), server.begin(two)
    for _ in range(early):
        server.step()
    shared = server.written[a][: early - 1]  # the last token is not in the cache yet
    c, d = server.begin(three), server.fork(a, branch)
    assert pages.pool.cache_seqlens([d]) % pages.pool.page_size != 0  # a page to copy before it is written
    for _ in range(new - early):
        server.step()
    found = {"a": server.end(a), "b": server.end(b)}
    e = server.begin(two[:17])
    for _ in range(early):
        server.step()
    found |= {"c": server.end(c), "d": server.end(d)}
    for _ in range(new - early):
        server.step()
    found |= {"e": server.end(e)}
    assert server.mixed == 2
    assert pages.pool.num_free_pages == pages.pool.num_pages
    wanted = {"a": one, "b": two, "c": three, "d": [*one, *shared, *branch], "e": two[:17]}
    assert found == {name: alone(model, tokens, new) for name, tokens in wanted.items()}


def test_requests_that_come_fork_and_go_write_the_tokens_of_generate():
    serve(8)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nhd", "hnd"])
def test_64_tokens_of_requests_that_come_fork_and_go(layout):
    serve(64, layout=layout)


# ---- other caches, other models


@pytest.mark.parametrize("cache", [{"dtype": "int8"}, {"dtype": "float8_e4m3", "scales": "per_head"}])
def test_stored_numbers_of_a_model_are_near(cache):
    """Logits over a prompt in two steps, against transformers' own; of a request that copies a shared page, and of the fork
    that keeps it, against what each gets alone."""
    model = llama()
    ids = prompt(22, seed=1)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].double()
    module = attngen.build({**SPEC, "cache": {**SPEC["cache"], **cache}})
    pages = PagedCache(module, layers=2, kv_heads=2, num_pages=32)
    server = Server(model, pages)

    def logits(tokens: dict[int, list[int]]) -> torch.Tensor:
        step = pages.step(tokens)
        with torch.no_grad():
            return server.model(**step.arguments).logits[0, step.last].double()

    request = pages.pool.allocate()
    logits({request: ids[:18]})
    other = pages.pool.fork(request)
    found = logits({request: [5, 6], other: ids[18:]})
    assert (found[1] - expected).norm() / expected.norm() < 0.1
    for one, rest in zip(found, ([5, 6], ids[18:]), strict=True):
        alone = pages.pool.allocate()
        logits({alone: ids[:18]})
        [right] = logits({alone: rest})
        assert (one - right).norm() < 1e-3 * right.norm()


def test_layers_with_a_window_get_the_module_of_the_window():
    config = transformers.MistralConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=5, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).eval()
    ids = prompt(19, seed=2)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    local = attngen.build({**SPEC, "mask": "j <= i and i - j < window", "params": {"window": "int"}})
    pages = PagedCache([attngen.build(SPEC), local], layers=1, kv_heads=2, num_pages=8)
    register_paged("attngen-served")
    model.set_attn_implementation("attngen-served")
    step = pages.step({pages.pool.allocate(): ids})
    with torch.no_grad():
        torch.testing.assert_close(model(**step.arguments).logits[0], expected, rtol=1e-4, atol=1e-5)


# ---- mistakes


def small(**more: Any) -> PagedCache:
    return PagedCache(attngen.build(SPEC), **{"layers": 2, "kv_heads": 2, "num_pages": 3, **more})


def test_a_step_without_room_changes_nothing():
    pages = small()
    one, two = pages.pool.allocate(), pages.pool.allocate()
    with pytest.raises(OutOfPages, match="step: 4 pages are needed, 3 are free"):
        pages.step({one: [1] * 5, two: [1] * 8})
    assert pages.pool.num_free_pages == 3
    assert pages.pool.cache_seqlens([one, two]).tolist() == [0, 0]
    with pytest.raises(UserError, match="sequence 7 was never allocated"):
        pages.step({one: [1], 7: [1]})
    with pytest.raises(UserError, match="step: each request needs at least one token"):
        pages.step({one: [1], two: []})
    assert pages.pool.num_free_pages == 3


def test_modules_that_cannot_serve_a_model():
    other = attngen.build({**SPEC, "cache": {"kind": "paged", "page_size": 8}})
    csr = attngen.build({**SPEC, "cache": {"kind": "paged", "page_size": 4, "table": "csr"}})
    prefix = attngen.build({**SPEC, "cache": {"kind": "paged", "page_size": 4, "prefix": "shared"}})
    rows = attngen.build({k: v for k, v in SPEC.items() if k not in ("cache", "splits")})
    for modules, message in (
        ([], "no modules"),
        (rows, "served: cache: keys are not in pages; add"),
        ([attngen.build(SPEC), other], "differ in cache or head_dim"),
        (csr, "needs `table: dense`"),
        (prefix, "needs `table: dense`, no `prefix`"),
    ):
        with pytest.raises(LoadError, match=message):
            PagedCache(modules, layers=1, kv_heads=1, num_pages=1)
    with pytest.raises(LoadError, match=r"dtype: served not generated for torch\.float16"):
        small(dtype=torch.float16)
    with pytest.raises(LoadError, match="'sdpa' is an attention implementation of transformers"):
        register_paged("sdpa")


def test_a_model_called_without_a_step():
    model = llama()
    pages = small()
    register_paged("attngen-served")
    model.set_attn_implementation("attngen-served")
    step = pages.step({pages.pool.allocate(): [1, 2, 3]})
    with pytest.raises(TensorError, match="attngen-served: pages: missing"), torch.no_grad():
        model(step.input_ids)
    with (
        pytest.raises(TensorError, match=r"key: the step has 3 tokens in one row, got \(1, 2, 2, 16\)"),
        torch.no_grad(),
    ):
        model(
            **{**step.arguments, "input_ids": torch.tensor([[1, 2]]), "position_ids": torch.tensor([[0, 1]])}
        )


def test_a_layer_that_no_paged_module_computes():
    model = llama()
    pages = PagedCache(
        attngen.build({**SPEC, "mask": "j <= i and i - j < 9"}), layers=2, kv_heads=2, num_pages=3
    )
    register_paged("attngen-served")
    model.set_attn_implementation("attngen-served")
    step = pages.step({pages.pool.allocate(): [1, 2, 3]})
    with pytest.raises(TensorError, match="has the mask `j <= i and i - j < 9`"), torch.no_grad():
        model(**step.arguments)
