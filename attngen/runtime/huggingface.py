"""Generated modules as an attention implementation of Hugging Face transformers.

    register("attngen", [attngen.build("specs/gemma2_local.yaml"), attngen.build("specs/gemma2_global.yaml")])
    model.set_attn_implementation("attngen")

A layer says what it computes: causal or not, a window, a soft cap, sinks, dropout, a scale. Each layer gets the module
that computes that, found by evaluating the formulas of the modules' specs; where none does, the call raises.
Masks are never built: what a module does not compute (padding, packed rows, blocks) is refused.
Models train on modules of specs with `grad: true`; with an attention_dropout other than 0, on those with
`dropout: true`, which draw from torch's generator.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from attngen.errors import LoadError, TensorError
from attngen.reference.oracle_formula import Scope, evaluate
from attngen.spec import Spec, load_spec
from attngen.spec.formula import Formula

__all__ = ["register"]

LAYOUTS: Final = ("bshd", "bhsd")
PARAMS: Final = {"window": "window", "sliding_window": "window", "softcap": "softcap"}
"""Run-time params that a layer gives, by name in the spec; what they mean is tested, not believed."""

HARMLESS: Final = frozenset(
    {"position_ids", "cache_position", "use_cache", "return_dict", "output_hidden_states"}
    | {"output_router_logits", "num_items_in_batch"}
)
"""Arguments that transformers hands through and that do not change what attention computes."""
UNDERSTOOD: Final = frozenset({"dropout", "scaling", "sliding_window", "softcap", "s_aux", "is_causal"})
"""Arguments that say what a layer computes."""


@dataclass(frozen=True)
class Layer:
    """What one attention layer computes, as the model asks for it.

    Attributes:
        window: keys that a query sees, itself included; None for all.
        softcap: c of `c * tanh(s / c)`, or None.
        dropout: weights are dropped; in training.
    """

    causal: bool
    window: int | None
    softcap: float | None
    sinks: bool
    dropout: bool
    group: int
    head_dims: tuple[int, int]
    dtype: str

    @classmethod
    def of(
        cls, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, asked: Mapping[str, Any]
    ) -> Layer:
        """What a layer asks for, with tensors [B, H, S, D] and transformers' other arguments by name."""
        causal = asked.get("is_causal")
        return cls(
            causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
            window=asked.get("sliding_window"),
            softcap=asked.get("softcap"),
            sinks=asked.get("s_aux") is not None,
            dropout=asked.get("dropout", 0.0) > 0,
            group=query.shape[1] // key.shape[1],
            head_dims=(query.shape[3], value.shape[3]),
            dtype=str(query.dtype).removeprefix("torch."),
        )

    def __str__(self) -> str:
        seen = "causal" if self.causal else "bidirectional"
        seen += "" if self.window is None else f", window {self.window}"
        cap = "" if self.softcap is None else f", softcap {self.softcap:g}"
        heads = f"{self.group} query heads per kv head, head dims {self.head_dims}"
        more = f"{', sinks' if self.sinks else ''}{', dropout' if self.dropout else ''}"
        return f"{seen}{cap}{more}, {heads}, {self.dtype}"


def register(name: str, modules: ModuleType | Sequence[ModuleType]) -> None:
    """Make `name` an attention implementation of transformers that runs on generated modules.

    Args:
        name: what `attn_implementation=` takes. Registering it again replaces the modules.
        modules: what the layers of a model need, such as a local and a global one; layout bshd or bhsd. The
            params `window` (or `sliding_window`) and `softcap` may be run-time arguments: layers give them.

    Raises:
        LoadError: transformers is missing, the name is one of transformers' own, a module cannot be used.

    A forward pass raises TensorError, naming the argument, where a layer asks for what no module computes.
    """
    attention, masks = interfaces(name, _Attention)
    attend = _Attention(name, tuple([modules] if isinstance(modules, ModuleType) else modules))
    attention.register(name, attend)
    masks.register(name, _no_mask)


def interfaces(name: str, kind: type) -> tuple[Any, Any]:
    """The tables in which transformers finds attention and mask functions; `name` is free there, or of our `kind`."""
    try:
        transformers: Any = importlib.import_module("transformers")
        attention, masks = transformers.AttentionInterface, transformers.AttentionMaskInterface
    except (ImportError, AttributeError) as error:
        raise LoadError(
            "attngen.runtime.huggingface needs transformers 5 or newer: pip install transformers"
        ) from error
    known = attention._global_mapping.get(name)
    if name == "eager" or (known is not None and not isinstance(known, kind)):
        raise LoadError(f"'{name}' is an attention implementation of transformers; choose another name")
    return attention, masks


# ---- the attention function


