"""Modules that tests build go to a folder of the test run, not to the user's cache."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = os.environ.get("ATTNGEN_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ATTNGEN_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["ATTNGEN_CACHE"]
    else:
        os.environ["ATTNGEN_CACHE"] = before
