"""A generated module as a citizen of torch: custom op, fake tensors, compile, clear errors, no silent gradients."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import attngen

CAUSAL = "j <= i"


@functools.cache
def _built(text: str) -> Any:
    return attngen.build(json.loads(text))


def build(**keys: Any) -> Any:
    spec = {"attngen": 1, "name": "citizen", "heads": {"q": 4, "kv": 2}, "head_dim": 16}
    return _built(json.dumps(spec | {"dtype": ["float32", "bfloat16"], "mask": CAUSAL} | keys))


def dense(
    layout: str = "bshd", seqlen_q: int = 9, seqlen_k: int = 12, batch: int = 2, **more: Any
) -> dict[str, Tensor]:
    def tensor(length: int, heads: int) -> Tensor:
        shape = (batch, length, heads, 16) if layout == "bshd" else (batch, heads, length, 16)
        return torch.randn(shape, **more)

    return {"q": tensor(seqlen_q, 4), "k": tensor(seqlen_k, 2), "v": tensor(seqlen_k, 2)}


def packed(lengths_q: list[int], lengths_k: list[int]) -> dict[str, Any]:
    def starts(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).int()

    return {
        "q": torch.randn(sum(lengths_q), 4, 16),
        "k": torch.randn(sum(lengths_k), 2, 16),
        "v": torch.randn(sum(lengths_k), 2, 16),
        "cu_seqlens_q": starts(lengths_q),
        "cu_seqlens_k": starts(lengths_k),
        "max_seqlen_q": max(lengths_q),
        "max_seqlen_k": max(lengths_k),
    }


BIAS = {"bias": {"dtype": "float32", "axes": ["B", "Hq", "Sq", "Sk"]}}
MODULES: dict[str, dict[str, Any]] = {
    "dense": {},
    "bhsd": {"layout": "bhsd"},
    "window": {"mask": "j <= i and i - j < window", "params": {"window": "int"}},
    "softcap": {"score": "cap * tanh(s / cap)", "params": {"cap": "float"}},
    "captured": {"score": "s + bias[b, h, row, j]", "captured": BIAS},
    "sinks": {"sinks": True},
    "dropout": {"dropout": True},
    "packed": {"layout": "thd"},
}


def arguments(name: str, seqlen_q: int = 9, seqlen_k: int = 12, batch: int = 2) -> dict[str, Any]:
    """Arguments of the public function of one of MODULES."""
    if name == "packed":
        return packed([seqlen_q] + [3] * batch, [seqlen_k] + [5] * batch)
    more: dict[str, Any] = {
        "window": {"window": 4},
        "softcap": {"cap": 1.5},
        "captured": {"bias": torch.randn(1, 4, seqlen_q, seqlen_k)},
        "sinks": {"sinks": torch.randn(4)},
        "dropout": {"dropout_p": 0.25, "seed": torch.tensor([3, 4])},
    }.get(name, {})
    return dense("bhsd" if name == "bhsd" else "bshd", seqlen_q, seqlen_k, batch) | more


def op_arguments(name: str) -> tuple[Any, ...]:
    """The same for the custom op below it."""
    given = arguments(name)
    given["softmax_scale"] = 0.25
    given["seqused_k"] = torch.tensor([5, 0, 5], dtype=torch.int32) if name == "packed" else None
    order = [a.name for a in build(**MODULES[name])._forward._opoverload._schema.arguments]
    return tuple(given[argument] for argument in order)


# ---- the custom op


@pytest.mark.parametrize("name", MODULES)
def test_opcheck(name):
    torch.library.opcheck(build(**MODULES[name])._forward, op_arguments(name))


@pytest.mark.parametrize("name", MODULES)
def test_the_shapes_of_fake_tensors_are_those_of_results(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    module, given = build(**MODULES[name]), arguments(name)
    real = module.attention(**given, return_lse=True)
    with FakeTensorMode() as mode:
        fakes = {n: mode.from_tensor(x) if isinstance(x, Tensor) else x for n, x in given.items()}
        found = module.attention(**fakes, return_lse=True)
    for have, want in zip(found, real, strict=True):
        assert (have.shape, have.dtype, have.stride()) == (want.shape, want.dtype, want.stride())


def test_meta_tensors_have_shapes_too():
    given = {name: t.to("meta") for name, t in dense(seqlen_q=100_000, seqlen_k=1_000_000).items()}
    out, lse = build().attention(**given, return_lse=True)
    assert out.shape == (2, 100_000, 4, 16)
    assert lse.shape == (2, 4, 100_000)
    assert out.device.type == "meta"


# ---- torch.compile


class Counter:
    """A backend that traces through fake tensors and counts what it compiles."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs.append(graph)
        return aot_eager(graph, inputs)


