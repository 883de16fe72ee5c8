"""`attngen list`: the specs of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attngen.cli.lookup import specs_in
from attngen.cli.output import columns, print_json
from attngen.errors import SpecError, UserError
from attngen.spec import Spec, load_spec


def show(folder: Path, *, as_json: bool) -> None:
    """Print one line per spec; a broken one is an error after the list of the others."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in specs_in(folder):
        try:
            rows.append(_row(path, load_spec(path)))
        except SpecError as problem:
            problems.append(str(problem))
            rows.append({"path": str(path), "error": str(problem)})
    if as_json:
        print_json(rows)
    else:
        print(columns([_cells(row) for row in rows if "error" not in row]))
    if problems:
        raise UserError("\n".join(problems))


def mechanism(spec: Spec) -> str:
    """Return the name of the function's contract: dense, packed, paged, ssd or recurrence."""
    if spec.recurrence is not None:
        return "ssd" if spec.recurrence.kind == "ssd" else "recurrence"
    if spec.cache is not None:
        return "paged"
    return "packed" if spec.layout == "thd" else "dense"


def _row(path: Path, spec: Spec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "path": str(path),
        "mechanism": mechanism(spec),
        "layout": spec.layout,
        "dtypes": list(spec.dtypes),
        "summary": spec.summary,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["name"], row["mechanism"], ", ".join(row["dtypes"]), row["summary"]]
