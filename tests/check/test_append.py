"""A check reads what `append_kv` has written, and finds planted mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attngen.check.problem import Problem
from attngen.check.triangle import Broken, Subject, check_problem
from attngen.generate import generate
from attngen.runtime.load import load_module
from attngen.spec import Spec, load_spec

PROBLEM = Problem(name="decode", lengths=((1, 9), (2, 4), (0, 3)), kv_heads=2)


def spec_of(**cache: Any) -> Spec:
    return load_spec(
        {
            "attngen": 1,
            "name": "cached",
            "heads": {"q": 4, "kv": 2},
            "head_dim": {"qk": 24, "v": 16},
            "dtype": ["float32", "bfloat16", "float16"],
            "mask": "j <= i",
            "cache": {"kind": "paged", "page_size": 4, **cache},
        }
    )


CACHES: list[Any] = [
    {},
    {"layout": "hnd", "dtype": "int8"},
    {"dtype": "int4"},
    {"dtype": "float8_e4m3", "scales": "per_head", "layout": "hnd"},
    {"dtype": "float8_e5m2"},
    {"dtype": "float8_e4m3", "scales": "per_token_head"},
]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_caches_are_compared_in_half_steps(cache: Any, dtype: str) -> None:
    subject = Subject.of(spec_of(**cache))
    for number in range(3):  # without rotary, NeoX, interleaved
        for values in ("normal", "large"):
            problem = replace(PROBLEM, values=values, seed=number)
            found = check_problem(subject, problem, dtype, number)
            shares = {c.tensor: c.share for c in found if c.what == "append_kv = oracle"}
            per_key = cache.get("scales") == "per_token_head" or cache.get("dtype", "f").startswith("int")
            assert set(shares) == {"k_cache", "v_cache", *(["k_scale", "v_scale"] if per_key else [])}
            exact = not cache and number == 0
            assert (shares["k_cache"] == 0) == exact
            assert (shares["v_cache"] == 0) == (not cache)
            assert cache == {} or shares["v_cache"] > 0.7  # the bound is that of the data


MISTAKES: dict[str, tuple[Any, str, str, str]] = {
    "a slot left out": ({}, "if slot < 0:", "if slot < 1:", "k_cache differs by inf"),
    "another slot": ({}, "place = slot % 4", "place = (slot + 1) % 4", "changed where no row"),
    "angles": ({}, "angle = d % (ROTARY // 2)", "angle = d // 2", "k_cache differs"),
    "direction": ({}, "tl.where(first, -other, other)", "tl.where(first, other, -other)", "k_cache differs"),
    "interleaved": ({}, "angle = d // 2", "angle = d % (ROTARY // 2)", "k_cache differs"),
    "pages of values": ({}, "slot_mapping, None, None, None", "slot_mapping, cos, sin, positions", "v_cache"),
    "rounding down": ({"dtype": "int8"}, "tl.floor(value + 0.5)", "tl.floor(value)", "k_cache differs"),
    "scale": ({"dtype": "int8"}, "1e-6) / 127.0", "1e-6) / 128.0", "k_scale differs"),
    "halves": ({"dtype": "int4"}, "low, high = tl.split", "high, low = tl.split", "k_cache differs"),
    "sign": ({"dtype": "int4"}, "(high & 15) << 4", "(high & 7) << 4", "k_cache differs"),
    "scale unused": ({"dtype": "float8_e4m3"}, "value / amount", "value / 1.0", "k_cache differs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_append_is_the_fault_of_emission(name: str, tmp_path: Path) -> None:
    cache, old, new, message = MISTAKES[name]
    spec = spec_of(**cache)
    text = generate(spec)
    assert old in text
    path = tmp_path / "mutated.py"
    path.write_text(text.replace(old, new))
    subject = replace(Subject.of(spec, kernel=False), module=load_module(path, interpret=True))

    def check_all() -> None:
        for number in range(3):
            for seed in range(3):
                check_problem(subject, replace(PROBLEM, seed=seed), "float32", number)

    with pytest.raises(Broken, match=message) as caught:
        check_all()
    assert caught.value.layer == "emission"
    assert "append_kv" in str(caught.value)
