"""Checking recurrences: oracle = semantic graph = scheduled graph, and kernels within budgets, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attngen.check.budget import EPS32, EXACT, max_error, size
from attngen.check.report import Comparison, Layer
from attngen.check.triangle import Broken, guarded
from attngen.ir.graph import Graph
from attngen.ir.nodes import Input
from attngen.passes.build import build
from attngen.passes.pipeline import schedule
from attngen.reference.interpreter_recurrence import interpret_recurrence
from attngen.reference.oracle import reference
from attngen.runtime.build import build as build_module
from attngen.spec import Spec, load_spec
from attngen.spec.model import Recurrence

Inputs = dict[str, Any]
OF_TOKENS = ("x", "dt", "B", "C", "z", "q", "k", "v", "g", "beta")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: lengths of its sequences, whether they are packed, and whether optional tensors are given."""

    name: str
    lengths: tuple[int, ...]
    packed: bool = False
    whole: bool = True
    strong: bool = False  # decays that leave nothing within a chunk
    heads: int = 2

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def calls(spec: Spec) -> list[Call]:
    """The calls of a check: empty and ragged sequences, chunks that are full and not, packed ones, extreme decays."""
    recurrence = _of(spec)
    chunk = recurrence.chunk
    heads = max(2, spec.heads.q // recurrence.groups if recurrence.groups > 1 else 2)
    some = heads if recurrence.kind == "linear" else spec.heads.q // recurrence.groups
    found = [
        Call(name="ragged", lengths=(chunk + 5,) * 2),
        Call(name="one token", lengths=(1,)),
        Call(name="nothing", lengths=(0,)),
        Call(name="whole chunks, no optional tensors", lengths=(2 * chunk,), whole=False),
        Call(name="packed", lengths=(3, 0, chunk + 1, 1), packed=True),
        Call(name="packed, no optional tensors", lengths=(chunk - 1, 2), packed=True, whole=False),
        Call(name="strong decays", lengths=(chunk,), strong=True),
    ]
    return [replace(call, heads=min(some, 4)) for call in found]


def smaller(spec: Spec) -> Spec:
    """The spec with at most 16 heads to a group: groups of more differ in that number alone, and all of them would have to be
    in memory, with a state per token."""
    groups = _of(spec).groups
    if _of(spec).kind != "ssd" or spec.heads.q <= 16 * groups:
        return spec
    return load_spec({**spec.canonical(), "heads": 16 * groups})


def _of(spec: Spec) -> Recurrence:
    assert spec.recurrence is not None
    return spec.recurrence


def make_inputs(spec: Spec, call: Call, dtype: torch.dtype) -> Inputs:
    """The tensors of a call, of realistic sizes."""
    recurrence, source = _of(spec), torch.Generator().manual_seed(sum(call.lengths) + 7)
    batch, length = (1, sum(call.lengths)) if call.packed else (len(call.lengths), call.lengths[0])
    group = spec.heads.q // recurrence.groups
    heads = -(-call.heads // group) * group if recurrence.kind == "ssd" else call.heads
    keys, columns = recurrence.state or spec.head_dim.qk, spec.head_dim.v
    size_of = {"B": batch, "L": length, "H": heads, "G": heads // group, "K": keys, "V": columns}
    size_of |= {"S": len(call.lengths), "W": columns + recurrence.normalise}

    def normal(axes: str) -> Tensor:
        return torch.randn([size_of[a] for a in axes.split()], generator=source)

    def uniform(axes: str) -> Tensor:
        return torch.rand([size_of[a] for a in axes.split()], generator=source)

    found: Inputs = {param.name: param.value or 1 for param in spec.params if param.runtime}
    if call.packed:
        ends = torch.tensor([0, *call.lengths]).cumsum(0)
        found["cu_seqlens"] = ends.to(torch.int32)
    if recurrence.kind == "ssd":
        found |= {"x": normal("B L H V").to(dtype), "dt": normal("B L H").abs() / 2, "A": -16 * uniform("H")}
        found |= {name: (normal("B L G K") / math.sqrt(keys) ** 0.5).to(dtype) for name in "BC"}
        if call.strong:
            found["dt"] = torch.full_like(found["dt"], 0.1 if not recurrence.dt_softplus else 3.0)
        if call.whole:
            found |= {"D": normal("H"), "z": normal("B L H V").to(dtype), "dt_bias": normal("H").abs()}
            found["initial_states"] = normal("S H V K")
        return found
    found |= {name: (normal("B L H K") / math.sqrt(keys) ** 0.5).to(dtype) for name in "qk"}
    found["v"] = normal("B L H V").to(dtype)
    if isinstance(recurrence.decay, str):
        decay = uniform("B L H K" if recurrence.decay == "vector" else "B L H")
        found["g"] = -decay * (16 if call.strong else 0.5)
    if recurrence.transition == "delta":
        found["k"] = torch.nn.functional.normalize(found["k"].float(), dim=-1).to(dtype)
        found["beta"] = uniform("B L H")
    if call.whole:
        state = normal("S H K W")
        found["initial_state"] = state.abs() if recurrence.normalise else state
    return found


def check_call(spec: Spec, module: ModuleType, call: Call, dtype: str) -> list[Comparison]:
    """Return the comparisons of one call.

    Raises:
        Broken: at the first equality that does not hold.
    """
    return check_inputs(spec, module, make_inputs(spec, call, getattr(torch, dtype)), call.name, dtype)


def check_inputs(
    spec: Spec, module: ModuleType, inputs: Inputs, problem: str, dtype: str
) -> list[Comparison]:
    """Return the comparisons of a call with these arguments.

    Raises:
        Broken: at the first equality that does not hold.
    """
    truth = _Truth.of(spec, inputs)
    done: list[Comparison] = []
    runs: list[tuple[Layer, str, Callable[[], dict[str, Tensor]]]] = [
        ("build", "interpreter(semantic)", lambda: _of_graph(build(spec), inputs, {})),
        ("passes", "interpreter(scheduled)", lambda: _of_graph(schedule(spec), inputs, truth.incoming)),
        ("emission", "kernels", lambda: _of_kernels(spec, module, inputs, truth)),
    ]
    if "cu_seqlens" not in inputs:
        runs.append(("emission", "kernels, then decode", lambda: _with_decode(spec, module, inputs)))
    for layer, what, action in runs:
        found = guarded(layer, action)
        for name in truth.expected.keys() & found.keys():
            budget = (
                truth.budget[name] if layer == "emission" else EXACT * max(1.0, size(truth.expected[name]))
            )
            one = Comparison(
                layer=layer,
                what=f"{what} = oracle",
                tensor=name,
                problem=problem,
                dtype=dtype,
                error=max_error(found[name].reshape(truth.expected[name].shape), truth.expected[name]),
                budget=budget,
            )
            done.append(one)
            if not one.holds:
                raise Broken(layer, str(one))
    return done


@dataclass(frozen=True)
class _Truth:
    """The oracle's results and gradients, and how far kernels may be from them."""

    incoming: dict[str, Tensor]
    expected: dict[str, Tensor]
    budget: dict[str, float]

    @classmethod
    def of(cls, spec: Spec, inputs: Inputs) -> _Truth:
        """Twice the error of an eager model in the same dtype (if it has a result), half an ulp, and what fp32 can tell.

        Of gradients also what half an ulp of out's gradient does to them: kernels keep that of what is read in its dtype.
        """
        first = inputs["x" if "x" in inputs else "q"]
        names = [n for n, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]
        source = torch.Generator().manual_seed(5)
        out, states = _both(spec, inputs, "float64")
        incoming = {
            "dout": torch.randn(out.shape, generator=source).to(first.dtype),
            "dstates": torch.randn(states.shape, generator=source),
        }
        expected = _results(spec, names if spec.grad else [], inputs, incoming, "float64")
        eager = _results(spec, names if spec.grad else [], inputs, incoming, "same")
        eps = torch.finfo(first.dtype).eps
        budget = {
            name: 2 * (error if math.isfinite(error) else 0.0) + (eps / 2 + 8 * EPS32) * size(value)
            for name, value in expected.items()
            for error in [max_error(eager[name].reshape(value.shape), value)]
        }
        if spec.grad:
            signs = torch.randint(0, 2, out.shape, generator=source) * 2 - 1
            rounded = incoming | {"dout": incoming["dout"].double() * (1 + signs * eps / 2)}
            moved = _results(spec, names, inputs, rounded, "float64")
            budget |= {n: b + max_error(moved[n], expected[n]) for n, b in budget.items()}
        return cls(incoming if spec.grad else {}, expected, budget)


def _flag(spec: Spec) -> str:
    return "return_final_states" if _of(spec).kind == "ssd" else "return_final_state"


def _both(spec: Spec, inputs: Inputs, precision: Any) -> tuple[Tensor, Tensor]:
    found = reference(spec, precision=precision, **inputs, **{_flag(spec): True})
    assert isinstance(found, tuple)
    return found


def _results(
    spec: Spec, names: list[str], inputs: Inputs, incoming: dict[str, Tensor], precision: Any
) -> dict[str, Tensor]:
    wide = precision == "float64"
    leaves = {n: (inputs[n].double() if wide else inputs[n]).detach().requires_grad_() for n in names}
    out, states = _both(spec, inputs | leaves, precision)
    found = {"out": out.detach(), "states": states.detach()}
    return found | _gradients(leaves, out, states, incoming)


def _gradients(
    leaves: dict[str, Tensor], out: Tensor, states: Tensor, incoming: dict[str, Tensor]
) -> dict[str, Tensor]:
    if not leaves:
        return {}
    given = [(t, incoming[n].to(t.dtype)) for t, n in ((out, "dout"), (states, "dstates")) if t.requires_grad]
    ends, gradients = zip(*given, strict=True)
    found = torch.autograd.grad(ends, list(leaves.values()), gradients, materialize_grads=True)
    return {f"d{name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def _of_graph(graph: Graph, inputs: Inputs, incoming: dict[str, Tensor]) -> dict[str, Tensor]:
    found = interpret_recurrence(graph, inputs | incoming)
    wanted = {f"d{name}" for name, node in graph.all(Input) if node.grad}
    return {name: value for name, value in found.items() if name in ("out", "states") or name in wanted}


def _of_kernels(spec: Spec, module: ModuleType, inputs: Inputs, truth: _Truth) -> dict[str, Tensor]:
    names = [n.removeprefix("d") for n in truth.expected if n not in ("out", "states")]
    leaves = {n: inputs[n].detach().requires_grad_() for n in names}
    run = getattr(module, module.MANIFEST["mechanism"])
    out, states = run(**(inputs | leaves), **{_flag(spec): True})
    found = {"out": out.detach(), "states": states.detach()}
    return found | _gradients(leaves, out, states, truth.incoming)


def _with_decode(spec: Spec, module: ModuleType, inputs: Inputs) -> dict[str, Tensor]:
    """All tokens but the last, up to three, at once; those by the function that decodes, in place."""
    tokens = {n: t for n, t in inputs.items() if n in OF_TOKENS}
    rest = {n: t for n, t in inputs.items() if n not in (*tokens, "initial_state", "initial_states")}
    mechanism = module.MANIFEST["mechanism"]
    cut = max(next(iter(tokens.values())).shape[1] - 3, 0)
    prefill, step = getattr(module, mechanism), getattr(module, f"{mechanism}_step")
    before, states = prefill(**(inputs | {n: t[:, :cut] for n, t in tokens.items()}), **{_flag(spec): True})
    after = step(states, **rest, **{n: t[:, cut:] for n, t in tokens.items()})
    return {"out": torch.cat([before, after], 1), "states": states}


def check_calls(spec: Spec, dtype: str) -> Iterator[tuple[Call, list[Comparison]]]:
    """Check one dtype of a spec, call after call."""
    spec = smaller(spec)
    module = guarded("emission", lambda: build_module(spec, interpret=True))
    for call in calls(spec):
        yield call, check_call(spec, module, call, dtype)
