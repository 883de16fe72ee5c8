"""What the names of `triton.language` mean while an interpreted kernel runs.

Triton's interpreter swaps the builtins of `triton.language` for versions that run in numpy, again at every
call of a function inside a kernel, and leaves some swapped for good. Here the list of swaps is made once,
applied when a launch starts and taken back when it ends: faster, and code of others in the same process finds
`triton.language` as it was.

A launch also runs functions that were decorated for compilation. Triton's own library (`tl.max`, `tl.cdiv`)
is such code whenever triton was imported before anybody knew that kernels would be interpreted, which is the
rule: torch imports it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np

from attngen.runtime.cpu import fast_types, triton_modules, values

Swap = tuple[Any, str, Any]
_MISSING: Any = object()
_FRONTEND = ("triton.language.semantic", "triton.language.core")


class BlockTruthError(ValueError):
    """A tensor of several elements was used as a truth value, which a GPU cannot do either."""


def _own(obj: Any) -> Mapping[str, Any]:
    """What `obj` itself defines, without what it inherits."""
    own: dict[str, Any] = obj.__dict__
    return own


class Swaps:
    """A set of attributes that are replaced while at least one launch is active."""

    def __init__(self, swaps: list[Swap]) -> None:
        self.swaps = swaps
        self.saved: list[Swap] = []
        self.depth = 0

    def apply(self) -> Swaps:
        self.depth += 1
        if self.depth == 1:
            for obj, name, value in self.swaps:
                self.saved.append((obj, name, _own(obj).get(name, _MISSING)))
                setattr(obj, name, value)
        return self

    def restore(self) -> None:
        """The name that Triton's launch calls when it ends."""
        self.depth -= 1
        if self.depth == 0:
            while self.saved:
                obj, name, value = self.saved.pop()
                if value is _MISSING:
                    delattr(obj, name)
                else:
                    setattr(obj, name, value)


class _Recorder:
    """Stands in for Triton's patch scope: notes what would be set."""

    def __init__(self) -> None:
        self.swaps: list[Swap] = []

    def set_attr(self, obj: Any, name: str, value: Any) -> None:
        self.swaps.append((obj, name, value))


def install(interpreter: Any) -> None:
    """Replaces how the interpreter patches the language, rewrites and calls functions, passes arguments."""
    swaps = lru_cache(maxsize=1)(lambda: Swaps(_all_swaps(interpreter)))
    original_call = interpreter.InterpretedFunction.__call__

    def patch_lang(fn: Any) -> Swaps:
        return swaps().apply()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if swaps().depth == 0:
            return original_call(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    interpreter._patch_lang = patch_lang
    interpreter.InterpretedFunction.__call__ = call
    interpreter.FunctionRewriter._compile_and_exec = _compile_and_exec
    interpreter._implicit_cvt = _argument_rule(interpreter)


def _all_swaps(interpreter: Any) -> list[Swap]:
    tl, recorder = interpreter.tl, _Recorder()
    for module in (tl, tl.core):
        interpreter._patch_lang_tensor(module.tensor, recorder)
        interpreter._patch_lang_core(module, recorder)
    homes = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    builtins = [swap for home in homes for swap in _builtin_swaps(tl, home, interpreter.interpreter_semantic)]
    own: list[Swap] = [
        (tl.tensor, "__bool__", _truth),
        (tl.dtype, "to_ir", _element_type(tl, recorder)),
        (tl.tensor, "__index__", _index),
        (triton_modules.jit().JITFunction, "__call__", _compiled_call(interpreter)),
    ]
    return builtins + recorder.swaps + _member_swaps(tl) + fast_types.swaps(tl) + own


def _element_type(tl: Any, recorder: _Recorder) -> Callable[..., Any]:
    """A type as the builder knows it, which is itself; Triton leaves out the `fnuz` floats of AMD."""
    original = next(value for obj, name, value in recorder.swaps if obj is tl.dtype and name == "to_ir")

    def to_ir(dtype: Any, builder: Any) -> Any:
        return dtype if dtype.name in values.NAMES else original(dtype, builder)

    return to_ir


def _builtin_swaps(tl: Any, home: Any, semantic: Any) -> list[Swap]:
    members = inspect.getmembers(home, tl.core.is_builtin)
    return [(home, name, _with_semantic(member, semantic)) for name, member in members]


def _with_semantic(member: Callable[..., Any], semantic: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = semantic
        return member(*args, **kwargs)

    return run


def _member_swaps(tl: Any) -> list[Swap]:
    """`x.sum()` for a library function decorated for compilation: such a function does not bind `x`."""
    callables = inspect.getmembers(tl.tensor, lambda m: isinstance(m, triton_modules.jit().JITCallable))
    return [(tl.tensor, name, _bound(member)) for name, member in callables]


def _bound(member: Callable[..., Any]) -> Callable[..., Any]:
    def run(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return member(tensor, *args, **kwargs)

    return run


def _index(tensor: Any) -> int:
    return int(tensor.handle.data.item())


def _truth(tensor: Any) -> bool:
    """The truth of a scalar. Triton's frontend also asks `if other:` to learn whether one was given."""
    data = tensor.handle.data
    if data.size == 1:
        return bool(data.item())
    caller = inspect.currentframe()
    if caller and caller.f_back and caller.f_back.f_globals.get("__name__") in _FRONTEND:
        return True
    raise BlockTruthError(f"a tensor of shape {data.shape} has no truth value; use & and | for and, or")


def _compiled_call(interpreter: Any) -> Callable[..., Any]:
    """Runs a function that was decorated for compilation, interpreted."""

    @cache
    def interpreted(fn: Callable[..., Any]) -> Any:
        return interpreter.InterpretedFunction(fn)

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return interpreted(function.fn).rewrite()(*args, **kwargs)

    return call


def _compile_and_exec(rewriter: Any, transformed_ast: Any) -> Any:
    """Compiles a rewritten function into its own module.

    Triton adds every global of its interpreter to that module, so that a missing import goes unnoticed on the
    CPU. The rewritten text needs one name only.
    """
    interpreter = triton_modules.interpreter()
    scope = rewriter.fn.__globals__
    scope.setdefault("interpreter_semantic", interpreter.interpreter_semantic)
    local: dict[str, Any] = dict(rewriter.kwargs)
    exec(compile(transformed_ast, filename=rewriter.filename, mode="exec"), scope, local)
    return local[rewriter.fn.__name__]


def _argument_rule(interpreter: Any) -> Callable[[Any], Any]:
    """A launch argument as the kernel sees it.

    A float is an fp32 scalar on a GPU: it widens a bf16 operand, where the bare Python number that the
    interpreter passes would not. A bool is an int1, which the interpreter cannot pass at all.
    """
    original, tl = interpreter._implicit_cvt, interpreter.tl

    def scalar(data: Any, dtype: Any) -> Any:
        return tl.tensor(interpreter.TensorHandle(data, dtype), dtype)

    def convert(arg: Any) -> Any:
        if isinstance(arg, bool):
            return scalar(np.array([arg]), tl.int1)
        if isinstance(arg, float):
            return scalar(np.array([arg], dtype=np.float32), tl.float32)
        return original(arg)

    return convert
