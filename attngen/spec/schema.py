"""The JSON schema of the YAML form, for editors. `specs/attngen.schema.json` is this, committed."""

from __future__ import annotations

import json
from typing import Any, Final, cast

from attngen.spec.document import Document

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a spec file (draft 2020-12), with a description and examples per key."""
    schema = cast(dict[str, Any], _tidy(Document.model_json_schema(mode="validation")))
    return {"$schema": DIALECT, "title": "attngen spec"} | schema


def schema_text() -> str:
    """The schema as the committed file holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=True) + "\n"


def _tidy(value: Any, names: bool = False) -> Any:
    """Without what pydantic adds for programs: titles, and null as a way to leave a key out.

    `names` says that the keys of `value` are names of keys of specs, not words of the schema language.
    """
    if isinstance(value, list):
        return [_tidy(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    data = cast(dict[str, Any], value)
    if names:
        return {key: _tidy(item) for key, item in data.items()}
    tidy = {
        key: _tidy(item, names=key in ("properties", "$defs"))
        for key, item in data.items()
        if key != "title" and not (key == "default" and item is None)
    }
    choices = cast(list[Any], tidy.get("anyOf", []))
    if {"type": "null"} in choices:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        rest = {key: item for key, item in tidy.items() if key != "anyOf"}
        tidy = {**kept[0], **rest} if len(kept) == 1 else {"anyOf": kept, **rest}
    return tidy
