"""The compile service against the real compilers, for GPUs that are not there."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from attngen.errors import UserError
from attngen.target import compile as service
from attngen.target.compile import CompileReport, CompileRequest, compile_kernel, compile_many
from attngen.target.facts import target
from attngen.target.pool import Pool
from attngen.target.sass import sass

pytest.importorskip("triton")

KERNELS = Path(__file__).with_name("kernels.py")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """A cache folder of this test session, so that what is compiled once is compiled once."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("ATTNGEN_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache folder for one test."""
    monkeypatch.setenv("ATTNGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def matmul(target="sm_90", block=64, dtype="bf16", precision="ieee", **more):
    request = CompileRequest(
        module=KERNELS,
        kernel="matmul",
        target=target,
        signature={"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "c_ptr": "*fp32", "K": "i32"},
        constexprs={"BLOCK": block, "PRECISION": precision},
        divisible=("a_ptr", "b_ptr", "c_ptr", "K"),
    )
    return replace(request, **more)


def module_of(tmp_path, text):
    path = tmp_path / "module.py"
    path.write_text(text)
    return CompileRequest(module=path, kernel="kernel", target="sm_90", signature={})


@pytest.mark.parametrize(
    ("target", "unit"), [("sm_90", "wgmma"), ("sm_80", "mma_sync"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
def test_a_product_uses_the_matrix_unit_of_the_target(target, unit):
    report = compile_kernel(matmul(target))
    assert report.ok
    assert report.error == ""
    units = {name for name in ("wgmma", "mma_sync", "tcgen05", "mfma") if getattr(report.features, name)}
    assert units == {unit}
    assert 32 <= report.registers <= 128
    assert report.spill_bytes == 0
    # A and B tiles of 64 x 64 bf16; Hopper and Blackwell keep both in shared memory, and Blackwell a barrier.
    expected = {"sm_90": 16384 * 2, "sm_100": 16384 * 2 + 16}.get(target, 16384)
    assert report.shared_bytes == expected
    assert report.tensor_memory_columns == (64 if target == "sm_100" else 0)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_ptx_tells_ieee_products_from_tf32(target, precision):
    report = compile_kernel(matmul(target, dtype="fp32", precision=precision, num_warps=8))
    assert report.features.tf32 == (precision == "tf32")
    assert (report.features.wgmma or report.features.mma_sync) == (precision == "tf32")


def test_amd_without_tf32_refuses_it_with_the_allowed_names():
    report = compile_kernel(matmul("gfx950", dtype="fp32", precision="tf32"))
    assert not report.ok
    assert "input_precision must be one of ('ieee', 'bf16x3', 'bf16x6'). Got tf32" in report.error


@pytest.mark.parametrize(("target", "tma"), [("sm_80", False), ("sm_90", True), ("sm_120", True)])
def test_a_descriptor_becomes_tma_where_it_exists(target, tma):
    signature = {"a_ptr": "*bf16", "c_ptr": "*bf16", "n": "i32"}
    report = compile_kernel(
        CompileRequest(
            module=KERNELS, kernel="copy_rows", target=target, signature=signature, constexprs={"BLOCK": 64}
        )
    )
    assert report.ok, report.error
    assert report.features.tma is tma


def test_a_spill_is_counted():
    spilling = compile_kernel(matmul("sm_80", block=128, num_warps=2))
    assert spilling.ok
    assert spilling.registers == 255
    assert spilling.spill_bytes > 1000
    assert spilling.resources.stack_bytes > 0
    # 4 bytes a word: each STL.128 moves 16 bytes, so instructions times 16 bound the bytes from above.
    stores = sass(spilling).count("STL")
    assert stores <= spilling.resources.spill_stores <= 16 * stores


def test_an_amd_spill_is_counted():
    report = compile_kernel(matmul("gfx942", block=128, num_warps=2))
    assert report.registers == 512
    assert report.spill_bytes > 0
    assert report.resources.stack_bytes > 0


def test_what_ptxas_refuses_is_a_report():
    report = compile_kernel(matmul("sm_90", block=128, options={"maxnreg": 64}))
    assert not report.ok
    assert "Insufficient registers (64)" in report.error


def test_too_much_shared_memory_is_an_error_that_says_how_much():
    report = compile_kernel(matmul("sm_80", block=256, num_warps=16, num_stages=4))
    assert not report.ok
    assert report.error == "needs 786432 bytes of shared memory; sm_80 has 166912 per CTA"
    assert report.shared_bytes == 786432


def test_a_compile_error_says_what_and_where():
    report = compile_kernel(
        CompileRequest(module=KERNELS, kernel="ill_typed", target="sm_90", signature={"a_ptr": "*fp32"})
    )
    assert not report.ok
    assert "arange(0, 16) + tl.arange(0, 32)" in report.error
    assert "incompatible" in report.error.lower()


def test_wrong_arguments_are_named():
    report = compile_kernel(matmul(signature={"a_ptr": "*bf16", "x": "i32"}, divisible=("y",)))
    assert not report.ok
    assert "missing: b_ptr, c_ptr, K; unknown: x, y" in report.error


def test_an_unknown_kernel_is_named():
    assert "no @triton.jit kernel 'matmull'" in compile_kernel(matmul(kernel="matmull")).error


def test_an_unknown_target_is_a_user_error():
    with pytest.raises(UserError, match=r"unknown target 'sm90'; did you mean 'sm_90'\? known: gfx942, "):
        compile_kernel(matmul("sm90"))


def test_a_missing_module_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the module .*nowhere\.py"):
        compile_kernel(matmul(module=tmp_path / "nowhere.py"))


def test_an_abort_of_the_compiler_is_a_report_and_the_next_request_is_served(tmp_path):
    text = "import os\nos.write(2, b'x.cpp:7: Assertion `a == b` failed.\\n')\nos.abort()"
    report = compile_kernel(module_of(tmp_path, text))
    assert not report.ok
    assert report.error.splitlines() == [
        "the compiler's process was ended by SIGABRT",
        "x.cpp:7: Assertion `a == b` failed.",
    ]
    assert compile_kernel(matmul()).ok


def test_a_worker_is_not_used_again_after_the_compiler_complained(tmp_path):
    def process(number):
        report = compile_kernel(module_of(tmp_path, f"import os\nraise ValueError(os.getpid(), {number})"))
        return report.error.partition(",")[0]

    first = process(1)
    assert process(2) == first
    complaint = "import os\nos.write(2, b'Assertion failed, and recovered')\nraise ValueError"
    assert "Assertion failed, and recovered" in compile_kernel(module_of(tmp_path, complaint)).error
    assert process(3) != first


def test_a_worker_ends_with_its_parent(tmp_path):
    pid_file = tmp_path / "pid"
    module = tmp_path / "module.py"
    write_pid = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))"
    module.write_text(f"import os, time\n{write_pid}\ntime.sleep(100)")
    request = f"CompileRequest(module={str(module)!r}, kernel='k', target='sm_90', signature={{}})"
    code = f"from attngen.target.compile import *\ncompile_kernel({request})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "", seconds=60)
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{pid_file.read_text()}").exists(), seconds=20)


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_timeout_is_a_report_and_is_not_kept(tmp_path, own_cache):
    request = module_of(tmp_path, "import time\ntime.sleep(60)")
    started = time.monotonic()
    report = compile_kernel(request, timeout=1.0)
    assert time.monotonic() - started < 20
    assert not report.ok
    assert report.error == "no answer in 1 s; the compiler was stopped"
    assert not list(own_cache.rglob("*.json"))
    assert compile_kernel(matmul()).ok


def test_a_module_that_does_not_import_is_a_report_and_is_not_kept(tmp_path, own_cache):
    report = compile_kernel(module_of(tmp_path, "import torch_that_is_missing"))
    assert "ModuleNotFoundError: No module named 'torch_that_is_missing'" in report.error
    assert not list(own_cache.rglob("*.json"))


KERNEL = """
@triton.jit
def kernel():
    pass
