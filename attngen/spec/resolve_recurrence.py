"""From the YAML form of a recurrence to the resolved one: defaults, formulas, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, cast

from attngen.errors import SpecError
from attngen.spec.document import Document, RecurrenceForm
from attngen.spec.formula import Formula, parse_formula
from attngen.spec.model import FormulaKey, KeyPath, Param, Recurrence, formula_env

Note = Callable[[KeyPath, SpecError | str], None]
OF_KEY: Final = "[key]"
"""Last part of a key path whose problem is the key itself, not its value (as pydantic has it)."""
DECAYS: Final = ("scalar", "vector")
OF_SOFTMAX: Final = (
    "score",
    "mask",
    "captured",
    "cache",
    "splits",
    "sinks",
    "dropout",
    "mask_table",
    "schedule",
)
ARGUMENTS: Final = (
    *("q", "k", "v", "g", "beta", "scale", "initial_state", "cu_seqlens", "return_final_state"),
    *("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_limit", "initial_states", "return_final_states"),
    *("state", "state_indices"),
)
"""Arguments of the functions of a recurrence."""
TAKEN: Final = (
    *("CHUNK", "SPEC", "DIGEST", "MANIFEST"),
    *("decay", "dout", "dstates", "edges", "keys", "late", "queries", "step"),
)
"""Constants of modules, and what kinds of recurrences are told apart by; of other names of kernels the graph tells."""
OF_KIND: Final = {
    "ssd": ("state", "groups", "dt_softplus"),
    "linear": ("decay", "transition", "feature", "normalise"),
}


def recurrence_formulas(
    form: RecurrenceForm, params: tuple[Param, ...], note: Note
) -> dict[str, Formula | None]:
    """The formulas of a recurrence by key; problems are noted."""
    found: dict[str, Formula | None] = {}
    texts: dict[FormulaKey, str | None] = {"decay": form.decay, "feature": form.feature}
    for key, text in texts.items():
        if text is None or (key == "decay" and text in DECAYS):
            continue
        try:
            found[key] = parse_formula(text, formula_env(key, params, ()), key=key, want="float")
        except SpecError as error:
            note(("recurrence", key), error)
    return found


def resolved_recurrence(
    document: Document, form: RecurrenceForm, formulas: Mapping[str, Formula | None], note: Note
) -> Recurrence:
    """The resolved form; what belongs to softmax attention, or to the other kind, is refused."""
    _check_document(document, note)
    _check_form(document, form, formulas, note)
    decay = formulas.get("decay")
    return Recurrence(
        kind=form.kind,
        chunk=form.chunk or (256 if form.kind == "ssd" else 64),
        state=form.state,
        groups=form.groups,
        dt_softplus=form.dt_softplus,
        decay=decay or cast(Literal["scalar", "vector"] | None, form.decay),
        transition=form.transition,
        feature=formulas.get("feature"),
        normalise=form.normalise,
    )


def _check_document(document: Document, note: Note) -> None:
    for key in OF_SOFTMAX:
        if getattr(document, key):
            note((key,), f"a recurrence has no {key}; leave it out, or the recurrence")
    for name in document.params or {}:
        if name in ARGUMENTS:
            note(
                ("params", name, OF_KEY),
                f"'{name}' is an argument of generated functions; choose another name",
            )
        elif name in TAKEN or name.startswith(("of_", "store_")):
            note(
                ("params", name, OF_KEY), f"'{name}' is what kernels call something else; choose another name"
            )
    if document.layout != "bshd":
        note(("layout",), "a recurrence has layout bshd; packed sequences are a batch of one and cu_seqlens")
    if document.heads.q != document.heads.kv:
        note(("heads",), "a recurrence has a state per head; write one number")
    if document.head_dim.v_from_k is not None:
        note(("head_dim", "v_from_k"), "a recurrence has values of their own; write v")


def _check_form(
    document: Document, form: RecurrenceForm, formulas: Mapping[str, Formula | None], note: Note
) -> None:
    for kind, keys in OF_KIND.items():
        for key in keys:
            if kind != form.kind and key in form.model_fields_set:
                note(("recurrence", key), f"{key} is of kind {kind}, this is {form.kind}")
    if form.kind == "ssd":
        if document.head_dim.v != document.head_dim.qk:
            note(("head_dim",), "the columns of x are one number; those of B and C are recurrence.state")
        if form.state is None:
            note(("recurrence",), "ssd needs state, the columns of B and C, as in {kind: ssd, state: 128}")
        if document.heads.q % form.groups:
            note(
                ("recurrence", "groups"), f"{document.heads.q} heads cannot share {form.groups} groups evenly"
            )
    if (feature := formulas.get("feature")) is not None and "x" not in feature.names:
        note(("recurrence", "feature"), "a feature map reads x, the number that it maps, as in elu(x) + 1")
    if form.transition == "delta" and form.decay == "vector":
        note(
            ("recurrence", "decay"),
            "delta goes with a decay per head: write scalar or a formula, or leave it out",
        )
    if form.transition == "delta" and form.normalise:
        note(("recurrence", "normalise"), "a delta rule has no normaliser; leave one of them out")
