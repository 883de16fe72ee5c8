"""Hypothesis strategies that draw whole specs, and problems for them. The only file that needs hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import strategies as st

from attngen.check.problem import Problem, Strides, Values
from attngen.spec import Spec, load_spec

HEAD_DIMS: Final = (16, 17, 24, 31, 40, 48, 64, 72, 80)
GROUPS: Final = (1, 2, 3, 5)
DTYPES: Final = ("bfloat16", "float16", "float32")
INT: Final = "{n}"
"""The place of a number in a formula: a literal, a compiled-in param or a run-time param."""


@dataclass(frozen=True)
class Piece:
    """Part of a formula, and the captured tensor that it reads (axes for dense and for packed layouts)."""

    text: str
    captured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    packed_text: str = ""  # where packed sequences say it differently


def _tensor(dtype: str, *axes: str | int, packed: tuple[str | int, ...] = (), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "axes": list(axes), "packed": list(packed or axes), **more}


MASKS: Final = (
    Piece("j <= i"),
    Piece("j < i"),
    Piece("i - j < {n}"),
    Piece("j - i <= {n}"),
    Piece("abs(i - j) <= {n}"),
    Piece("j <= i and i - j < {n}"),
    Piece("j < {n}"),
    Piece("j >= seqlen_k - {n}"),
    Piece("i // {n} == j // {n}"),
    Piece("0 <= i // {n} - j // {n} and i // {n} - j // {n} <= 1"),
    Piece("(i - j) % {n} == 0"),
    Piece("row % {n} != j % 3"),
    Piece("h % 2 == 0"),
    Piece("max(0, min(i - {n} // 2, seqlen_k - {n})) <= j"),
    Piece("j < max(0, min(i - {n} // 2, seqlen_k - {n})) + {n}"),
    Piece("j < prefix[b]", {"prefix": _tensor("int32", "B")}),
    Piece("i - j < widths[h]", {"widths": _tensor("int64", "Hq")}),
    Piece("keep[b, j]", {"keep": _tensor("bool", "B", "Sk", packed=("Tk",))}, packed_text="keep[j]"),
    Piece(
        "j <= i and doc[b, i] == doc[b, j]",
        {"doc": _tensor("int32", "B", "Sk", packed=("Tk",), sorted=True)},
        packed_text="j <= i and doc[i] == doc[j]",
    ),
    Piece(
        "bag[b, row] == bag_k[b, j]",
        {
            "bag": _tensor("int32", "B", "Sq", packed=("Tq",)),
            "bag_k": _tensor("int32", "B", "Sk", packed=("Tk",)),
        },
        packed_text="bag[row] == bag_k[j]",
    ),
)
SCORES: Final = (
    Piece("50 * tanh(s / 50)"),
    Piece("cap * tanh(s / cap)"),
    Piece("s * temperature"),
    Piece("s - 0.25 * abs(i - j)"),
    Piece("where(j < {n}, 2 * s, s - 1)"),
    Piece("s + where((i - j) % 2 == 0, 0.5, -0.5)"),
    Piece("s / (1 + exp(-s))"),
    Piece("s + slopes[h] * (j - i)", {"slopes": _tensor("float32", "Hq")}),
    Piece("s * scales[b, hk]", {"scales": _tensor("float16", "B", "Hkv")}),
    Piece("s + near[h, max(-8, min(j - i, 8)) + 8]", {"near": _tensor("bfloat16", "Hq", 17)}),
    Piece(
        "s + bias[h, row, j]",
        {"bias": _tensor("float32", "Hq", "Sq", "Sk", packed=("Hq", "Tk"))},
        packed_text="s + bias[h, j]",
    ),
    Piece(
        "s + table[bucket[b, j]]",
        {"bucket": _tensor("int32", "B", "Sk", packed=("Tk",)), "table": _tensor("float32", 5)},
        packed_text="s + table[bucket[j]]",
    ),
)
FLOAT_PARAMS: Final = {"cap": (0.5, 8.0, 30.0), "temperature": (0.5, 1.25, -1.0)}


@dataclass
class _Parts:
    """What the formulas drawn so far need."""

    layout: str
    paged: bool = False
    captured: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    params: dict[str, int | float | str] = field(default_factory=dict[str, "int | float | str"])
    values: dict[str, int | float] = field(default_factory=dict[str, "int | float"])


@st.composite
def specs_and_problems(draw: st.DrawFn) -> tuple[Spec, Problem]:
    """Draw a valid spec of one dtype and a small problem for it."""
    group, kv = draw(st.sampled_from(GROUPS)), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(["bshd", "bhsd", "thd", "paged"]))
    parts = _Parts("thd" if layout == "paged" else layout, layout == "paged")
    data: dict[str, Any] = {
        "attngen": 1,
        "name": "drawn",
        "heads": {"q": group * kv, "kv": kv},
        "head_dim": draw(_head_dims()),
        "dtype": dtype,
        "layout": parts.layout,
        "sinks": draw(st.booleans()),
        "dropout": not draw(st.integers(0, 3)),
    }
    if parts.paged:
        data["dropout"] = False
        data["cache"] = {
            "kind": "paged",
            "page_size": draw(st.sampled_from([1, 3, 8, 16, 32, 48, 64])),
            "layout": draw(st.sampled_from(["nhd", "hnd"])),
            "table": draw(st.sampled_from(["dense", "csr"])),
            "dtype": draw(_stored(data["head_dim"])),
        }
    if draw(st.integers(0, 9)):
        data["mask"] = draw(_masks(parts))
    if draw(st.booleans()):
        data["score"] = draw(_formula(st.sampled_from(SCORES), parts))
    if dtype == "float32" and not draw(st.integers(0, 3)):
        data["precision"] = draw(st.sampled_from(["tf32x3", "tf32"]))
    data |= {key: value for key, value in (("params", parts.params), ("captured", parts.captured)) if value}
    return load_spec(data), draw(_problems(parts, kv))


def _stored(head_dim: Any) -> st.SearchStrategy[str | None]:
    """What a cache may store: bytes of int4 hold two columns, and a view of K in them whole chunks."""
    dims: list[int] = [head_dim] if isinstance(head_dim, int) else [*head_dim.values()]
    packs = all(n % 2 == 0 for n in dims) and dims[-1] % 32 == 0
    return st.sampled_from([None, None, "float8_e4m3", "float8_e5m2", "int8", *(["int4"] * packs)])


@st.composite
def _head_dims(draw: st.DrawFn) -> Any:
    qk = draw(st.sampled_from(HEAD_DIMS))
    kind = draw(st.sampled_from(["same", "same", "other", "shared"]))
    if kind == "same":
        return qk
    v = draw(st.sampled_from(HEAD_DIMS))
    return {"qk": qk, "v": v} if kind == "other" else {"qk": qk, "v_from_k": min(v, qk) // 16 * 16}


@st.composite
def _masks(draw: st.DrawFn, parts: _Parts) -> str:
    """One to four leaves joined by and, or, not."""
    text = draw(_formula(st.sampled_from(MASKS), parts))
    for _ in range(draw(st.integers(0, 3))):
        other = draw(_formula(st.sampled_from(MASKS), parts))
        word = draw(st.sampled_from(["and", "or"]))
        text = f"({text}) {word} ({other})"
        if not draw(st.integers(0, 4)):
            text = f"not ({text})"
    return text


@st.composite
def _formula(draw: st.DrawFn, pieces: st.SearchStrategy[Piece], parts: _Parts) -> str:
    if parts.paged:  # keys in pages are no axis of a captured tensor
        pieces = pieces.filter(lambda p: all("Tk" not in t["packed"] for t in p.captured.values()))
    piece = draw(pieces)
    packed = parts.layout == "thd"
    for name, tensor in piece.captured.items():
        axes = tensor["packed"] if packed else tensor["axes"]
        # packed sequences are apart already: there `sorted` is refused
        left_out = ("packed", "axes", "sorted") if packed else ("packed", "axes")
        rest = {key: value for key, value in tensor.items() if key not in left_out}
        parts.captured[name] = {**rest, "axes": axes}
    text = piece.packed_text if packed and piece.packed_text else piece.text
    for name, values in FLOAT_PARAMS.items():
        if name in text:
            parts.params[name], parts.values[name] = "float", draw(st.sampled_from(values))
    if INT not in text:
        return text
    return text.replace(INT, draw(_number(parts)))


@st.composite
def _number(draw: st.DrawFn, parts: _Parts) -> str:
    """A positive integer, as a literal, as a compiled-in or as a run-time param."""
    value = draw(st.integers(1, 24))
    kind = draw(st.sampled_from(["literal", "compiled in", "run time"]))
    if kind == "literal":
        return str(value)
    name = f"p{len(parts.params)}"
    parts.params[name] = value if kind == "compiled in" else "int"
    if kind == "run time":
        parts.values[name] = value
    return name


@st.composite
def _problems(draw: st.DrawFn, parts: _Parts, kv_heads: int) -> Problem:
    """Up to a few tiles of 16 each way, with empty and single ones often."""
    q = st.one_of(st.integers(1, 36), st.integers(17, 36), st.sampled_from([0, 1, 16, 17, 32]))
    k = st.one_of(st.integers(1, 52), st.integers(17, 52), st.sampled_from([0, 1, 16, 17, 48]))
    strides: list[Strides] = ["contiguous", "padded", "odd", "swapped", "expanded"]
    values: list[Values] = ["normal", "normal", "normal", "large"]
    used: tuple[int, ...] | None = None
    if parts.layout == "thd":
        lengths = draw(st.lists(st.tuples(q, k), min_size=draw(st.sampled_from([2, 1, 0])), max_size=4))
        if draw(st.booleans()) and not parts.paged:
            used = tuple(draw(st.integers(0, length)) for _, length in lengths)
    else:
        lengths = [draw(st.tuples(q, k))] * draw(st.sampled_from([1, 2, 0]))
    return Problem(
        name="drawn",
        lengths=tuple(lengths),
        kv_heads=kv_heads,
        params=tuple(sorted(parts.values.items())),
        used_k=used,
        spare=draw(st.sampled_from([0, 0, 9])),
        values=draw(st.sampled_from(values)),
        strides=draw(st.sampled_from(strides)),
        seed=draw(st.integers(0, 2**16)),
    )
