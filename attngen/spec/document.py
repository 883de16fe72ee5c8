"""The YAML form of a spec, as people write it: a pydantic model per mapping, shorthands and descriptions.

Rules about one value are here; rules between fields are in `spec/resolve.py`. The JSON schema for editors is
made of these classes (`spec/schema.py`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from attngen.errors import did_you_mean
from attngen.spec.model import (
    CacheDtype,
    CacheLayout,
    CapturedDtype,
    Dtype,
    Layout,
    PageTable,
    Precision,
    Prefix,
    RecurrenceKind,
    Scales,
    Transition,
)

MAX_HEADS: Final = 65_536
MAX_HEAD_DIM: Final = 1_024
MAX_AXES: Final = 6
MAX_SPLITS: Final = 256
MAX_PAGE: Final = 65_536
MAX_INT: Final = 2**28  # several of them and a position add up within 32 bits


class Form(BaseModel):
    """Base of the YAML mappings: frozen, no unknown keys, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def problem(message: str) -> PydanticCustomError:
    """A validation problem whose text is `message`, braces and all."""
    return PydanticCustomError("attngen", "{message}", {"message": message})


def _to_list(value: Any) -> Any:
    """Python callers may give tuples."""
    return list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value


def _one_to_list(value: Any) -> Any:
    """One value where a list is meant."""
    value = _to_list(value)
    return cast(Any, value) if isinstance(value, list) or value is None else [value]


