"""`pip install .` in a clean environment works outside the checkout, without torch, on the user's own specs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_installed_package_generates_outside_the_checkout(tmp_path):
    def run(*command: object) -> str:
        done = subprocess.run(
            [str(c) for c in command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    wheels, python = tmp_path / "wheels", tmp_path / "venv/bin/python"
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        wheels,
        ROOT,
    )
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    [wheel] = wheels.glob("attngen-*.whl")
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    attngen = tmp_path / "venv/bin/attngen"
    run(attngen, "new", "mine")
    run(attngen, "generate", "specs/mine.yaml", "-o", "out")
    assert "mask" in run(attngen, "explain", "mine")
    assert "def attention(" in (tmp_path / "out/mine.py").read_text()
    missing = run(
        python, "-c", "import importlib.util as u; print([m for m in ('torch', 'triton') if u.find_spec(m)])"
    )
    assert missing.strip() == "[]"