def compiled(module: Any, **options: Any) -> tuple[Any, Counter]:
    torch._dynamo.reset()
    counter = Counter()

    def function(**given: Any) -> Any:
        out, lse = module.attention(**given, return_lse=True)
        return out * 2, lse + 1

    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def never_again(armed: bool) -> Any:
    """Compiling once more raises."""
    return torch._dynamo.config.patch(error_on_recompile=armed)


def same(found: Any, module: Any, given: dict[str, Any]) -> None:
    out, lse = module.attention(**given, return_lse=True)
    torch.testing.assert_close(found, (out * 2, lse + 1))


@pytest.mark.parametrize("name", MODULES)
def test_compile_gives_the_same_in_one_graph(name):
    module, given = build(**MODULES[name]), arguments(name)
    function, counter = compiled(module)
    same(function(**given), module, given)
    assert len(counter.graphs) == 1
    calls = [node for node in counter.graphs[0].graph.nodes if "attngen" in str(node.target)]
    assert len(calls) == 1


@pytest.mark.parametrize("name", MODULES)
def test_other_lengths_and_batches_do_not_compile_again(name):
    module = build(**MODULES[name])
    function, _ = compiled(module, dynamic=True)
    for seqlen_q, seqlen_k, batch in ((9, 12, 3), (20, 33, 3), (5, 5, 5), (33, 20, 6)):
        given = arguments(name, seqlen_q, seqlen_k, batch)
        with never_again(seqlen_k != 12):
            same(function(**given), module, given)


def test_marked_lengths_do_not_compile_again():
    module = build()
    function, _ = compiled(module)
    for length in (9, 20, 33):
        given = dense(seqlen_q=length, seqlen_k=length)
        for tensor in given.values():
            torch._dynamo.mark_dynamic(tensor, 1)
        with never_again(length != 9):
            same(function(**given), module, given)


def test_another_window_does_not_compile_again():
    module = build(**MODULES["window"])
    function, _ = compiled(module, dynamic=True)
    for window in (4, 7, 100):
        given = dense() | {"window": window}
        with never_again(window != 4):
            same(function(**given), module, given)


@pytest.mark.slow
def test_inductor_gives_the_same():
    module, given = build(), arguments("dense")
    torch._dynamo.reset()
    found = torch.compile(lambda **g: module.attention(**g) * 2, fullgraph=True)(**given)
    torch.testing.assert_close(found, module.attention(**given) * 2)


# ---- wrong arguments


def bad(**changes: Any) -> dict[str, Any]:
    return dense() | changes


