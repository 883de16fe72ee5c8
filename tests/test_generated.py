"""The committed modules: current, deterministic to the byte, stand-alone, and well-formed."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from attngen.emit.writer import compare, write
from attngen.errors import PlanError
from attngen.generate import generate, plan
from attngen.spec import load_spec

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
SMALL = {"attngen": 1, "name": "small", "heads": 2, "head_dim": 16, "dtype": "float32"}


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_module_is_current_and_stands_alone(path):
    text = generate(load_spec(path))
    committed = ROOT / "generated" / f"{path.stem}.py"
    assert compare(committed, text).difference == ""
    tree = ast.parse(text)
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= {"json", "math", "torch", "triton", "triton.language", "triton.runtime"}
    assert all(
        ast.get_docstring(n)
        for n in tree.body
        if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
    )


def test_modules_pass_a_linter():
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,I,W",
        "--ignore",
        "E501",
        "generated",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_else_is_committed():
    assert {p.stem for p in (ROOT / "generated").glob("*.py")} == {p.stem for p in SPECS}


def test_same_bytes_under_other_hash_seeds():
    program = (
        "import hashlib, pathlib; from attngen.generate import generate; from attngen.spec import load_spec\n"
        "texts = [generate(load_spec(p)) for p in sorted(pathlib.Path('specs').glob('*.yaml'))[::4]]\n"
        "print(hashlib.sha256(''.join(texts).encode()).hexdigest())"
    )
    digests = set()
    for seed in ("0", "1"):
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_header_says_where_it_came_from():
    spec = load_spec(ROOT / "specs/gpt_oss_sinks.yaml")
    text = generate(spec)
    assert "attngen generate specs/gpt_oss_sinks.yaml" in text.splitlines()[1]
    assert plan(spec).digest() in text
    assert spec.summary in text
    embedded = next(
        n.value.args[0].value
        for n in ast.parse(text).body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "SPEC"
    )
    assert load_spec(json.loads(embedded)) == spec


def test_different_specs_have_different_digests():
    changes = [
        {},
        {"dtype": "float16"},
        {"dtype": ["float16", "float32"]},
        {"mask": "j <= i"},
        {"mask": "j < i"},
        {"score": "s * 2"},
        {"score": "s * 3"},
        {"precision": "tf32"},
        {"sinks": True},
        {"layout": "bhsd"},
        {"head_dim": 32},
        {"heads": {"q": 4, "kv": 2}},
    ]
    digests = {hashlib.sha256(generate(load_spec({**SMALL, **c})).encode()).hexdigest() for c in changes}
    assert len(digests) == len(changes)


def test_full_tiles_have_no_mask_arithmetic():
    text = generate(load_spec(ROOT / "specs/mistral_window.yaml"))
    kernel = text[text.index("# full tiles") : text.index("# tiles that the mask cuts")]
    assert "allowed" not in kernel
    assert "seqlen" not in kernel
    assert "window" not in kernel


def test_names_of_kernel_variables_are_refused():
    spec = {**SMALL, "score": "s * m_i", "params": {"m_i": "float"}}
    with pytest.raises(PlanError, match="the kernel has a variable named 'm_i'"):
        generate(load_spec(spec))


def test_odd_views_of_k_are_refused():
    spec = {**SMALL, "head_dim": {"qk": 48, "v": 24, "v_from_k": 24}}
    with pytest.raises(PlanError, match="v_from_k is 24; a view of K needs a multiple of 16"):
        generate(load_spec(spec))


def test_writing_changes_only_what_differs(tmp_path):
    path = tmp_path / "sub" / "x.py"
    assert write(path, "a\n").changed
    stamp = path.stat().st_mtime_ns
    assert not write(path, "a\n").changed
    assert path.stat().st_mtime_ns == stamp
    assert [p.name for p in path.parent.iterdir()] == ["x.py"]
    assert "-a\n+b\n" in compare(path, "b\n").difference
    assert "missing" in compare(tmp_path / "y.py", "b\n").difference
