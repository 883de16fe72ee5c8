"""Inspect a generated module: compile its kernels for a target, count their loops, predict their rate."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from attngen.errors import UserError
from attngen.inspect.assembly import Listing, Source, parse_amd, parse_sass
from attngen.inspect.instructions import Isa, kind_of
from attngen.inspect.kept import Counts, are_kept, kept_counts
from attngen.inspect.layouts import Dot, dots, has_dots, one_turn, shares
from attngen.inspect.loops import CountedLoop, matrix_loops
from attngen.inspect.model import Prediction, predict
from attngen.inspect.residency import Residency, residency
from attngen.inspect.roles import SourceLoop, loop_of, source_loops
from attngen.target.compile import CompileReport, CompileRequest, as_done, compile_kernel
from attngen.target.elf import section_size
from attngen.target.facts import Target, target
from attngen.target.requests import requests
from attngen.target.sass import disassemble, sass

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TOGETHER = 24  # kernels that are disassembled by one process: it takes 0.3 s to start, and 0.04 s for each


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """A loop with matrix work, and what the model says of it. FLOPs and bytes are of one turn of a whole program.

    `role` and `node` are "" for a loop that the module's manifest does not describe; all its FLOPs are useful then.
    """

    role: str
    node: str
    line: int
    useful_flops: int
    planned_flops: int  # with padding, passes of a precision (tf32x3) and what warps that share rows repeat; 0 if not known
    repeated_flops: int  # of those planned: done by several warps each
    found_flops: int
    bytes_per_flop: float
    key_bytes: (
        float  # that a program asks for per key, where the manifest lists all that it must read; else 0
    )
    least_key_bytes: float  # each of those once
    count: CountedLoop
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """What the compiler made of one kernel. Where it refused, `compiled.error` says why and there are no loops.

    `failure` is what kept us from reading the code: a bug of ours, which costs this report its loops and no other.
    """

    module: Path
    dtype: str
    config: Mapping[str, Any]  # compile-time constants, warps and stages
    compiled: CompileReport
    residency: Residency
    code_bytes: int = 0
    matrix_instructions: int = 0  # in all of the code: prologues and loops that the compiler unrolled too
    loops: tuple[LoopReport, ...] = ()
    failure: Exception | None = None

    @property
    def name(self) -> str:
        """The kernel's name in its module."""
        return self.compiled.kernel


def inspect_modules(
    modules: Sequence[tuple[Path, str]],
    targets: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    config: dict[str, Any] | None = None,
    kernels: Sequence[str] | None = None,
    with_code: bool = False,
) -> list[KernelReport]:
    """Inspect the kernels of generated modules, each with a dtype, for targets; in that order.

    `config` replaces the module's own schedule for the target, `kernels` names those of interest. The loops'
    instructions are read only `with_code`. `progress(done, total)` counts compilations. Raises UserError for an
    unknown target, an unreadable module and missing tools; what the compiler refuses, and code that we fail to
    read, is in a report.
    """
    goals = [target(name) for name in targets]
    for goal, (_, dtype) in product(goals, modules):
        if dtype != "float32" and dtype not in goal.dtypes:
            raise UserError(f"{goal.name} multiplies no {dtype}; it has {', '.join(goal.dtypes)}")
    asked = [
        (path, dtype, goal, request)
        for path, dtype in modules
        for goal in goals
        for request in requests(path, goal.name, dtype, config)
        if kernels is None or request.kernel in kernels
    ]
    found: dict[int, KernelReport] = {}
    waiting: dict[int, KernelReport] = {}
    with contextlib.closing(as_done(lambda one: _compiled(*one), asked, progress=progress)) as done:
        for n, basis in done:
            waiting[n] = basis
            # the first by itself, so that a missing tool shows early
            if len(waiting) >= min(TOGETHER, 1 + 2 * len(found)) or len(waiting) + len(found) == len(asked):
                found |= zip(waiting, _counted_together(list(waiting.values()), with_code), strict=True)
                waiting.clear()
    return [found[n] for n in range(len(asked))]


def _compiled(module: Path, dtype: str, goal: Target, request: CompileRequest) -> KernelReport:
    """A report of what the compiler says, without loops."""
    compiled = compile_kernel(request)
    constants = {name: value for name, value in request.constexprs.items() if name.isupper()}
    return KernelReport(
        module=module,
        dtype=dtype,
        config=constants | {"num_warps": request.num_warps, "num_stages": request.num_stages},
        compiled=compiled,
        residency=residency(compiled, goal),
    )


