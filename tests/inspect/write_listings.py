"""Write `listings/`: what the pinned compiler makes of `kernels.py`. Run `python -m tests.inspect.write_listings`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from attngen.target.compile import CompileReport, CompileRequest, compile_kernel
from attngen.target.sass import sass

KERNELS = Path(__file__).with_name("kernels.py")
LISTINGS = Path(__file__).with_name("listings")


def request(kernel: str, target: str, block: int = 64, dtype: str = "bf16", **more) -> CompileRequest:
    """Pointers to `dtype` (results: fp32) and sizes, all divisible by 16; four warps unless told otherwise."""
    types = {"a": dtype, "b": dtype, "q": dtype, "k": dtype, "c": "fp32", "m": "fp32", "l": "fp32"}
    names = ARGUMENTS[kernel].split()
    signature = {n: f"*{types[n[0]]}" if n.endswith("_ptr") else "i32" for n in names}
    precision = {"PRECISION": "ieee"} if kernel == "matmul" else {}
    basis = CompileRequest(
        module=KERNELS,
        kernel=kernel,
        target=target,
        signature=signature,
        constexprs={"BLOCK": block, **precision},
        divisible=tuple(names),
    )
    return replace(basis, **more)


ARGUMENTS = {
    "matmul": "a_ptr b_ptr c_ptr K",
    "matmul_of_descriptors": "a_ptr b_ptr c_ptr K",
    "products_in_the_inner_loop": "a_ptr b_ptr c_ptr N K",
    "products_in_both_loops": "a_ptr b_ptr c_ptr N K",
    "row_max": "q_ptr k_ptr m_ptr l_ptr N",
}
REQUESTS = {
    "matmul_sm80.sass": request("matmul", "sm_80"),
    "matmul_sm90.sass": request("matmul", "sm_90"),
    "matmul_sm100.sass": request("matmul", "sm_100"),
    "matmul_gfx942.s": request("matmul", "gfx942", block=32, num_warps=1),
    "fp32_sm80.sass": request("matmul", "sm_80", block=16, dtype="fp32", num_warps=1),
    "descriptors_sm90.sass": request("matmul_of_descriptors", "sm_90"),
    "inner_sm80.sass": request("products_in_the_inner_loop", "sm_80", block=32),
    "inner_gfx942.s": request("products_in_the_inner_loop", "gfx942", block=32, num_warps=1),
    "both_sm80.sass": request("products_in_both_loops", "sm_80", block=32),
    "both_sm90.sass": request("products_in_both_loops", "sm_90", num_stages=1),
    "row_max_sm80.sass": request("row_max", "sm_80", block=32),
    "row_max_sm90.sass": request("row_max", "sm_90"),
    "row_max_gfx942.s": request("row_max", "gfx942", block=32, num_warps=1),
    "spill_sm80.sass": request("matmul", "sm_80", options={"maxnreg": 64}),
}


def listing(report: CompileReport) -> str:
    """The kernel's own part of the disassembly or assembly, without folders of this machine."""
    if "amdgcn" in report.artifacts:
        return without_folders(amd_part(Path(report.artifacts["amdgcn"]).read_text(), report.kernel))
    return without_folders(sass_part(sass(report), report.kernel))


def sass_part(text: str, kernel: str) -> str:
    """The section of the kernel's code, without the padding of columns."""
    start = text.index(f".section\t.text.{kernel},")
    section = re.split(r"\n//---|\n\s*\.section\t", text[start:])[0]
    return re.sub(r"(?m)^ +(/\*\w+\*/) +", r"\t\1 ", section).rstrip() + "\n"


def amd_part(text: str, kernel: str) -> str:
    """The function of the kernel and the names of its files, without comments and labels of debug information."""
    start = text.index(f"{kernel}:")
    end = text.index("\t.section", start)
    files = dict.fromkeys(re.findall(r"(?m)^\t\.file\t\d.*", text))
    body = [line.split(";")[0].rstrip() for line in text[start:end].splitlines()]
    kept = [line for line in body if line and not re.match(r"\.L(tmp|func)|\t\.(file|cfi|p2align)", line)]
    return "\n".join([*files, *kept, ""])


def without_folders(text: str) -> str:
    """Keep the names of files only."""
    text = re.sub(r'"[^"\n]*/([^"/\n]+)"', r'"\1"', text)
    return re.sub(r'(\t\.file\t\d+) "[^"]*" ', r"\1 ", text)


def main() -> None:
    """Compile all and write them."""
    LISTINGS.mkdir(exist_ok=True)
    for name, wanted in REQUESTS.items():
        report = compile_kernel(wanted)
        assert report.ok, f"{name}: {report.error}"
        (LISTINGS / name).write_text(listing(report), encoding="utf-8")


if __name__ == "__main__":
    main()