class _Attention:
    """The function that transformers calls in every layer; tensors are [B, H, S, D], out is [B, S, H, D]."""

    def __init__(self, name: str, modules: tuple[ModuleType, ...]) -> None:
        if not modules:
            raise LoadError(f"{name}: no modules; give at least one built with attngen.build")
        self.name = name
        self.candidates = [Candidate(module) for module in modules]
        self.choose = functools.cache(self._choose)

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **asked: Any,
    ) -> tuple[Tensor, None]:
        refuse(self.name, module, attention_mask, asked)
        layer = Layer.of(module, query, key, value, asked)
        return self.choose(layer).run(query, key, value, layer, **arguments(asked)), None

    def _choose(self, layer: Layer) -> Candidate:
        return chosen(self.name, self.candidates, layer)


def refuse(name: str, module: torch.nn.Module, mask: Tensor | None, asked: Mapping[str, Any]) -> None:
    """Raise TensorError for what a layer asks of the implementation `name` and no generated module does."""
    if mask is not None:
        raise TensorError(
            f"{name}: attention_mask: a generated module has its mask compiled in and takes none,"
            f" got shape {tuple(mask.shape)}"
        )
    if asked.get("output_attentions") or getattr(getattr(module, "config", None), "output_attentions", False):
        raise TensorError(f"{name}: output_attentions: the weights are never stored; use 'eager'")
    for argument, value in asked.items():
        if argument not in UNDERSTOOD | HARMLESS and value is not None and value is not False:
            raise TensorError(f"{name}: {argument}: generated modules do not support it; leave it out")