def _counted_together(reports: Sequence[KernelReport], with_code: bool) -> list[KernelReport]:
    """Reports with their code read and their loops counted; the disassembler starts once for all that need it."""
    taken = [report.compiled for report in reports if report.compiled.ok]
    wanted = [compiled for compiled in taken if with_code or not are_kept(compiled)]
    try:
        disassemble([c for c in wanted if "cubin" in c.artifacts and has_dots(_ttgir(c))])
    except UserError:
        raise
    except Exception:
        pass  # which kernel it is shows when each is read by itself
    return [_counted_or_failed(report, with_code) for report in reports]


def _counted_or_failed(basis: KernelReport, with_code: bool) -> KernelReport:
    if not basis.compiled.ok:
        return basis
    try:
        return _counted(basis, with_code)
    except UserError:
        raise
    except Exception as error:
        return replace(basis, failure=error)


def _counted(basis: KernelReport, with_code: bool) -> KernelReport:
    """A report with its code read and its loops counted."""
    goal = target(basis.compiled.target)
    file = basis.module.name
    num_warps = basis.config["num_warps"]
    described = source_loops(basis.module, basis.name, basis.config, ELEMENT_BYTES[basis.dtype])
    read = functools.partial(_read, basis.compiled, goal, num_warps)
    counts = read() if with_code else kept_counts(basis.compiled, read)
    places = [loop_of(loop.sources, file, described) for loop in counts.loops]
    return replace(
        basis,
        code_bytes=counts.code_bytes,
        matrix_instructions=counts.matrix_instructions,
        loops=tuple(
            _loop(
                loop,
                place,
                one_turn(counts.dots, file, place.first, place.last) if place else [],
                counts.shares,
                goal,
                num_warps,
            )
            for loop, place in zip(counts.loops, places, strict=True)
        ),
    )


def _read(compiled: CompileReport, goal: Target, num_warps: int) -> Counts:
    """Disassemble and count; where there are no products, there is nothing to count."""
    ttgir = _ttgir(compiled)
    found = tuple(dots(ttgir))
    if not found:
        return Counts(_code_bytes(compiled), 0, (), (), {})
    isa: Isa = "amd" if goal.backend == "hip" else "sass"
    listing = disassembled(compiled)
    lines = {dot.source for dot in found}
    loops = matrix_loops(listing, isa, num_warps=num_warps, lanes=goal.warp_size, wanted=lines.__contains__)
    matrix = sum(kind_of(isa, i.op) == "matrix" for i in listing.instructions)
    return Counts(_code_bytes(compiled), matrix, tuple(loops), found, shares(ttgir))


def disassembled(compiled: CompileReport) -> Listing:
    """The listing of compiled code."""
    if "amdgcn" in compiled.artifacts:
        return parse_amd(_assembly(compiled), compiled.kernel)
    return parse_sass(sass(compiled), compiled.kernel)


def _code_bytes(compiled: CompileReport) -> int:
    """The size of compiled code."""
    if "amdgcn" in compiled.artifacts:
        size = re.search(r"; codeLenInByte = (\d+)", _assembly(compiled))
        return int(size[1]) if size else 0
    return section_size(Path(compiled.artifacts["cubin"]).read_bytes(), f".text.{compiled.kernel}")


def _ttgir(compiled: CompileReport) -> str:
    return Path(compiled.artifacts["ttgir"]).read_text(encoding="utf-8")


def _assembly(compiled: CompileReport) -> str:
    return Path(compiled.artifacts["amdgcn"]).read_text(encoding="utf-8")


def _loop(
    count: CountedLoop,
    place: SourceLoop | None,
    turn: Sequence[Dot],
    shared: Mapping[Source, float],
    goal: Target,
    num_warps: int,
) -> LoopReport:
    found = count.all_flops
    repeated = sum((dot.repeats - 1) * dot.flops for dot in turn)
    work = place.work if place and place.work.useful_flops else None
    useful = work.useful_flops if work else found
    by_descriptor = work.load_bytes if work and count.descriptor_loads else 0
    asked = num_warps * goal.warp_size * sum(n * shared.get(line, 1.0) for line, n in count.loads.items())
    keys = work.keys if work else 0
    return LoopReport(
        role=work.role if work else "",
        node=work.node if work else "",
        line=place.first if place else min((line for _, line in count.sources), default=0),
        useful_flops=useful,
        planned_flops=work.padded_flops + repeated if work else 0,
        repeated_flops=repeated,
        found_flops=found,
        bytes_per_flop=(by_descriptor + num_warps * count.global_bytes) / useful,
        key_bytes=asked / keys if keys else 0.0,
        least_key_bytes=work.least_bytes / keys if work and keys else 0.0,
        count=count,
        prediction=predict(count, useful, goal, num_warps),
    )
