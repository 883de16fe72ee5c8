"""The SASS of compiled NVIDIA code, by the disassembler of triton's wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from attngen.cache import write_atomic
from attngen.errors import UserError
from attngen.target.compile import CompileReport
from attngen.target.elf import joined, prefix
from attngen.target.seal import seal, unseal


def sass(report: CompileReport) -> str:
    """The disassembly of a report's code with source lines, as `disassemble` gives it."""
    [text] = disassemble([report])
    return text


def disassemble(reports: Sequence[CompileReport]) -> list[str]:
    """The code of cubins with source lines (`nvdisasm -c -g`); kept beside each, since the tool takes 0.3 s to start.

    What is not kept yet is made by one run for each GPU, and reads the same whatever else the run disassembles: labels have
    numbers of their own. Raises UserError for a missing tool, ValueError for what is no cubin.
    """
    places = [Path(report.artifacts["cubin"]) for report in reports]
    texts = {place: text for place in places if (text := _kept(place)) is not None}
    missing = {p: r.target for p, r in zip(places, reports, strict=True) if p not in texts}
    for target in dict.fromkeys(missing.values()):
        group = [place for place in missing if missing[place] == target]
        for place, text in zip(group, _run([p.read_bytes() for p in group]), strict=True):
            texts[place] = text
            with contextlib.suppress(OSError):
                write_atomic(place.with_suffix(".sass"), seal(text))
    return [texts[place] for place in places]


def _kept(cubin: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return unseal(cubin.with_suffix(".sass").read_bytes())
    return None


def _run(images: Sequence[bytes]) -> list[str]:
    """The disassembly of each cubin.

    Without the tool's dataflow analysis, which takes as long again and only names the targets of a branch stack that no
    target here has.
    """
    tool = disassembler()
    content = joined(images)
    try:
        with tempfile.NamedTemporaryFile(prefix="attngen-", suffix=".cubin") as file:
            file.write(content)
            file.flush()
            command = [tool, "-c", "-g", "-ndf", file.name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"cannot run the disassembler {tool}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"the disassembler {tool} failed: {error.stderr.strip()[:500]}") from error
    parts = re.split(r"(?m)^(?=//-{3,} )", done.stdout)
    return [_part(parts, number) for number in range(len(images))]


def _part(parts: Sequence[str], number: int) -> str:
    """The sections of code of one cubin, with the names that they have there, and labels numbered from 0 in the tool's order."""
    mark = f".text.{prefix(number)}"
    text = "".join(part for part in parts if mark in part.partition("\n")[0]).replace(prefix(number), "")
    labels = sorted({int(label) for label in re.findall(r"\.L_x_(\d+)", text)})
    numbers = {str(label): n for n, label in enumerate(labels)}
    return re.sub(r"\.L_x_(\d+)", lambda label: f".L_x_{numbers[label[1]]}", text).rstrip() + "\n"


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
