"""YAML text to plain data with the place of every key and value, under rules of our own.

Plain scalars are: integers (decimal), floats (`1e-5` too), `true`, `false`, `null`, and text for all else
(`on`, `no` and `16:30` are text). Duplicate keys, anchors, aliases, tags, merge keys and second documents are
refused. The text is read event by event, so that depth is limited before anything recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

import yaml

from attngen.errors import SpecError

MAX_DEPTH: Final = 12
MAX_INT_DIGITS: Final = 18

_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", re.ASCII)
_WORDS: Final = {"true": True, "false": False, "null": None, "~": None, "": None}
_NON_PRINTABLE: Final = yaml.reader.Reader.NON_PRINTABLE

KeyPath = tuple[str | int, ...]


@dataclass
class Tree:
    """The data of one YAML document.

    Attributes:
        keys, values: key path to the (line, column) of the key and of its value, both from 1.
        sources: key path of a scalar to its raw text, for `column_in`.
    """

    data: Any = None
    keys: dict[KeyPath, tuple[int, int]] = field(default_factory=dict[KeyPath, tuple[int, int]])
    values: dict[KeyPath, tuple[int, int]] = field(default_factory=dict[KeyPath, tuple[int, int]])
    sources: dict[KeyPath, tuple[str, str]] = field(default_factory=dict[KeyPath, tuple[str, str]])

    def place(self, path: KeyPath, *, of_key: bool = False) -> tuple[int, int]:
        """Where the value (or key) at `path` is; of what is not in the file, where its nearest parent is."""
        while path:
            for table in (self.keys, self.values) if of_key else (self.values, self.keys):
                if path in table:
                    return table[path]
            path = path[:-1]
        return self.values.get((), (1, 1))

    def place_in(self, path: KeyPath, column: int) -> tuple[int, int]:
        """Where character `column` (from 1) of the text at `path` is; with escapes, where the text starts."""
        line, start = self.place(path)
        if path not in self.sources:
            return line, start
        text, raw = self.sources[path]
        offset = _raw_offset(text, raw, column - 1)
        if offset is None:
            return line, start
        before = raw[:offset]
        rows = before.count("\n")
        return (line + rows, len(before) - before.rfind("\n")) if rows else (line, start + offset)


def _raw_offset(text: str, raw: str, offset: int) -> int | None:
    """Where text[offset] stands in `raw`, by counting visible characters; None if they are not the same."""
    start = raw.find("\n") + 1 if raw[:1] in "|>" else int(raw[:1] in ("'", '"'))
    places = [index for index in range(start, len(raw)) if not raw[index].isspace()]
    visible = [index for index in range(len(text)) if not text[index].isspace()]
    if len(visible) > len(places) or any(text[v] != raw[p] for v, p in zip(visible, places, strict=False)):
        return None
    rank = sum(index < offset for index in visible)
    return places[rank] if rank < len(visible) else None


def read_yaml(text: str, path: str) -> Tree:
    """The one document in `text`; `path` is for messages. SpecError has the place of the first mistake."""
    bad = _NON_PRINTABLE.search(text)
    if bad:
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        message = f"character U+{ord(bad.group()):04X} is not allowed in YAML"
        raise SpecError(message, path=path, line=line, column=column)
    try:
        return _Reader(text, path).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        line, column = (None, None) if mark is None else (mark.line + 1, mark.column + 1)
        raise SpecError(f"not YAML: {reason}", path=path, line=line, column=column) from None


class _Reader:
    """One pass over the events of a YAML text."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.tree = Tree()
        self.events: Iterator[Any] = cast(Any, yaml).parse(text, Loader=yaml.SafeLoader)

    def read(self) -> Tree:
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.fail(event, "one spec per file; a second YAML document starts here")
                self.tree.data = self.value(next(self.events), (), 0)
        return self.tree

    def fail(self, event: Any, message: str, key: KeyPath = ()) -> NoReturn:
        mark = event.start_mark
        dotted = ".".join(str(part) for part in key) or None
        raise SpecError(message, path=self.path, line=mark.line + 1, column=mark.column + 1, key=dotted)

    def value(self, event: Any, path: KeyPath, depth: int) -> Any:
        """The data that starts with `event`."""
        self.refuse_extras(event, path)
        if depth > MAX_DEPTH:
            self.fail(event, f"a spec is nested at most {MAX_DEPTH} deep")
        self.tree.values[path] = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            self.tree.sources[path] = (event.value, self.text[event.start_mark.index : event.end_mark.index])
            return self.scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.mapping(path, depth)

    def refuse_extras(self, event: Any, path: KeyPath) -> None:
        if isinstance(event, yaml.AliasEvent):
            self.fail(
                event, f"YAML aliases (*{event.anchor}) are not part of specs; write the value out", path
            )
        if event.anchor is not None:
            self.fail(
                event, f"YAML anchors (&{event.anchor}) are not part of specs; write the value out", path
            )
        tag: str | None = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            self.fail(event, f"YAML tags ({tag}) are not part of specs", path)

    def sequence(self, path: KeyPath, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.value(event, (*path, len(items)), depth + 1))
        return items

    def mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            self.refuse_extras(event, path)
            if not isinstance(event, yaml.ScalarEvent):
                self.fail(event, "a key must be a name, not a list or a mapping", path)
            key: str = event.value
            if key == "<<" and event.style is None:
                self.fail(event, "YAML merge keys (<<) are not part of specs; write the keys out", path)
            here = (*path, key)
            if key in data:
                first = self.tree.keys[here][0]
                self.fail(event, f"duplicate key; it is on line {first} already", here)
            self.tree.keys[here] = (event.start_mark.line + 1, event.start_mark.column + 1)
            data[key] = self.value(next(self.events), here, depth + 1)
        return data

    def scalar(self, event: Any, path: KeyPath) -> Any:
        value: str = event.value
        if event.style is not None or event.tag == "!":
            return value
        if value in _WORDS:
            return _WORDS[value]
        if _INT.fullmatch(value):
            if len(value) > MAX_INT_DIGITS:
                self.fail(event, f"a number has at most {MAX_INT_DIGITS} digits", path)
            return int(value)
        return float(value) if _FLOAT.fullmatch(value) else value
