"""A kernel that only the interpreter accepts is not a kernel: every committed one through the real compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from attngen.generate import generate
from attngen.spec import load_spec
from attngen.target.compile import compile_many
from attngen.target.requests import manifest, requests

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "generated").glob("*.py"))
UNKNOWN_FORMATS = {("paged_fp8", "sm_80")}  # E4M3 is that of sm_89 and later
FEW_ROWS = {"gla", "retnet"}  # in each tile, too few for some matrix units
DTYPES = ("bfloat16", "float16", "float32")


def first_dtype(module: Path) -> str:
    text = module.read_text()
    return next(d for d in DTYPES if f'"{d}"' in text)


def assert_all_compile(target: str, matrix_unit: str) -> None:
    modules = [m for m in MODULES if (m.stem, target) not in UNKNOWN_FORMATS]
    asked = [r for m in modules for r in requests(m, target, first_dtype(m))]
    reports = compile_many(asked)
    assert [f"{r.kernel}: {r.error}" for r in reports if not r.ok] == []
    folds = [
        (r, f) for r, f in zip(asked, reports, strict=True) if r.kernel in ("_attention_forward", "_read")
    ]
    assert {r.module for r, _ in folds} == set(modules)
    large = [(r.module.stem, f.features) for r, f in folds if r.constexprs["BLOCK_M"] >= 64]
    assert {m.stem for m in modules} - {stem for stem, _ in large} <= FEW_ROWS
    assert [stem for stem, found in large if not getattr(found, matrix_unit)] == []


def test_every_kernel_compiles_for_sm_90():
    assert_all_compile("sm_90", "wgmma")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "unit"), [("sm_80", "mma_sync"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
def test_every_kernel_compiles_elsewhere(target, unit):
    assert_all_compile(target, unit)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("dim", [64, 128])
def test_causal_forward_has_no_spills(target, dim, tmp_path):
    reports = compile_many(requests(causal(dim, tmp_path), target, "bfloat16"))
    assert [(r.ok, r.spill_bytes) for r in reports] == [(True, 0)]
    assert target != "sm_90" or (reports[0].features.wgmma and reports[0].features.tma)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", [{"decay": "vector"}, {"transition": "delta", "decay": "scalar"}], ids=str)
def test_decays_per_column_and_delta_rules_have_no_spills(kind, dim, target, tmp_path):
    path = tmp_path / "recurrent.py"
    dims = {"qk": dim, "v": dim}
    spec = {"attngen": 1, "name": "recurrent", "heads": 8, "head_dim": dims, "dtype": "bfloat16"}
    spec["grad"] = True
    path.write_text(generate(load_spec({**spec, "recurrence": {"chunk": 64, **kind}})))
    asked = requests(path, target, "bfloat16")
    assert [
        (r.kernel, r.error, r.spill_bytes) for r in compile_many(asked) if r.spill_bytes or not r.ok
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dims", [{"qk": 128, "v": 128}, {"qk": 256, "v": 512}], ids=["128", "gla-1.3B"])
def test_gradients_of_decays_per_column_have_no_spills(dims, target, tmp_path):
    path = tmp_path / "recurrent.py"
    spec = {
        "attngen": 1,
        "name": "recurrent",
        "heads": 4,
        "head_dim": dims,
        "dtype": "bfloat16",
        "grad": True,
    }
    path.write_text(generate(load_spec({**spec, "recurrence": {"decay": "vector", "chunk": 64}})))
    reports = compile_many(requests(path, target, "bfloat16"))
    assert {"_adjoint_pairs", "_backward_queries", "_backward_keys"} <= {r.kernel for r in reports}
    assert [(r.kernel, r.error, r.spill_bytes) for r in reports if r.spill_bytes or not r.ok] == []


@pytest.mark.parametrize(("precision", "tf32"), [("ieee", False), ("tf32", True), ("tf32x3", True)])
def test_fp32_products_have_the_precision_of_the_spec(precision, tf32, tmp_path):
    module = causal(64, tmp_path, dtype="float32", precision=precision)
    config = {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2, "USE_DESCRIPTORS": False}
    [report] = compile_many(requests(module, "sm_80", "float32", config))
    assert report.ok, report.error
    assert report.features.tf32 == tf32


def test_block_table_kernels_compile(tmp_path):
    module = causal(64, tmp_path, mask="j <= i and (i - j) % 4 == 0", mask_table=True)
    reports = compile_many(requests(module, "sm_90", "bfloat16"))
    assert {r.kernel for r in reports} == {"_attention_forward", "_mask_table"}
    assert [r.error for r in reports if not r.ok] == []


def test_search_kernels_compile(tmp_path):
    captured = {"doc": {"dtype": "int32", "axes": ["B", "Sk"], "sorted": True}}
    module = causal(64, tmp_path, mask="j <= i and doc[b, i] == doc[b, j]", captured=captured)
    [report] = compile_many(requests(module, "sm_90", "bfloat16"))
    assert report.ok, report.error
    assert "_search(" in module.read_text()


def test_manifest_names_what_is_compiled_in_and_what_is_not():
    described = manifest(ROOT / "generated" / "mistral_window.py")
    assert "window" in described["run_time"]
    assert described["compiled_in"]["group"] == 4
    assert described["mask"]["residual"] == "True"
    for key, choices in described["configs"].items():
        assert choices, key


def causal(dim: int, folder: Path, **more: object) -> Path:
    spec = {
        "attngen": 1,
        "name": "causal",
        "heads": {"q": 8, "kv": 2},
        "head_dim": dim,
        "dtype": "bfloat16",
        "mask": "j <= i",
    }
    path = folder / "causal.py"
    path.write_text(generate(load_spec({**spec, **more})))
    return path
