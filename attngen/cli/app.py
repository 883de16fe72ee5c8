"""The commands and their options. Each imports what it needs, so that none starts slower than it must."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attngen.cli.failures import CHECK_FAILED, Commands
from attngen.target.facts import TARGETS
from attngen.version import VERSION

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From a short YAML spec of an attention variant to a stand-alone, checked Triton kernel.",
)

SpecName = Annotated[str, typer.Argument(metavar="SPEC", help="A file, or a name in ./specs.")]
SpecNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SPEC]...", help="Files, or names in ./specs; all of ./specs if none is given."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _version(value: bool) -> None:
    if value:
        print(f"attngen {VERSION}")
        raise typer.Exit


@app.callback()
def attngen(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("specs"),
    json: Json = False,
) -> None:
    """List the specs of a folder."""
    from attngen.cli.listing import show

    show(folder, as_json=json)


@app.command("new")
def new_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the spec, such as my_window.")],
) -> None:
    """Write a commented spec to start from, specs/NAME.yaml."""
    from attngen.cli.starter import write_starter

    write_starter(name)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of spec files, for editors."""
    from attngen.spec.schema import schema_text

    print(schema_text(), end="")


@app.command("explain")
def explain_command(
    spec: SpecName,
    seqlen_q: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Queries (packed: of all documents).")
    ] = 4096,
    seqlen_k: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Keys; as many as queries if not given.")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, max=10_000_000, help="Documents of the example.")] = 8,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="Value of a run-time param."),
    ] = None,
    json: Json = False,
) -> None:
    """Explain a spec: structure and run-time values, the plan of its mask, tiles, IR, passes, schedules."""
    from attngen.cli.example import Example
    from attngen.cli.explain import explanation
    from attngen.cli.explain_text import as_text
    from attngen.cli.lookup import load_one
    from attngen.cli.output import print_json

    example = Example.of(seqlen_q, seqlen_q if seqlen_k is None else seqlen_k, documents, param or [])
    found = explanation(load_one(spec), example)
    if json:
        print_json(found)
    else:
        print(as_text(found))


@app.command("generate")
def generate_command(
    specs: SpecNames = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where modules go.")] = Path(
        "generated"
    ),
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; print what would change, and exit 1 if anything would."),
    ] = False,
) -> None:
    """Write the kernel modules of specs."""
    from attngen.cli.generating import check_modules, write_modules
    from attngen.cli.lookup import load_all

    loaded = load_all(specs or [])
    if not check:
        write_modules(loaded, out, whole=not specs)
    elif not check_modules(loaded, out, whole=not specs):
        raise typer.Exit(CHECK_FAILED)


@app.command("check")
def check_command(
    specs: SpecNames = None,
    json: Json = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that check at the same time.")] = 2,
) -> None:
    """Check specs on this machine: formula, graph, passes and kernel must agree."""
    from attngen.cli.checking import check_and_show
    from attngen.cli.lookup import load_all

    if not check_and_show(load_all(specs or []), as_json=json, workers=workers):
        raise typer.Exit(CHECK_FAILED)


@app.command("inspect")
def inspect_command(
    specs: SpecNames = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU",
            help=f"{', '.join(TARGETS)}; may be repeated. [sm_90]",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="A dtype of the spec; its first if not given.")] = None,
    json: Json = False,
    sass: Annotated[
        bool,
        typer.Option("--sass", help="Print the instructions of one turn of each loop, with source lines."),
    ] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a roofline and the load of each pipe.")
    ] = None,
    assumptions: Annotated[
        bool, typer.Option("--assumptions", help="Say what the figures rest on, and stop.")
    ] = False,
) -> None:
    """Compile kernels for GPUs that need not be there, count their loops, and predict their rate."""
    from attngen.cli.inspecting import inspect_and_show, refuse_targets, show_assumptions
    from attngen.cli.lookup import load_all

    if assumptions:
        show_assumptions()
        return
    refuse_targets(specs or [])
    loaded = load_all(specs or [])
    if not inspect_and_show(loaded, target or ["sm_90"], dtype=dtype, as_json=json, with_code=sass, svg=svg):
        raise typer.Exit(CHECK_FAILED)
