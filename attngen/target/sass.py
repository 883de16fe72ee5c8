"""The SASS of compiled NVIDIA code, by the disassembler of triton's wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
from pathlib import Path

from attngen.cache import write_atomic
from attngen.errors import UserError
from attngen.target.compile import CompileReport
from attngen.target.seal import seal, unseal


def sass(report: CompileReport) -> str:
    """The disassembly with source lines (`nvdisasm -c -g`) of a report's cubin; kept beside it, since it costs 0.3 s.

    Without the tool's dataflow analysis, which takes as long again and only names the targets of a branch stack that no
    target here has.
    """
    cubin = Path(report.artifacts["cubin"])
    kept = cubin.with_suffix(".sass")
    with contextlib.suppress(OSError, ValueError):
        return unseal(kept.read_bytes())
    tool = disassembler()
    try:
        done = subprocess.run(
            [tool, "-c", "-g", "-ndf", str(cubin)], check=True, capture_output=True, text=True
        )
    except OSError as error:
        raise UserError(f"cannot run the disassembler {tool}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"the disassembler {tool} failed: {error.stderr.strip()[:500]}") from error
    text = done.stdout
    with contextlib.suppress(OSError):
        write_atomic(kept, seal(text))
    return text


def disassembler() -> str:
    """The path of nvdisasm: TRITON_NVDISASM_PATH, or the one in triton's wheel. Does not import triton."""
    if chosen := os.environ.get("TRITON_NVDISASM_PATH"):
        return chosen
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        if path.is_file():
            return str(path)
    raise UserError("disassembling needs nvdisasm, which triton's wheel brings: pip install 'attngen[run]'")
