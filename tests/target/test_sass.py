"""Many kernels through one run of the disassembler read as each does by itself."""

import re
import subprocess
from pathlib import Path

import pytest

from attngen.errors import UserError
from attngen.target import sass as service
from attngen.target.compile import CompileReport, CompileRequest, compile_kernel
from attngen.target.sass import disassemble, disassembler, sass

pytest.importorskip("triton")

TEXT = """\
import triton
import triton.language as tl


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        a = tl.load(a_ptr + r[:, None] * K + k + r[None, :])
        b = tl.load(b_ptr + (k + r[:, None]) * K + r[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + r[:, None] * K + r[None, :], acc)


@triton.jit
def divide(x_ptr, n):
    tl.store(x_ptr, tl.load(x_ptr) // n)
"""
POINTERS = ("a_ptr", "b_ptr", "c_ptr")


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile three kernels for a target: two of one name, and one that calls a subroutine."""
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path / "cache"))
    module = tmp_path / "module.py"
    module.write_text(TEXT)

    def compile_three(target: str) -> list[CompileReport]:
        product = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "K": "i32"}
        requests = [
            CompileRequest(
                module=module,
                kernel="matmul",
                target=target,
                signature=product,
                constexprs={"BLOCK": block},
                divisible=POINTERS,
            )
            for block in (32, 64)
        ]
        quotient = {"x_ptr": "*i64", "n": "i64"}
        requests.insert(1, CompileRequest(module=module, kernel="divide", target=target, signature=quotient))
        reports = [compile_kernel(request) for request in requests]
        assert [r.error for r in reports] == ["", "", ""]
        return reports

    return compile_three


def forget(reports):
    for report in reports:
        Path(report.artifacts["cubin"]).with_suffix(".sass").unlink()


def code(text):
    """Instructions, labels and source lines; the tool leaves out numbers of labels for sm_100."""
    numbers = sorted({int(n) for n in re.findall(r"\.L_x_(\d+)", text)})
    text = re.sub(r"\.L_x_(\d+)", lambda m: f".L_x_{numbers.index(int(m[1]))}", text)
    return re.findall(r"(?m)^(?:\s+/\*\w+\*/.*|\s+//## .*|[.$][\w.$]+:)$", text)


def alone(report):
    """What the tool itself prints of the one cubin."""
    command = [disassembler(), "-c", "-g", "-ndf", report.artifacts["cubin"]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_kernels_read_together_as_they_do_alone(compiled, target):
    reports = compiled(target)
    together = disassemble(reports)
    assert [code(text) for text in together] == [code(alone(report)) for report in reports]
    assert all('module.py", line' in text for text in together)
    forget(reports)
    assert disassemble(reports[::-1]) == together[::-1]
    forget(reports)
    assert [sass(report) for report in reports] == together
    assert "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)" in together[1]
    assert "\n$__internal_0_$__cuda_sm20_div_s64:\n" in together[1]


def test_the_tool_runs_once_for_each_gpu_and_only_for_what_is_missing(compiled, monkeypatch):
    reports = [*compiled("sm_80"), *compiled("sm_90")]
    asked = []
    run = service._run
    monkeypatch.setattr(service, "_run", lambda images: asked.append(len(images)) or run(images))
    sass(reports[1])
    texts = disassemble([*reports, reports[0]])
    assert texts[0] == texts[-1]
    assert asked == [1, 2, 3]
    disassemble(reports)
    assert asked == [1, 2, 3]


def test_what_is_no_cubin_is_refused(compiled):
    reports = compiled("sm_80")
    Path(reports[1].artifacts["cubin"]).write_bytes(b"\x7fELF")
    with pytest.raises(ValueError, match="not an ELF file"):
        disassemble(reports)


@pytest.mark.parametrize(("tool", "message"), [("nowhere", "cannot run"), ("/bin/false", "failed")])
def test_a_tool_that_does_not_work_is_named(compiled, monkeypatch, tool, message):
    reports = compiled("sm_80")
    monkeypatch.setenv("TRITON_NVDISASM_PATH", tool)
    with pytest.raises(UserError, match=rf"{message}.*|disassembler {tool} {message}"):
        sass(reports[0])
