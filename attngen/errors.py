"""The errors of attngen: mistakes of the user apart from bugs of ours.

A `UserError` has one clear message that says what to do; the command line prints it without a traceback and
exits 2. An `InternalError` is a bug of attngen; the command line exits 3 and says what to report.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class AttngenError(Exception):
    """Base of everything that attngen raises on purpose."""


class UserError(AttngenError):
    """A mistake in what the user gave; the message says where it is and what is allowed."""


class InternalError(AttngenError):
    """A broken invariant of attngen itself: a bug, never the user's fault."""


class SpecError(UserError):
    """A mistake in a spec.

    Args:
        message: what is wrong and what is allowed, without the place.
        path: the file, as the user named it; None when the spec did not come from a file.
        line, column: 1-based place in the file. Without a file, column counts in the formula's own text.
        key: dotted key in the spec, such as `captured.bias.axes`.
        more: further problems of the same spec; they are printed one per line after this one.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
        key: str | None = None,
        more: Sequence[SpecError] = (),
    ) -> None:
        self.message = message
        self.path = path
        self.line = line
        self.column = column
        self.key = key
        self.more = tuple(more)
        super().__init__("\n".join([self._own_line(), *(str(problem) for problem in self.more)]))

    def _own_line(self) -> str:
        place = ""
        if self.path is not None:
            place = (
                ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None) + ": "
            )
        key = f"{self.key}: " if self.key else ""
        return f"{place}{key}{self.message}"

    @classmethod
    def of_all(cls, problems: Sequence[SpecError]) -> SpecError:
        """One error that reports every problem in `problems`, in file order; `problems` is not empty."""
        ordered = sorted(problems, key=lambda p: (p.line or 0, p.column or 0))
        first = ordered[0]
        return cls(
            first.message,
            path=first.path,
            line=first.line,
            column=first.column,
            key=first.key,
            more=ordered[1:],
        )


class PlanError(UserError):
    """A valid spec that has no kernel in this version; the message names the field and the alternatives."""


class LoadError(UserError):
    """A generated module that cannot be found, imported or trusted."""


class TensorError(UserError, ValueError):
    """A call with a missing, extra or wrong argument; the message names it and what was expected."""


class CheckError(UserError):
    """What a check refused: a wrong number, an index outside a tensor, an unsorted tensor."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What to say after "unknown ... 'word'; ": a close match if there is one, then all that is known.

    >>> did_you_mean("wndow", ["window", "i"])
    "did you mean 'window'? known: i, window"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    listing = f"known: {', '.join(names)}" if names else "none are known"
    return f"did you mean '{close[0]}'? {listing}" if close else listing
