"""Imports go one way, the core imports neither torch nor triton, and nothing evaluates text."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "attngen"

CORE = ("errors", "cache", "spec", "ir", "passes", "emit", "generate")
# layer -> the layers it may import; a layer is a folder or file below attngen/
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "cache": set(),
    "spec": {"errors"},
    "ir": {"errors"},
    "passes": {"errors", "ir", "spec"},
    "emit": {"errors", "ir", "cache", "version"},
    "generate": {"cache", "spec", "ir", "passes", "emit"},
    "target": {"errors", "cache"},
    "inspect": {"errors", "cache", "target"},
    "reference.oracle": {"errors", "spec"},
    "reference.interpreter": {"errors", "ir"},
    "runtime": {"errors", "cache", "spec", "emit", "generate", "reference.oracle"},
    "check": {*CORE, "reference.oracle", "reference.interpreter", "runtime"},
    "cli": {*CORE, "version", "target", "inspect", "check"},
}


def layer(module: str) -> str:
    """Return the layer of ``attngen.x.y``."""
    parts = module.split(".")[1:]
    if parts[:1] == ["reference"] and len(parts) > 1:
        return "reference." + parts[1].split("_")[0]
    return parts[0] if parts else ""


def imports(path: Path) -> set[str]:
    """Return the attngen modules that a file imports, at its top and inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attngen"):
            found |= {
                f"{node.module}.{a.name}"
                if node.module in ("attngen", "attngen.reference")
                else str(node.module)
                for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("attngen")}
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py" and p.name != "__main__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = layer("attngen." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if own == "reference":
        assert not imports(path)
        return
    used = {layer(m) for m in imports(path)} - {own}
    assert used <= ALLOWED[own], (
        f"{path.relative_to(ROOT)}: {own} must not import {sorted(used - ALLOWED[own])}"
    )


def test_only_build_reads_specs():
    readers = {p.name for p in (ROOT / "passes").glob("*.py") if any(layer(m) == "spec" for m in imports(p))}
    assert readers == {"build.py", "build_recurrence.py", "lower.py", "pipeline.py"}


def test_nothing_evaluates_text():
    banned = {"eval", "exec", "sympify", "parse_expr", "literal_eval"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                # the CPU layer runs Triton's own rewritten source, as Triton's interpreter does; no text of a user
                rewrites_triton = path.name == "language.py" and name == "exec"
                assert name not in banned or rewrites_triton, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "code",
    [
        "import attngen",
        "import attngen; from attngen.generate import generate; generate(attngen.load_spec('specs/llama3_causal.yaml'))",
        "import attngen.cli",
    ],
)
def test_core_needs_neither_torch_nor_triton(code):
    program = f"{code}\nimport sys; print(sorted({{'torch', 'triton', 'sympy'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, check=True
    )
    assert done.stdout.strip() == "[]"
