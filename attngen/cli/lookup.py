"""Which specs a command means: paths, bare names looked up in ./specs, or all of ./specs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attngen.errors import SpecError, UserError, did_you_mean
from attngen.spec import Spec, load_spec

FOLDER: Final = Path("specs")


def specs_in(folder: Path) -> list[Path]:
    """Return the spec files of a folder, by name."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; `attngen new NAME` starts one, or name the files")
    found = sorted(folder.glob("*.yaml"))
    if not found:
        raise UserError(f"{folder} holds no *.yaml file; `attngen new NAME` writes a first one")
    return found


def spec_path(name: str) -> Path:
    """Return the file of a path or of a bare name."""
    is_path = "/" in name or name.endswith((".yaml", ".yml")) or Path(name).is_file()
    if is_path:
        return Path(name)
    path = FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    known = [p.stem for p in sorted(FOLDER.glob("*.yaml"))]
    raise UserError(f"no spec {name!r} in ./{FOLDER}; {did_you_mean(name, known)}")


def load_one(name: str) -> Spec:
    """Load the spec of a path or a bare name."""
    return load_spec(spec_path(name))


def load_all(names: Sequence[str]) -> list[tuple[Path, Spec]]:
    """Load the named specs, or all of ./specs; report the mistakes of all files at once."""
    loaded: list[tuple[Path, Spec]] = []
    problems: list[SpecError] = []
    for path in [spec_path(name) for name in names] or specs_in(FOLDER):
        try:
            loaded.append((path, load_spec(path)))
        except SpecError as problem:
            problems.append(problem)
    if problems:
        raise UserError("\n".join(str(problem) for problem in problems))
    _refuse_twins(loaded)
    return loaded


def _refuse_twins(loaded: Sequence[tuple[Path, Spec]]) -> None:
    """Two specs of one name would write one module."""
    first: dict[str, Path] = {}
    for path, spec in loaded:
        other = first.setdefault(spec.name, path)
        if other is not path and other.resolve() == path.resolve():
            raise UserError(f"{path} is given twice")
        if other is not path:
            raise UserError(f"{other} and {path} are both named {spec.name!r}; rename one")
