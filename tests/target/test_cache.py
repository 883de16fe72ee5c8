"""The cache folder and atomic writes."""

import os
from pathlib import Path

import pytest

from attngen.cache import cache_dir, write_atomic


def test_the_folder_by_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("ATTNGEN_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "attngen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "attngen"


def test_write_atomic_writes_text_and_bytes_and_replaces(tmp_path):
    path = tmp_path / "a" / "b"
    write_atomic(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    write_atomic(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["b"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, "old")

    def fail(source, destination):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
