"""Small recurrences of every kind, their modules, and arguments of their functions."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attngen import reference
from attngen.check.budget import max_error, size
from attngen.emit.decode import decode_context
from attngen.emit.format import formatted
from attngen.emit.recurrence import recurrence_context
from attngen.emit.render import environment
from attngen.errors import PlanError
from attngen.ir.graph import Graph, verify
from attngen.ir.nodes import Finish, Fold, Read
from attngen.passes.build import build as build_graph
from attngen.passes.decode import decode_nodes
from attngen.passes.pipeline import schedule
from attngen.runtime.build import build
from attngen.runtime.load import load_module
from attngen.spec import Spec, load_spec

KINDS: dict[str, dict[str, Any]] = {
    "ssd": {"heads": 4, "recurrence": {"kind": "ssd", "state": 32, "groups": 2, "dt_softplus": True}},
    "ssd_narrow": {"heads": 2, "head_dim": 24, "recurrence": {"kind": "ssd", "state": 24}},
    "none": {},
    "normalised": {"head_dim": 24, "recurrence": {"feature": "elu(x) + 1", "normalise": True}},
    "retnet": {
        "head_dim": {"qk": 16, "v": 40},
        "recurrence": {"decay": "log(1 - exp2(-5.0 - h))"},
    },
    "scalar": {"recurrence": {"decay": "scalar"}},
    "vector": {"head_dim": {"qk": 24, "v": 16}, "recurrence": {"decay": "vector"}},
    "delta": {"recurrence": {"transition": "delta"}},
    "gated_delta": {"recurrence": {"transition": "delta", "decay": "scalar"}},
}


@functools.cache
def spec_of(kind: str, **changes: Any) -> Spec:
    """The spec of a kind; `changes` are of its recurrence."""
    given = KINDS[kind]
    said = {"kind": "linear", "chunk": 16, **given.get("recurrence", {}), **changes}
    rest = {
        "attngen": 1,
        "name": f"{kind}_steps",
        "heads": 2,
        "head_dim": 16,
        "dtype": ["float32", "bfloat16"],
    }
    return load_spec({**rest, **given, "recurrence": said})


@functools.cache
def module_of(kind: str) -> ModuleType:
    """The module of a kind; where its prefill cannot be generated, that of scalar decays with the decode of this kind."""
    try:
        return build(spec_of(kind), interpret=True)
    except PlanError:
        return decode_of(token_graph(spec_of(kind)), spec_of(kind, decay="scalar", transition="diagonal"))


def token_graph(spec: Spec) -> Graph:
    """A scheduled graph that holds the kernel that decodes, and no other."""
    graph = build_graph(spec)
    folded = {n for n, node in graph.nodes.items() if isinstance(node, Fold | Read | Finish)}
    for name in graph.order():
        if folded & set(graph.nodes[name].operands()):
            folded.add(name)
    kept = {n: node for n, node in graph.nodes.items() if n not in folded}
    cut = replace(graph, level="scheduled", nodes={**kept, **decode_nodes(graph, {})})
    verify(cut)
    return cut


def decode_of(graph: Graph, prefill: Spec) -> ModuleType:
    """A module with the decode of one graph and the prefill of another spec."""
    context = recurrence_context(schedule(prefill), version="", regenerate="")
    context = replace(context, op_name=f"{context.name}_{graph.digest()[:12]}")
    text = environment().get_template("recurrence.py.jinja").render(c=context, decode=decode_context(graph))
    path = Path(tempfile.mkdtemp()) / f"{context.name}.py"
    path.write_text(formatted(text, context.name))
    return load_module(path, interpret=True)


def is_mamba(spec: Spec) -> bool:
    """Whether the functions are ssd and ssd_step."""
    assert spec.recurrence is not None
    return spec.recurrence.kind == "ssd"


def inputs_of(
    spec: Spec, tokens: int, *, batch: int = 2, dtype: torch.dtype = torch.float32, full: bool = True
):
    """Arguments of a call of several tokens, and states before it."""
    r = torch.randn
    recurrence, heads = spec.recurrence, spec.heads.q
    assert recurrence is not None
    K, V = spec.head_dim.qk, spec.head_dim.v
    if is_mamba(spec):
        N, G = recurrence.state, recurrence.groups
        assert N is not None
        found = {
            "x": r(batch, tokens, heads, V).to(dtype),
            "dt": r(batch, tokens, heads).abs() * 0.5,
            "A": -torch.rand(heads) * 3 - 0.5,
            "B": r(batch, tokens, G, N).to(dtype),
            "C": r(batch, tokens, G, N).to(dtype),
        }
        if full:
            found |= {"D": r(heads), "z": r(batch, tokens, heads, V).to(dtype), "dt_bias": r(heads)}
        return found, r(batch, heads, V, N)
    found = {n: r(batch, tokens, heads, m).to(dtype) for n, m in (("q", K), ("k", K), ("v", V))}
    if isinstance(recurrence.decay, str):
        of_rows = [K] if recurrence.decay == "vector" else []
        found["g"] = -torch.rand(batch, tokens, heads, *of_rows)
    if recurrence.transition == "delta":
        found["k"] = (found["k"] / K**0.5).to(dtype)
        found["beta"] = torch.rand(batch, tokens, heads)
    state = r(batch, heads, K, V + recurrence.normalise)
    return found, state.abs() if recurrence.normalise else state


def step_of(kind: str):
    """The function that decodes."""
    module = module_of(kind)
    return module.ssd_step if is_mamba(spec_of(kind)) else module.recurrence_step


def token(inputs: dict[str, torch.Tensor], t: int) -> dict[str, torch.Tensor]:
    """The arguments of one token, without an axis of tokens."""
    return {n: x[:, t] if x.dim() > 2 else x for n, x in inputs.items()}


def oracle(spec: Spec, inputs: dict[str, Any], state: torch.Tensor, precision: Any = "float64"):
    """(out, states after the last token)."""
    init, wanted = (
        ("initial_states", "return_final_states")
        if is_mamba(spec)
        else ("initial_state", "return_final_state")
    )
    return reference(spec, precision=precision, **inputs, **{init: state, wanted: True})


def eager(spec: Spec, inputs: dict[str, torch.Tensor], state: torch.Tensor):
    """What an eager fp32 model that decodes makes of the same values: one token after the other."""
    outs: list[torch.Tensor] = []
    wide = {n: x.float() for n, x in inputs.items()}
    state = state.float()
    for t in range(next(iter(inputs.values())).shape[1]):
        out, state = oracle(
            spec, {n: x[:, t : t + 1] if x.dim() > 2 else x for n, x in wide.items()}, state, "same"
        )
        outs.append(out)
    return torch.cat(outs, 1), state


def assert_close(found: torch.Tensor, truth: torch.Tensor, same: torch.Tensor) -> None:
    """At most twice as far from the truth as the eager model, and half an ulp of the result."""
    budget = 2 * max_error(same, truth) + torch.finfo(found.dtype).eps / 2 * size(truth)
    assert max_error(found, truth) <= budget
