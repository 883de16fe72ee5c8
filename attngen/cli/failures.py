"""What any failure of a command becomes: one message on stderr and an exit code. There is no other mechanism.

0 good, 1 a check failed, 2 a mistake of the user (one message, no traceback), 3 a bug of attngen (with what
to report). A reader that closed the pipe gives 141 and Ctrl-C gives 130, as shells have it.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import traceback
from typing import Any, Final, cast

import typer
from typer.core import TyperGroup

from attngen.errors import UserError
from attngen.version import VERSION

CHECK_FAILED: Final = 1
USER_ERROR: Final = 2
INTERNAL_ERROR: Final = 3
INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

# The base of usage errors has no public name: it is the last class of typer's own before Exception.
_USAGE_ERROR: Final = cast(
    type[Exception], next(c for c in typer.BadParameter.__mro__ if c.__bases__ == (Exception,))
)
_OF_TYPER: Final = (typer.Exit, typer.Abort, _USAGE_ERROR)


class Commands(TyperGroup):
    """The group of all commands; turns exceptions into exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except _OF_TYPER:
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(exit_code(error)) from None


def exit_code(error: BaseException) -> int:
    """Say on stderr what went wrong, and return the exit code for it."""
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return CLOSED_PIPE
    if isinstance(error, OSError) and error.errno in _FULL:
        _drop_output()
        _say(f"attngen: cannot write {error.filename or 'to the output'}: {error.strerror}")
        return USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        _say("attngen: interrupted")
        return INTERRUPTED
    if isinstance(error, UserError):
        _say(f"attngen: {error}")
        return USER_ERROR
    _say(_report(error))
    return INTERNAL_ERROR


def _drop_output() -> None:
    """Python flushes once more at exit: nothing may be left to write where writing fails."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: BaseException) -> str:
    trace = "".join(traceback.format_exception(error))
    system = f"attngen {VERSION}, Python {platform.python_version()}, {platform.platform()}"
    command = " ".join(["attngen", *sys.argv[1:]])
    return (
        f"attngen: internal error: {type(error).__name__}: {error}\n"
        "This is a bug of attngen, not of your spec. Please report the spec and the following:\n\n"
        f"{system}\ncommand: {command}\n{trace}"
    )


def _say(text: str) -> None:
    print(text.rstrip("\n"), file=sys.stderr)
