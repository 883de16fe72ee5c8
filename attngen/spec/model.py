"""What a valid spec is: `Spec` and its parts, frozen and fully resolved. Only `load_spec` makes them.

The YAML form that people write (shorthands, defaults, descriptions) is in `spec/document.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from attngen.spec.formula import Env, Formula, Type

Dtype = Literal["float16", "bfloat16", "float32"]
CapturedDtype = Literal["float16", "bfloat16", "float32", "int32", "int64", "bool"]
Layout = Literal["bshd", "bhsd", "thd"]
Precision = Literal["ieee", "tf32x3", "tf32"]
CacheLayout = Literal["nhd", "hnd"]
CacheDtype = Literal["float8_e4m3", "float8_e5m2", "int8", "int4"]
Scales = Literal["per_tensor", "per_head", "per_token_head"]
PageTable = Literal["dense", "csr"]
Prefix = Literal["shared"]
RecurrenceKind = Literal["ssd", "linear"]
Transition = Literal["diagonal", "delta"]
FormulaKey = Literal["score", "mask", "decay", "feature"]
Position = tuple[str, int, int]
KeyPath = tuple[str | int, ...]

INT_SYMBOLS: Final = ("b", "h", "hk", "row", "i", "j", "seqlen_q", "seqlen_k")
SCORE_SYMBOL: Final = "s"
FEATURE_SYMBOL: Final = "x"
NAMED_AXES: Final = ("B", "Hq", "Hkv", "Sq", "Sk", "Tq", "Tk")
"""Axes of captured tensors: batch (sequences when packed), heads, dense lengths, packed tokens."""


@dataclass(frozen=True)
class Heads:
    """Numbers of query and key/value heads. Only their ratio is structure; a call may bring other counts."""

    q: int
    kv: int

    @property
    def group(self) -> int:
        """Query heads per key/value head; query head h reads key/value head h // group."""
        return self.q // self.kv


@dataclass(frozen=True)
class HeadDim:
    """Columns of q and k (`qk`) and of v (`v`); with `v_from_k`, V is the first `v` columns of K."""

    qk: int
    v: int
    v_from_k: int | None = None


@dataclass(frozen=True)
class Param:
    """A named number of the formulas: compiled in (`value`), or a run-time argument (`value` is None)."""

    name: str
    type: Literal["int", "float"]
    value: int | float | None = None

    @property
    def runtime(self) -> bool:
        return self.value is None


@dataclass(frozen=True)
class Captured:
    """A tensor argument that formulas index.

    Attributes:
        axes: per axis one of `NAMED_AXES`, a size, or the name of an integer param. An index on Tq or Tk is
            relative to the sequence.
        sorted: the values never decrease along the last axis (declared; `check` verifies it).
        grad: the backward returns a gradient for it.
    """

    name: str
    dtype: CapturedDtype
    axes: tuple[str | int, ...]
    sorted: bool = False
    grad: bool = False

    @property
    def type(self) -> Type:
        """The type of an element in formulas."""
        if self.dtype == "bool":
            return "bool"
        return "int" if self.dtype.startswith("int") else "float"


@dataclass(frozen=True)
class Schedule:
    """Tile sizes, warps and stages to choose from; an empty tuple leaves the choice to the planner."""

    block_m: tuple[int, ...] = ()
    block_n: tuple[int, ...] = ()
    warps: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cache:
    """Keys and values in pages of a cache.

    Attributes:
        page_size: keys per page.
        layout: axes of a page: `nhd` (keys before heads) or `hnd`.
        table: how a call gives the pages of its sequences: `dense` (a row each) or `csr`.
        dtype: what is stored: numbers of q's dtype (None), or numbers that a scale multiplies; int4 lies two to a byte.
        scales: one scale per tensor, per kv head, or per key and kv head; None without a dtype.
        prefix: `shared`: groups of sequences begin with the same keys, which are kept and folded once per group.
    """

    page_size: int
    layout: CacheLayout = "nhd"
    table: PageTable = "dense"
    dtype: CacheDtype | None = None
    scales: Scales | None = None
    prefix: Prefix | None = None


@dataclass(frozen=True)
class Splits:
    """How the keys of a row are shared between programs: a number of splits, a size in keys, or (neither) as fits."""

    count: int | None = None
    keys: int | None = None


@dataclass(frozen=True)
class Recurrence:
    """A state per head that each token changes and reads: S = T S + k v, out = q S.

    Attributes:
        kind: `ssd` is Mamba-2, where dt and A make the decay and k, q and v are called B, C and x; `linear` is the rest.
        chunk: tokens that are computed together; a power of two. Of no consequence to what is computed.
        state: columns of B and C; None but for ssd, elsewhere they are those of q and k.
        groups: how many B and C there are; each serves heads // groups neighbouring heads. 1 but for ssd.
        dt_softplus: dt is softplus of what the caller gives.
        decay: what the state decays by, as a logarithm: nothing (None), an argument per token and head (`scalar`), one for
            each column of k too (`vector`), or a formula of the head h.
        transition: `diagonal`, or `delta`: k is erased from the state before v is written to it, both times beta.
        feature: formula of x that q and k go through, or None.
        normalise: the result is divided by what values of one would give.
    """

    kind: RecurrenceKind
    chunk: int
    state: int | None = None
    groups: int = 1
    dt_softplus: bool = False
    decay: Formula | Literal["scalar", "vector"] | None = None
    transition: Transition = "diagonal"
    feature: Formula | None = None
    normalise: bool = False


