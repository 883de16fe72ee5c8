"""The one Jinja environment: a finished context in, the text of a module out."""

from __future__ import annotations

import ast
import functools
from importlib import resources
from pathlib import Path
from typing import Any, cast

import jinja2

from attngen.emit.context import context
from attngen.emit.decode import decode_context
from attngen.emit.format import formatted
from attngen.emit.recurrence import recurrence_context
from attngen.errors import InternalError, PlanError
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Input
from attngen.version import VERSION

ROOT = Path(__file__).resolve().parents[2] / "templates"


def templates() -> Path:
    """Return the folder of templates: inside the installed package, or beside it in a checkout."""
    installed = Path(str(resources.files("attngen"))) / "templates"
    return installed if installed.is_dir() else ROOT


def block(text: str, width: int) -> str:
    """Indent the lines of a macro's result after the first, and drop its final newline."""
    lines = text.rstrip("\n").split("\n")
    return ("\n" + " " * width).join(lines).replace("\n" + " " * width + "\n", "\n\n")


@functools.cache
def environment() -> jinja2.Environment:
    """Return the environment that every template is rendered with; it keeps the templates it has compiled."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates() / "triton"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.filters["block"] = cast(Any, block)  # jinja2 types only its own filters
    made.globals.clear()
    return made


def render(graph: Graph, *, regenerate: str = "") -> str:
    """Return the source of the stand-alone module of a scheduled graph."""
    name = graph.provenance.name
    told = {"version": VERSION, "regenerate": regenerate or f"attngen generate specs/{name}.yaml"}
    if any(fold.monoid == "decay" for _, fold in graph.all(Fold)):
        template = environment().get_template("recurrence.py.jinja")
        text = template.render(c=recurrence_context(graph, **told), decode=decode_context(graph))
    else:
        made = context(graph, **told)
        text = environment().get_template("attention.py.jinja").render(c=made, face=made.interface)
    try:
        compile(text, f"{name}.py", "exec")
    except SyntaxError as error:
        if "duplicate argument" in str(error.msg):
            raise PlanError(f"{name}: {error.msg}; rename the parameter or tensor in the spec") from error
        raise InternalError(
            f"attention.py.jinja: line {error.lineno} of the rendered {name}.py: {error.msg}"
        ) from error
    _refuse_taken_names(graph, text)
    return formatted(text, name)


def _refuse_taken_names(graph: Graph, text: str) -> None:
    """A parameter or captured tensor must not have the name of a variable of the generated functions."""
    chosen = [(n, i) for n, i in graph.all(Input) if i.role in ("captured", "scalar") and i.dtype != "float"]
    own = {n for n, i in chosen if not i.default}
    if not own:
        return
    tree = ast.parse(text)
    checked = [
        a for a in ast.walk(tree) if isinstance(a, ast.Assign) and "_check_captured" in ast.unparse(a.value)
    ]
    skipped = {id(target) for a in checked for target in a.targets}
    functions = [f for f in tree.body if isinstance(f, ast.FunctionDef)]
    taken = sorted(own & {f.name for f in functions})
    taken += sorted(name for f in functions for name in own & _arguments(f) & _assigned(f, skipped))
    if taken:
        raise PlanError(
            f"{graph.provenance.name}: the kernel has a variable named {taken[0]!r}; rename it in the spec"
        )


def _arguments(function: ast.FunctionDef) -> set[str]:
    given = function.args
    return {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def _assigned(function: ast.FunctionDef, skipped: set[int]) -> set[str]:
    names = (n for n in ast.walk(function) if isinstance(n, ast.Name))
    return {n.id for n in names if isinstance(n.ctx, ast.Store) and id(n) not in skipped}
