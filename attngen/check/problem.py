"""A problem: sizes, values and memory layout of one call, as small data from which the tensors are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

Values = Literal["normal", "large"]
Strides = Literal["contiguous", "padded", "odd", "swapped", "expanded"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call of a spec's function.

    Attributes:
        name: why it is there.
        lengths: (queries, keys) per batch entry or packed sequence; in dense layouts all are the same.
        dense: the (queries, keys) of an empty dense batch.
        kv_heads: key/value heads; query heads follow from the spec's group.
        params: values of run-time params.
        used_k: packed: only so many keys of each sequence; the others hold NaN.
        spare: how far max_seqlen_q and max_seqlen_k lie above the longest sequence.
        values: "normal" is random; "large" has scores near -2.5e5 that differ by little.
        strides: how tensors lie in memory. "padded" and "odd" put them into larger buffers full of NaN, with
            row strides that are aligned to 16 bytes or not; "swapped" has heads and tokens exchanged;
            "expanded" repeats with stride 0.
        seed: of all random values.
    """

    name: str
    lengths: tuple[tuple[int, int], ...]
    kv_heads: int = 1
    params: tuple[tuple[str, int | float], ...] = ()
    used_k: tuple[int, ...] | None = None
    spare: int = 0
    values: Values = "normal"
    strides: Strides = "contiguous"
    seed: int = 0
    dense: tuple[int, int] = field(default=(3, 5))

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def seqlens(self) -> tuple[int, int]:
        """Dense: the lengths that all batch entries share."""
        return self.lengths[0] if self.lengths else self.dense

    def starts(self, side: Literal["q", "k"]) -> list[int]:
        """Packed: where sequences begin, and where the last one ends."""
        at = 0 if side == "q" else 1
        return [0, *accumulate(length[at] for length in self.lengths)]

    def longest(self, side: Literal["q", "k"]) -> int:
        """The largest length of a side."""
        at = 0 if side == "q" else 1
        return max((length[at] for length in self.lengths), default=0)

    def as_json(self) -> dict[str, Any]:
        """What is not the default, for reports."""
        shown: dict[str, Any] = {
            "name": self.name,
            "lengths": [list(pair) for pair in self.lengths],
            "kv_heads": self.kv_heads,
            "params": dict(self.params),
            "seed": self.seed,
        }
        extras = {"used_k": self.used_k, "spare": self.spare, "values": self.values, "strides": self.strides}
        plain = {"used_k": None, "spare": 0, "values": "normal", "strides": "contiguous"}
        return shown | {key: value for key, value in extras.items() if value != plain[key]}

    def __str__(self) -> str:
        data = self.as_json()
        name = data.pop("name")
        return f"{name} ({in_words(data)})"


def in_words(data: Mapping[str, Any]) -> str:
    """Say what a problem's data is, without what is empty."""
    return ", ".join(f"{key} {value}" for key, value in data.items() if value not in ({}, []))
