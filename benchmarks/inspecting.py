"""Time of inspecting all committed specs for a GPU: with an empty cache, and again.

python benchmarks/inspecting.py          # sm_90
python benchmarks/inspecting.py gfx942
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time


def timed(target: str, cache: str) -> tuple[int, float, float]:
    """Kernels, seconds, and seconds of CPU time of `attngen inspect` and all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from attngen.cli import main; main()",
        "inspect",
        "--target",
        target,
        "--json",
    ]
    found = subprocess.run(
        command, capture_output=True, env={**os.environ, "ATTNGEN_CACHE": cache}, check=True
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return len(json.loads(found.stdout)), seconds, cpu


def main() -> None:
    """Both runs share a cache that starts empty."""
    target = sys.argv[1] if len(sys.argv) > 1 else "sm_90"
    with tempfile.TemporaryDirectory() as cache:
        for run in ("cold", "warm"):
            kernels, seconds, cpu = timed(target, cache)
            print(f"{target}: {kernels} kernels, {run}: {seconds:.1f} s, {cpu:.1f} s of CPU time")


if __name__ == "__main__":
    main()
