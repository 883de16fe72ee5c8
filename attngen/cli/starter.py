"""`attngen new`: a commented spec to start from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from attngen.cache import write_atomic
from attngen.cli.lookup import FOLDER
from attngen.errors import SpecError, UserError
from attngen.spec.loader import load_text

TEXT: Final = """\
# {name}: say here which model or paper this is
attngen: 1
name: {name}
heads: {{q: 8, kv: 2}}       # 4 query heads share a key/value head; `heads: 8` gives each its own
head_dim: 64               # or {{qk: 192, v: 128}}
dtype: [bfloat16, float32] # float16 | bfloat16 | float32

# Who sees whom. i is the query's position on the key axis, j the key's; also b, h, row, seqlen_q, seqlen_k.
mask: j <= i and i - j < window

# Numbers of the formulas: a value is compiled in, `int` or `float` makes an argument of the function.
params: {{window: 256}}

# What else there is; take away the "# " to use it:
# layout: bhsd                       # order of axes: bshd (default) | bhsd | thd (packed sequences)
# score: 50 * tanh(s / 50)           # a formula of the scaled score s
# sinks: true                        # a learned score per head that joins the sum, argument sinks [Hq]
# dropout: true                      # drop weights at random, arguments dropout_p and seed
# captured: {{slopes: {{dtype: float32, axes: [Hq]}}}}   # a tensor of formulas: s + slopes[h] * (j - i)
"""


def write_starter(name: str) -> None:
    """Write specs/NAME.yaml and say what to do next. Never overwrites."""
    path = FOLDER / f"{name}.yaml"
    text = TEXT.format(name=name)
    try:
        load_text(text, str(path))
    except SpecError as problem:
        raise UserError(problem.message) from None
    _create(path, text)
    print(f"wrote {path}\nnext: attngen explain {name}; attngen check {name}; attngen generate {name}")


def _create(path: Path, text: str) -> None:
    """Create a file whole; two commands at once cannot overwrite each other."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_atomic(temporary, text)
        _link(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise UserError(f"{path} exists; edit it, or choose another name") from None
