"""Printing: JSON, and columns of text."""

from __future__ import annotations

import json
from collections.abc import Sequence


def print_json(value: object) -> None:
    """Print a value as JSON, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text; the last column is as long as it is."""
    if not rows:
        return ""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )
