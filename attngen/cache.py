"""The folder where attngen keeps what it can make again: compile reports, built modules.

`ATTNGEN_CACHE` names it; otherwise it is `attngen` in the user's cache folder. Whoever writes here must
work without it too: the folder may be read-only or full.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder, absolute. It need not exist."""
    if own := os.environ.get("ATTNGEN_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "attngen"
    return Path.home() / ".cache" / "attngen"


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` to `path` so that a reader sees the whole of it or nothing of it.

    Makes the parent folders. Raises OSError and leaves nothing behind if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode("utf-8") if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's umask (it can only be read by setting it)."""
    current = os.umask(0o022)
    os.umask(current)
    return current
