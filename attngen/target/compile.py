"""Compile a kernel of a generated module for a GPU that need not be there, and report what it takes.

Compilation runs in worker processes (`pool`), since the compiler can abort its process; an abort, a timeout
and a compile error are all reports with `ok` false. Reports and the compiler's output are kept in the cache
folder by content: module text, request, compiler versions. Kept is what the compiler says of the code, not what
the machine lacked (time, memory, disk, a tool), nor whether the GPU has room for it, which its facts say.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from attngen.cache import cache_dir, write_atomic
from attngen.errors import UserError
from attngen.target.facts import Target, target
from attngen.target.pool import MAX_WORKERS, WorkerDiedError, shared_pool
from attngen.target.resources import Features, Resources, amd_resources, features, nvidia_resources
from attngen.target.seal import digest, seal, unseal

FORMAT = 4  # part of the cache key: raise it when reports of the same input change
TIMEOUT_S = 180.0

Constexpr = int | float | bool | str | None
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """One kernel, specialised and aimed at a target.

    `signature` gives the triton type of each run-time argument ("*bf16", "i32", "i64", "fp32"), `constexprs`
    the values of the rest; `divisible` names arguments whose value or address is a multiple of 16.
    """

    module: str | Path
    kernel: str
    target: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Constexpr] = field(default_factory=dict[str, Constexpr])
    num_warps: int = 4
    num_stages: int = 2
    divisible: tuple[str, ...] = ()
    options: Mapping[str, Constexpr] = field(default_factory=dict[str, Constexpr])  # e.g. waves_per_eu


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """What became of a request. Where `ok` is false, `error` says why and numbers may be 0.

    `artifacts` maps "ttgir" and "ptx", "cubin" or "amdgcn", "hsaco" to the files that hold them.
    """

    kernel: str
    target: str
    key: str
    ok: bool
    error: str = ""
    resources: Resources = field(default_factory=Resources)
    features: Features = field(default_factory=Features)
    shared_bytes: int = 0
    tensor_memory_columns: int = 0
    num_warps: int = 0
    compile_seconds: float = 0.0
    cached: bool = False
    artifacts: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def registers(self) -> int:
        """32-bit registers of one thread."""
        return self.resources.registers

    @property
    def spill_bytes(self) -> int:
        """Bytes that one thread stores to or loads from spill slots, whichever is more; 0 means no spills."""
        return max(self.resources.spill_stores, self.resources.spill_loads)


def compile_kernel(request: CompileRequest, *, timeout: float = TIMEOUT_S) -> CompileReport:
    """Compile, or find the report of an earlier compilation.

    Raises UserError for an unknown target, an unreadable module or a missing compiler; whatever the compiler
    does is in the report.
    """
    goal = target(request.target)
    key = _cache_key(request, _read_module(request.module))
    report = _find(key)
    if report is None:
        report, files, keep = _run(request, goal, key, timeout)
        report = _store(report, files) if keep else report
    misfit = _misfit(report, goal) if report.ok else ""
    return replace(report, ok=False, error=misfit) if misfit else report


def compile_many(
    requests: Sequence[CompileRequest],
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    timeout: float = TIMEOUT_S,
) -> list[CompileReport]:
    """Reports in the order of the requests; equal requests are compiled once.

    `progress(done, total)` is called from the calling thread, first with `done` 0.
    """
    keys = [_cache_key(r, _read_module(r.module)) for r in requests]
    unique = dict(zip(keys, requests, strict=True))
    reports = in_threads(lambda r: compile_kernel(r, timeout=timeout), list(unique.values()), jobs, progress)
    found = dict(zip(unique, reports, strict=True))
    return [found[k] for k in keys]


def in_threads(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """What `task` makes of each item, in their order; the rest is as for `as_done`."""
    with contextlib.closing(as_done(task, items, jobs, progress)) as done:
        results = dict(done)
    return [results[n] for n in range(len(items))]


def as_done(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[tuple[int, Result]]:
    """Yield what `task` makes of each item, with the item's number, as soon as it is there. It runs in as many threads as there
    are workers, so that a compilation for one item goes on beside whatever is done for another.

    `progress` is as for `compile_many`. An exception, or closing the generator early, stops all, workers too.
    """
    tell = progress or _silent
    tell(0, len(items))
    executor = ThreadPoolExecutor(max_workers=max(1, min(jobs or MAX_WORKERS, MAX_WORKERS)))
    try:
        places = {executor.submit(task, item): n for n, item in enumerate(items)}
        for done, future in enumerate(as_completed(places), start=1):
            result = future.result()
            tell(done, len(items))
            yield places[future], result
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        shared_pool().close()
        raise
    executor.shutdown()


def _silent(done: int, total: int) -> None:
    """The progress callback of a caller that wants none."""


def _read_module(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the module {path}: {error}") from error


def _run(
    request: CompileRequest, goal: Target, key: str, timeout: float
) -> tuple[CompileReport, dict[str, bytes], bool]:
    """Compile in a worker: the report, the compiler's files, and whether the result is worth keeping."""
    report = CompileReport(kernel=request.kernel, target=request.target, key=key, ok=False)
    try:
        with shared_pool().worker() as worker:
            answer = worker.ask(_message(request, goal), timeout)
            files = {name: (worker.out / name).read_bytes() for name in answer.get("files", ())}
    except WorkerDiedError as death:
        keep = death.repeatable and not _of_the_machine(death.log)
        return replace(report, error=_with_cause(str(death), death.log)), {}, keep
    if answer["ok"]:
        return _success(report, goal, answer, files), files, True
    if answer["stage"] == "tool":
        raise UserError(_without_tool(goal, answer["error"]))
    error = _with_cause(_shorten(answer["error"]), answer["stderr"])
    keep = answer["stage"] == "compile" and not _of_the_machine(answer["error"] + answer["stderr"])
    return replace(report, error=error), {}, keep