def zeros(*shape: int, **more: Any) -> Tensor:
    return torch.zeros(shape, **more)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "rank": ("dense", bad(q=zeros(9, 4, 16)), r"q: expected 4 dimensions, got shape (9, 4, 16)"),
    "no tensor": ("dense", bad(k=[1.0]), "k: expected a tensor, got list"),
    "dtype": ("dense", {n: t.double() for n, t in dense().items()}, "q: dtype torch.float64 is not one of"),
    "two dtypes": ("dense", bad(v=zeros(2, 12, 2, 16, dtype=torch.bfloat16)), "v: dtype torch.bfloat16 differs from q's"),
    "device": ("dense", bad(k=zeros(2, 12, 2, 16, device="meta")), "k: is on meta, q is on cpu"),
    "head dim": ("dense", bad(q=zeros(2, 9, 4, 24)), "q: expected head dim 16, got shape (2, 9, 4, 24)"),
    "strides": ("dense", bad(q=zeros(2, 9, 16, 4).transpose(2, 3)), "q: the last dimension must be contiguous"),
    "heads": ("dense", bad(q=zeros(2, 9, 6, 16)), "q has 6 heads and k 2: expected 2 query heads per kv head"),
    "batch": ("dense", bad(q=zeros(3, 9, 4, 16)), "k: shape (2, 12, 2, 16) has another batch than q's (3, 9, 4, 16)"),
    "k and v": ("dense", bad(v=zeros(2, 11, 2, 16)), "v: shape (2, 11, 2, 16) does not go with k's (2, 12, 2, 16)"),
    "sinks": ("dense", bad(sinks=zeros(4)), "sinks: the spec has none"),
    "dropout": ("dense", bad(dropout_p=0.1), "dropout_p, seed: the spec has none; add `dropout: true` and generate again"),
    "seed": ("dense", bad(seed=1), "dropout_p, seed"),
    "scale": ("dense", bad(softmax_scale="wide"), "softmax_scale: expected a number, got str"),
    "float for int": ("window", bad(window=4.0), "window: expected int, got float"),
    "bool for int": ("window", bad(window=True), "window: expected int, got bool"),
    "large int": ("window", bad(window=2**31 - 1), "window: must lie within 2**28 of 0"),
    "text for float": ("softcap", bad(cap="30"), "cap: expected float, got str"),
    "missing param": ("window", bad(), "window"),
    "unknown argument": ("dense", bad(windw=4), "windw"),
    "missing captured": ("captured", bad(), "bias"),
    "captured shape": ("captured", bad(bias=zeros(2, 4, 12, 9)), "(2, 4, 9, 12) (a 1 is broadcast), got (2, 4, 12, 9)"),
    "captured rank": ("captured", bad(bias=zeros(9, 12)), "bias: expected shape (2, 4, 9, 12)"),
    "captured dtype": ("captured", bad(bias=zeros(2, 4, 9, 12, dtype=torch.int32)), "bias: expected dtype torch.float32"),
    "captured device": ("captured", bad(bias=zeros(2, 4, 9, 12, device="meta")), "bias: is on meta, q is on cpu"),
    "captured kind": ("captured", bad(bias=1.0), "bias: expected a tensor of shape (2, 4, 9, 12), got float"),
    "missing sinks": ("sinks", bad(), "sinks"),
    "no sinks": ("sinks", bad(sinks=None), "sinks: expected a tensor of shape (4,), got NoneType"),
    "sinks shape": ("sinks", bad(sinks=zeros(3)), "sinks: expected shape (4,) (a 1 is broadcast), got (3,)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    module, given, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        build(**MODULES[module]).attention(**given)


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


WRONG_PACKED: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"cu_seqlens_q": ints(0, 9, 12, dtype=torch.int64)}, "cu_seqlens_q: expected dtype torch.int32, got torch.int64"),
    "kind": ({"cu_seqlens_k": [0, 12, 17]}, "cu_seqlens_k: expected an int32 tensor, got list"),
    "rank": ({"cu_seqlens_q": ints(0, 9, 12)[None]}, "cu_seqlens_q: expected a contiguous [B + 1], got shape (1, 3)"),
    "empty": ({"cu_seqlens_q": ints()}, "cu_seqlens_q: expected a contiguous [B + 1], got shape (0,)"),
    "strided": ({"cu_seqlens_q": ints(0, 0, 9, 9, 12, 12)[::2]}, "cu_seqlens_q: expected a contiguous [B + 1]"),
    "start": ({"cu_seqlens_q": ints(1, 9, 12)}, "cu_seqlens_q: must start at 0, starts at 1"),
    "order": ({"cu_seqlens_k": ints(0, 14, 12)}, "cu_seqlens_k: must not decrease, got [0, 14, 12]"),
    "end": ({"cu_seqlens_k": ints(0, 12, 18)}, "cu_seqlens_k: ends at 18, there are 17 tokens"),
    "counts": ({"cu_seqlens_k": ints(0, 5, 12, 17)}, "cu_seqlens_k: shape (4,), cu_seqlens_q has (3,)"),
    "longest": ({"max_seqlen_q": 8}, "cu_seqlens_q: a sequence has 9 tokens, its max_seqlen argument says 8"),
    "device": ({"cu_seqlens_q": ints(0, 9, 12).to("meta")}, "cu_seqlens_q: is on meta, q is on cpu"),
    "used dtype": ({"seqused_k": ints(5, 5, dtype=torch.int64)}, "contiguous int32 [2], got torch.int64 (2,)"),
    "used shape": ({"seqused_k": ints(5, 5, 5)}, "seqused_k: expected a contiguous int32 [2], got torch.int32 (3,)"),
    "used device": ({"seqused_k": ints(5, 5).to("meta")}, "seqused_k: is on meta, q is on cpu"),
    "used kind": ({"seqused_k": [5, 5]}, "seqused_k: expected an int32 tensor, got list"),
    "used too many": ({"seqused_k": ints(5, 6)}, "seqused_k: must lie within the lengths [12, 5], got [5, 6]"),
    "used negative": ({"seqused_k": ints(5, -1)}, "seqused_k: must lie within the lengths [12, 5], got [5, -1]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PACKED)
def test_a_wrong_packed_argument_is_named(name):
    changes, message = WRONG_PACKED[name]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        build(layout="thd").attention(**(packed([9, 3], [12, 5]) | changes))


def test_lengths_are_tensors_of_the_device_and_are_not_read_there():
    """On a GPU the values of cu_seqlens may not be read: that would wait for the device. Meta tensors have none."""
    given = {n: x.to("meta") if isinstance(x, Tensor) else x for n, x in packed([9, 3], [12, 5]).items()}
    assert build(layout="thd").attention(**given).shape == (12, 4, 16)


# ---- gradients


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_backward_raises_instead_of_leaving_out_a_gradient(name):
    module, given = build(**MODULES["captured"]), arguments("captured")
    given[name].requires_grad_()
    out = module.attention(**given)
    with pytest.raises(RuntimeError, match="generated without a backward: add `grad: true`"):
        out.sum().backward()
    assert given[name].grad is None


# ---- running without attngen


PLAIN = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("vendored", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
q, k = torch.ones(1, 3, 4, 16), torch.ones(1, 3, 2, 16)
for dtype in (torch.float32, torch.bfloat16):
    try:
        print("ran", float(module.attention(q.to(dtype), k.to(dtype), k.to(dtype)).sum()))
    except RuntimeError as error:
        print("refused", error)
assert not any(name.startswith("attngen") for name in sys.modules)
"""


def plainly(interpret: str) -> list[str]:
    """What the generated file does in a process that knows nothing of attngen."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLAIN), build().__file__],
        env=environment | {"TRITON_INTERPRET": interpret, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_plain_interpreter_runs_fp32_and_refuses_bf16():
    single, half = plainly("1")
    assert single == "ran 192.0"
    assert half.startswith("refused citizen: Triton's plain interpreter computes torch.bfloat16 on raw bits")
    assert "attngen.build(spec)" in half


def test_cpu_tensors_without_an_interpreter_are_refused():
    for line in plainly("0"):
        assert line.startswith("refused citizen: CPU tensors run in Triton's interpreter, which is off")


# ---- one op per module


def test_a_copy_of_the_module_does_not_disturb_the_first(tmp_path):
    """The committed file and the one in the cache are the same module twice in a process."""
    from attngen.runtime.load import load_module

    first = build()
    path = tmp_path / "vendored.py"
    path.write_text(Path(first.__file__).read_text())
    given = dense()
    expected = first.attention(**given)
    second = load_module(path)
    assert second is not first
    assert torch.equal(second.attention(**given), expected)
    assert torch.equal(first.attention(**given), expected)
    function, counter = compiled(first)
    same(function(**given), first, given)
    assert len(counter.graphs) == 1


def test_arguments_are_left_as_they_were():
    given = arguments("captured")
    before = copy.deepcopy(given)
    build(**MODULES["captured"]).attention(**given)
    assert all(torch.equal(given[n], before[n]) for n in given)
