# ruff: noqa: E501 - exact messages stand on one line
"""Files and mappings to specs: every class of mistake with its exact message and place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attngen.errors import SpecError
from attngen.spec import Captured, HeadDim, Heads, Param, Schedule, Spec, load_spec, load_text

BASE = """\
attngen: 1
name: tiny
heads: 2
head_dim: 64
dtype: float16
"""
KEYS = (
    "attngen, cache, captured, deterministic, dropout, dtype, grad, head_dim, heads, layout, mask, mask_table, name, params, "
    "precision, recurrence, schedule, score, sinks, splits"
)


def load(text: str) -> Spec:
    return load_text(text, "t.yaml")


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(text)
    return str(caught.value)


def test_defaults() -> None:
    spec = load(BASE)
    assert spec == Spec("tiny", Heads(2, 2), HeadDim(64, 64), ("float16",))
    assert (spec.layout, spec.precision, spec.deterministic) == ("bshd", "ieee", True)
    assert (spec.sinks, spec.dropout, spec.grad) == (
        False,
        False,
        False,
    )
    assert (spec.score, spec.mask, spec.params, spec.captured, spec.schedule) == (None, None, (), (), None)
    assert spec.heads.group == 1


FULL = """\
# Everything at once
# yaml-language-server: $schema=attngen.schema.json
attngen: 1
name: everything
heads: {q: 8, kv: 2}
head_dim: {qk: 96, v: 64}
dtype: [bfloat16, float32]
layout: thd
score: s + bias[h, n, max(0, i - j)] * rate
mask: j <= i and i - j < window
params: {window: 16, rate: float, n: int, eps: 1e-5}
captured:
  bias: {dtype: float32, axes: [Hq, 4, n], grad: true}
  doc: {dtype: int32, axes: [Tk], sorted: true}
