"""From the YAML form (`Document`) to the `Spec`: defaults, rules between fields, names, formulas."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, cast

from attngen.errors import SpecError, did_you_mean
from attngen.spec.document import (
    CacheForm,
    CapturedForm,
    Document,
    HeadDimForm,
    ScheduleForm,
    SplitsForm,
)
from attngen.spec.formula import SHORT, Formula, parse_formula
from attngen.spec.formula_types import FUNCTIONS
from attngen.spec.model import (
    INT_SYMBOLS,
    NAMED_AXES,
    SCORE_SYMBOL,
    Cache,
    Captured,
    HeadDim,
    Heads,
    KeyPath,
    Param,
    Schedule,
    Spec,
    Splits,
    formula_env,
)
from attngen.spec.resolve_recurrence import OF_KEY, Note, recurrence_formulas, resolved_recurrence

MAX_NAME: Final = 64
INTEGERS: Final = ("int8", "int4")
MODULES: Final = ("attngen", "math", "numpy", "os", "sys", "tl", "torch", "triton")
ARGUMENTS: Final = (
    *(
        "q",
        "k",
        "v",
        "out",
        "lse",
        "sinks",
        "seed",
        "dropout_p",
        "dropout_threshold",
        "softmax_scale",
        "return_lse",
        "attention",
    ),
    *("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "seqused_k"),
    *("q_descale", "k_descale", "v_descale", "k_scale", "v_scale"),
    *("k_cache", "v_cache", "page_table", "cache_seqlens", "page_indptr", "page_indices", "last_page_len"),
    *("prefix_table", "prefix_seqlens", "cu_groups"),
    *("append_kv", "slot_mapping", "gate", "cos", "sin", "memory", "return_memory", "group"),
    *("spec", "precision"),
)
"""Arguments of generated functions, of this version and of the other mechanisms."""

OF_PREFIX: Final = ("prefix_start", "prefix_starts", "places", "first_part")
"""Names that only the kernel of a shared prefix needs."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_SPEC_NAME: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)

Report = Callable[[KeyPath, SpecError], None]


def resolve(document: Document, report: Report) -> Spec | None:
    """The spec that `document` describes, or None after `report` got every problem with its key path."""
    failed = False

    def note(path: KeyPath, problem: SpecError | str) -> None:
        nonlocal failed
        failed = True
        report(path, SpecError(problem) if isinstance(problem, str) else problem)

    _check_name(document.name, note)
    if document.heads.q % document.heads.kv:
        note(
            ("heads",), f"q must be a multiple of kv, got q = {document.heads.q} and kv = {document.heads.kv}"
        )
    head_dim = _head_dim(document.head_dim, note)
    params = _params(document.params or {}, note)
    captured = _captured(document, params, note)
    formulas: dict[str, Formula | None] = {}
    for key in ("score", "mask"):
        formulas[key] = _formula(document, key, params, captured, note)
    if document.recurrence is not None:
        formulas |= recurrence_formulas(document.recurrence, params, note)
    if not failed:
        _check_all_used(formulas, params, captured, note)
    if document.cache is not None:
        _check_cache(document, note)
        _check_splits(document, note)
        _check_prefix(document, captured, formulas, note)
    elif document.splits is not None:
        note(("splits",), "splits are for keys in pages; add a cache, or leave splits out")
    recurrence = None
    if document.recurrence is not None:
        recurrence = resolved_recurrence(document, document.recurrence, formulas, note)
    if document.mask_table and document.mask is None:
        note(("mask_table",), "a mask table needs a mask; add one or leave mask_table out")
    if failed:
        return None
    return Spec(
        name=document.name,
        heads=Heads(document.heads.q, document.heads.kv),
        head_dim=head_dim,
        dtypes=tuple(document.dtype),
        layout=document.layout if document.cache is None else "thd",
        score=formulas["score"],
        mask=formulas["mask"],
        params=params,
        captured=captured,
        sinks=document.sinks,
        cache=_cache(document.cache),
        splits=_splits(document.splits),
        recurrence=recurrence,
        dropout=document.dropout,
        precision=document.precision,
        grad=document.grad,
        deterministic=document.deterministic,
        mask_table=document.mask_table,
        schedule=_schedule(document.schedule),
    )


def _check_cache(document: Document, note: Note) -> None:
    """A cache is read by packed queries, forward only."""
    if document.layout != "thd" and "layout" in document.model_fields_set:
        note(("layout",), "queries of a paged cache are packed; write thd, or leave layout out")
    if document.grad:
        note(("grad",), "a paged cache has no backward; leave grad out, or the cache")
    cache = document.cache
    if cache is not None and cache.scales is not None and cache.dtype is None:
        note(
            ("cache", "scales"),
            "scales multiply numbers of a dtype of their own; add dtype, or leave scales out",
        )
    if cache is not None and cache.dtype in INTEGERS and cache.scales not in (None, "per_token_head"):
        note(
            ("cache", "scales"),
            f"{cache.dtype} has one scale per key and head; write per_token_head, or leave scales out",
        )
    if cache is not None and cache.dtype == "int4":
        for name, columns in document.head_dim:
            if columns is not None and columns % 2:
                note(
                    ("head_dim", name),
                    f"int4 keeps two columns in a byte: an even number is needed, got {columns}",
                )
    if document.mask_table:
        note(("mask_table",), "a paged cache has no block table; leave mask_table out")
    if document.dropout:
        note(
            ("dropout",),
            "a paged cache is for inference, which drops nothing; leave dropout out, or the cache",
        )


