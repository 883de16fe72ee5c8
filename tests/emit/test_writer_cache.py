"""A spec that was generated before is looked up, and only then."""

from __future__ import annotations

import attngen.generate as driver
from attngen.spec import load_spec

SPEC = {"attngen": 1, "name": "kept", "heads": 2, "head_dim": 16, "dtype": "float32"}


def test_a_generated_spec_is_looked_up_until_something_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(
        driver, "generate", lambda spec: made.append(spec.name) or f"# {spec.summary} {spec.schedule}\n"
    )
    first = driver.generate_to_cache(load_spec(SPEC))
    assert driver.generate_to_cache(load_spec(SPEC)) == first
    assert made == ["kept"]
    other = driver.generate_to_cache(load_spec({**SPEC, "schedule": {"block_m": 32}}))
    assert other != first
    first.write_text("damaged")
    assert driver.generate_to_cache(load_spec(SPEC)).read_text() != "damaged"
    monkeypatch.setattr(driver, "_installed", lambda: ["another version"])
    driver.generate_to_cache(load_spec(SPEC))
    assert len(made) == 4
