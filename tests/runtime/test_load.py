"""Loading generated modules: names, versions side by side, errors, any order of imports."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from attngen.errors import LoadError
from attngen.runtime.load import load_module

MODULE = """
import torch
import triton
import triton.language as tl

FACTOR = {factor}


@triton.jit
def scale_rows(x_ptr, o_ptr, N: tl.constexpr, FACTOR: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + i) * {factor}
    total = x.sum(0)
    tl.store(o_ptr + i, x + 0 * total + (tl.cdiv(N, N) - 1))


def scaled(x):
    out = torch.empty_like(x)
    scale_rows[(x.shape[0],)](x, out, N=x.shape[1], FACTOR=FACTOR)
    return out
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
source = ASTSource(fn=compiled.scale_rows, signature={"x_ptr": "*bf16", "o_ptr": "*bf16", "N": "constexpr",
                   "FACTOR": "constexpr"}, constexprs={"N": 64, "FACTOR": 3})
assert ".target sm_90" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


@pytest.fixture
def write(tmp_path):
    def write_module(factor: int, name: str = "scale.py") -> Path:
        path = tmp_path / name
        path.write_text(MODULE.format(factor=factor))
        return path

    return write_module


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` as a process that has not imported triton yet."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    kept["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120, check=False)


def succeeds(code: str, **environment: str) -> None:
    done = in_new_process(code, **environment)
    assert done.returncode == 0, done.stderr


def test_interpreted_module_computes_bf16(write):
    module = load_module(write(3), interpret=True)
    x = torch.randn(4, 64).bfloat16()
    assert torch.equal(module.scaled(x), x * 3)


def test_same_text_is_the_same_module_and_another_is_not(write):
    path = write(3)
    first = load_module(path, interpret=True)
    assert load_module(path, interpret=True) is first
    assert first.__name__ in sys.modules
    assert load_module(write(3, "copy.py"), interpret=True) is not first
    assert load_module(path, interpret=False) is not first


def test_versions_of_one_file_live_side_by_side(write):
    """The old module keeps its kernel, although the file has changed before the kernel's first launch."""
    old = load_module(write(3), interpret=True)
    new = load_module(write(5), interpret=True)
    x = torch.ones(2, 64)
    assert torch.equal(old.scaled(x), torch.full((2, 64), 3.0))
    assert torch.equal(new.scaled(x), torch.full((2, 64), 5.0))


def test_interpret_decides_the_kind_of_kernel_and_nothing_else(write):
    path = write(3)
    assert isinstance(load_module(path, interpret=True).scale_rows, InterpretedFunction)
    assert isinstance(load_module(path, interpret=False).scale_rows, JITFunction)
    assert isinstance(triton.jit(in_new_process), JITFunction)
    assert "TRITON_INTERPRET" not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_means_interpreted(write):
    assert isinstance(load_module(write(3)).scale_rows, InterpretedFunction)


def test_launch_leaves_triton_as_it_was(write):
    module = load_module(write(3), interpret=True)
    places = (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.block_type, JITFunction)
    module.scaled(torch.ones(2, 64))
    before = [dict(vars(place)) for place in places]
    module.scaled(torch.ones(2, 64))
    with pytest.raises(Exception, match="power of 2"):
        module.scaled(torch.ones(2, 63))
    after = [dict(vars(place)) for place in places]
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(new[name] is value for name, value in old.items())
    assert isinstance(tl.cdiv, JITFunction)


def test_marker_is_absent_until_a_module_is_interpreted(write):
    path = write(3)
    succeeds(f"""
        import triton.runtime.interpreter as interpreter
        from pathlib import Path
        from attngen.runtime.load import load_module
        load_module(Path({str(path)!r}), interpret=False)
        assert not hasattr(interpreter, "attngen_value_correct")
        load_module(Path({str(path)!r}), interpret=True)
        assert interpreter.attngen_value_correct is True
    """)


def test_importing_the_runtime_imports_neither_torch_nor_triton():
    succeeds("""
        import sys
        import attngen.runtime.load, attngen.runtime.cpu
        assert not {"torch", "triton"} & sys.modules.keys()
    """)


@pytest.mark.parametrize("first", ["import triton.language", "import torch", ""])
@pytest.mark.parametrize("environment", [{}, {"TRITON_INTERPRET": "1"}])
def test_order_of_imports_does_not_matter(write, first, environment):
    code = f"""
        {first}
        import torch
        from pathlib import Path
        from attngen.runtime.load import load_module
        x = torch.randn(2, 64).bfloat16()
        assert torch.equal(load_module(Path({str(write(3))!r}), interpret=True).scaled(x), x * 3)
    """
    succeeds(code, **environment)


def test_compilation_works_in_a_process_that_interprets(write, tmp_path):
    code = f"""
        import torch
        from pathlib import Path
        from attngen.runtime.load import load_module
        path = Path({str(write(3))!r})
        load_module(path, interpret=True).scaled(torch.ones(2, 64).bfloat16())
        compiled = load_module(path, interpret=False)
    """
    succeeds(textwrap.dedent(code) + COMPILE, TRITON_CACHE_DIR=str(tmp_path / "cache"))


def test_triton_told_to_interpret_cannot_compile(write):
    code = f"""
        from pathlib import Path
        from attngen.runtime.load import load_module
        load_module(Path({str(write(3))!r}), interpret=False)
    """
    done = in_new_process(code, TRITON_INTERPRET="1")
    assert "triton was imported under TRITON_INTERPRET=1; unset it and start again" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.py", None, "cannot read the generated module: No such file"),
        ("broken.py", "def f(:", "SyntaxError"),
        ("failing.py", "import no_such_package_at_all", "ModuleNotFoundError"),
        ("text.txt", "x = 1", "not a Python file"),
    ],
)
def test_errors_name_the_file_and_the_cause(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    known = set(sys.modules)
    with pytest.raises(LoadError, match=message) as caught:
        load_module(path, interpret=True)
    assert str(path) in str(caught.value)
    assert not {m for m in set(sys.modules) - known if m.startswith("attngen_generated")}


def test_missing_triton_is_a_user_error(write, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"needs torch and triton; pip install 'attngen\[run\]'"):
        load_module(write(3))