def _check_splits(document: Document, note: Note) -> None:
    """Splits of a fixed size need a bound on the keys of a sequence, and whole tiles."""
    form, cache = document.splits, document.cache
    if form is None or form.keys is None or cache is None:
        return
    if form.count is not None:
        note(("splits",), "give count or keys, not both")
    if cache.table == "csr":
        note(
            ("splits",),
            "splits of a fixed size need a dense page table, whose width bounds the keys; got csr",
        )
    sizes = (document.schedule.block_n if document.schedule else None) or ()
    if any(size > form.keys for size in sizes):
        note(("schedule", "block_n"), f"a tile of keys lies in one split of {form.keys} keys")


OF_ONE_SEQUENCE: Final = ("b", "row", "seqlen_q", "seqlen_k")


def _check_prefix(
    document: Document, captured: tuple[Captured, ...], formulas: Mapping[str, Formula | None], note: Note
) -> None:
    """Rows that fold a shared prefix belong to several sequences, and what they find is merged as splits are."""
    cache = document.cache
    if cache is None or cache.prefix is None:
        return
    place = ("cache", "prefix")
    for kind, names in (("params", document.params), ("captured", document.captured)):
        for name in OF_PREFIX:
            if name in (names or {}):
                note(
                    (kind, name, OF_KEY),
                    f"'{name}' is what the kernel of a shared prefix uses; choose another name",
                )
    if cache.table == "csr":
        note(place, "a shared prefix needs dense page tables; write table: dense, or leave prefix out")
    if document.splits is None:
        note(place, "what a shared prefix gives is merged as splits are; add splits, as in `splits: auto`")
    for key, formula in formulas.items():
        for name in OF_ONE_SEQUENCE:
            if formula is not None and name in formula.names:
                message = f"rows of a shared prefix belong to several sequences, '{name}' to one"
                note((key,), f"{message}; use i and j, or leave cache.prefix out")
    for tensor in captured:
        if {"B", "Tq"} & set(tensor.axes):
            message = (
                f"rows of a shared prefix belong to several sequences; {tensor.name} can have no axis B or Tq"
            )
            note(("captured", tensor.name, "axes"), message)


def _cache(form: CacheForm | None) -> Cache | None:
    if form is None:
        return None
    scales = form.scales or ("per_tensor" if form.dtype else None)
    scales = "per_token_head" if form.dtype in INTEGERS else scales
    return Cache(form.page_size, form.layout, form.table, form.dtype, scales, form.prefix)


def _splits(form: SplitsForm | None) -> Splits | None:
    return None if form is None else Splits(form.count, form.keys)


def _check_name(name: str, note: Note) -> None:
    """The name becomes a file and a module: nothing that is a path, a keyword or another module."""
    if not _SPEC_NAME.fullmatch(name) or len(name) > MAX_NAME:
        note(
            ("name",),
            f"a name is lowercase letters, digits and underscores, starts with a letter and has at most "
            f"{MAX_NAME} characters; got {name[:80]!r}",
        )
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        note(("name",), f"'{name}' is a Python keyword; choose another name")
    elif name in dir(builtins) or name in MODULES:
        note(("name",), f"'{name}' is the name of a Python builtin or module; choose another name")


def _head_dim(form: HeadDimForm, note: Note) -> HeadDim:
    v = form.v if form.v is not None else form.v_from_k
    if v is None:
        note(("head_dim",), "give v, or v_from_k where V is the first columns of K")
        v = form.qk
    if form.v_from_k is not None:
        if v != form.v_from_k:
            note(("head_dim", "v"), f"v is {v}, but v_from_k says {form.v_from_k}; leave v out")
        if form.v_from_k > form.qk:
            note(
                ("head_dim", "v_from_k"),
                f"V cannot have more columns than K, got {form.v_from_k} of {form.qk}",
            )
    return HeadDim(form.qk, v, form.v_from_k)


