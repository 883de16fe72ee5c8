"""Generated code is formatted by ruff, so that templates need not count columns and any formula reads well."""

from __future__ import annotations

import subprocess

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
