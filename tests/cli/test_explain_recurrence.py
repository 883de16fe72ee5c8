"""`attngen explain` of recurrences: kernels are those of the module, and memory is what its launcher allocates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attngen.runtime.build import build
from attngen.spec import load_spec
from attngen.target.requests import manifest
from tests.cli.helpers import CAUSAL, good, refused

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(p.stem for p in (ROOT / "specs").glob("*.yaml") if "recurrence:" in p.read_text())
KINDS = {
    "ssd": "{kind: ssd, state: 32, groups: 2, chunk: 16}",
    "none": "{chunk: 16}",
    "normalised": "{chunk: 16, feature: elu(x) + 1, normalise: true}",
    "scalar": "{chunk: 16, decay: scalar}",
    "vector": "{chunk: 16, decay: vector}",
    "gated delta": "{chunk: 16, decay: scalar, transition: delta}",
}


def text_of(kind: str) -> str:
    lines = [x for x in CAUSAL.splitlines() if not x.startswith(("mask:", "params:", "heads:"))]
    return "\n".join([*lines, "heads: 4", f"recurrence: {KINDS[kind]}"]) + "\n"


def explained(here: Path, kind: str, *arguments: str) -> dict[str, Any]:
    (here / "specs/small.yaml").write_text(text_of(kind))
    return json.loads(good("explain", "small", "--json", *arguments))


@pytest.mark.parametrize("name", COMMITTED)
def test_kernels_are_those_of_the_committed_module(name: str) -> None:
    found = json.loads(good("explain", str(ROOT / f"specs/{name}.yaml"), "--json"))
    described = manifest(ROOT / f"generated/{name}.py")["kernels"]
    assert {launch["kernel"] for launch in found["launches"]} == set(described)
    for kernel, of in found["schedules"].items():
        for target, choices in of.items():
            config = described[kernel]["configs"][target][0]
            assert [c["num_warps"] for c in choices] == [config["num_warps"]]
            assert config.get("BLOCK_M", choices[0]["block_m"]) == choices[0]["block_m"]


@pytest.mark.parametrize("name", COMMITTED)
def test_each_kernel_reads_what_is_there(name: str) -> None:
    """Arguments, and what kernels before it stored; together they store what a call returns."""
    found = json.loads(good("explain", str(ROOT / f"specs/{name}.yaml"), "--json"))
    there = set(found["run_time"]) | {"dout", "dstates", "dt_least", "dt_most"}
    for launch in found["launches"]:
        assert set(launch["reads"]) <= there, launch["kernel"]
        there |= set(launch["stores"])
    assert there >= {"out", "states", "token_out", "token_states"}
    assert found["launches"][-1]["kernel"] == "_decode"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 50])
def test_memory_is_what_the_launcher_allocates(
    kind: str, length: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explained(here, kind, "--seqlen-q", str(length))["memory"]
    spec = load_spec(here / "specs/small.yaml")
    module = build(spec, interpret=True)
    allocated: list[torch.Tensor] = []
    for name in ("empty", "empty_like"):
        made = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, made=made, **k: allocated.append(made(*a, **k)) or allocated[-1]
        )
    results = run(module, kind, length)
    returned = {x.data_ptr() for x in results}
    between = sum(x.numel() * x.element_size() for x in allocated if x.data_ptr() not in returned)
    assert between == sum(buffer["bytes"] for buffer in found["buffers"])
    assert {buffer["by"] for buffer in found["buffers"]} <= set(module.MANIFEST["kernels"])


def run(module: Any, kind: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.ones(1, length, 4, 16)
    if kind == "ssd":
        keys = torch.ones(1, length, 2, 32)
        given = (x, torch.ones(1, length, 4), -torch.ones(4), keys, keys, None, None, None, None, None)
        return module.launch(*given, 0.0, 1.0)
    extra = {"scalar": (1, length, 4), "vector": (1, length, 4, 16), "gated delta": (1, length, 4)}
    decays = [-torch.ones(extra[kind])] if kind in extra else []
    beta = [torch.ones(1, length, 4)] if kind == "gated delta" else []
    return module.launch(x, x, x, *decays, *beta, None, None, 1.0)


def test_text_has_every_section() -> None:
    text = good("explain", str(ROOT / "specs/mamba2_130m.yaml"), "--seqlen-q", "1000")
    for part in (
        "mechanism: ssd",
        "any number in groups of 24; 24 in the spec",
        "D               [H, 64], any floating point, optional",
        "_chunk_states: programs C x H x tiles of K",
        "24 heads share each product of queries and keys",
        "the forward runs again up to _read",
        "between kernels, one sequence of 1,000 tokens, 24 heads",
        "chunk_states    [B, C, H, K, V]  float32   3,145,728 bytes",
        "%fold = fold(%B, %value, %decay, %initial_states) monoid=decay",
        "Leaves: a scheduled graph",
        "sm_90/16   128 x 64, 4 warps, 2 stages",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "no _totals: nothing decays"),
        ("vector", "with a decay per column its products are no product of tiles"),
        ("gated delta", "what a chunk writes depends on the state before it"),
        ("scalar", "fused into _read: no two heads share them"),
    ],
)
def test_reasons_are_of_the_kind(kind: str, said: str, here: Path) -> None:
    assert any(said in note for note in explained(here, kind)["notes"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--seqlen-k", "5"), "a recurrence has one length: give --seqlen-q alone"),
        (("-p", "rate=2"), "nothing that explain shows of a recurrence depends on a param"),
    ],
)
def test_options_of_masks_are_refused(option: tuple[str, str], said: str, here: Path) -> None:
    (here / "specs/small.yaml").write_text(text_of("scalar"))
    assert said in refused("explain", "small", *option)
