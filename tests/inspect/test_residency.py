"""Programs per SM against the occupancy rules worked out by hand."""

import pytest

from attngen.inspect.residency import Residency, residency
from attngen.target.compile import CompileReport
from attngen.target.facts import target
from attngen.target.resources import Resources


def held(name, *, registers=32, shared=0, warps=4, columns=0):
    report = CompileReport(
        kernel="k",
        target=name,
        key="",
        ok=True,
        resources=Resources(registers=registers),
        shared_bytes=shared,
        num_warps=warps,
        tensor_memory_columns=columns,
    )
    return residency(report, target(name))


@pytest.mark.parametrize(
    ("name", "registers", "warps", "programs"),
    [
        # 65536 registers in 4 parts; a warp takes 32 times its registers, in units of 256
        ("sm_90", 255, 4, 2),  # 8160 -> 8192 of 16384: 2 warps a part
        ("sm_90", 128, 4, 4),  # 4096: 4 warps a part
        ("sm_90", 129, 4, 3),  # 4128 -> 4352: 3 warps a part
        ("sm_90", 168, 4, 3),  # 5376: 3 warps a part
        ("sm_90", 168, 8, 1),  # 12 warps are one program of 8
        ("sm_90", 209, 8, 1),  # 6688 -> 6912: 2 warps a part
        ("sm_90", 192, 2, 4),  # 6144: 2 warps a part, though 65536 / 6144 would be 10 warps
        # 512 registers a lane and SIMD, in units of 8
        ("gfx942", 256, 4, 2),
        ("gfx942", 257, 4, 1),
        ("gfx942", 168, 4, 3),
        ("gfx942", 512, 8, 0),
    ],
)
def test_registers(name, registers, warps, programs):
    assert held(name, registers=registers, warps=warps) == Residency(programs, "registers")


@pytest.mark.parametrize(
    ("name", "shared", "programs"),
    [
        ("sm_90", 113 * 1024, 2),  # 228 KiB, of which each program also takes 1 KiB
        ("sm_90", 113 * 1024 + 1, 1),
        ("sm_90", 227 * 1024, 1),
        ("sm_80", 40 * 1024, 4),  # 164 = 4 * 41
        ("sm_120", 49 * 1024, 2),
        ("gfx942", 32 * 1024, 2),  # 64 KiB, nothing reserved
        ("gfx942", 32 * 1024 + 1, 1),
        ("gfx950", 40 * 1024, 4),
    ],
)
def test_shared_memory(name, shared, programs):
    assert held(name, shared=shared) == Residency(programs, "shared memory")


def test_warps_and_slots():
    assert held("sm_90", registers=16, warps=8) == Residency(8, "warps")
    assert held("sm_89", registers=16, warps=4) == Residency(12, "warps")
    assert held("sm_90", registers=16, warps=1) == Residency(32, "slots")
    assert held("gfx942", registers=16, warps=1) == Residency(16, "slots")


def test_tensor_memory():
    assert held("sm_100", registers=64, columns=256) == Residency(2, "tensor memory")
    assert held("sm_100", registers=64, columns=512) == Residency(1, "tensor memory")
    assert held("sm_100", registers=255, columns=128) == Residency(2, "registers")


def test_a_kernel_that_did_not_compile_is_nowhere():
    assert held("sm_90", warps=0) == Residency(0, "")
