"""The command line: thin commands around the library. `main` is the entry point."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit."""
    from attngen.cli.app import app

    app(prog_name="attngen")
