"""Recurrences over more than 2^31 elements. Memory that nobody touches costs nothing: a test reads and writes a little of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attngen.check.recurrence import Call, make_inputs
from attngen.runtime.build import build
from attngen.runtime.cpu import triton_modules
from attngen.spec import Spec, load_spec

SSD: dict[str, Any] = {"kind": "ssd", "state": 16, "groups": 2, "dt_softplus": True}
KINDS: dict[str, dict[str, Any]] = {
    "ssd": {"grad": True, "recurrence": SSD},
    "normalised": {"grad": True, "recurrence": {"feature": "elu(x) + 1", "normalise": True}},
    "scalar": {"grad": True, "recurrence": {"decay": "scalar"}},
    "vector": {"grad": True, "recurrence": {"decay": "vector"}},
    "gated delta": {"grad": True, "recurrence": {"transition": "delta", "decay": "scalar"}},
}
CAPTURED = ("A", "D", "dt", "dt_bias", "g", "beta", "initial_states", "initial_state")
AXES: dict[str, str] = {
    **dict.fromkeys(("x", "z", "v", "dout"), "BLHV"),
    **dict.fromkeys(("q", "k"), "BLHK"),
    **dict.fromkeys("BC", "BLGK"),
    **dict.fromkeys(("dt", "beta"), "BLH"),
    **dict.fromkeys(("A", "dt_bias"), "H"),
    "D": "HV",
    "initial_states": "BHVK",
    "initial_state": "BHKV",
}
CHUNK = 16


def spec_of(kind: str, head_dim: int = 16, chunk: int = CHUNK) -> Spec:
    small = {"attngen": 1, "name": "large", "heads": 4, "head_dim": head_dim, "dtype": "bfloat16"}
    fields = KINDS[kind]
    recurrence = {"kind": "linear", "chunk": chunk, **fields["recurrence"]}
    if kind == "ssd":
        recurrence["state"] = head_dim
    return load_spec({**small, **fields, "recurrence": recurrence})


def results(spec: Spec, inputs: dict[str, Any], dout: torch.Tensor) -> list[torch.Tensor]:
    """out, final states and, where the spec has them, all gradients."""
    module = build(spec, interpret=True)
    mamba = module.MANIFEST["mechanism"] == "ssd"
    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items()} if spec.grad else inputs
    flag = "return_final_states" if mamba else "return_final_state"
    out, states = getattr(module, module.MANIFEST["mechanism"])(**leaves, **{flag: True})
    if not spec.grad:
        return [out, states]
    return [out, states, *torch.autograd.grad(out, list(leaves.values()), dout)]


def far(tensors: dict[str, torch.Tensor], axis: str) -> dict[str, torch.Tensor]:
    """The same tensors in one large piece of memory, an axis of each with a large stride."""
    room = torch.empty(2**31 + 2**29, dtype=torch.bfloat16)
    found: dict[str, torch.Tensor] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        axes = AXES[name] if name != "g" else "BLHK"[: tensor.dim()]
        inner = axes[-1] if name in CAPTURED else ""  # of others the last axis is contiguous
        large = [a in axis and (a != axes[-1] or bool(inner)) for a in axes]
        places = [min(n, CHUNK) if a == "L" else n for a, n in zip(axes, tensor.shape, strict=True)]
        strides = [past(n) if it else s for n, it, s in zip(places, large, tensor.stride(), strict=True)]
        view = room.as_strided(tensor.shape, strides, number * 2**16)
        view.copy_(tensor)
        found[name] = view
    return found


def past(places: int) -> int:
    """The least stride, nearly, with which the last place lies past 2^31 elements; of three places and more it has 32 bits."""
    return 2**31 // max(1, places - 1) + 8


def reach(tensor: torch.Tensor) -> int:
    """The offset of the last element, in elements."""
    return sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


@pytest.mark.parametrize("axis", ["B", "L", "HG", "K", "V"])
@pytest.mark.parametrize("kind", KINDS)
def test_strides_that_reach_past_two_to_the_31_elements(kind, axis):
    """The bits are those of the same numbers side by side."""
    spec = spec_of(kind)
    inputs = make_inputs(spec, Call(name="far", lengths=(18, 18), heads=4), torch.bfloat16)
    if kind == "ssd":  # as many groups as a stride of 2^30 needs
        inputs |= {n: inputs[n].repeat(1, 1, 2, 1) for n in "BC"}
        heads = [n for n in inputs if "H" in AXES[n]]
        inputs |= {n: inputs[n].repeat_interleave(2, AXES[n].index("H")) for n in heads}
        inputs["D"] = inputs["D"][:, None].repeat(1, 16)
    inputs = {n: x.bfloat16() for n, x in inputs.items()}
    dout = torch.randn(inputs["x" if kind == "ssd" else "v"].shape).bfloat16()
    moved = far({**inputs, "dout": dout}, axis)
    assert max(map(reach, moved.values())) >= 2**31
    there = moved.pop("dout")
    for near, found in zip(results(spec, inputs, dout), results(spec, moved, there), strict=True):
        assert torch.equal(near, found)


@pytest.mark.parametrize(("kind", "name"), [("scalar", "dout"), ("gated delta", "beta")])
def test_one_tensor_with_large_strides_is_enough(kind, name):
    spec = spec_of(kind)
    inputs = make_inputs(spec, Call(name="far", lengths=(18,), heads=2), torch.bfloat16)
    inputs = {n: x.bfloat16() for n, x in inputs.items()}
    near = {**inputs, "dout": torch.randn(inputs["v"].shape).bfloat16()}
    moved = {**near, **far({name: near[name]}, "L")}
    expected = results(spec, inputs, near.pop("dout"))
    found = results(spec, {n: x for n, x in moved.items() if n != "dout"}, moved["dout"])
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


# ---- as many elements side by side


@pytest.fixture
def last_programs(monkeypatch) -> None:
    """Run the last programs of each launch only: those of the last heads of the last sequences."""
    interpreter = triton_modules.interpreter()
    launch, place = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.set_grid_idx
    skipped = [0]

    def last(executor: Any, *given: Any, **named: Any) -> None:
        (programs,) = executor.grid  # one axis, the large one: x
        skipped[0] = max(0, programs - 32)
        executor.grid = (programs - skipped[0],)
        launch(executor, *given, **named)

    def moved(builder: Any, x: int, y: int, z: int) -> None:
        place(builder, x, y, z)
        builder.grid_idx = (x + skipped[0], y, z)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", last)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", moved)


@pytest.mark.parametrize("kind", KINDS)
def test_last_of_more_than_two_to_the_31_elements(kind, last_programs):
    """The last head of the last of very many sequences is what it is alone; all buffers between kernels are as large."""
    spec = spec_of(kind, head_dim=64, chunk=64)
    batch, heads = 4100, 128
    alone = make_inputs(spec, Call(name="alone", lengths=(64,), whole=False, heads=2), torch.bfloat16)
    dout = torch.randn(alone["x" if kind == "ssd" else "v"].shape).bfloat16()
    many: dict[str, torch.Tensor] = {}
    for name, tensor in {**alone, "dout": dout}.items():
        axes = AXES[name] if name != "g" else "BLHK"[: tensor.dim()]
        sizes = {"B": batch, "H": heads, "G": heads // 2}
        shape = [sizes.get(a, n) for a, n in zip(axes, tensor.shape, strict=True)]
        many[name] = torch.empty(
            shape, dtype=tensor.dtype
        )  # fresh memory: zeros, which cost nothing until they change
        many[name][tuple(slice(-n, None) for n in tensor.shape)] = tensor
    assert many["dout"].numel() >= 2**31
    there = many.pop("dout")
    found, expected = results(spec, many, there), results(spec, alone, dout)
    names = ("out", "states", *alone)[: len(found)]
    for name, value, want in zip(names, found, expected, strict=True):
        if name == "A":  # summed up over all sequences
            continue
        assert torch.equal(value[tuple(slice(-n, None) for n in want.shape)], want), name