def _of_the_machine(text: str) -> bool:
    """Whether what the compiler printed speaks of memory, disk or processes, or of a ptxas that was ended from outside."""
    signs = r"bad_alloc|[Oo]ut of memory|[Mm]emory allocation|Cannot allocate|No space left|temporarily unavailable"
    return re.search(rf"{signs}|error code -(?!(?:6|11)\b)", text) is not None


def _without_tool(goal: Target, error: str) -> str:
    found = re.search(r"ptxas(?:-blackwell)?", error)
    tool = found[0] if found else "ptxas"
    variable = f"TRITON_{tool.upper().replace('-', '_')}_PATH"
    cure = f"pip install --force-reinstall triton, or name one in {variable}"
    return (
        f"compiling for {goal.name} needs {tool}, which triton's wheel brings ({_shorten(error, 1)}): {cure}"
    )


def _message(request: CompileRequest, goal: Target) -> dict[str, Any]:
    """The request as the worker wants it."""
    return {
        "module": str(Path(request.module).absolute()),
        "kernel": request.kernel,
        "backend": goal.backend,
        "arch": goal.arch,
        "warp_size": goal.warp_size,
        **_settings(request),
    }


def _settings(request: CompileRequest) -> dict[str, Any]:
    """Everything but module, kernel and target, as JSON."""
    options = {**request.options, "num_warps": request.num_warps, "num_stages": request.num_stages}
    return {
        "signature": dict(request.signature),
        "constexprs": dict(request.constexprs),
        "divisible": sorted(request.divisible),
        "options": options,
    }


def _success(
    report: CompileReport, goal: Target, answer: dict[str, Any], files: dict[str, bytes]
) -> CompileReport:
    """The report of code that compiled."""
    assembly = files["ptx" if goal.backend == "cuda" else "amdgcn"].decode("utf-8", "replace")
    cuda = goal.backend == "cuda"
    return replace(
        report,
        ok=True,
        resources=nvidia_resources(answer["log"]) if cuda else amd_resources(assembly),
        features=features(assembly),
        shared_bytes=answer["shared"],
        tensor_memory_columns=answer["tensor_memory"],
        num_warps=answer["num_warps"],
        compile_seconds=answer["seconds"],
    )


def _misfit(report: CompileReport, goal: Target) -> str:
    """Why the GPU would refuse to launch this code, or ""."""
    if report.shared_bytes > goal.shared_per_cta:
        limit = goal.shared_per_cta
        return f"needs {report.shared_bytes} bytes of shared memory; {goal.name} has {limit} per CTA"
    if report.tensor_memory_columns > goal.tensor_memory_columns:
        columns = report.tensor_memory_columns
        return f"needs {columns} columns of tensor memory; {goal.name} has {goal.tensor_memory_columns}"
    if report.num_warps > goal.max_warps_per_cta:
        return f"needs {report.num_warps} warps; {goal.name} has at most {goal.max_warps_per_cta} per CTA"
    return ""


