"""`load_spec`: a file or a dict to a `Spec`, all mistakes of it in one SpecError."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from attngen.errors import SpecError, did_you_mean
from attngen.spec.document import Document, unknown_key
from attngen.spec.model import KeyPath, Spec
from attngen.spec.resolve import OF_KEY, resolve
from attngen.spec.yaml_tree import Tree, read_yaml

MAX_BYTES: Final = 65_536


def load_spec(source: str | os.PathLike[str] | Mapping[str, Any]) -> Spec:
    """The spec in a YAML file, or in a mapping of the same form (such as `Spec.canonical()`).

    Raises:
        SpecError: with path, line, column and key of every mistake (without the place for a mapping).
    """
    if isinstance(source, Mapping):
        return _validate(dict(source), None, None)
    path = os.fspath(source).replace("\0", "\\0")
    return load_text(_read(path), path)


def load_text(text: str, path: str) -> Spec:
    """The spec in YAML text; `path` is where it came from, for messages."""
    tree = read_yaml(text, path)
    if tree.data is None:
        raise SpecError("the file holds no spec; `attngen new NAME` writes one to start from", path=path)
    spec = _validate(tree.data, tree, path)
    positions = {key: (path, *place) for key, place in tree.values.items()}
    return dataclasses.replace(spec, summary=_summary(text), positions=positions)


def _read(path: str) -> str:
    """The text of a file, after everything that can be wrong with files."""
    if "\n" in path:
        raise SpecError("load_spec takes a path or a mapping, this looks like YAML text")
    try:
        file = Path(path)
        if not file.exists():
            raise SpecError("no such file", path=path)
        if not file.is_file():
            raise SpecError("a spec is a file, this is a directory or a device", path=path)
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError(f"cannot be read: {reason}", path=path) from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"a spec has at most {MAX_BYTES:,} bytes", path=path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        message = f"a spec is UTF-8 text, byte 0x{data[error.start]:02X} is not"
        raise SpecError(message, path=path, line=line, column=column) from None


def _validate(data: Any, tree: Tree | None, path: str | None) -> Spec:
    problems: list[SpecError] = []

    def report(key: KeyPath, problem: SpecError) -> None:
        problems.append(_placed(problem, key, tree, path))

    if not isinstance(data, dict):
        report((), SpecError("a spec is a mapping of keys, such as `attngen: 1`"))
        raise problems[0]
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            loc = details["loc"]
            report(
                (*loc, OF_KEY) if details["type"] == "extra_forbidden" else loc, SpecError(_message(details))
            )
        raise SpecError.of_all(problems) from None
    spec = resolve(document, report)
    if spec is None:
        raise SpecError.of_all(problems)
    return spec


def _placed(problem: SpecError, key: KeyPath, tree: Tree | None, path: str | None) -> SpecError:
    """`problem` with the place of `key` in the file; a column of its own counts in the text at `key`."""
    of_key = key[-1:] == (OF_KEY,)
    key = key[:-1] if of_key else key
    dotted = ".".join(str(part) for part in key) or None
    if tree is None:
        return SpecError(problem.message, column=problem.column, key=dotted)
    if problem.column is not None:
        line, column = tree.place_in(key, problem.column)
    else:
        line, column = tree.place(key, of_key=of_key)
    return SpecError(problem.message, path=path, line=line, column=column, key=dotted)


def _message(details: ErrorDetails) -> str:
    """Our words for a problem that pydantic found."""
    kind, given = details["type"], details["input"]
    context = details.get("ctx", {})
    if kind == "attngen":
        return details["msg"]
    if kind == "extra_forbidden":
        return unknown_key(details["loc"])
    if kind == "missing":
        return f"missing; add `{details['loc'][-1]}: ...`"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"{_show(given)} is not allowed; {did_you_mean(str(given), allowed)}"
    if kind in _LIMITS:
        return f"must be {_LIMITS[kind][0]} {context[_LIMITS[kind][1]]}, got {_show(given)}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {_show(given)}"
    return details["msg"]


_LIMITS: Final = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
}
_EXPECTED: Final = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_type": "text",
    "too_long": "a shorter list",
    "too_short": "at least one entry",
}


def _show(value: Any) -> str:
    """A value in a message: short, on one line."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _summary(text: str) -> str:
    """The first comment line that is for people, or ''."""
    for line in text.splitlines():
        if line.startswith("#") and not line.startswith("# yaml-language-server:"):
            return line.lstrip("#").strip()
        if line.strip() and not line.startswith("#"):
            break
    return ""
