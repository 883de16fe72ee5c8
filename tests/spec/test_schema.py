"""The JSON schema for editors: current, and true of every committed spec (by a validator of our own)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from attngen.spec import load_spec
from attngen.spec.document import FORMS
from attngen.spec.schema import json_schema, schema_text
from attngen.spec.yaml_tree import read_yaml

SPECS = Path(__file__).parents[2] / "specs"
FILES = sorted(SPECS.glob("*.yaml"))
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": int | float}


def valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON schema that our schema uses; an unknown word fails the test."""
    known = {
        *("$ref", "$defs", "$schema", "anyOf", "type", "const", "enum", "pattern", "minimum", "maximum"),
        *("minItems", "maxItems", "items", "properties", "required", "additionalProperties"),
        *("description", "examples", "default", "title"),
    }
    assert set(schema) <= known
    if "$ref" in schema and not valid(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root):
        return False
    if "anyOf" in schema and not any(valid(value, choice, root) for choice in schema["anyOf"]):
        return False
    if "type" in schema:
        wanted = TYPES[schema["type"]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and schema["type"] != "boolean"):
            return False
    checks = {
        "const": lambda want: value == want,
        "enum": lambda want: value in want,
        "pattern": lambda want: re.search(want, value) is not None,
        "minimum": lambda want: value >= want,
        "maximum": lambda want: value <= want,
        "minItems": lambda want: len(value) >= want,
        "maxItems": lambda want: len(value) <= want,
        "items": lambda want: all(valid(item, want, root) for item in value),
        "required": lambda want: set(want) <= set(value),
    }
    return all(check(schema[word]) for word, check in checks.items() if word in schema) and (
        not isinstance(value, dict) or valid_keys(value, schema, root)
    )


def valid_keys(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> bool:
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        own = properties.get(key, rest)
        if own is False or (own is not True and not valid(item, own, root)):
            return False
    return True


def test_committed_schema_is_current() -> None:
    assert (SPECS / "attngen.schema.json").read_text() == schema_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_specs_follow_the_schema(path: Path) -> None:
    schema = json_schema()
    assert valid(read_yaml(path.read_text(), str(path)).data, schema, schema)
    assert valid(json.loads(json.dumps(load_spec(path).canonical())), schema, schema)


@pytest.mark.parametrize(
    "change",
    [
        {"nmae": "x"},
        {"heads": {"q": 1}},
        {"dtype": []},
        {"dtype": "half"},
        {"sinks": "yes"},
        {"dropout": 0.1},
        {"head_dim": 0},
        {"name": "../x"},
    ],
)
def test_schema_refuses_mistakes(change: dict[str, Any]) -> None:
    schema = json_schema()
    good = {"attngen": 1, "name": "x", "heads": 1, "head_dim": 8, "dtype": "float16"}
    assert valid(good, schema, schema)
    assert not valid(good | change, schema, schema)


def test_every_key_is_described_and_examples_are_valid() -> None:
    schema = json_schema()
    for form in FORMS.values():
        for name, field in form.model_fields.items():
            assert field.description, f"{form.__name__}.{name}"
    for name, field in schema["properties"].items():
        for example in field.get("examples", []):
            assert valid(example, field, schema), (name, example)