def _no_repeats(values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise problem(f"{value!r} is listed twice")
    return values


def _formula_text(value: Any) -> Any:
    """A formula may be a bare number or bool in YAML, as in `mask: true`."""
    return repr(value) if isinstance(value, bool | int | float) else value


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise problem(f"must be a power of two, got {value}")
    return value


def _both_heads(value: Any) -> Any:
    if not isinstance(value, int | dict):
        raise problem(f"expected a number or {{q: ..., kv: ...}}, got {value!r}")
    return {"q": value, "kv": value} if isinstance(value, int) else cast(Any, value)


def _both_dims(value: Any) -> Any:
    if not isinstance(value, int | dict):
        raise problem(f"expected a number or {{qk: ..., v: ...}}, got {value!r}")
    return {"qk": value, "v": value} if isinstance(value, int) else cast(Any, value)


def _axis(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise problem(f"an axis is a name or a size, got {value!r}")
    if isinstance(value, int) and not 1 <= value <= MAX_INT:
        raise problem(f"the size of an axis is from 1 to {MAX_INT}, got {value}")
    return value


def _param(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("int", "float"):
            raise problem(f"a param is a number, or `int` or `float` for a run-time argument; got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise problem(f"a param is a number, or `int` or `float` for a run-time argument; got {value!r}")
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise problem(f"an integer param is from {-MAX_INT} to {MAX_INT}; write a float for larger values")
    elif not math.isfinite(value):
        raise problem(f"a param must be finite, got {value!r}")
    return value


def _version(value: Any) -> Any:
    if isinstance(value, bool) or value != 1:
        raise problem(f"this attngen reads version 1 of the spec format, got {value!r}")
    return value


FormulaText = Annotated[str, BeforeValidator(_formula_text, json_schema_input_type=str | bool | int | float)]
HeadCount = Annotated[int, Field(ge=1, le=MAX_HEADS)]
Columns = Annotated[int, Field(ge=1, le=MAX_HEAD_DIM)]
Axis = Annotated[int | str, BeforeValidator(_axis, json_schema_input_type=Annotated[int, Field(ge=1)] | str)]
ParamValue = Annotated[
    int | float | str,
    BeforeValidator(_param, json_schema_input_type=int | float | Literal["int", "float"]),
]


def _stored(value: Any) -> Any:
    """A cache of q's dtype has none of its own."""
    if value in get_args(Dtype):
        raise problem(f"{value} is no dtype of stored numbers; leave dtype out, and a cache is of q's dtype")
    return value


def _splits(value: Any) -> Any:
    """A number is a count, auto is neither a count nor a size."""
    if value is None:
        return None
    if value == "auto":
        return {}
    if isinstance(value, bool) or not isinstance(value, int | dict):
        raise problem(f"expected auto, a number or {{keys: ...}}, got {value!r}")
    return {"count": value} if isinstance(value, int) else cast(Any, value)


Block = Annotated[int, Field(ge=16, le=1024), AfterValidator(_power_of_two)]
Warps = Annotated[int, Field(ge=1, le=32), AfterValidator(_power_of_two)]
Stages = Annotated[int, Field(ge=1, le=8)]

AxisList = Annotated[
    list[Axis],
    Field(min_length=1, max_length=MAX_AXES),
    BeforeValidator(
        _to_list, json_schema_input_type=Annotated[list[Axis], Field(min_length=1, max_length=MAX_AXES)]
    ),
]
DtypeList = Annotated[
    list[Dtype],
    Field(min_length=1),
    BeforeValidator(_one_to_list, json_schema_input_type=Dtype | Annotated[list[Dtype], Field(min_length=1)]),
    AfterValidator(_no_repeats),
]
BlockList = Annotated[
    list[Block],
    Field(min_length=1),
    BeforeValidator(_one_to_list, json_schema_input_type=Block | Annotated[list[Block], Field(min_length=1)]),
    AfterValidator(_no_repeats),
]
WarpsList = Annotated[
    list[Warps],
    Field(min_length=1),
    BeforeValidator(_one_to_list, json_schema_input_type=Warps | Annotated[list[Warps], Field(min_length=1)]),
    AfterValidator(_no_repeats),
]
StagesList = Annotated[
    list[Stages],
    Field(min_length=1),
    BeforeValidator(
        _one_to_list, json_schema_input_type=Stages | Annotated[list[Stages], Field(min_length=1)]
    ),
    AfterValidator(_no_repeats),
]


class HeadsForm(Form):
    """Numbers of query heads and of key/value heads."""

    q: HeadCount = Field(description="query heads; a multiple of kv")
    kv: HeadCount = Field(description="key/value heads")


class HeadDimForm(Form):
    """Columns per head, where q/k and v differ."""

    qk: Columns = Field(description="columns of q and k")
    v: Columns | None = Field(default=None, description="columns of v")
    v_from_k: Columns | None = Field(
        default=None, description="V is the first so many columns of K and is not loaded twice (MLA)"
    )


class CapturedForm(Form):
    """A tensor argument that formulas index, as in bias[h, row, j]."""

    dtype: CapturedDtype = Field(description="element type")
    axes: AxisList = Field(
        description="per axis: B, Hq, Hkv, Sq, Sk (dense), Tq, Tk (packed), a size, or an integer param",
        examples=[["Hq", "Sq", "Sk"], ["B", "Sk"]],
    )
    sorted: bool = Field(
        default=False, description="values never decrease along the last axis; check verifies it"
    )
    grad: bool = Field(default=False, description="return a gradient for this tensor; needs grad: true")


class CacheForm(Form):
    """Keys and values in pages of a cache (PagedAttention)."""

    kind: Literal["paged"] = Field(description="how the cache is kept: paged")
    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE)] = Field(description="keys per page, any number")
    layout: CacheLayout = Field(
        default="nhd",
        description="axes of a cache: nhd is [pages, page_size, heads, columns], hnd has heads before keys",
    )
    table: PageTable = Field(
        default="dense",
        description="dense: page_table [sequences, pages]; csr: page_indptr, page_indices, last_page_len",
    )
    dtype: Annotated[
        CacheDtype | None, BeforeValidator(_stored, json_schema_input_type=CacheDtype | None)
    ] = Field(
        default=None,
        description="stored numbers, which scales multiply (int4: two columns a byte); q's dtype unless given",
    )
    scales: Scales | None = Field(
        default=None, description="one scale per tensor, per kv head, or per key and kv head"
    )
    prefix: Prefix | None = Field(
        default=None,
        description="shared: groups of sequences begin with the same keys, kept and folded once per group; needs splits",
    )


class SplitsForm(Form):
    """How the keys of a row are shared between programs."""

    count: Annotated[int, Field(ge=1, le=MAX_SPLITS)] | None = Field(
        default=None, description="number of splits, the same for every call"
    )
    keys: Annotated[int, Field(ge=64, le=MAX_INT), AfterValidator(_power_of_two)] | None = Field(
        default=None,
        description="keys per split, a power of two: the same request has the same bits whatever the batch around it",
    )


class RecurrenceForm(Form):
    """A state per head that each token changes and reads (Mamba-2, linear attention and their relatives)."""

    kind: RecurrenceKind = Field(
        default="linear",
        description="ssd is Mamba-2 (arguments x, dt, A, B, C); linear is the rest (q, k, v)",
    )
    chunk: Annotated[int, Field(ge=16, le=1024), AfterValidator(_power_of_two)] | None = Field(
        default=None,
        description="tokens computed together, a power of two; 64 unless given, 256 for ssd. Results do not depend on it",
    )
    state: Columns | None = Field(default=None, description="ssd: columns of B and C")
    groups: HeadCount = Field(default=1, description="ssd: how many B and C there are; they divide the heads")
    dt_softplus: bool = Field(default=False, description="ssd: dt is softplus of the argument")
    decay: FormulaText | None = Field(
        default=None,
        description="logarithm of what the state decays by: scalar (argument g per token and head), vector (for each "
        "column of k too), or a formula of the head h",
        examples=["scalar", "log(1 - exp2(-5 - h))"],
    )
    transition: Transition = Field(
        default="diagonal",
        description="delta: k is erased before v is written, times the argument beta (DeltaNet)",
    )
    feature: FormulaText | None = Field(
        default=None, description="formula of x that q and k go through", examples=["elu(x) + 1"]
    )
    normalise: bool = Field(
        default=False, description="divide by what values of one would give; the state has a column more"
    )


class ScheduleForm(Form):
    """Tiles to choose from; each a number or a list. What is left out, the planner chooses."""

    block_m: BlockList | None = Field(default=None, description="queries per tile")
    block_n: BlockList | None = Field(default=None, description="keys per tile")
    warps: WarpsList | None = Field(default=None, description="warps per program")
    stages: StagesList | None = Field(default=None, description="pipeline stages")


class Document(Form):
    """One attention variant, from which attngen generates a kernel."""

    attngen: Annotated[Literal[1], BeforeValidator(_version)] = Field(description="version of this format: 1")
    name: str = Field(
        description="name of the variant and of the generated module",
        json_schema_extra={"pattern": "^[a-z][a-z0-9_]*$"},
        examples=["gemma2_local"],
    )
    heads: Annotated[
        HeadsForm, BeforeValidator(_both_heads, json_schema_input_type=HeadCount | HeadsForm)
    ] = Field(
        description="heads; a number means as many key/value heads as query heads",
        examples=[16, {"q": 32, "kv": 8}],
    )
    head_dim: Annotated[
        HeadDimForm, BeforeValidator(_both_dims, json_schema_input_type=Columns | HeadDimForm)
    ] = Field(
        description="columns per head; a number means the same for q, k and v",
        examples=[128, {"qk": 192, "v": 128}, {"qk": 576, "v_from_k": 512}],
    )
    dtype: DtypeList = Field(
        description="element type of q, k, v and out, or a list of them",
        examples=["bfloat16", ["bfloat16", "float16", "float32"]],
    )
    layout: Layout = Field(
        default="bshd", description="order of batch, sequence, head and column axes; thd is packed sequences"
    )
    score: FormulaText | None = Field(
        default=None,
        description="formula of the scaled score s; symbols b, h, hk, row, i, j, seqlen_q, seqlen_k",
        examples=["50 * tanh(s / 50)", "s + slopes[h] * (j - i)"],
    )
    mask: FormulaText | None = Field(
        default=None,
        description="formula that is true where query i may see key j",
        examples=["j <= i", "j <= i and i - j < window"],
    )
    params: dict[str, ParamValue] | None = Field(
        default=None,
        description="numbers of the formulas: a value is compiled in, int or float is a run-time argument",
        examples=[{"window": 4096}, {"window": "int"}],
    )
    captured: dict[str, CapturedForm] | None = Field(
        default=None,
        description="tensor arguments that formulas index",
        examples=[{"bias": {"dtype": "float32", "axes": ["Hq", "Sq", "Sk"]}}],
    )
    sinks: bool = Field(default=False, description="a learned sink per query head (argument sinks [Hq])")
    cache: CacheForm | None = Field(
        default=None,
        description="keys and values in pages of a cache; queries are packed",
        examples=[{"kind": "paged", "page_size": 16}],
    )
    splits: Annotated[
        SplitsForm | None,
        BeforeValidator(_splits, json_schema_input_type=int | Literal["auto"] | SplitsForm),
    ] = Field(
        default=None,
        description="share the keys of a row between programs (flash decoding); {keys: N} is batch-invariant",
        examples=["auto", 8, {"keys": 512}],
    )
    recurrence: RecurrenceForm | None = Field(
        default=None,
        description="a recurrence in place of softmax attention",
        examples=[{"kind": "ssd", "state": 128}, {"decay": "scalar"}],
    )
    dropout: bool = Field(
        default=False, description="drop weights of the softmax at random (arguments dropout_p and seed)"
    )
    precision: Precision = Field(default="ieee", description="products of float32 inputs")
    grad: bool = Field(default=False, description="generate the backward pass")
    deterministic: bool = Field(default=True, description="the same bits on every run")
    mask_table: bool = Field(
        default=False, description="a table of key blocks where the mask has no closed form"
    )
    schedule: ScheduleForm | None = Field(default=None, description="tiles to choose from")


FORMS: Final[dict[tuple[str, ...], type[Form]]] = {
    (): Document,
    ("heads",): HeadsForm,
    ("head_dim",): HeadDimForm,
    ("captured", "*"): CapturedForm,
    ("cache",): CacheForm,
    ("splits",): SplitsForm,
    ("recurrence",): RecurrenceForm,
    ("schedule",): ScheduleForm,
}
"""Place in a document ('*' is any name) to the form of the mapping there."""


LATER: Final = {
    "memory": "compressive memory",
    "ring": "ring attention",
}
"""Keys of the spec language whose mechanism this version does not generate."""


def unknown_key(loc: tuple[str | int, ...]) -> str:
    """The message for the unknown key at `loc`."""
    *parent, key = loc
    if not parent and key in LATER:
        return f"{LATER[str(key)]} is not in this version of attngen yet; leave the key out"
    place = tuple(
        "*" if parent[0] == "captured" and index == 1 else str(part) for index, part in enumerate(parent)
    )
    return f"unknown key; {did_you_mean(str(key), FORMS[place].model_fields)}"
