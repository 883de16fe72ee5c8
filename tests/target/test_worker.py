"""What a compile worker runs of a module: all but what needs torch."""

import ast

import pytest

from attngen.target.compile import CompileRequest, compile_kernel
from attngen.target.worker import without_torch

pytest.importorskip("triton")


def kept(text):
    return ast.unparse(without_torch(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "import torch",
        "import torch.nn",
        "from torch.library import custom_op",
        "import torch as t\nx = t.float32",
        "import torch\nx: int = torch.int8.itemsize",
        "from torch.library import custom_op\n\n@custom_op('a::b')\ndef f(): pass",
        "import torch\n\ndef f(x: torch.Tensor): pass\n\n@f.register_fake\ndef g(): pass\ng.register_autograd()",
        "import torch\n\ndef f() -> torch.Tensor: pass",
        "import torch\n\ndef f(x=torch.int8): pass",
        "import torch\n\nclass F(torch.autograd.Function): pass\nF.apply",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "with torch.no_grad() as x: pass\ny = x",
    ],
)
def test_statements_that_need_torch_are_left_out(text):
    assert kept(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "import triton",
        "from triton import language as tl",
        "x = 1",
        # runs when it is called, which nobody does
        "def f():\n    return torch.zeros(1)",
        # a local name is none of the module's
        "def f():\n    g = 1\n    return g",
    ],
)
def test_the_rest_stays(text):
    assert kept(f"import torch\n\ndef g(x: torch.Tensor):\n    pass\n\n{text}") == text


def test_a_kernel_is_compiled_without_torch(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("""\
import sys

import torch
import triton
import triton.language as tl

COLUMNS = tl.constexpr(64)


@triton.jit
def double(x):
    return x + x


@triton.jit
def kernel(x):
    r = tl.arange(0, COLUMNS)
    tl.store(x + r, double(tl.load(x + r)))


@torch.library.custom_op("attngen_test::nothing", mutates_args=())
def nothing(x: torch.Tensor) -> torch.Tensor:
    return kernel[1](x)


assert "torch" not in sys.modules
""")
    report = compile_kernel(
        CompileRequest(module=path, kernel="kernel", target="sm_80", signature={"x": "*fp32"}),
    )
    assert report.error == ""
    assert report.registers > 0
