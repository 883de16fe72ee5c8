"""The table of targets: consistent, and cheap to import."""

import subprocess
import sys

import pytest

from attngen.errors import UserError
from attngen.target.facts import TARGETS, target


def test_the_targets_are_those_of_the_specification():
    assert list(TARGETS) == ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]


def test_names_follow_from_backend_and_arch():
    for name, t in TARGETS.items():
        assert name == t.name == (f"sm_{t.arch}" if t.backend == "cuda" else t.arch)
        assert t.warp_size == (32 if t.backend == "cuda" else 64)
        assert t.shared_per_cta <= t.shared_per_sm


def test_known_limits():
    assert target("sm_90").shared_per_cta == 232448
    assert target("sm_80").shared_per_cta == 166912
    assert target("sm_89").shared_per_cta == 101376
    assert target("gfx942").shared_per_cta == 65536
    assert target("sm_90").max_warps_per_cta == 32
    assert target("gfx950").max_warps_per_cta == 16


def test_units_by_generation():
    assert [n for n, t in TARGETS.items() if t.tma] == ["sm_90", "sm_100", "sm_120"]
    assert [n for n, t in TARGETS.items() if t.wgmma] == ["sm_90"]
    assert [n for n, t in TARGETS.items() if t.tcgen05 and t.tensor_memory_columns == 512] == ["sm_100"]
    assert [n for n, t in TARGETS.items() if t.mfma] == ["gfx942", "gfx950"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError) as caught:
        target("gfx94")
    expected = (
        "unknown target 'gfx94'; did you mean 'gfx942'? "
        "known: gfx942, gfx950, sm_100, sm_120, sm_80, sm_89, sm_90"
    )
    assert str(caught.value) == expected


def test_importing_the_service_imports_neither_torch_nor_triton():
    code = "import sys, attngen.target.compile, attngen.target.sass"
    code += "\nprint({'torch', 'triton'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
