"""The program of a compile worker: reads one JSON request per line, answers one JSON line each.

It runs as a script in its own process, because the compiler can abort the process that calls it, and imports
nothing of attngen: the standard library, triton and what the kernel's module has for kernels, nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

ARTIFACTS = ("ttgir", "ptx", "cubin", "amdgcn", "hsaco")


def main() -> None:
    """Serve requests until standard input closes."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    # Kernel modules and the compiler may print to 1 and read from 0: keep private copies of both.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    serve(requests, answers)


def end_with_parent(parent: int, interval_s: float = 1.0) -> None:
    """End this process and what it started once the parent is gone, even in the middle of a compilation."""
    while os.getppid() == parent:
        time.sleep(interval_s)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Answer each request line with a line."""
    for line in requests:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile as asked. An error is an answer too; `stage` says where it is from, as `stage_of` does, or "import"."""
    imported = False
    try:
        kernel = find_kernel(load_module(request["module"]), request["kernel"])
        imported = True
        return {"ok": True, **compile_kernel(kernel, request)}
    except Exception as error:  # whatever the kernel or the compiler raises is the report
        return {
            "ok": False,
            "stage": stage_of(error) if imported else "import",
            "error": describe(error),
        }


def stage_of(error: BaseException) -> str:
    """Where an error of the compiler is from: "compile" is its verdict on the kernel, which it would repeat; else a missing
    "tool" or the "environment"."""
    chain = causes(error)
    if any(_is_of_a_tool(e) for e in chain):
        return "tool"
    of_the_machine = any(isinstance(e, (OSError, MemoryError)) for e in chain)
    passes_failed = isinstance(error, RuntimeError) and "PassManager::run failed" in str(error)
    verdict = type(error).__module__.startswith("triton") or passes_failed
    return "compile" if verdict and not of_the_machine else "environment"


def _is_of_a_tool(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return "ptxas" in os.path.basename(str(error.filename or ""))
    return isinstance(error, RuntimeError) and str(error).startswith("Cannot find ptxas")


def load_module(path: str) -> Any:
    """Import what the file at `path` has for kernels, under a name that its content decides, once per content."""
    content = Path(path).read_bytes()
    name = f"attngen_compiled_{hashlib.sha256(path.encode() + content).hexdigest()[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = KernelLoader(name, path)
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=path))
    module.__file__ = path
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class KernelLoader(importlib.machinery.SourceFileLoader):
    """Loads a file `without_torch`."""

    def get_code(self, fullname: str) -> types.CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        return compile(without_torch(tree), self.path, "exec", dont_inherit=True)


def without_torch(tree: ast.Module) -> ast.Module:
    """Leave out the statements that need torch to run, by themselves or through others: kernels have no use for them, and
    importing torch takes 2 s."""
    absent, kept = {"torch"}, tree.body
    while lacking := [s for s in kept if absent & names_run(s)]:
        absent |= {name for s in lacking for name in names_bound(s)}
        kept = [s for s in kept if s not in lacking]
    return ast.Module(kept, tree.type_ignores)


def names_run(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement looks up when it runs: of a function all but its body."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        modules = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
        modules += [alias.name for alias in statement.names if isinstance(statement, ast.Import)]
        return {name.partition(".")[0] for name in modules}
    parts: list[ast.AST] = [statement]
    if isinstance(statement, ast.FunctionDef):
        parts = [
            *statement.decorator_list,
            statement.args,
            *([statement.returns] if statement.returns else []),
        ]
    return {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)}


def names_bound(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement gives a value."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def find_kernel(module: Any, name: str) -> Any:
    """The jitted function called `name`, without the autotuner or heuristics around it."""
    jit: Any = importlib.import_module("triton.runtime.jit")
    kernel = getattr(module, name, None)
    while kernel is not None and not isinstance(kernel, jit.JITFunction):
        kernel = getattr(kernel, "fn", None)
    if kernel is None:
        raise AttributeError(f"{module.__file__} has no @triton.jit kernel {name!r}")
    return kernel


def compile_kernel(kernel: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run the whole pipeline for a target; the files go to the folder `request["out"]`."""
    # Through importlib, since triton has no type stubs.
    triton: Any = importlib.import_module("triton")
    target_of: Any = importlib.import_module("triton.backends.compiler").GPUTarget
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.cache.manager_class = kept_files()
    caching: Any = importlib.import_module("triton.runtime.cache")
    caching.triton_key = (
        str  # instead of a digest of all of Triton, which takes 0.5 s: the cache is of this process
    )
    names = list(kernel.arg_names)
    check_arguments(names, request)
    constexprs = {n: constexpr(triton, value) for n, value in request["constexprs"].items()}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constexprs else request["signature"][n] for n in names},
        constexprs=constexprs,
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in request["divisible"]},
    )
    target = target_of(request["backend"], request["arch"], request["warp_size"])
    log = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=target, options=request["options"])
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "log": log.getvalue(),
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
        "num_warps": compiled.metadata.num_warps,
        "files": write_files(compiled.asm, Path(request["out"])),
    }


@functools.cache
def kept_files() -> Any:
    """Triton's cache without its care for other processes, which this folder has none of, and without the text of stages
    that nobody reads."""
    base: Any = importlib.import_module("triton.runtime.cache").FileCacheManager

    class Files(base):
        def put(self, data: Any, filename: str, binary: bool = True) -> str:
            path = Path(self.cache_dir, filename)
            wanted = path.suffix[1:] in (*ARTIFACTS, "json")
            path.write_bytes(data if isinstance(data, bytes) else (str(data) if wanted else "").encode())
            return str(path)

    return Files


def constexpr(triton: Any, value: Any) -> Any:
    """A compile-time constant; the text ``tl.int64`` stands for the type, which JSON cannot hold."""
    named = isinstance(value, str) and value.startswith("tl.")
    return getattr(triton.language, value.removeprefix("tl.")) if named else value


def check_arguments(names: list[str], request: dict[str, Any]) -> None:
    """The signature and the constants together must name each parameter once."""
    given = [*request["signature"], *request["constexprs"]]
    missing = [n for n in names if n not in given]
    unknown = [n for n in [*given, *request["divisible"]] if n not in names]
    twice = [n for n in request["signature"] if n in request["constexprs"]]
    problems = {"missing": missing, "unknown": unknown, "both an argument and a constexpr": twice}
    if text := "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which):
        raise TypeError(f"arguments of {request['kernel']}: {text}")


def write_files(asm: dict[str, Any], folder: Path) -> list[str]:
    """Write what the compiler kept; returns the names, which are those of triton's stages."""
    written: list[str] = []
    for name in ARTIFACTS:
        if (content := asm.get(name)) is not None:
            data = content.encode("utf-8") if isinstance(content, str) else content
            (folder / name).write_bytes(data)
            written.append(name)
    return written


def causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def describe(error: BaseException) -> str:
    """The error with its causes. Triton nests errors of helper functions; the innermost says most."""
    chain = causes(error)
    if type(error).__module__.startswith("triton") or isinstance(error, (TypeError, AttributeError)):
        return "\n".join(f"{type(e).__name__}: {e}" for e in reversed(chain))
    return "".join(traceback.format_exception_only(error)).strip()


if __name__ == "__main__":
    main()
