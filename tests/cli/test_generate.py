"""`attngen generate` and `generate --check`."""

import os
import stat
from pathlib import Path

import pytest

from tests.cli.helpers import CAUSAL, good, refused, run


def test_generate_writes_what_changed(here: Path) -> None:
    assert good("generate") == "wrote generated/small.py\n1 written, 0 unchanged\n"
    text = (here / "generated/small.py").read_text()
    compile(text, "small.py", "exec")
    before = (here / "generated/small.py").stat().st_mtime_ns
    assert good("generate", "small") == "0 written, 1 unchanged\n"
    assert (here / "generated/small.py").stat().st_mtime_ns == before


def test_generate_into_another_folder(here: Path) -> None:
    good("generate", "small", "-o", "deep/out")
    assert os.listdir(here / "deep/out") == ["small.py"]
    assert not (here / "generated").exists()


def test_check_passes_on_what_was_generated_and_shows_what_differs(here: Path) -> None:
    good("generate")
    assert good("generate", "--check") == "1 modules are as their specs say\n"
    path = here / "generated/small.py"
    old = path.read_text()
    path.write_text(old.replace("import torch\n", "import torch  # edited\n", 1))
    edited = path.read_text()
    result = run("generate", "--check")
    assert result.exit_code == 1
    assert "\n-import torch  # edited\n+import torch\n" in result.stdout
    assert path.read_text() == edited


def test_check_reports_missing_and_left_over_modules(here: Path) -> None:
    good("generate")
    (here / "specs/small.yaml").rename(here / "specs/renamed.yaml")
    (here / "specs/renamed.yaml").write_text(CAUSAL.replace("small", "renamed"))
    (here / "generated/notes.py").write_text("# mine\n")
    result = run("generate", "--check")
    assert result.exit_code == 1
    assert "generated/renamed.py: missing" in result.stdout
    assert "generated/small.py: no spec makes it any more" in result.stdout
    assert "notes.py" not in result.stdout
    assert "generated/small.py: no spec makes it any more; delete it" in good("generate")
    assert run("generate", "--check", "renamed").exit_code == 0


def test_a_spec_without_a_kernel_is_the_users_matter(here: Path) -> None:
    (here / "specs/small.yaml").write_text(CAUSAL.replace("float32", "float16") + "precision: tf32\n")
    assert "specs/small.yaml:9:12: precision:" in refused("generate")
    assert not (here / "generated").exists()


def test_a_folder_that_cannot_be_written_is_named(here: Path) -> None:
    (here / "generated").write_text("a file")
    assert "cannot be written" in refused("generate")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(here: Path) -> None:
    (here / "generated").mkdir()
    (here / "generated").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "cannot be written" in refused("generate")
