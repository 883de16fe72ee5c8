"""attngen: from a short YAML spec of an attention variant to a stand-alone, checked Triton kernel.

    spec = attngen.load_spec("specs/llama3_causal.yaml")
    module = attngen.build(spec)                         # generate, write to the cache, import
    out = module.attention(q, k, v)                      # GPU tensors, or CPU tensors through the interpreter
    expected = attngen.reference(spec, q=q, k=k, v=v)    # float64, from the spec alone

Importing this package imports neither torch nor triton.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import attngen.reference  # noqa: F401  # pyright: ignore[reportUnusedImport] loaded first: then the name stays the function
from attngen.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from attngen.spec import Spec

__version__ = VERSION
__all__ = ["build", "load_spec", "reference"]


def load_spec(source: str | Path | dict[str, Any]) -> Spec:
    """Return the validated spec of a YAML file or a dictionary.

    Raises:
        SpecError: with file, line, column, key and what is allowed.
    """
    from attngen.spec import load_spec as load

    return load(source)


def build(spec: Spec | str | Path | dict[str, Any]) -> ModuleType:
    """Generate the module of a spec, write it to the cache, import it.

    The module's functions take GPU tensors; on a machine without a GPU they take CPU tensors and run in Triton's
    interpreter, made value-correct for 16-bit types.

    Raises:
        SpecError, PlanError: the spec is wrong or asks for what is not generated.
        LoadError: torch or triton is missing.
    """
    from attngen.runtime.build import build as make

    return make(spec)


def reference(spec: Spec | str | Path | dict[str, Any], **inputs: Any) -> Any:
    """Return what a spec means for these inputs, in float64, straight from the spec; differentiable by autograd.

    Takes the arguments of the generated function by name, and returns the same structure: out, or (out, lse).
    """
    from attngen.reference.oracle import reference as dense
    from attngen.spec import Spec

    return dense(spec if isinstance(spec, Spec) else load_spec(spec), **inputs)