def _shorten(text: str, lines: int = 12) -> str:
    """The first meaningful lines of a message."""
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(line[:300] for line in kept[:lines])


def _with_cause(error: str, log: str) -> str:
    """Add what the compiler printed: the first lines that look like errors, without the dump of its IR."""
    telling = re.compile(r"Assertion|LLVM ERROR|error:|fatal|Error\b")
    causes = [line for line in log.splitlines() if telling.search(line)]
    return "\n".join([error, *_shorten("\n".join(causes), 3).splitlines()])


def _cache_key(request: CompileRequest, source: str) -> str:
    """A digest of everything that the report depends on: of the module's place only its name, which its lines carry."""
    goal = target(request.target)
    content = {
        "format": FORMAT,
        "file": Path(request.module).name,
        "source": hashlib.sha256(source.encode("utf-8")).hexdigest(),
        "kernel": request.kernel,
        "target": [goal.name, goal.backend, goal.arch, goal.warp_size],
        "compiler": _compiler_version(),
        **_settings(request),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _compiler_version() -> str:
    """Triton's version, which fixes its ptxas, and the date of a ptxas that the user chose instead."""
    chosen = [os.environ.get(f"TRITON_PTXAS{which}_PATH", "") for which in ("", "_BLACKWELL")]
    dates = [f"{path}@{os.stat(path).st_mtime_ns}" for path in chosen if path and os.path.exists(path)]
    return " ".join([_triton_version(), *dates])


@functools.cache
def _triton_version() -> str:
    """Triton's version, without importing it."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("compiling needs triton: pip install 'attngen[run]'") from None


@functools.cache
def _private_store() -> Path:
    """Where reports go while the process lives, if the cache folder cannot be written."""
    folder = tempfile.mkdtemp(prefix="attngen-reports-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


_private_keys: set[str] = set()


def _entry(root: Path, key: str) -> Path:
    """The report's file."""
    return root / "compile" / key[:2] / f"{key[2:]}.json"


def _file(entry: Path, name: str, content_digest: str) -> Path:
    """One of the compiler's files, beside the report and named by content.

    Two checkouts compile the same module to code that differs in the folder it names. Whichever report is read, its own files
    are there, and so is what is kept beside them.
    """
    return entry.with_name(f"{entry.stem[:16]}-{content_digest[:16]}.{name}")


def _find(key: str) -> CompileReport | None:
    """The kept report, if it and its files are there as they were written."""
    path = _entry(_private_store() if key in _private_keys else cache_dir(), key)
    try:
        data = json.loads(unseal(path.read_bytes()))
        digests: dict[str, str] = data.pop("artifacts")
        resources = Resources(**data.pop("resources"))
        report = CompileReport(
            resources=replace(resources, warnings=tuple(resources.warnings)),
            features=Features(**data.pop("features")),
            **data,
        )
        files = {name: _file(path, name, found) for name, found in digests.items()}
        sound = report.key == key and all(digest(files[n].read_bytes()) == digests[n] for n in files)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return replace(report, cached=True, artifacts={n: str(f) for n, f in files.items()}) if sound else None


def _store(report: CompileReport, files: Mapping[str, bytes]) -> CompileReport:
    """Keep a report and its files; the report goes last, so that a reader finds all or nothing."""
    try:
        return _write(cache_dir(), report, files)
    except OSError:
        stored = _write(_private_store(), report, files)
        _private_keys.add(report.key)
        return stored


def _write(root: Path, report: CompileReport, files: Mapping[str, bytes]) -> CompileReport:
    path = _entry(root, report.key)
    digests = {name: digest(content) for name, content in files.items()}
    artifacts = {name: str(_file(path, name, found)) for name, found in digests.items()}
    for name, content in files.items():
        write_atomic(Path(artifacts[name]), content)
    data = asdict(report) | {"artifacts": digests, "cached": False}
    write_atomic(path, seal(json.dumps(data, indent=1, sort_keys=True) + "\n"))
    return replace(report, artifacts=artifacts)
