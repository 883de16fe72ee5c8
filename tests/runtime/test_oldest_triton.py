"""The CPU layer at the old end of the supported Triton range, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

OLDEST = "3.6.0"
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "attngen-tests"


def oldest_triton() -> Path:
    """A folder with Triton alone; torch and the rest come from this environment, whatever torch asks for."""
    folder = CACHE / f"triton-{OLDEST}-{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "complete").exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
        subprocess.run([*install, str(folder), f"triton=={OLDEST}"], check=True, timeout=900)
        (folder / "complete").touch()
    return folder


@pytest.mark.slow
def test_cpu_layer_with_the_oldest_triton(tmp_path):
    path = os.pathsep.join([str(oldest_triton()), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    version = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    assert subprocess.check_output(version, env=environment, text=True).strip() == OLDEST
    tests = [str(HERE / name) for name in ("test_cpu_ops.py", "test_load.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
