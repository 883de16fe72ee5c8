"""The example that `explain` counts tiles for: lengths, and made-up values of what a call would bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from attngen.errors import UserError, did_you_mean
from attngen.ir.expr import symbols, tensors
from attngen.ir.tiles import Tiles
from attngen.spec import Captured, Param, Spec

MAX_LENGTH: Final = 2**31 - 1


@dataclass(frozen=True)
class Example:
    """Lengths (packed: of all documents together), a number of documents, and values of run-time params."""

    seqlen_q: int = 4096
    seqlen_k: int = 4096
    documents: int = 8
    params: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, seqlen_q: int, seqlen_k: int, documents: int, params: Sequence[str]) -> Example:
        """Make an example of the command's options; `params` are texts such as window=256."""
        values: dict[str, str] = {}
        for text in params:
            name, equals, value = text.partition("=")
            if not equals or not name or not value:
                raise UserError(f"--param takes NAME=VALUE, got {text!r}")
            values[name] = value
        return cls(seqlen_q, seqlen_k, documents, values)

    def lengths(self) -> tuple[list[int], list[int]]:
        """Return the lengths of the documents: uneven, and at the same places of both axes."""
        weights = [1 + (n * 7) % 5 for n in range(self.documents)]
        return _shares(self.seqlen_q, weights), _shares(self.seqlen_k, weights)


@dataclass(frozen=True)
class Assumed:
    """Values for the symbols of a plan, and the same in words."""

    env: dict[str, Any]
    words: dict[str, str]


def assume(spec: Spec, tiles: Tiles, example: Example) -> Assumed:
    """Choose a value for everything that the plan's bounds read and that only a call knows."""
    _check_params(spec, example)
    ends = [end for part in (*tiles.may, *tiles.must) for end in (part.lo, part.hi)]
    read = {name for end in ends for name in (*symbols(end), *tensors(end))}
    env: dict[str, Any] = {"b": 0, "h": 0, "hk": 0}
    words: dict[str, str] = {}
    if "prefix_start" in read:  # where the keys of a piece begin
        env["prefix_start"], words["prefix_start"] = 0, "0"
    for param in spec.params:
        if param.runtime and (param.name in read or param.name in example.params):
            env[param.name] = _param(param, example)
            words[param.name] = str(env[param.name])
    for captured in spec.captured:
        if captured.name in read:
            env[captured.name], words[captured.name] = _tensor(captured, example)
    return Assumed(env, words)


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total in proportion to weights, exactly."""
    whole, ends, passed = sum(weights), [0], 0
    for weight in weights:
        passed += weight
        ends.append(total * passed // whole)
    return [end - start for start, end in pairwise(ends)]


def _check_params(spec: Spec, example: Example) -> None:
    known = [param.name for param in spec.params if param.runtime]
    for name in example.params:
        if any(param.name == name for param in spec.params if not param.runtime):
            advice = f"write `{name}: int` in the spec to give it at run time"
            raise UserError(f"--param {name}: {spec.name} compiles {name} in; {advice}")
        if name not in known:
            advice = did_you_mean(name, known)
            raise UserError(f"--param {name}: {spec.name} has no such run-time param; {advice}")


def _param(param: Param, example: Example) -> int | float:
    """The value given, or for a distance a quarter of the keys."""
    given = example.params.get(param.name)
    if given is None:
        return max(1, example.seqlen_k // 4) if param.type == "int" else 1.0
    try:
        value = int(given) if param.type == "int" else float(given)
    except ValueError:
        raise UserError(f"--param {param.name}: expected {param.type}, got {given!r}") from None
    if abs(value) > MAX_LENGTH:
        raise UserError(f"--param {param.name}: at most {MAX_LENGTH}, got {given}")
    return value


def _tensor(captured: Captured, example: Example) -> tuple[Any, str]:
    """A tensor as a function of its indices: document numbers where sorted, else a quarter of the keys."""
    size = max(1, example.seqlen_q if captured.axes[-1] in ("Sq", "Tq") else example.seqlen_k)
    value = 0 if captured.type == "bool" else example.seqlen_k // 4

    def document(*at: Any) -> Any:
        return at[-1] * example.documents // size

    def constant(*at: Any) -> Any:
        return at[0] * 0 + value

    if captured.sorted:
        return document, f"{example.documents} documents of equal length"
    return constant, f"{value} everywhere"