def arguments(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer gives, by the names of generated modules."""
    dropout_p = asked.get("dropout", 0.0)
    return {"softmax_scale": asked.get("scaling"), "sinks": asked.get("s_aux"), "dropout_p": dropout_p}


def chosen(name: str, candidates: Sequence[Candidate], layer: Layer) -> Candidate:
    """The first module that computes what a layer asks for; TensorError says why none does."""
    reasons: list[str] = []
    for candidate in candidates:
        reason = candidate.why_not(layer)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.spec.name} {reason}")
    raise TensorError(f"{name}: no module computes a layer with {layer}: {'; '.join(reasons)}")


class Candidate:
    """A generated module and what its spec says."""

    def __init__(self, module: ModuleType, *, paged: bool = False) -> None:
        if not hasattr(module, "SPEC") or not hasattr(module, "attention"):
            raise LoadError(f"{module.__name__} is not a generated module; make one with attngen.build")
        self.module = module
        self.spec: Spec = load_spec(module.SPEC)
        name = self.spec.name
        if paged and self.spec.cache is None:
            raise LoadError(
                f"{name}: cache: keys are not in pages; add `cache: {{kind: paged, page_size: 16}}`"
            )
        if not paged and self.spec.layout not in LAYOUTS:
            raise LoadError(f"{name}: layout: {self.spec.layout} does not fit transformers; use bshd or bhsd")
        if self.spec.captured:
            raise LoadError(f"{name}: captured: a layer has no '{self.spec.captured[0].name}' to give")
        for param in self.spec.params:
            if param.runtime and param.name not in PARAMS:
                known = ", ".join(PARAMS)
                raise LoadError(f"{name}: params: a layer gives no '{param.name}', only {known}")

    def why_not(self, layer: Layer) -> str | None:
        """What of the layer this module does not compute; None if it computes all."""
        spec = self.spec
        if spec.heads.group != layer.group:
            return f"has {spec.heads.group} query heads per kv head"
        if (spec.head_dim.qk, spec.head_dim.v) != layer.head_dims or spec.head_dim.v_from_k:
            return f"has head dims {(spec.head_dim.qk, spec.head_dim.v)}"
        if layer.dtype not in spec.dtypes:
            return f"is generated for {', '.join(spec.dtypes)}"
        if spec.sinks != layer.sinks:
            return f"has {'' if spec.sinks else 'no '}sinks"
        if layer.dropout and not spec.dropout:
            return "has no dropout (add `dropout: true`, or set attention_dropout to 0)"
        params = self.params(layer)
        if None in params.values():
            return f"needs {', '.join(name for name, value in params.items() if value is None)}"
        if not _mask_agrees(spec, params, layer):
            return f"has the mask `{spec.mask or 'True'}`"
        if not _score_agrees(spec, params, layer):
            return f"has the score `{spec.score or 's'}`"
        return None

    def params(self, layer: Layer) -> dict[str, Any]:
        """Run-time params that the layer gives."""
        return {p.name: getattr(layer, PARAMS[p.name]) for p in self.spec.params if p.runtime}

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, **arguments: Any) -> Tensor:
        """Out [B, S, H, D] of q, k and v [B, H, S, D]."""
        if self.spec.layout == "bhsd":
            out = self.module.attention(q, k, v, **arguments, **self.params(layer))
            return out.transpose(1, 2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.module.attention(q, k, v, **arguments, **self.params(layer))


# ---- what a module computes, tested where such masks and scores differ


def _mask_agrees(spec: Spec, params: Mapping[str, Any], layer: Layer) -> bool:
    """Whether the spec's mask is the layer's, around the diagonal and around every constant of either."""
    turns = {1, 2, *_integers(spec.mask), *([layer.window] if layer.window else [])}
    turns |= {int(p.value) for p in spec.params if p.value is not None}
    places = sorted({0} | {place for turn in turns for place in (turn - 1, turn, turn + 1, 2 * turn + 1)})
    i = torch.tensor(places)[:, None]
    distances = sorted({d for turn in turns for d in (turn - 1, turn, turn + 1)})
    j = torch.cat([i - d for d in distances] + [i + 1, i + 3, 0 * i], 1).clamp(min=0)
    expected = torch.ones_like(j, dtype=torch.bool)
    if layer.causal:
        expected &= j <= i
    if layer.window is not None:
        expected &= (i - j < layer.window) if layer.causal else (i - j).abs() <= layer.window
    found = _values(spec, "mask", params, i, j, 0)
    return bool((found == expected).all())


def _score_agrees(spec: Spec, params: Mapping[str, Any], layer: Layer) -> bool:
    """Whether the spec's score is `s`, or the layer's soft cap of it, at several places and scores."""
    cap = layer.softcap
    s = torch.linspace(-3.0, 3.0, 25, dtype=torch.float64)[:, None, None] * (cap or 1.0)
    i, j = torch.tensor([0, 7, 200])[:, None], torch.tensor([0, 3, 170])
    expected = s if cap is None else cap * torch.tanh(s / cap)
    found = _values(spec, "score", params, i, j, s)
    return torch.allclose(found.to(torch.float64), expected.expand(25, 3, 3), rtol=1e-9, atol=1e-12)


def _values(spec: Spec, key: str, params: Mapping[str, Any], i: Tensor, j: Tensor, s: Any) -> Tensor:
    """A formula of the spec at these places, in a sequence longer than all of them."""
    formula = spec.mask if key == "mask" else spec.score
    s = torch.as_tensor(s)
    shape = (i + j + s).shape
    if formula is None:
        return s.expand(shape) if key == "score" else torch.ones(shape, dtype=torch.bool)
    length = torch.tensor(int(max(i.max(), j.max())) + 8)
    one = torch.tensor(1)
    scalars = {"b": one, "h": one * (spec.heads.group + 1), "hk": one, "row": i, "i": i, "j": j, "s": s}
    scalars |= {"seqlen_q": length, "seqlen_k": length}
    scalars |= {p.name: torch.tensor(params.get(p.name, p.value)) for p in spec.params}
    return evaluate(formula.tree, Scope(key, scalars, {}, torch.float64, strict=True), shape)


def _integers(formula: Formula | None) -> set[int]:
    nodes = ast.walk(formula.tree) if formula else ()
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, int) and value > 0}


# ---- the mask function


def _no_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> None:
    """Stand where transformers would build a mask: none is needed, or this one cannot be met."""
    if attention_mask is not None:
        seen = attention_mask[:, -kv_length:]
        if seen.shape[1] != kv_length or not bool(seen.all()):
            raise TensorError(
                f"attention_mask: {tuple(attention_mask.shape)} with padding is not supported by generated"
                " modules; give sequences of one length, without a mask or with one that is all ones"
            )
    if not _is_plain(mask_function):
        raise TensorError(
            "attention_mask: this model asks for more than a causal mask, a window or none (packed positions,"
            " blocks, chunks or a mask function of its own), which generated modules are not told of"
        )
    end_q, end_k = int(q_offset) + q_length, int(kv_offset) + kv_length
    if end_q != end_k and not _is_named(mask_function, "bidirectional"):
        raise TensorError(
            f"past_key_values: queries end at {end_q} and keys at {end_k}; a cache with empty slots"
            " (StaticCache) is not supported, use a DynamicCache"
        )


def _is_plain(function: Any) -> bool:
    """Whether a mask function of transformers is causal, bidirectional, or one of them within a window."""
    if _is_named(function, "causal") or _is_named(function, "bidirectional"):
        return True
    if getattr(function, "__qualname__", "") != "and_masks.<locals>.and_mask":
        return False
    parts: tuple[Any, ...] = function.__closure__[0].cell_contents
    if len(parts) != 2:
        return False
    window, rest = (getattr(part, "__qualname__", "") for part in parts)
    return (window, rest) in (
        ("sliding_window_overlay.<locals>.inner_mask", "causal_mask_function"),
        ("sliding_window_bidirectional_overlay.<locals>.inner_mask", "bidirectional_mask_function"),
    )


def _is_named(function: Any, name: str) -> bool:
    where = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
    return where == ("transformers.masking_utils", f"{name}_mask_function")