@dataclass(frozen=True)
class Spec:
    """One attention variant. Equality and hash ignore where it was written (`positions`, `summary`).

    Attributes:
        dtypes: element types of q, k, v and out to generate for; the first is the default.
        score: the formula of the scaled score `s`, or None for `s` itself.
        mask: true where a query may see a key, or None for everywhere.
        params, captured: sorted by name.
        summary: the first comment line of the file that is not a tool's, or ''.
    """

    name: str
    heads: Heads
    head_dim: HeadDim
    dtypes: tuple[Dtype, ...]
    layout: Layout = "bshd"
    score: Formula | None = None
    mask: Formula | None = None
    params: tuple[Param, ...] = ()
    captured: tuple[Captured, ...] = ()
    sinks: bool = False
    cache: Cache | None = None
    splits: Splits | None = None
    recurrence: Recurrence | None = None
    dropout: bool = False
    precision: Precision = "ieee"
    grad: bool = False
    deterministic: bool = True
    mask_table: bool = False
    schedule: Schedule | None = None
    summary: str = field(default="", compare=False)
    positions: Mapping[KeyPath, Position] = field(
        default_factory=dict[KeyPath, Position], compare=False, repr=False
    )

    def env(self, key: FormulaKey) -> Env:
        """What names mean in the formula under `key`."""
        return formula_env(key, self.params, self.captured)

    def position(self, key_path: str | Sequence[str | int]) -> Position | None:
        """(path, line, column) of the value at `key_path` (`"mask"`, `"captured.bias.axes"` or a sequence).

        A key that the file leaves out has the place of the nearest key around it; None without one.
        """
        parts = key_path.split(".") if isinstance(key_path, str) else key_path
        path = tuple(int(part) if str(part).isdigit() else part for part in parts)
        while len(path) > 1 and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path)

    def canonical(self) -> dict[str, Any]:
        """JSON-able data without shorthands or defaults; `load_spec(spec.canonical()) == spec`."""
        required: dict[str, Any] = {
            "attngen": 1,
            "name": self.name,
            "heads": {"q": self.heads.q, "kv": self.heads.kv},
            "head_dim": {"qk": self.head_dim.qk, "v": self.head_dim.v},
            "dtype": list(self.dtypes),
            "layout": self.layout,
        }
        if self.head_dim.v_from_k is not None:
            required["head_dim"]["v_from_k"] = self.head_dim.v_from_k
        optional: dict[str, Any] = {
            "score": self.score.text if self.score else None,
            "mask": self.mask.text if self.mask else None,
            "params": {p.name: p.type if p.value is None else p.value for p in self.params},
            "captured": {c.name: _canonical_captured(c) for c in self.captured},
            "sinks": self.sinks,
            "cache": _canonical_cache(self.cache),
            "splits": _canonical_splits(self.splits),
            "recurrence": _canonical_recurrence(self.recurrence),
            "dropout": self.dropout,
            "precision": None if self.precision == "ieee" else self.precision,
            "grad": self.grad,
            "deterministic": None if self.deterministic else False,
            "mask_table": self.mask_table,
            "schedule": _canonical_schedule(self.schedule),
        }
        keep = {
            key: value
            for key, value in optional.items()
            if value or (key == "deterministic" and value is False)
        }
        return required | keep


def formula_env(key: FormulaKey, params: Sequence[Param], captured: Sequence[Captured]) -> Env:
    """What names mean in a formula: the symbols of `key`, the params and the captured tensors."""
    scalars: dict[str, Type] = dict.fromkeys(INT_SYMBOLS, "int")
    hidden = {}
    if key == "decay":
        scalars = {"h": "int"}
    elif key == "feature":
        scalars = {FEATURE_SYMBOL: "float"}
    elif key == "score":
        scalars[SCORE_SYMBOL] = "float"
    else:
        hidden = {SCORE_SYMBOL: "'s' is the score; a mask cannot depend on it"}
    scalars |= {param.name: param.type for param in params}
    return Env(
        scalars=scalars,
        tensors={c.name: (c.type, len(c.axes)) for c in captured},
        zeros=frozenset(param.name for param in params if param.value == 0),
        hidden=hidden,
    )


def _canonical_captured(captured: Captured) -> dict[str, Any]:
    data: dict[str, Any] = {"dtype": captured.dtype, "axes": list(captured.axes)}
    if captured.sorted:
        data["sorted"] = True
    if captured.grad:
        data["grad"] = True
    return data


def _canonical_cache(cache: Cache | None) -> dict[str, Any]:
    if cache is None:
        return {}
    data: dict[str, Any] = {"kind": "paged", "page_size": cache.page_size}
    return data | {
        name: getattr(cache, name)
        for name in ("layout", "table", "dtype", "scales", "prefix")
        if getattr(cache, name) != getattr(Cache, name)
    }


def _canonical_recurrence(recurrence: Recurrence | None) -> dict[str, Any]:
    if recurrence is None:
        return {}
    data: dict[str, Any] = {"kind": recurrence.kind, "chunk": recurrence.chunk}
    for name in ("state", "groups", "dt_softplus", "decay", "transition", "feature", "normalise"):
        value = getattr(recurrence, name)
        if value != getattr(Recurrence, name):
            data[name] = value.text if isinstance(value, Formula) else value
    return data


def _canonical_splits(splits: Splits | None) -> str | int | dict[str, int] | None:
    if splits is None or splits.count is not None:
        return None if splits is None else splits.count
    return "auto" if splits.keys is None else {"keys": splits.keys}


def _canonical_schedule(schedule: Schedule | None) -> dict[str, list[int]]:
    if schedule is None:
        return {}
    fields = ("block_m", "block_n", "warps", "stages")
    return {name: list(getattr(schedule, name)) for name in fields if getattr(schedule, name)}
