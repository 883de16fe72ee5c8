"""How commands end when something goes wrong, as processes: exit codes, one message, nothing half done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import attngen.generate
from attngen.errors import InternalError
from tests.cli.helpers import run

MODULES = ("torch", "triton", "sympy", "hypothesis")
START = "import sys; sys.argv = ['attngen', *sys.argv[1:]]; from attngen.cli import main; main()"


def start(*arguments: str, code: str = START, **more: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        **more,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["new", "mine"], ["schema"], ["explain", "small"], ["generate"], ["generate", "--check"]],
    ids=" ".join,
)
def test_no_command_but_check_imports_heavy_packages(arguments: list[str], here: Path) -> None:
    code = (
        "import atexit, json, sys\n"
        f"heavy = lambda: sorted(set({MODULES!r}) & set(sys.modules))\n"
        "atexit.register(lambda: print(json.dumps(heavy()), file=sys.stderr))\n" + START.replace("; ", "\n")
    )
    process = start(*arguments, code=code)
    _, errors = process.communicate(timeout=60)
    assert json.loads(errors.splitlines()[-1]) == []


def test_a_bug_exits_3_and_says_what_to_report(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: object) -> str:
        raise InternalError("the fold came apart")

    monkeypatch.setattr(attngen.generate, "plan", broken)
    result = run("generate", "small")
    assert result.exit_code == 3
    assert result.stdout == ""
    first, second, *rest = result.stderr.splitlines()
    assert first == "attngen: internal error: InternalError: the fold came apart"
    assert second.startswith("This is a bug of attngen, not of your spec. Please report")
    assert any("in broken" in line for line in rest)
    assert not (here / "generated").exists()


def test_a_closed_pipe_is_no_error(here: Path) -> None:
    process = start("schema")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(60), errors) == (141, "")


def test_a_full_disk_is_said_and_exits_2(here: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", START, "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "attngen: cannot write to the output: No space left on device\n"


def test_ctrl_c_says_so_and_leaves_nothing(here: Path) -> None:
    code = (
        "import attngen.generate, time\n"
        "attngen.generate.plan = lambda spec: (print('started', flush=True), time.sleep(60))\n"
    )
    process = start("generate", "small", code=code + START.replace("; ", "\n"))
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "attngen: interrupted\n")
    assert os.listdir(here) == ["specs"]


@pytest.mark.slow
def test_ctrl_c_ends_a_check_and_its_workers(here: Path) -> None:
    big = (
        (here / "specs/small.yaml")
        .read_text()
        .replace("dtype: float32", "dtype: [float32, bfloat16, float16]")
    )
    (here / "specs/small.yaml").write_text(big)
    process = start("check", start_new_session=True)
    time.sleep(6)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130
    assert "Traceback" not in errors
