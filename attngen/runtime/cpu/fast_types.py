"""Quicker constructors for the type objects of `triton.language`.

Most of an interpreted kernel's time goes into building `tl.tensor` and `tl.block_type` objects, whose shapes
are checked and wrapped anew for each of some hundred thousand intermediate results. A shape is worked out
once here. The constructors are in force during launches only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Swap = tuple[Any, str, Any]


def swaps(tl: Any) -> list[Swap]:
    """The replacements that do what this version's own constructors do; others are left out."""
    type_init, tensor_init = _block_type_init(tl), _tensor_init(tl)
    block = tl.block_type(tl.float32, [2, 4])
    made: list[Swap] = []
    if _same(block, _built(tl.block_type, type_init, tl.float32, [2, tl.constexpr(4)])):
        made.append((tl.block_type, "__init__", type_init))
    for type_ in (block, tl.int32):
        if not _same(tl.tensor(None, type_), _built(tl.tensor, tensor_init, None, type_)):
            return made
    return [*made, (tl.tensor, "__init__", tensor_init)]


def _built(kind: Any, init: Callable[..., None], *args: Any) -> Any:
    thing = object.__new__(kind)
    init(thing, *args)
    return thing


def _same(left: Any, right: Any) -> bool:
    """Whether two objects have equal attributes, by name and text."""
    return _texts(left) == _texts(right)


def _texts(thing: object) -> dict[str, str]:
    return {name: str(value) for name, value in vars(thing).items()}


def _sizes(tl: Any) -> Callable[[Any], tuple[Any, ...]]:
    """A shape in any of Triton's forms as a tuple of plain numbers."""
    tuple_, constexpr = tl.tuple, tl.constexpr

    def sizes(shape: Any) -> tuple[Any, ...]:
        items = shape.values if type(shape) is tuple_ else shape
        return tuple([s.value if type(s) is constexpr else s for s in items])

    return sizes


def _block_type_init(tl: Any) -> Callable[..., None]:
    original = tl.block_type.__init__
    sizes = _sizes(tl)

    @lru_cache(maxsize=4096)
    def template(shape: tuple[Any, ...]) -> tuple[Any, int, str]:
        block = object.__new__(tl.block_type)
        original(block, tl.int1, list(shape))  # Triton's own checks
        return block.shape, block.numel, str(block.shape)

    def init(block: Any, element_ty: Any, shape: Any) -> None:
        block.shape, block.numel, text = template(sizes(shape))
        block.element_ty = element_ty
        block.name = f"<{text}, {element_ty}>"

    return init


def _tensor_init(tl: Any) -> Callable[..., None]:
    sizes = _sizes(tl)

    @lru_cache(maxsize=4096)
    def wrapped(shape: tuple[Any, ...]) -> tuple[Any, Any]:
        return tl.tuple([tl.constexpr(s) for s in shape]), tl.constexpr(math.prod(shape))

    def init(tensor: Any, handle: Any, type: Any) -> None:
        tensor.handle = handle
        tensor.type = type
        tensor.dtype = type.scalar
        tensor.shape, tensor.numel = wrapped(sizes(type.shape) if type.is_block() else ())

    return init
