"""Worker processes that compile, and what happens when one dies or does not answer."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
MAX_WORKERS = 2
REQUESTS_PER_WORKER = 200  # then a fresh process: the compiler does not give all of its memory back
LOG_LIMIT = 65536


class WorkerDiedError(Exception):
    """The worker ended, or was ended, instead of answering. `log` is what it printed meanwhile."""

    def __init__(self, reason: str, log: str, *, repeatable: bool) -> None:
        super().__init__(reason)
        self.log = log
        self.repeatable = repeatable


class Worker:
    """One process that compiles one kernel at a time."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="attngen-compile-")
        self.out = Path(self.folder.name) / "out"
        self.out.mkdir()
        self.served = 0
        self.tainted = False
        self._log = (Path(self.folder.name) / "log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(self.folder.name),
            cwd=self.folder.name,
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to a request, plus the `log` that the compiler wrote to standard error."""
        for file in self.out.iterdir():
            file.unlink()
        self.served += 1
        start = os.fstat(self._log.fileno()).st_size
        try:
            self._send(json.dumps({**request, "out": str(self.out)}) + "\n")
            line = self._receive(time.monotonic() + timeout)
        except TimeoutError:
            self.close()
            message = f"no answer in {timeout:g} s; the compiler was stopped"
            raise WorkerDiedError(message, "", repeatable=False) from None
        if not line.endswith(b"\n"):
            raise self._obituary(start)
        answer = {**json.loads(line), "stderr": self._read_log(start)}
        # The compiler recovers from some of its assertions; do not trust it afterwards.
        self.tainted = not answer["ok"] and bool(answer["stderr"])
        return answer

    def close(self) -> None:
        """End the process and what it started (ptxas), and remove its folder."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self.folder.cleanup()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows when its answer is read
            self._process.stdin.write(line.encode("utf-8"))
            self._process.stdin.flush()

    def _receive(self, deadline: float) -> bytes:
        """One line, or what there was of it when the worker closed its end."""
        assert self._process.stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    break
                line += chunk
        return line

    def _obituary(self, log_start: int) -> WorkerDiedError:
        """Say how the process ended. An abort will happen again; being killed from outside need not."""
        code = self._process.wait()
        log = self._read_log(log_start)
        self.close()
        reason = f"the compiler's process exited with {code}"
        if code < 0:
            reason = f"the compiler's process was ended by {signal.Signals(-code).name}"
        return WorkerDiedError(reason, log, repeatable=-code in (signal.SIGABRT, signal.SIGSEGV))

    def _read_log(self, start: int) -> str:
        return os.pread(self._log.fileno(), LOG_LIMIT, start).decode("utf-8", "replace")


class Pool:
    """At most `limit` workers, started when needed and kept for the next request."""

    def __init__(self, limit: int = MAX_WORKERS) -> None:
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    @contextlib.contextmanager
    def worker(self) -> Generator[Worker]:
        """A worker for one request. After an exception it is not used again."""
        with self._slots:
            worker = self._take()
            try:
                yield worker
            except BaseException:
                self._drop(worker)
                raise
            self._put_back(worker)

    def close(self) -> None:
        """End all workers, also those that are compiling."""
        with self._lock:
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
        for worker in workers:
            worker.close()

    def _take(self) -> Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else Worker()
            self._busy.add(worker)
        return worker

    def _put_back(self, worker: Worker) -> None:
        if worker.tainted or worker.served >= REQUESTS_PER_WORKER:
            self._drop(worker)
            return
        with self._lock:
            if worker in self._busy:  # else it was ended meanwhile, by `close`
                self._busy.remove(worker)
                self._idle.append(worker)

    def _drop(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
        worker.close()


_pool: Pool | None = None
_pool_lock = threading.Lock()


def shared_pool() -> Pool:
    """The pool of this process."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = Pool()
            atexit.register(_pool.close)
        return _pool


def _forget_pool() -> None:
    """A forked child must not talk to its parent's workers."""
    global _pool
    if _pool is not None:
        atexit.unregister(_pool.close)
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def _environment(folder: str) -> dict[str, str]:
    """A worker's environment: tools may be chosen by path, no other TRITON_ switch reaches the compiler."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_") or k.endswith("_PATH")}
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": f"{folder}/triton", "TMPDIR": folder}
    # triton's own cache takes equal kernels of two files for one, with the lines of the first
    own |= {"TRITON_ALWAYS_COMPILE": "1"}
    return kept | own | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
