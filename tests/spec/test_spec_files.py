"""The committed specs: they load, say what they are, and keep to the house form."""

from pathlib import Path

import pytest

from attngen.spec import HeadDim, Heads, load_spec

SPECS = Path(__file__).parents[2] / "specs"
FILES = sorted(SPECS.glob("*.yaml"))
REQUIRED = {
    *("llama3_causal", "mistral_window", "gemma2_local", "gemma2_global", "gpt_oss_sinks", "prefix_lm"),
    *(
        "document_packed",
        "document_ids",
        "llama4_chunk",
        "alibi",
        "t5_bias",
        "additive_bias",
        "bidirectional",
    ),
    *(
        "natten_1d",
        "natten_2d",
        "dilated",
        "streaming_sink",
        "mla_prefill",
        "mla_absorbed",
        "phi2",
        "qwen2_gqa7",
    ),
    *(
        "paged_decode_llama3",
        "paged_mixed_mistral_window",
        "paged_gpt_oss",
        "paged_fp8",
        "paged_int8",
        "paged_int4",
    ),
    *("spec_decode_tree", "mla_decode", "cascade_prefix"),
    *("mamba2_130m", "mamba2_2p7b", "nemotron_h", "linear_attention", "retnet", "lightning"),
    *("gla", "deltanet", "gated_deltanet"),
}


def test_all_are_there() -> None:
    assert {path.stem for path in FILES} >= REQUIRED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    spec = load_spec(path)
    lines = path.read_text().splitlines()
    assert spec.name == path.stem
    assert spec.summary
    assert lines[0] == f"# {spec.summary}"
    assert lines[1] == "# yaml-language-server: $schema=../specs/attngen.schema.json"
    assert load_spec(spec.canonical()) == spec
    assert len(lines) <= 20


def test_numbers_of_the_models() -> None:
    specs = {path.stem: load_spec(path) for path in FILES}
    assert specs["llama3_causal"].heads == Heads(32, 8)
    assert specs["gpt_oss_sinks"].heads.group == 8
    assert specs["qwen2_gqa7"].heads.group == 7
    assert specs["mla_prefill"].head_dim == HeadDim(192, 128)
    assert specs["mla_absorbed"].head_dim == HeadDim(576, 512, 512)
    assert specs["mla_decode"].heads == Heads(128, 1)
    assert specs["mla_decode"].head_dim == HeadDim(576, 512, 512)
    assert specs["phi2"].head_dim == HeadDim(80, 80)
    assert str(specs["gemma2_local"].score) == "50 * tanh(s / 50)"
    assert specs["mistral_window"].params[0].runtime
    assert specs["document_ids"].captured[0].sorted


@pytest.mark.parametrize(
    ("name", "heads", "qk", "v", "state", "groups"),
    [
        ("mamba2_130m", 24, 64, 64, 128, 1),
        ("mamba2_2p7b", 80, 64, 64, 128, 1),
        ("nemotron_h", 128, 64, 64, 128, 8),
        ("linear_attention", 8, 32, 32, None, 1),
        ("retnet", 8, 256, 512, None, 1),
        ("lightning", 64, 128, 128, None, 1),
        ("gla", 4, 256, 512, None, 1),
        ("deltanet", 16, 128, 128, None, 1),
        ("gated_deltanet", 32, 128, 128, None, 1),
    ],
)
def test_numbers_of_recurrences(
    name: str, heads: int, qk: int, v: int, state: int | None, groups: int
) -> None:
    spec = load_spec(SPECS / f"{name}.yaml")
    assert spec.recurrence is not None
    assert (spec.heads, spec.head_dim) == (Heads(heads, heads), HeadDim(qk, v))
    assert (spec.recurrence.state, spec.recurrence.groups) == (state, groups)
    assert spec.recurrence.dt_softplus == (state is not None)
