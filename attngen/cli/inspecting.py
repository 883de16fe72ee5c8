"""`attngen inspect`: what the compiler made of the kernels of specs, as a table, JSON, disassembly or a picture."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from attngen.cache import write_atomic
from attngen.cli.lookup import FOLDER
from attngen.cli.output import columns, print_json
from attngen.errors import InternalError, UserError
from attngen.generate import generate_to_cache
from attngen.inspect.assembly import Instruction
from attngen.inspect.model import ASSUMPTIONS
from attngen.inspect.report import KernelReport, LoopReport, inspect_modules
from attngen.spec import Spec
from attngen.spec.model import Precision
from attngen.target.compile import CompileReport
from attngen.target.facts import TARGETS, target


def inspect_and_show(
    loaded: Sequence[tuple[Path, Spec]],
    targets: Sequence[str],
    *,
    dtype: str | None,
    as_json: bool,
    with_code: bool,
    svg: Path | None,
) -> bool:
    """Inspect specs, print what was found, and return whether the compiler took all kernels."""
    for name in targets:
        target(name)  # refuse what cannot end well before long work
    if as_json and with_code:
        raise UserError("--json prints JSON and nothing else; leave out --sass, or --json")
    if svg is not None:
        _refuse_picture(svg)
    asked = [(generate_to_cache(spec), _dtype(path, spec, dtype)) for path, spec in loaded]
    reports = _with_progress(asked, list(dict.fromkeys(targets)), with_code)
    names = {module: spec.name for (module, _), (_, spec) in zip(asked, loaded, strict=True)}
    if as_json:
        print_json([as_data(report, names[report.module]) for report in reports])
    else:
        print("\n\n".join(as_text(report, names[report.module], with_code) for report in reports))
        print("\npredicted, not measured; `attngen inspect --assumptions` says how")
    if svg is not None:
        _write_picture(svg, reports, names)
    for report in reports:
        if report.failure is not None:
            raise InternalError(
                f"inspect: {names[report.module]}: {report.name} for {report.compiled.target}: {_failure(report)}"
            ) from report.failure
    return all(report.compiled.ok for report in reports)


def refuse_targets(specs: Sequence[str]) -> None:
    """Refuse names of GPUs where specs belong: `--target` takes one name at a time."""
    for name in specs:
        if name in TARGETS and not (Path(name).is_file() or (FOLDER / f"{name}.yaml").is_file()):
            raise UserError(f"{name} is a target, not a spec; repeat the option: --target {name}")


def show_assumptions() -> None:
    """Print what the figures rest on."""
    print(ASSUMPTIONS)


def _dtype(path: Path, spec: Spec, asked: str | None) -> str:
    if asked is not None and asked not in spec.dtypes:
        raise UserError(f"{path}: --dtype {asked}: the spec has {', '.join(spec.dtypes)}")
    return asked or spec.dtypes[0]


def _with_progress(
    asked: Sequence[tuple[Path, str]], targets: Sequence[str], with_code: bool
) -> list[KernelReport]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        return inspect_modules(
            asked,
            targets,
            lambda done, total: progress.update(bar, completed=done, total=total),
            with_code=with_code,
        )


def _refuse_picture(path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--svg: a picture needs matplotlib; pip install 'attngen[plot]'")
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        raise UserError(f"--svg {path}: {'is a folder' if path.is_dir() else f'there is no folder {folder}'}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--svg {path}: the folder {folder} cannot be written to")


def _write_picture(path: Path, reports: Sequence[KernelReport], names: dict[Path, str]) -> None:
    from attngen.inspect.picture import picture

    try:
        write_atomic(path, picture(reports, names))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def as_data(report: KernelReport, spec: str) -> dict[str, object]:
    """A report as JSON. Bytes, clocks, TFLOP/s; counts are of one turn of a loop."""
    compiled = report.compiled
    return {
        "spec": spec,
        "name": report.name,
        "target": compiled.target,
        "dtype": report.dtype,
        "config": dict(report.config),
        "error": _error(compiled) or _failure(report),
        "registers": compiled.registers,
        "accumulator_registers": compiled.resources.accumulators,
        "spill_bytes": compiled.spill_bytes,
        "scalar_spill_registers": compiled.resources.scalar_spills,
        "shared_bytes": compiled.shared_bytes,
        "ctas_per_sm": report.residency.programs,
        "ctas_limited_by": report.residency.limit,
        "code_bytes": report.code_bytes,
        "matrix_instructions": report.matrix_instructions,
        "compile_seconds": compiled.compile_seconds,
        "warnings": list(compiled.resources.warnings),
        "loops": [_loop_data(loop) for loop in report.loops],
    }


def _loop_data(loop: LoopReport) -> dict[str, object]:
    predicted = loop.prediction
    return {
        "role": loop.role,
        "node": loop.node,
        "line": loop.line,
        "instructions": loop.count.instructions,
        "most_instructions": loop.count.most_instructions,
        "matrix": dict(loop.count.matrix),
        "kinds": dict(loop.count.kinds),
        "useful_flops": loop.useful_flops,
        "planned_flops": loop.planned_flops,
        "repeated_flops": loop.repeated_flops,
        "found_flops": loop.found_flops,
        "bytes_per_flop": loop.bytes_per_flop,
        "bytes_per_key": loop.key_bytes,
        "least_bytes_per_key": loop.least_key_bytes,
        "clocks": dict(predicted.clocks),
        "busiest": predicted.busiest,
        "issue_per_1k_tensor": predicted.issue_per_1k_tensor,
        "predicted_tflops_overlap": predicted.tflops_overlap,
        "predicted_tflops_turns": predicted.tflops_turns,
        "predicted_tflops_serial": predicted.tflops_serial,
    }


def _error(compiled: CompileReport) -> str:
    """Why the compiler refused; a precision that it lacks for a target is named as specs do."""
    pattern = r"input_precision must be one of \(([^)]*)\)\. Got (\w+)"
    match = re.search(pattern, compiled.error)
    if match is None:
        return compiled.error
    known = [name for name in get_args(Precision) if f"'{name}'" in match[1]]
    return f"precision: {compiled.target} has no {match[2]} products; 'precision' may be {' or '.join(known)}"


def _failure(report: KernelReport) -> str:
    return f"{type(report.failure).__name__}: {report.failure}" if report.failure is not None else ""


def as_text(report: KernelReport, spec: str, with_code: bool) -> str:
    """A report for people."""
    compiled = report.compiled
    config = ", ".join(f"{name} {value}" for name, value in report.config.items())
    head = f"{spec}: {report.name} for {compiled.target} ({target(compiled.target).product}), {report.dtype}"
    lines = [head, f"  {config}"]
    if not compiled.ok:
        return "\n".join([*lines, *(f"  {line}" for line in f"REFUSED: {_error(compiled)}".splitlines())])
    lines.append(f"  {_resources(report)}")
    lines += [f"  warning: {text}" for text in compiled.resources.warnings]
    if report.failure is not None:
        return "\n".join([*lines, f"  NOT READ (a bug of attngen): {_failure(report)}"])
    if not report.loops:
        return "\n".join(
            [
                *lines,
                f"  no loop with matrix work; matrix instructions that run once: {report.matrix_instructions}",
            ]
        )
    table = columns([_HEADINGS, *(_row(loop) for loop in report.loops)]).splitlines()
    counts = columns([_counts(loop) for loop in report.loops]).splitlines()
    lines += [f"  {line}" for line in (*table, *counts)]
    for loop in report.loops if with_code else ():
        lines += ["", f"  {_title(loop)}, one turn:", *(f"    {_instruction(i)}" for i in loop.count.code)]
    return "\n".join(lines)


def _resources(report: KernelReport) -> str:
    compiled = report.compiled
    accumulators = f" ({compiled.resources.accumulators} AGPR)" if compiled.resources.accumulators else ""
    scalars = compiled.resources.scalar_spills
    spills = [f"{compiled.spill_bytes} bytes spilled"] if compiled.spill_bytes else []
    spills += [f"{scalars} scalar register{'s' if scalars != 1 else ''} spilled"] if scalars else []
    programs = report.residency.programs
    return ", ".join(
        [
            f"{compiled.registers} registers{accumulators}",
            *(spills or ["no spills"]),
            f"{compiled.shared_bytes / 1024:.1f} KiB shared",
            f"{programs} program{'s' if programs != 1 else ''} per SM (by {report.residency.limit})",
            f"{report.code_bytes / 1024:.1f} KiB code",
            f"compiled in {compiled.compile_seconds:.1f} s",
        ]
    )


# instructions per 1000 tensor clocks of useful work; TFLOP/s of useful work under three assumptions; of keys in pages, the
# bytes that a program asks for, and how many times that is what it must read
_HEADINGS = (
    "loop",
    "line",
    "instr",
    "per 1k",
    "overlap",
    "turns",
    "serial",
    "busiest",
    "bytes/FLOP",
    "bytes/key",
    "matrix instructions",
)


def _title(loop: LoopReport) -> str:
    return f"{loop.role} ({loop.node})" if loop.role else "(not described)"


def _row(loop: LoopReport) -> list[str]:
    predicted = loop.prediction
    matrix = ", ".join(f"{n} {shape}" for shape, n in loop.count.matrix.items()) or "by FMA"
    notes = (
        [f"{loop.repeated_flops / loop.found_flops:.0%} repeated by warps that share rows"]
        if loop.repeated_flops
        else []
    )
    if loop.planned_flops not in (0, loop.found_flops):
        notes.append(f"{loop.found_flops / loop.planned_flops:.2f} x what is planned")
    return [
        _title(loop),
        str(loop.line),
        str(loop.count.instructions),
        f"{predicted.issue_per_1k_tensor:.0f}",
        f"{predicted.tflops_overlap:.0f}",
        f"{predicted.tflops_turns:.0f}",
        f"{predicted.tflops_serial:.0f}",
        predicted.busiest,
        f"{loop.bytes_per_flop:.4f}",
        f"{loop.key_bytes:.1f} ({loop.key_bytes / loop.least_key_bytes:.2f} x)" if loop.key_bytes else "-",
        ", ".join([matrix, *notes]),
    ]


def _counts(loop: LoopReport) -> list[str]:
    """The instructions of one turn by kind, most frequent first; those of matrix units are in the row above."""
    kinds = sorted(loop.count.kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return [_title(loop), ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in kinds if name != "matrix")]


def _instruction(code: Instruction) -> str:
    place = f"{code.source[0]}:{code.source[1]}" if code.source else ""
    guard = "@ " if code.guarded else "  "
    return f"{place:40} {guard}{code.op} {code.operands}"