sinks: true
dropout: true
precision: tf32x3
grad: true
deterministic: false
mask_table: true
schedule: {block_m: [64, 128], warps: 4}
""".replace("* rate", "* rate + doc[j] + eps")


def test_every_key() -> None:
    spec = load(FULL)
    assert spec.heads == Heads(8, 2)
    assert spec.heads.group == 4
    assert spec.head_dim == HeadDim(96, 64)
    assert spec.dtypes == ("bfloat16", "float32")
    assert spec.layout == "thd"
    assert spec.params == (
        Param("eps", "float", 1e-5),
        Param("n", "int"),
        Param("rate", "float"),
        Param("window", "int", 16),
    )
    assert [param.runtime for param in spec.params] == [False, True, True, False]
    assert spec.captured == (
        Captured("bias", "float32", ("Hq", 4, "n"), grad=True),
        Captured("doc", "int32", ("Tk",), sorted=True),
    )
    assert [captured.type for captured in spec.captured] == ["float", "int"]
    assert (spec.sinks, spec.dropout) == (True, True)
    assert (spec.precision, spec.grad, spec.deterministic, spec.mask_table) == (
        "tf32x3",
        True,
        False,
        True,
    )
    assert spec.schedule == Schedule(block_m=(64, 128), warps=(4,))
    assert spec.summary == "Everything at once"


def test_canonical_is_a_fixed_point() -> None:
    spec = load(FULL)
    assert load_spec(spec.canonical()) == spec
    assert load_spec(spec.canonical()).canonical() == spec.canonical()
    assert hash(load_spec(spec.canonical())) == hash(spec)
    assert load(BASE).canonical() == {
        "attngen": 1,
        "name": "tiny",
        "heads": {"q": 2, "kv": 2},
        "head_dim": {"qk": 64, "v": 64},
        "dtype": ["float16"],
        "layout": "bshd",
    }


def test_positions_and_summary_are_no_part_of_equality() -> None:
    spec = load("# one\n" + BASE)
    assert spec == load("# two\n\n" + BASE)
    assert spec.position("heads") == ("t.yaml", 4, 8)
    assert spec.position("mask") is None
    assert load_spec(spec.canonical()).position("heads") is None


def test_positions_of_parts() -> None:
    spec = load(FULL)
    assert spec.position("captured.bias.axes") == ("t.yaml", 13, 32)
    assert spec.position(("captured", "bias", "axes", 1)) == ("t.yaml", 13, 37)
    assert spec.position("captured.bias.axes.1") == ("t.yaml", 13, 37)
    assert spec.position("captured.bias.sorted") == ("t.yaml", 13, 9)


def test_latent_heads() -> None:
    assert load(BASE.replace("64", "{qk: 576, v_from_k: 512}")).head_dim == HeadDim(576, 512, 512)
    assert load(BASE.replace("64", "{qk: 576, v: 512, v_from_k: 512}")).head_dim == HeadDim(576, 512, 512)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("3", 3),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0.0", 0.0),
    ],
)
def test_numbers(text: str, value: float) -> None:
    param = load(BASE + f"score: s + x\nparams: {{x: {text}}}\n").params[0]
    assert param.value == value
    assert type(param.value) is type(value)


@pytest.mark.parametrize(
    "text", ["16:30", "0x10", "010", "1_000", ".inf", ".nan", "on", "yes", "'3'", "int32", "2026-01-01"]
)
def test_no_numbers(text: str) -> None:
    message = f"a param is a number, or `int` or `float` for a run-time argument; got {text.strip(chr(39))!r}"
    assert refusal(BASE + f"score: s + x\nparams: {{x: {text}}}\n") == f"t.yaml:7:13: params.x: {message}"


@pytest.mark.parametrize("text", ["on", "yes", "no", "off", "True", "'true'", "y"])
def test_words_are_text(text: str) -> None:
    shown = text.strip("'")
    assert refusal(BASE + f"sinks: {text}\n") == f"t.yaml:6:8: sinks: expected true or false, got {shown!r}"
    assert (
        refusal(BASE + f"dropout: {text}\n") == f"t.yaml:6:10: dropout: expected true or false, got {shown!r}"
    )


def test_formulas_may_be_bare_values() -> None:
    spec = load(BASE + "mask: true\nscore: 0\n")
    assert (str(spec.mask), str(spec.score)) == ("True", "0")


def test_null_leaves_a_key_out() -> None:
    assert load(BASE + "mask:\nparams: ~\nschedule: {}\n") == load(BASE)


ONE_LINE = [
    # what replaces or follows which line of BASE, and the message
    ("heads: 2", "heads: {q: 6, kv: 4}", "3:8: heads: q must be a multiple of kv, got q = 6 and kv = 4"),
    ("heads: 2", "heads: 0", "3:8: heads.q: must be at least 1, got 0\nt.yaml:3:8: heads.kv: must be at least 1, got 0"),
    ("heads: 2", "heads: 2.0", "3:8: heads: expected a number or {q: ..., kv: ...}, got 2.0"),
    ("heads: 2", "heads: {q: 2}", "3:8: heads.kv: missing; add `kv: ...`"),
    ("heads: 2", "heads: {q: 2, kv: 2, kw: 2}", "3:22: heads.kw: unknown key; did you mean 'kv'? known: kv, q"),
    ("heads: 2", "heads: {q: 2, kv: two}", "3:19: heads.kv: expected an integer, got 'two'"),
    ("heads: 2", "heads: {q: 2, kv: true}", "3:19: heads.kv: expected an integer, got True"),
    ("head_dim: 64", "head_dim: {qk: 64}", "4:11: head_dim: give v, or v_from_k where V is the first columns of K"),
    ("head_dim: 64", "head_dim: {qk: 64, v_from_k: 65}", "4:30: head_dim.v_from_k: V cannot have more columns than K, got 65 of 64"),
    ("head_dim: 64", "head_dim: {qk: 64, v: 32, v_from_k: 16}", "4:23: head_dim.v: v is 32, but v_from_k says 16; leave v out"),
    ("dtype: float16", "dtype: flaot16", "5:8: dtype.0: 'flaot16' is not allowed; did you mean 'float16'? known: bfloat16, float16, float32"),
    ("dtype: float16", "dtype: []", "5:8: dtype: expected at least one entry, got []"),
    ("dtype: float16", "dtype: [float16, float16]", "5:8: dtype: 'float16' is listed twice"),
    ("attngen: 1", "attngen: 2", "1:10: attngen: this attngen reads version 1 of the spec format, got 2"),
    ("attngen: 1", "attngen: '1'", "1:10: attngen: this attngen reads version 1 of the spec format, got '1'"),
    ("attngen: 1\n", "", "1:1: attngen: missing; add `attngen: ...`"),
    ("dtype: float16", "dtype: float16\nmsak: j <= i", f"6:1: msak: unknown key; did you mean 'mask'? known: {KEYS}"),
    ("dtype: float16", "dtype: float16\nlayout: bsdh", "6:9: layout: 'bsdh' is not allowed; did you mean 'bshd'? known: bhsd, bshd, thd"),
    ("dtype: float16", "dtype: float16\nmask_table: true", "6:13: mask_table: a mask table needs a mask; add one or leave mask_table out"),
    ("dtype: float16", "dtype: float16\ncache: {kind: paged, page_size: 16}\ndropout: true", "7:10: dropout: a paged cache is for inference, which drops nothing; leave dropout out, or the cache"),
    ("dtype: float16", "dtype: float16\nmask: [1]", "6:7: mask: expected text, got [1]"),
    ("dtype: float16", "dtype: float16\nschedule: {block_m: 48}", "6:21: schedule.block_m.0: must be a power of two, got 48"),
    ("dtype: float16", "dtype: float16\nschedule: {stages: [1, 9]}", "6:24: schedule.stages.1: must be at most 8, got 9"),
    ("dtype: float16", "dtype: float16\nparams: {x: 1}", "6:10: params.x: 'x' is declared but no formula uses it; use it or leave it out"),
    ("dtype: float16", "dtype: float16\nscore: s + x\nparams: {x: 2147483648}", "7:13: params.x: an integer param is from -268435456 to 268435456; write a float for larger values"),
    ("dtype: float16", "dtype: float16\nscore: s + x\nparams: {x: true}", "7:13: params.x: a param is a number, or `int` or `float` for a run-time argument; got True"),
    ("dtype: float16", "dtype: float16\nscore: s + x\nparams: {x: 1e999}", "7:13: params.x: a param must be finite, got inf"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ONE_LINE)
def test_wrong_values(old: str, new: str, message: str) -> None:
    assert old in BASE
    assert refusal(BASE.replace(old, new)) == f"t.yaml:{message}"


CAPTURED = [
    ("{dtype: float32, axes: [Hq]}", "h", ""),
    ("{dtype: float32}", "h", "7:15: captured.x.axes: missing; add `axes: ...`"),
    ("{dtype: double, axes: [Hq]}", "h", "7:23: captured.x.dtype: 'double' is not allowed; known: bfloat16, bool, float16, float32, int32, int64"),
    ("{dtype: float32, axes: []}", "h", "7:38: captured.x.axes: expected at least one entry, got []"),
    ("{dtype: float32, axes: [Hw]}", "h", "7:39: captured.x.axes.0: unknown axis 'Hw'; did you mean 'Hq'? known: B, Hkv, Hq, Sk, Sq, or a size"),
    ("{dtype: float32, axes: [0]}", "h", "7:39: captured.x.axes.0: the size of an axis is from 1 to 268435456, got 0"),
    ("{dtype: float32, axes: [1.5]}", "h", "7:39: captured.x.axes.0: an axis is a name or a size, got 1.5"),
    ("{dtype: float32, axes: [Tk]}", "h", "7:39: captured.x.axes.0: layout bshd has no axis Tk; use Sk"),
    ("{dtype: float32, axes: [Hq], sorted: true}", "h", "7:52: captured.x.sorted: only int32 and int64 tensors can be declared sorted, x is float32"),
    ("{dtype: int32, axes: [Hq], grad: true}", "h", "7:48: captured.x.grad: int32 tensors have no gradient"),
    ("{dtype: float32, axes: [Hq], grad: true}", "h", "7:50: captured.x.grad: a gradient of a captured tensor needs grad: true at the top of the spec"),
    ("{dtype: float32, axes: [Hq], axis: 3}", "h", "7:44: captured.x.axis: unknown key; did you mean 'axes'? known: axes, dtype, grad, sorted"),
    ("float32", "h", "7:15: captured.x: expected a mapping, got 'float32'"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "index", "message"), CAPTURED)
def test_captured(form: str, index: str, message: str) -> None:
    text = BASE + f"score: s + x[{index}]\ncaptured: {{x: {form}}}\n"
    if message:
        assert refusal(text) == f"t.yaml:{message}"
    else:
        assert load(text).captured == (Captured("x", "float32", ("Hq",)),)


def test_axes_of_packed_layouts() -> None:
    text = BASE + "layout: thd\nscore: s + x[row]\ncaptured: {x: {dtype: float32, axes: [Sq]}}\n"
    assert refusal(text) == "t.yaml:8:39: captured.x.axes.0: layout thd has no axis Sq; use Tq"


def test_axis_of_a_param_must_be_positive() -> None:
    text = BASE + "score: s + x[0]\nparams: {n: 0}\ncaptured: {x: {dtype: float32, axes: [n]}}\n"
    assert refusal(text) == "t.yaml:8:15: captured.x: the size of axis n must be positive, got 0"


NAMES = {
    "2x": "a name is letters, digits and underscores, starts with a letter, at most 64 characters",
    "_x": "a name is letters, digits and underscores, starts with a letter, at most 64 characters",
    "x-y": "a name is letters, digits and underscores, starts with a letter, at most 64 characters",
    "größe": "a name is letters, digits and underscores, starts with a letter, at most 64 characters",
    "x" * 65: "a name is letters, digits and underscores, starts with a letter, at most 64 characters",
    "class": "'class' is a Python keyword; choose another name",
    "i": "'i' is a symbol of formulas; choose another name",
    "s": "'s' is a symbol of formulas; choose another name",
    "tanh": "'tanh' is a function of formulas; choose another name",
    "Sq": "'Sq' is the name of an axis; choose another name",
    "q": "'q' is an argument of generated functions; choose another name",
    "softmax_scale": "'softmax_scale' is an argument of generated functions; choose another name",
    "len": "'len' is the name of a Python builtin or module; choose another name",
    "tl": "'tl' is the name of a Python builtin or module; choose another name",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_params_and_captured(name: str) -> None:
    assert refusal(BASE + f'params: {{"{name}": 1}}\n').split(": ", 2)[2] == NAMES[name]
    text = BASE + f'captured: {{"{name}": {{dtype: bool, axes: [B]}}}}\n'
    assert refusal(text).split(": ", 2)[2] == NAMES[name]


def test_a_param_and_a_captured_tensor_of_one_name() -> None:
    text = BASE + "score: s + x[h]\nparams: {x: 1}\ncaptured: {x: {dtype: float32, axes: [Hq]}}\n"
    assert "t.yaml:8:12: captured.x: 'x' is a param already; choose another name" in refusal(text)


SPEC_NAMES = {
    "../x": "starts with a letter and has at most 64 characters; got '../x'",
    "/etc/passwd": "starts with a letter and has at most 64 characters; got '/etc/passwd'",
    "Tiny": "starts with a letter and has at most 64 characters; got 'Tiny'",
    "a.b": "starts with a letter and has at most 64 characters; got 'a.b'",
    "''": "starts with a letter and has at most 64 characters; got ''",
    '"a\\n"': "starts with a letter and has at most 64 characters; got 'a\\n'",
    "x" * 65: f"starts with a letter and has at most 64 characters; got '{'x' * 65}'",
    "class": "'class' is a Python keyword; choose another name",
    "match": "'match' is a Python keyword; choose another name",
    "torch": "'torch' is the name of a Python builtin or module; choose another name",
    "attngen": "'attngen' is the name of a Python builtin or module; choose another name",
    "print": "'print' is the name of a Python builtin or module; choose another name",
}


@pytest.mark.parametrize("name", SPEC_NAMES)
def test_spec_names(name: str) -> None:
    message = refusal(BASE.replace("tiny", name))
    assert message.startswith("t.yaml:2:7: name: ")
    assert message.endswith(SPEC_NAMES[name])


PLACES = [
    ("mask: j <= i and wndow", "6:18"),
    ("mask: 'j <= i and wndow'", "6:19"),
    ('mask: "j <= i and wndow"', "6:19"),
    ('mask:   "j <= i\\x20and wndow"', "6:9"),
    ("mask: j <= i\n  and wndow", "7:7"),
    ("mask: >-\n  j <= i\n  and wndow", "8:7"),
    ("mask: |\n  j <= i and\n    wndow", "8:5"),
    ("mask: 'j <= i\n\n     and wndow'", "8:10"),
]


@pytest.mark.parametrize(("text", "place"), PLACES)
def test_place_inside_a_formula(text: str, place: str) -> None:
    known = "b, h, hk, i, j, row, seqlen_k, seqlen_q, window"
    assert refusal(BASE + text + "\nparams: {window: int}\n") == (
        f"t.yaml:{place}: mask: unknown symbol 'wndow'; did you mean 'window'? known: {known}"
    )


def test_other_wrong_values() -> None:
    assert (
        refusal(BASE.replace("64", "[64]"))
        == "t.yaml:4:11: head_dim: expected a number or {qk: ..., v: ...}, got [64]"
    )
    message = "ring attention is not in this version of attngen yet; leave the key out"
    assert refusal(BASE + "ring: {layout: zigzag}\n") == f"t.yaml:6:1: ring: {message}"


def test_nothing_depends_on_the_hash_seed() -> None:
    code = (
        "import json; from attngen.errors import SpecError; from attngen.spec import load_text\n"
        f"print(json.dumps(load_text({FULL!r}, 't').canonical()), load_text({FULL!r}, 't'))\n"
        f"try: load_text({BASE!r} + 'mask: x[h] < y\\nparam: 1', 't')\n"
        "except SpecError as error: print(error)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_all_problems_at_once() -> None:
    text = "attngen: 1\nname: Tiny\nheads: {q: 3, kv: 2}\nhead_dim: 64\ndtype: float16\nmask: j < q\nscore: s +\n"
    assert refusal(text).splitlines() == [
        "t.yaml:2:7: name: a name is lowercase letters, digits and underscores, starts with a letter and has at most "
        "64 characters; got 'Tiny'",
        "t.yaml:3:8: heads: q must be a multiple of kv, got q = 3 and kv = 2",
        "t.yaml:6:11: mask: unknown symbol 'q'; known: b, h, hk, i, j, row, seqlen_k, seqlen_q",
        "t.yaml:7:10: score: not a formula: invalid syntax",
    ]


def test_mappings_have_the_same_messages_without_a_place() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(
            {"attngen": 1, "name": "x", "heads": 1, "head_dim": 8, "dtype": "float16", "mask": "j < wndow"}
        )
    assert str(caught.value) == "mask: unknown symbol 'wndow'; known: b, h, hk, i, j, row, seqlen_k, seqlen_q"
    assert (caught.value.path, caught.value.line, caught.value.column) == (None, None, 5)


@pytest.mark.parametrize(
    "data", [{1: 2}, {"attngen": 1, (): 3}, {}, {"attngen": [[]]}, {"captured": {1: {}}}]
)
def test_odd_mappings(data: dict) -> None:
    with pytest.raises(SpecError):
        load_spec(data)


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("\ufeff" + BASE)
    assert load_spec(good) == load_spec(str(good)) == load(BASE)
    cases: dict[str, tuple[bytes, str]] = {
        "empty.yaml": (b"", ": the file holds no spec; `attngen new NAME` writes one to start from"),
        "comment.yaml": (b"# x\n", ": the file holds no spec; `attngen new NAME` writes one to start from"),
        "list.yaml": (b"- 1\n", ":1:1: a spec is a mapping of keys, such as `attngen: 1`"),
        "text.yaml": (b"hello", ":1:1: a spec is a mapping of keys, such as `attngen: 1`"),
        "latin.yaml": ("# ok\n# größe".encode("latin-1"), ":2:5: a spec is UTF-8 text, byte 0xF6 is not"),
        "nul.yaml": (b"attngen: 1\nname: \0", ":2:7: character U+0000 is not allowed in YAML"),
        "large.yaml": (b"#" * 3_000_000, ": a spec has at most 65,536 bytes"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert str(caught.value) == f"{path}{message}"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "missing.yaml", "no such file"),
        (tmp_path, "a spec is a file, this is a directory or a device"),
        (Path("/dev/zero"), "a spec is a file, this is a directory or a device"),
        ("a" * 5000, "cannot be read: File name too long"),
    ]:
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert str(caught.value) == f"{path}: {message}"
    with pytest.raises(SpecError, match=r"^a\\0b: no such file$"):
        load_spec("a\0b")
    with pytest.raises(SpecError, match="load_spec takes a path or a mapping, this looks like YAML text"):
        load_spec(BASE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text(BASE)
    path.chmod(0)
    with pytest.raises(SpecError, match="cannot be read: Permission denied"):
        load_spec(path)


def test_import_is_light() -> None:
    code = (
        "import attngen.spec, sys; print(sorted({'torch', 'triton', 'networkx', 'sympy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = KEYS.split(", ")


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_values_are_a_spec_or_a_spec_error(changes: dict) -> None:
    data = {"attngen": 1, "name": "x", "heads": 1, "head_dim": 8, "dtype": "float16"} | changes
    try:
        spec = load_spec(data)
    except SpecError:
        return
    assert load_spec(spec.canonical()) == spec
