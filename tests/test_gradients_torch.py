"""The backward of a generated module as a citizen of torch: custom op, compile, what is saved, what is refused."""

from __future__ import annotations

import functools
import json
import re
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import attngen

NAMES: dict[str, dict[str, Any]] = {
    "dense": {},
    "bhsd": {"layout": "bhsd"},
    "per head": {"score": "s * (1 + h)"},
    "param": {"score": "cap * tanh(s / cap)", "params": {"cap": "float"}},
    "captured": {
        "score": "s * y[b, h, row] + x[h] * (j - i)",
        "captured": {
            "y": {"dtype": "float32", "axes": ["B", "Hq", "Sq"], "grad": True},
            "x": {"dtype": "float32", "axes": ["Hq"], "grad": True},
        },
    },
    "size one": {
        "score": "s + bias[b, h, row, j]",
        "captured": {"bias": {"dtype": "float32", "axes": ["B", "Hq", "Sq", "Sk"], "grad": True}},
    },
    "sinks": {"sinks": True},
    "dropout": {"dropout": True},
    "packed": {"layout": "thd", "sinks": True},
}


@functools.cache
def _built(text: str) -> Any:
    return attngen.build(json.loads(text))


def build(**keys: Any) -> Any:
    spec = {"attngen": 1, "name": "citizen", "heads": {"q": 4, "kv": 2}, "head_dim": 16, "grad": True}
    return _built(json.dumps(spec | {"dtype": ["float32", "bfloat16"], "mask": "j <= i"} | keys))


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def arguments(name: str, seqlen_q: int = 9, seqlen_k: int = 12, batch: int = 2) -> dict[str, Any]:
    """Arguments of the public function; what can have a gradient asks for one."""
    if name == "packed":
        lengths = {"q": [seqlen_q] + [3] * batch, "k": [seqlen_k] + [5] * batch}
        found: dict[str, Any] = {"q": leaf(sum(lengths["q"]), 4, 16)}
        found |= {n: leaf(sum(lengths["k"]), 2, 16) for n in "kv"}
        for side, given in lengths.items():
            found[f"cu_seqlens_{side}"] = torch.tensor([0, *given]).cumsum(0).int()
            found[f"max_seqlen_{side}"] = max(given)
        return found | {"sinks": leaf(4)}
    shape = (lambda s, h: (batch, h, s, 16)) if name == "bhsd" else (lambda s, h: (batch, s, h, 16))
    found = {"q": leaf(*shape(seqlen_q, 4)), "k": leaf(*shape(seqlen_k, 2)), "v": leaf(*shape(seqlen_k, 2))}
    more: dict[str, Any] = {
        "param": {"cap": 1.5},
        "captured": {"y": leaf(batch, 4, seqlen_q), "x": leaf(4)},
        "size one": {"bias": leaf(1, 1, seqlen_q, seqlen_k)},
        "sinks": {"sinks": leaf(4)},
        "dropout": {"dropout_p": 0.25, "seed": torch.tensor([3, 4])},
    }.get(name, {})
    return found | more


def op_arguments(name: str, op: Any) -> tuple[Any, ...]:
    """The same for a custom op below it."""
    given = arguments(name) | {"softmax_scale": 0.25, "seqused_k": None}
    module = build(**NAMES[name])
    with torch.no_grad():
        out, lse = module.attention(**{n: x for n, x in given.items() if n != "seqused_k"}, return_lse=True)
    given |= {"out": out, "lse": lse, "dout": torch.randn_like(out), "dlse": torch.randn_like(lse)}
    return tuple(given[a.name] for a in op._opoverload._schema.arguments)


# ---- the custom ops

FAST = ("captured", "size one", "dropout", "packed")
TIERS = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]


@pytest.mark.parametrize("name", TIERS)
def test_opcheck_of_the_forward(name):
    op = build(**NAMES[name])._forward
    torch.library.opcheck(op, op_arguments(name, op))


