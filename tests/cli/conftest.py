"""A project to run commands in."""

from pathlib import Path

import pytest

from tests.cli.helpers import CAUSAL


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with one spec."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/small.yaml").write_text(CAUSAL)
    return tmp_path
