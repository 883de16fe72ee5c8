"""Generated code is formatted by ruff, so that templates need not count columns and any formula reads well."""

from __future__ import annotations

import json
import subprocess
from typing import cast

from ruff.__main__ import find_ruff_bin

from attngen.errors import InternalError

LINE_LENGTH = 110


def formatted(text: str, name: str) -> str:
    """Return Python source formatted without any configuration of the caller's project."""
    command = [find_ruff_bin(), "format", "--isolated", "--line-length", str(LINE_LENGTH), "--no-cache", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise InternalError(f"{name}: ruff cannot format the rendered module: {done.stderr.strip()}")
    return done.stdout


def json_text(value: object, indent: int = 0) -> str:
    """JSON for a reader: what fits on a line is on one line, the rest is indented by two."""
    flat = json.dumps(value, ensure_ascii=True)
    if indent + len(flat) <= LINE_LENGTH or not isinstance(value, dict | list) or not value:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        items = cast(dict[str, object], value)
        parts = [f"{inner}{json.dumps(key)}: {json_text(item, indent + 2)}" for key, item in items.items()]
    else:
        parts = [f"{inner}{json_text(item, indent + 2)}" for item in cast(list[object], value)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(parts), f"{' ' * indent}{closing}"])