def _check_word(path: KeyPath, note: Note) -> bool:
    """Whether the last part of `path` may name a param or a captured tensor."""
    name = str(path[-1])
    reason = ""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        reason = (
            f"a name is letters, digits and underscores, starts with a letter, at most {MAX_NAME} characters"
        )
    elif keyword.iskeyword(name):
        reason = f"'{name}' is a Python keyword; choose another name"
    elif name in INT_SYMBOLS or name == SCORE_SYMBOL:
        reason = f"'{name}' is a symbol of formulas; choose another name"
    elif name in FUNCTIONS or name in SHORT:
        reason = f"'{name}' is a function of formulas; choose another name"
    elif name in NAMED_AXES:
        reason = f"'{name}' is the name of an axis; choose another name"
    elif name in ARGUMENTS:
        reason = f"'{name}' is an argument of generated functions; choose another name"
    elif name in MODULES or name in dir(builtins):
        reason = f"'{name}' is the name of a Python builtin or module; choose another name"
    if reason:
        note((*path, OF_KEY), reason)
    return not reason


def _params(forms: Mapping[str, int | float | str], note: Note) -> tuple[Param, ...]:
    params: list[Param] = []
    for name in sorted(forms):
        value = forms[name]
        if not _check_word(("params", name), note):
            continue
        if isinstance(value, str):
            params.append(Param(name, cast(Literal["int", "float"], value)))
        else:
            params.append(Param(name, "int" if isinstance(value, int) else "float", value))
    return tuple(params)


def _captured(document: Document, params: tuple[Param, ...], note: Note) -> tuple[Captured, ...]:
    captured: list[Captured] = []
    forms = document.captured or {}
    for name in sorted(forms):
        path = ("captured", name)
        if not _check_word(path, note):
            continue
        if name in (document.params or {}):
            note((*path, OF_KEY), f"'{name}' is a param already; choose another name")
        form = forms[name]
        _check_axes(form, path, document, params, note)
        if form.sorted and not form.dtype.startswith("int"):
            note(
                (*path, "sorted"),
                f"only int32 and int64 tensors can be declared sorted, {name} is {form.dtype}",
            )
        if form.grad and form.dtype in ("int32", "int64", "bool"):
            note((*path, "grad"), f"{form.dtype} tensors have no gradient")
        elif form.grad and not document.grad:
            note((*path, "grad"), "a gradient of a captured tensor needs grad: true at the top of the spec")
        captured.append(Captured(name, form.dtype, tuple(form.axes), form.sorted, form.grad))
    return tuple(captured)


def _check_axes(
    form: CapturedForm, path: KeyPath, document: Document, params: tuple[Param, ...], note: Note
) -> None:
    integers = [param.name for param in params if param.type == "int"]
    paged = document.cache is not None
    layout = "thd" if paged else document.layout
    absent, instead = (("Sq", "Sk"), ("Tq", "Tk")) if layout == "thd" else (("Tq", "Tk"), ("Sq", "Sk"))
    if paged:
        absent = (*absent, "Tk")
    for index, axis in enumerate(form.axes):
        place = (*path, "axes", index)
        if paged and axis in ("Sk", "Tk"):
            note(place, f"keys in pages have no axis {axis}; use B and an integer param, as in [B, longest]")
        elif axis in absent:
            note(place, f"layout {layout} has no axis {axis}; use {instead[absent.index(str(axis))]}")
        elif isinstance(axis, str) and axis not in NAMED_AXES and axis not in integers:
            known = [name for name in NAMED_AXES if name not in absent] + integers
            note(place, f"unknown axis '{axis}'; {did_you_mean(axis, known)}, or a size")
    for param in params:
        if param.name in form.axes and param.value is not None and param.value < 1:
            note(path, f"the size of axis {param.name} must be positive, got {param.value}")


def _formula(
    document: Document, key: str, params: tuple[Param, ...], captured: tuple[Captured, ...], note: Note
) -> Formula | None:
    text = document.score if key == "score" else document.mask
    if text is None:
        return None
    which = cast(Literal["score", "mask"], key)
    try:
        return parse_formula(
            text, formula_env(which, params, captured), key=key, want="float" if key == "score" else "bool"
        )
    except SpecError as error:
        note((key,), error)
        return None


def _check_all_used(
    formulas: Mapping[str, Formula | None],
    params: tuple[Param, ...],
    captured: tuple[Captured, ...],
    note: Note,
) -> None:
    """No ignored argument: what is declared is used by a formula or as the size of an axis."""
    used = {name for formula in formulas.values() if formula for name in (*formula.names, *formula.tensors)}
    used |= {axis for tensor in captured for axis in tensor.axes if isinstance(axis, str)}
    for kind, names in (("params", [p.name for p in params]), ("captured", [c.name for c in captured])):
        for name in names:
            if name not in used:
                note(
                    (kind, name, OF_KEY),
                    f"'{name}' is declared but no formula uses it; use it or leave it out",
                )


def _schedule(form: ScheduleForm | None) -> Schedule | None:
    if form is None:
        return None
    schedule = Schedule(
        block_m=tuple(form.block_m or ()),
        block_n=tuple(form.block_n or ()),
        warps=tuple(form.warps or ()),
        stages=tuple(form.stages or ()),
    )
    return None if schedule == Schedule() else schedule
