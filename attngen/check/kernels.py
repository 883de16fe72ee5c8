"""How a check runs a kernel: small tiles, so that every class of tile occurs at small lengths."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from torch import Tensor

from attngen.runtime.cpu import overflow_checks, reversed_grid
from attngen.spec import Spec, Splits

Results = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Tiling:
    """The sizes of tiles, and whether keys and values are fetched through descriptors."""

    block_m: int
    block_n: int
    descriptors: bool = False

    def config(self, *, paged: bool = False) -> dict[str, Any]:
        """Return what `launch` takes; a kernel with keys in pages has no descriptors."""
        sizes = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "num_warps": 4, "num_stages": 1}
        return sizes if paged else sizes | {"USE_DESCRIPTORS": self.descriptors}

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}{' by descriptor' if self.descriptors else ''}"


PAIRS: Final = (
    (Tiling(16, 16), Tiling(32, 32, descriptors=True)),
    (Tiling(16, 32), Tiling(32, 16, descriptors=True)),
    (Tiling(32, 16), Tiling(16, 64)),
)
FAR: Final = (Tiling(16, 128), Tiling(32, 256))


def tilings(number: int, inputs: dict[str, Any]) -> tuple[Tiling, Tiling]:
    """Return the two tilings of a problem by its number; descriptors only where the tensors allow them."""
    keys: Tensor = inputs["k"] if "k" in inputs else inputs["k_cache"].flatten(0, 2)
    if keys.numel() and inputs["q"].shape[-3:-1].numel() < 2**11 and max(keys.shape[:-1]) > 2**9:
        return FAR
    first, second = PAIRS[number % len(PAIRS)]
    by_descriptor = second.descriptors and "k" in inputs and _fits(inputs)
    return first, Tiling(second.block_m, second.block_n, by_descriptor)


def _fits(inputs: dict[str, Any]) -> bool:
    """Descriptors need bases and strides that are multiples of 16 bytes, and strides that are not 0."""
    tensors: list[Tensor] = [inputs[name] for name in ("k", "v") if name in inputs]
    return all(
        t.data_ptr() % 16 == 0 and all(s * t.element_size() % 16 == 0 for s in t.stride()[:-1])
        for t in tensors
    )


def run_public(module: ModuleType, inputs: dict[str, Any]) -> Results:
    """Call the function that users call."""
    return module.attention(**inputs, return_lse=True)


def run_tiling(spec: Spec, module: ModuleType, inputs: dict[str, Any], tiling: Tiling) -> Results:
    """Launch the kernel with tiles of our choice."""
    defaults: dict[str, Any] = {"softmax_scale": spec.head_dim.qk**-0.5, "seqused_k": None}
    names = [name for name in inspect.signature(module.launch).parameters if name != "config"]
    given = {name.removesuffix("_cache"): value for name, value in inputs.items()}
    config = tiling.config(paged=spec.cache is not None)
    if spec.splits == Splits():
        config["num_splits"] = 3 if tiling.block_m == 16 else 0  # 0: lengths decide
    return module.launch(**{name: given.get(name, defaults.get(name)) for name in names}, config=config)


def variants(
    spec: Spec, module: ModuleType, inputs: dict[str, Any], number: int
) -> Iterator[tuple[str, Results]]:
    """Run a kernel in the ways that must give the oracle's numbers; now and then overflow is a fault."""
    first, second = tilings(number, inputs)
    with overflow_checks(number % 3 == 0):
        yield f"kernel {first}", run_tiling(spec, module, inputs, first)
    yield f"kernel {second}", run_tiling(spec, module, inputs, second)
    if number == 0:
        yield "attention()", run_public(module, inputs)


def run_reversed(spec: Spec, module: ModuleType, inputs: dict[str, Any], number: int) -> Results:
    """The first of the variants with the grid from its last program to the first."""
    with reversed_grid():
        return run_tiling(spec, module, inputs, tilings(number, inputs)[0])
