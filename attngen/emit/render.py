"""The one Jinja environment: a finished context in, the text of a module out."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2

from attngen.emit.context import context
from attngen.errors import InternalError
from attngen.ir.graph import Graph
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


def environment() -> jinja2.Environment:
    """Return the environment that every template is rendered with."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates() / "triton"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.filters["block"] = block
    made.globals.clear()
    return made


def render(graph: Graph, *, regenerate: str = "") -> str:
    """Return the source of the stand-alone module of a scheduled graph."""
    name = graph.provenance.name
    made = context(graph, version=VERSION, regenerate=regenerate or f"attngen generate specs/{name}.yaml")
    text = environment().get_template("attention.py.jinja").render(c=made, face=made.interface)
    try:
        compile(text, f"{name}.py", "exec")
    except SyntaxError as error:
        raise InternalError(f"attention.py.jinja: line {error.lineno} of the rendered {name}.py: {error.msg}") from error
    return text