@pytest.mark.parametrize("name", TIERS)
def test_opcheck_of_the_backward(name):
    op = build(**NAMES[name])._backward
    given = tuple(x.detach() if isinstance(x, Tensor) else x for x in op_arguments(name, op))
    torch.library.opcheck(op, given)
    without_dlse = tuple(
        None if a.name == "dlse" else x for a, x in zip(op._opoverload._schema.arguments, given, strict=True)
    )
    torch.library.opcheck(op, without_dlse, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", NAMES)
def test_fake_gradients_are_those_of_results(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = build(**NAMES[name])._backward
    given = tuple(x.detach() if isinstance(x, Tensor) else x for x in op_arguments(name, op))
    with FakeTensorMode() as mode:
        fakes = op(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given))
    for have, want in zip(fakes, op(*given), strict=True):
        assert (have.shape, have.dtype, have.stride()) == (want.shape, want.dtype, want.stride())


@pytest.mark.parametrize("name", ["dense", "packed"])
def test_meta_gradients(name):
    given = {
        n: x.detach().to("meta").requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x
        for n, x in arguments(name).items()
    }
    build(**NAMES[name]).attention(**given).sum().backward()
    assert all(given[n].grad.shape == given[n].shape for n in "qkv")


# ---- torch.compile


class Counter:
    """A backend that traces forward and backward through fake tensors and counts what it compiles."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs.append(graph)
        return aot_eager(graph, inputs)


def gradients(function: Any, given: dict[str, Any]) -> dict[str, Tensor]:
    leaves = {n: x for n, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(function(**given), list(leaves.values())), strict=True))


def compiled(name: str, **options: Any) -> tuple[Any, Any, Counter]:
    torch._dynamo.reset()
    module, counter = build(**NAMES[name]), Counter()

    def function(**given: Any) -> Any:
        out, lse = module.attention(**given, return_lse=True)
        return (out * out).sum() + lse.sin().sum()

    return torch.compile(function, backend=counter, fullgraph=True, **options), function, counter


@pytest.mark.parametrize("name", TIERS)
def test_compile_gives_the_same_in_one_graph(name):
    fast, plain, counter = compiled(name)
    given = arguments(name)
    found = gradients(fast, given)
    assert found.keys() >= {"q", "k", "v"}
    for n, want in gradients(plain, given).items():
        torch.testing.assert_close(found[n], want)
    assert len(counter.graphs) == 1


@pytest.mark.parametrize("name", TIERS)
def test_other_lengths_do_not_compile_again(name):
    fast, plain, _ = compiled(name, dynamic=True)
    for seqlen_q, seqlen_k, batch in ((9, 12, 3), (20, 33, 3), (33, 20, 6)):
        given = arguments(name, seqlen_q, seqlen_k, batch)
        with torch._dynamo.config.patch(error_on_recompile=seqlen_k != 12):
            found = gradients(fast, given)
        for n, want in gradients(plain, given).items():
            torch.testing.assert_close(found[n], want)


@pytest.mark.slow
def test_inductor_gives_the_same():
    _, plain, _ = compiled("dense")
    given = arguments("dense")
    found = gradients(torch.compile(plain, fullgraph=True), given)
    for n, want in gradients(plain, given).items():
        torch.testing.assert_close(found[n], want)


# ---- what is kept for the backward

KEPT = {"dense": "qkv", "per head": "qkv", "captured": [*"qkv", "y", "x"], "sinks": [*"qkv", "sinks"]}
KEPT["size one"] = [*"qkv", "bias"]
KEPT["dropout"] = [*"qkv", "seed"]
KEPT["packed"] = [*"qkv", "cu_seqlens_q", "cu_seqlens_k", "sinks"]


@pytest.mark.parametrize("name", KEPT)
def test_inputs_out_and_lse_are_saved_and_nothing_else(name):
    given, saved = arguments(name), list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out, lse = build(**NAMES[name]).attention(**given, return_lse=True)
    want = [*(given[n] for n in KEPT[name]), out, lse]
    assert sorted(x.data_ptr() for x in saved) == sorted(x.data_ptr() for x in want)
    assert sum(x.numel() for x in saved) == sum(x.numel() for x in want)
    assert vars(out.grad_fn)["kept"]
    assert not [n for n, x in vars(out.grad_fn).items() if holds_a_tensor(x)]


def holds_a_tensor(value: object) -> bool:
    """Whether a tensor is a value or lies somewhere inside it."""
    if isinstance(value, dict):
        return any(holds_a_tensor(x) for x in value.values())
    if isinstance(value, (tuple, list, set)):
        return any(map(holds_a_tensor, value))
    return isinstance(value, Tensor)


def test_nothing_is_saved_without_gradients():
    saved = list[Tensor]()
    given = {n: x.detach() for n, x in arguments("dense").items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        assert not build().attention(**given).requires_grad
    assert not saved


def test_checkpointing_gives_the_same():
    from torch.utils.checkpoint import checkpoint

    given = arguments("dense")
    attention = build().attention
    found = gradients(lambda q, k, v: checkpoint(attention, q, k, v, use_reentrant=False).sum(), given)
    for name, want in gradients(lambda q, k, v: attention(q, k, v).sum(), given).items():
        assert torch.equal(found[name], want)


def test_an_input_changed_in_place_is_an_error():
    given = arguments("dense")
    out = build().attention(**given)
    with torch.no_grad():
        given["k"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gradients_add_up():
    given = arguments("dense")
    attention = build().attention
    single = gradients(lambda **g: attention(**g).sum(), given)
    for _ in range(2):
        attention(**given).sum().backward()
    assert all(torch.equal(given[n].grad, 2 * x) for n, x in single.items())


# ---- what is refused


def refused(message: str) -> Any:
    return pytest.raises(RuntimeError, match=re.escape(message))


@pytest.mark.parametrize("name", ["dense", "sinks", "packed"])
def test_a_spec_without_grad_says_how_to_get_one(name):
    module = build(**{**NAMES[name], "grad": False})
    out = module.attention(**arguments(name))
    with refused(
        "citizen: was generated without a backward: add `grad: true` to the spec and generate again"
    ):
        out.sum().backward()


@pytest.mark.parametrize("name", ["dense", "captured"])
def test_gradients_of_gradients_are_refused(name):
    given = arguments(name)
    out = build(**NAMES[name]).attention(**given)
    [dq] = torch.autograd.grad(out.square().sum(), [given["q"]], create_graph=True)
    with refused("citizen: gradients of gradients are not generated"):
        dq.sum().backward()


def test_a_captured_tensor_of_another_shape_is_named():
    given = arguments("captured")
    with pytest.raises(
        ValueError, match=re.escape("y: expected shape (2, 4, 9) (a 1 is broadcast), got (2, 4, 12)")
    ):
        build(**NAMES["captured"]).attention(**{**given, "y": leaf(2, 4, 12)})


def test_a_captured_tensor_without_grad_gets_none():
    """Leaving a gradient out without a word would train the wrong thing."""
    captured = {"bias": {"dtype": "float32", "axes": ["B", "Hq", "Sq", "Sk"]}}
    module = build(score="s + bias[b, h, row, j]", captured=captured)
    given = arguments("dense") | {"bias": torch.randn(2, 4, 9, 12)}
    module.attention(**given).sum().backward()
    assert given["q"].grad is not None
    given["bias"].requires_grad_()
    out = module.attention(**given)
    with refused(
        "citizen: bias: the spec asks for no gradient of it: add `grad: true` to captured.bias, or detach it"
    ):
        out.sum().backward()


@pytest.mark.parametrize(
    ("kernel", "size", "limit"),
    [
        ("_backward_rows", 64, "must be 128, it fills the padding of statistics"),
        ("_backward_rows", 256, "must be 128, it fills the padding of statistics"),
        ("_backward_dq", 256, "must be at most 128, the padding of statistics"),
        ("_backward_dkdv", 256, "must be at most 128, the padding of statistics"),
    ],
)
def test_tiles_of_rows_fit_the_padding_of_statistics(kernel, size, limit):
    module = build()
    q, k, v = (t.detach() for t in arguments("dense").values())
    out, lse = module.launch(q, k, v, 0.25)
    chosen = {**module.MANIFEST["kernels"][kernel]["configs"]["cpu"][0], "BLOCK_M": size}
    with pytest.raises(ValueError, match=f"citizen: {kernel}: BLOCK_M {limit}"):
        module.launch_backward(out, None, out, lse, q, k, v, 0.25, configs={kernel: chosen})


@pytest.mark.parametrize(("size", "large"), [(128, False), (256, True)])
def test_offsets_within_a_tile_are_as_wide_as_the_tiles_need(size, large):
    """Rows of K lie 2**23 elements apart: 256 of them reach 2**31."""
    module = build()
    q, k, v = (t.detach() for t in arguments("dense", seqlen_k=3, batch=1).values())
    k = torch.empty(3 * 2**23).as_strided(k.shape, (0, 2**23, 16, 1)).copy_(k)
    out, lse = module.launch(q, k, v, 0.25)
    chosen = {**module.MANIFEST["kernels"]["_backward_dkdv"]["configs"]["cpu"][0], "BLOCK_N": size}
    seen = MagicMock()
    with patch.object(module, "_backward_dkdv", seen):
        module.launch_backward(out, None, out, lse, q, k, v, 0.25, configs={"_backward_dkdv": chosen})
    assert seen.__getitem__.return_value.call_args.kwargs["LARGE_STRIDES"] is large


def test_a_tensor_that_only_the_mask_reads_has_no_gradient_to_ask_for():
    captured = {"bound": {"dtype": "float32", "axes": ["Hq"]}}
    module = build(mask="j <= i and bound[h] > 0.0", captured=captured)
    given = arguments("dense") | {"bound": torch.ones(4).requires_grad_()}
    out = module.attention(**given)
    with refused("citizen: bound: only the mask reads it, so that it has no gradient: detach it"):
        out.sum().backward()


@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev"])
def test_gradients_by_torch_func_are_refused(transform):
    """torch cannot transform a custom op's autograd, and would say so in words of its own."""
    given = {name: tensor.detach() for name, tensor in arguments("dense").items()}
    module = build()

    def of_values(v: Tensor) -> Tensor:
        return module.attention(**{**given, "v": v}).sum()

    with pytest.raises(
        ValueError, match=r"v: torch\.func's gradients are not generated; use torch\.autograd\.grad"
    ):
        getattr(torch.func, transform)(of_values, *([given["v"]] if transform == "vjp" else []))(given["v"])


def test_vmap_gives_what_a_loop_does():
    module = build()
    given = {name: torch.stack([tensor.detach()] * 2) for name, tensor in arguments("dense").items()}
    given["q"][1] *= -1
    found = torch.func.vmap(module.attention)(given["q"], given["k"], given["v"])
    for n in range(2):
        assert torch.equal(found[n], module.attention(*(given[name][n] for name in "qkv")))


def test_forward_mode_gradients_are_refused_and_not_zero():
    given = {name: tensor.detach() for name, tensor in arguments("dense").items()}
    module = build()

    def of_queries(q: Tensor) -> Tensor:
        return module.attention(**{**given, "q": q})

    with pytest.raises(ValueError, match="q: forward-mode gradients are not generated"):
        torch.func.jvp(of_queries, (given["q"],), (given["q"],))


@pytest.mark.parametrize("argument", ["bias", "sinks"])
def test_captured_tensors_and_sinks_have_no_such_gradients_either(argument):
    given = {name: tensor.detach() for name, tensor in arguments("size one").items()}
    given["sinks"] = torch.randn(4)
    module = build(**NAMES["size one"], sinks=True)

    def of_argument(x: Tensor) -> Tensor:
        return module.attention(**{**given, argument: x}).sum()

    with pytest.raises(ValueError, match=f"{argument}: forward-mode gradients are not generated"):
        torch.func.jvp(of_argument, (given[argument],), (given[argument],))
    with pytest.raises(ValueError, match=rf"{argument}: torch\.func's gradients are not generated"):
        torch.func.grad(of_argument)(given[argument])
