"""Continuous batching of Hugging Face models: keys in pages, requests of any lengths in one forward pass.

    cache = PagedCache(attngen.build("specs/paged_decode_llama3.yaml"), layers=32, kv_heads=8, num_pages=4096)
    register_paged("attngen-paged")
    model.set_attn_implementation("attngen-paged")
    request = cache.pool.allocate()
    step = cache.step({request: prompt})  # all requests of the moment: prompts, parts of prompts, single tokens
    with torch.no_grad():
        next_tokens = model(**step.arguments).logits[0, step.last].argmax(-1)

Requests come (`pool.allocate`), share what they have in common (`pool.fork`) and go (`pool.free`) between steps. Each
layer gets the module that computes what it asks for, as in `attngen.runtime.huggingface`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch

from attngen.errors import LoadError, TensorError, UserError
from attngen.runtime.huggingface import Candidate, Layer, arguments, chosen, interfaces, refuse
from attngen.runtime.pages import OutOfPages, PageAllocator, copy_pages
from attngen.spec import Cache

__all__ = ["PagedCache", "Step", "register_paged"]

Tensor = torch.Tensor
STORED: Final = {
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int4": torch.uint8,
}
"""torch's names of what a cache stores."""


class PagedCache:
    """Keys and values of all layers of a model in pages, and which request owns which page.

    Args:
        modules: what the layers need, one module or several whose caches and head dims are the same; page tables `dense`, no
            shared `prefix` (a fork shares pages without it).
        layers, kv_heads: those of the model.
        num_pages: pages per layer, of the spec's page_size tokens each.
        dtype: q's dtype, by default the first of the specs'. The device is where the model is.

    Attributes:
        pool: the `PageAllocator`: begins, forks and ends requests.
        caches: per layer the caches (and scales, where the spec has them) as `attention` and `append_kv` take them, by
            name. Scales per tensor and per head are 1 until the caller writes others.

    Raises:
        LoadError: modules that cannot serve a model, or not together.
    """

    def __init__(
        self,
        modules: ModuleType | Sequence[ModuleType],
        *,
        layers: int,
        kv_heads: int,
        num_pages: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        given = [modules] if isinstance(modules, ModuleType) else modules
        self.candidates = [Candidate(module, paged=True) for module in given]
        if not self.candidates:
            raise LoadError("PagedCache: no modules; give at least one built with attngen.build")
        specs = [candidate.spec for candidate in self.candidates]
        self.choose = functools.cache(self._choose)
        cache = specs[0].cache
        assert cache is not None
        if any((spec.cache, spec.head_dim) != (cache, specs[0].head_dim) for spec in specs):
            raise LoadError(
                "PagedCache: the modules' specs differ in cache or head_dim: layers share one form"
            )
        if cache.table != "dense" or cache.prefix or specs[0].head_dim.v_from_k:
            raise LoadError(
                f"PagedCache: {specs[0].name}: needs `table: dense`, no `prefix`, and values apart from keys"
            )
        self.pool = PageAllocator(num_pages, cache.page_size)
        self.device = torch.device(device)
        dtype = dtype or getattr(torch, specs[0].dtypes[0])
        if lacking := [spec.name for spec in specs if str(dtype).removeprefix("torch.") not in spec.dtypes]:
            raise LoadError(f"PagedCache: dtype: {', '.join(lacking)} not generated for {dtype}")
        columns = {"k": specs[0].head_dim.qk, "v": specs[0].head_dim.v}
        self.caches = [self._empty(cache, columns, kv_heads, dtype) for _ in range(layers)]

    def _empty(self, cache: Cache, columns: Mapping[str, int], heads: int, dtype: Any) -> dict[str, Tensor]:
        pages, size = self.pool.num_pages, cache.page_size
        slots = (pages, size, heads) if cache.layout == "nhd" else (pages, heads, size)
        stored = STORED[cache.dtype] if cache.dtype else dtype
        bytes_of_two = cache.dtype == "int4"
        made = {
            f"{n}_cache": torch.zeros(*slots, c // 2 if bytes_of_two else c, dtype=stored, device=self.device)
            for n, c in columns.items()
        }
        if cache.scales is not None:
            shape = {"per_tensor": (), "per_head": (heads,), "per_token_head": slots}[cache.scales]
            made |= {f"{n}_scale": torch.ones(shape, device=self.device) for n in columns}
        return made

    def _choose(self, name: str, layer: Layer) -> Candidate:
        return chosen(name, self.candidates, layer)

    def step(self, tokens: Mapping[int, Sequence[int]]) -> Step:
        """Make room for new tokens of some requests and return what a forward pass over them needs.

        Pages that requests share and that this step writes are copied first. The pass must run before the next step.

        Args:
            tokens: per request the tokens that its cache does not hold yet, at least one.

        Raises:
            OutOfPages: nothing has changed: free a request, or take fewer of them, and try again.
            UserError: an unknown request, or one without tokens.
        """
        if not tokens or not all(len(new) for new in tokens.values()):
            raise UserError("step: each request needs at least one token")
        needed = self.pool.pages_needed({request: len(new) for request, new in tokens.items()})
        if needed > self.pool.num_free_pages:
            raise OutOfPages(f"step: {needed} pages are needed, {self.pool.num_free_pages} are free")
        before = self.pool.cache_seqlens([*tokens])
        found = [self.pool.append(request, len(new)) for request, new in tokens.items()]
        copies = [copy for appended in found for copy in appended.copies]
        for layer in self.caches:
            copy_pages(copies, *(t for t in layer.values() if t.dim() >= 3))
        counts = torch.tensor([len(new) for new in tokens.values()])
        ends = counts.cumsum(0)
        places = [torch.arange(len(new)) + int(n) for new, n in zip(tokens.values(), before, strict=True)]
        to = self.device
        return Step(
            cache=self,
            input_ids=torch.tensor([[t for new in tokens.values() for t in new]], device=to),
            position_ids=torch.cat(places)[None].to(to),
            last=(ends - 1).to(to),
            slot_mapping=torch.cat([appended.slot_mapping for appended in found]).to(to),
            tables={
                "page_table": self.pool.page_table([*tokens]).to(to),
                "cache_seqlens": self.pool.cache_seqlens([*tokens]).to(to),
                "cu_seqlens_q": torch.nn.functional.pad(ends, (1, 0)).int().to(to),
                "max_seqlen_q": int(counts.max()),
            },
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass over the new tokens of several requests, T in all, one request after the other.

    Attributes:
        input_ids, position_ids: [1, T] int64; positions count from each request's first token.
        last: [requests] int64, the place in T of each request's last token: where its next token is predicted.
        slot_mapping: [T] int64, where the tokens' keys and values go.
        tables: page_table, cache_seqlens, cu_seqlens_q and max_seqlen_q, as `attention` takes them.
    """

    cache: PagedCache
    input_ids: Tensor
    position_ids: Tensor
    last: Tensor
    slot_mapping: Tensor
    tables: Mapping[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """What to call the model with."""
        ids = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        return {**ids, "use_cache": False, "pages": self}

    def attend(
        self, at: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor, name: str, **given: Any
    ) -> Tensor:
        """Write k and v [T, Hkv, D] of layer `at` into their slots, and return out [T, Hq, Dv] of q [T, Hq, D]."""
        caches = self.cache.caches[at]
        scales = {name: tensor for name, tensor in caches.items() if "scale" in name}
        candidate = self.cache.choose(name, layer)
        candidate.module.append_kv(k, v, caches["k_cache"], caches["v_cache"], self.slot_mapping, **scales)
        return candidate.module.attention(q, **caches, **self.tables, **given, **candidate.params(layer))


def register_paged(name: str) -> None:
    """Make `name` an attention implementation of transformers for models called with the `arguments` of a `Step`.

    Raises:
        LoadError: transformers is missing, or the name is one of its own.

    A forward pass raises TensorError, naming the argument, where a layer asks for what no module computes.
    """
    attention, masks = interfaces(name, _PagedAttention)
    attention.register(name, _PagedAttention(name))
    masks.register(name, _no_mask)


@dataclass(frozen=True)
class _PagedAttention:
    """The function that transformers calls in every layer; tensors are [1, H, T, D], out is [1, T, H, D]."""

    name: str

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        pages: Step | None = None,
        **asked: Any,
    ) -> tuple[Tensor, None]:
        refuse(self.name, module, attention_mask, asked)
        if not isinstance(pages, Step):
            raise TensorError(f"{self.name}: pages: missing; call the model with the arguments of a Step")
        tokens = (1, len(pages.slot_mapping))
        if (key.shape[0], key.shape[2]) != tokens or query.shape[2] != tokens[1]:
            raise TensorError(
                f"{self.name}: key: the step has {tokens[1]} tokens in one row, got {tuple(key.shape)}; give no"
                " past_key_values, and all of the step's arguments"
            )
        layer = Layer.of(module, query, key, value, asked)
        rows = (x[0].transpose(0, 1) for x in (query, key, value))
        at: Any = getattr(module, "layer_idx", 0)
        return pages.attend(at, layer, *rows, name=self.name, **arguments(asked))[None], None


def _no_mask(**_: Any) -> None:
    """Stand where transformers would build a mask: lengths and the module's formula say what a token sees."""