"""
FAULTS = {
    "no space": "OSError(28, 'No space left on device', '/tmp/x.ptx')",
    "no memory": "MemoryError()",
    "no memory, of C++": "RuntimeError('std::bad_alloc')",
    "killed": "PTXASError('`ptxas` failed with error code -9')",
    "no memory, of ptxas": "PTXASError('ptxas fatal : Memory allocation failure')",
}


def failing(tmp_path, error):
    """A request for which triton raises an error."""
    text = "import subprocess, triton\nfrom triton.runtime.errors import PTXASError\n"
    text += f"def fail(*a, **k):\n    raise {error}\ntriton.compile = fail\n" + KERNEL
    return module_of(tmp_path, text)


@pytest.fixture
def own_workers():
    """Workers for one test, which changes them."""
    service.shared_pool().close()
    yield
    service.shared_pool().close()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_machine_lacked_is_a_report_and_is_not_kept(tmp_path, own_cache, own_workers, fault):
    report = compile_kernel(failing(tmp_path, FAULTS[fault]))
    assert not report.ok
    assert report.error != ""
    assert not list(own_cache.rglob("*.json"))


@pytest.mark.parametrize(
    "verdict", ["RuntimeError('PassManager::run failed')", "PTXASError('`ptxas` failed with error code 255')"]
)
def test_what_the_compiler_says_of_the_code_is_kept(tmp_path, own_cache, own_workers, verdict):
    first, again = (compile_kernel(failing(tmp_path, verdict)) for _ in range(2))
    assert (first.ok, first.cached, again.cached) == (False, False, True)
    assert again.error == first.error


@pytest.mark.parametrize(
    ("target", "tool", "variable"),
    [
        ("sm_90", "ptxas", "TRITON_PTXAS_PATH"),
        ("sm_100", "ptxas-blackwell", "TRITON_PTXAS_BLACKWELL_PATH"),
    ],
)
@pytest.mark.parametrize("fault", ["FileNotFoundError(2, 'none', path)", "PermissionError(13, 'no', path)"])
def test_a_missing_ptxas_is_a_user_error(tmp_path, own_cache, own_workers, target, tool, variable, fault):
    text = f"import subprocess, triton\ndef fail(c, **k):\n    path = c[0]\n    raise {fault}\n"
    request = module_of(tmp_path, f"{text}subprocess.check_output = fail\n{KERNEL}")
    with pytest.raises(
        UserError, match=rf"for {target} needs {tool}, which .* triton, or name one in {variable}"
    ):
        compile_kernel(replace(request, target=target))
    assert not list(own_cache.rglob("*.json"))


def test_prints_of_a_module_do_not_disturb_the_worker(tmp_path):
    text = "import os, sys\nprint('{}')\nos.write(1, b'{}\\n')\nassert sys.stdin.read() == ''\n"
    assert "no @triton.jit kernel" in compile_kernel(module_of(tmp_path, text)).error


def test_the_worker_compiles_even_if_the_caller_interprets(own_cache, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    service.shared_pool().close()
    assert compile_kernel(matmul()).features.wgmma


def test_a_second_run_is_instant(own_cache):
    first = compile_kernel(matmul())
    started = time.perf_counter()
    second = compile_kernel(matmul())
    assert time.perf_counter() - started < 0.05
    assert (first.cached, second.cached) == (False, True)
    assert second == replace(first, cached=True)
    assert ".target sm_90a" in Path(second.artifacts["ptx"]).read_text()


def test_the_key_is_the_content_not_the_place(tmp_path, own_cache):
    compile_kernel(matmul())
    moved = tmp_path / "elsewhere" / KERNELS.name
    moved.parent.mkdir()
    moved.write_text(KERNELS.read_text())
    assert compile_kernel(matmul(module=moved)).cached
    moved.write_text(KERNELS.read_text() + "\n# changed\n")
    assert not compile_kernel(matmul(module=moved)).cached
    assert not compile_kernel(matmul(num_stages=3)).cached


def test_equal_kernels_of_two_files_keep_their_own_lines(tmp_path, own_cache):
    for name in ("one.py", "two.py"):
        moved = tmp_path / name
        moved.write_text(KERNELS.read_text())
        ptx = Path(compile_kernel(matmul(module=moved)).artifacts["ptx"]).read_text()
        assert [other for other in ("one.py", "two.py") if f'/{other}"' in ptx] == [name]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "null", "half"])
def test_a_damaged_entry_is_ignored_and_written_again(damage, own_cache):
    first = compile_kernel(matmul())
    (entry,) = own_cache.rglob("*.json")
    entry.write_text(entry.read_text()[:200] if damage == "half" else damage)
    again = compile_kernel(matmul())
    assert not again.cached
    assert again.registers == first.registers
    assert compile_kernel(matmul()).cached


def test_a_changed_value_of_an_entry_is_noticed(own_cache):
    first = compile_kernel(matmul())
    (entry,) = own_cache.rglob("*.json")
    text = entry.read_text()
    for change in ('"many"', str(first.shared_bytes + 1)):
        entry.write_text(text.replace(f'"shared_bytes": {first.shared_bytes}', f'"shared_bytes": {change}'))
        assert entry.read_text() != text
        assert compile_kernel(matmul()) == replace(first, compile_seconds=ANY)


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "not text": lambda content: b"\xff\xfe\x00" * 100,
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_of_an_entry_are_made_again(damage, own_cache):
    first = compile_kernel(matmul())
    sound = {name: Path(file).read_bytes() for name, file in first.artifacts.items()}
    for name, file in first.artifacts.items():
        Path(file).write_bytes(DAMAGES[damage](sound[name]))
        assert not compile_kernel(matmul()).cached
        assert Path(file).read_bytes() == sound[name]
    assert compile_kernel(matmul()).cached


def test_checkouts_that_write_an_entry_at_once_do_not_spoil_it(tmp_path, own_cache):
    """The same text in two folders is one entry; its code names the folder. Each report is read with its own files."""
    modules = [tmp_path / folder / "kernels.py" for folder in ("one", "two")]
    reports: list[CompileReport] = []
    entries: list[bytes] = []
    for module in modules:
        module.parent.mkdir()
        module.write_text(KERNELS.read_text())
        reports.append(compile_kernel(matmul(module=module)))
        (entry,) = own_cache.rglob("*.json")
        entries.append(entry.read_bytes())
        entry.unlink()
    assert reports[0].key == reports[1].key
    assert len({Path(r.artifacts["cubin"]).read_bytes() for r in reports}) == 2
    for content, report in zip(entries, reports, strict=True):
        entry.write_bytes(content)
        found = compile_kernel(matmul(module=modules[0]))
        assert (found.cached, found.artifacts) == (True, report.artifacts)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_disassembly_is_made_again(damage, own_cache):
    report = compile_kernel(matmul())
    text = sass(report)
    (kept,) = own_cache.rglob("*.sass")
    content = kept.read_bytes()
    kept.write_bytes(DAMAGES[damage](content))
    assert sass(report) == text
    assert kept.read_bytes() == content


def test_whether_the_gpu_has_room_is_not_kept(own_cache, monkeypatch):
    assert compile_kernel(matmul()).ok
    small = replace(target("sm_90"), shared_per_cta=1000)
    monkeypatch.setattr(service, "target", lambda name: small)
    report = compile_kernel(matmul())
    assert (report.cached, report.ok) == (True, False)
    assert report.error == "needs 32768 bytes of shared memory; sm_90 has 1000 per CTA"
    monkeypatch.setattr(service, "target", target)
    assert compile_kernel(matmul()).ok
    monkeypatch.setattr(service, "target", lambda name: replace(small, arch=89))
    assert not compile_kernel(matmul()).cached


def test_an_entry_without_its_files_is_ignored(own_cache):
    os.unlink(compile_kernel(matmul()).artifacts["ptx"])
    assert not compile_kernel(matmul()).cached


def test_without_a_usable_cache_folder_reports_live_as_long_as_the_process(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("ATTNGEN_CACHE", str(blocked))
    first = compile_kernel(matmul(num_stages=5))
    assert first.ok
    assert ".entry matmul" in Path(first.artifacts["ptx"]).read_text()
    assert compile_kernel(matmul(num_stages=5)).cached


def test_many_keeps_the_order_and_compiles_equal_requests_once(own_cache):
    requests = [matmul(), matmul("sm_80"), matmul(), matmul(kernel="nothing")]
    seen = []
    reports = compile_many(requests, progress=lambda done, total: seen.append((done, total)))
    assert [r.target for r in reports] == ["sm_90", "sm_80", "sm_90", "sm_90"]
    assert [r.ok for r in reports] == [True, True, True, False]
    assert reports[0] == reports[2]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_worker_that_was_ended_meanwhile_is_not_used_again():
    pool = Pool(1)
    with pool.worker() as ended:
        pool.close()
    with pool.worker() as worker:
        assert worker is not ended
    pool.close()


def test_an_interrupted_batch_ends_its_workers_and_the_next_batch_works(own_cache):
    def interrupt(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_many([matmul(num_stages=n) for n in (2, 3, 4)], progress=interrupt)
    assert compile_kernel(matmul("sm_80")).ok
