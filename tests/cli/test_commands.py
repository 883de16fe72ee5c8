"""Each command: what it prints, what it writes, how it ends."""

import json
import os
from pathlib import Path

import pytest

from attngen.spec import load_spec, load_text
from attngen.spec.schema import json_schema
from attngen.version import VERSION
from tests.cli.helpers import CAUSAL, WRONG, good, refused, run

# ---- list, new, schema, --version


def test_version() -> None:
    assert good("--version") == f"attngen {VERSION}\n"


def test_without_a_command_the_help_lists_them_all() -> None:
    text = run().output
    assert [
        word for word in ("list", "new", "schema", "explain", "generate", "check") if word not in text
    ] == []


def test_list_shows_name_mechanism_dtypes_and_summary(here: Path) -> None:
    (here / "specs/other.yaml").write_text(CAUSAL.replace("small", "packed_one") + "layout: thd\n")
    lines = [line.split("  ") for line in good("list").splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["packed_one", "packed", "float32", "A packed_one causal one"],
        ["small", "dense", "float32", "A small causal one"],
    ]


def test_list_as_json_of_another_folder(here: Path) -> None:
    (here / "specs").rename(here / "mine")
    assert json.loads(good("list", "mine", "--json")) == [
        {
            "name": "small",
            "path": "mine/small.yaml",
            "mechanism": "dense",
            "layout": "bshd",
            "dtypes": ["float32"],
            "summary": "A small causal one",
        }
    ]


def test_list_shows_the_good_specs_and_then_the_mistakes_of_the_others(here: Path) -> None:
    (here / "specs/wrong.yaml").write_text(WRONG)
    result = run("list")
    assert result.exit_code == 2
    assert result.stdout.startswith("small ")
    assert "specs/wrong.yaml:7:26: mask: unknown symbol 'wndow'" in result.stderr


@pytest.mark.parametrize("command", ["list", "generate", "check"])
def test_a_missing_or_empty_folder_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no folder specs" in refused(command)
    (tmp_path / "specs").mkdir()
    assert "specs holds no *.yaml file" in refused(command)


def test_new_writes_a_valid_spec_and_never_overwrites(here: Path) -> None:
    assert "wrote specs/mine.yaml" in good("new", "mine")
    assert load_spec("specs/mine.yaml").name == "mine"
    (here / "specs/mine.yaml").write_text("precious")
    assert "specs/mine.yaml exists" in refused("new", "mine")
    assert (here / "specs/mine.yaml").read_text() == "precious"
    assert sorted(os.listdir(here / "specs")) == ["mine.yaml", "small.yaml"]


def test_what_a_new_spec_offers_in_comments_is_valid_too(here: Path) -> None:
    good("new", "mine")
    lines = (here / "specs/mine.yaml").read_text().splitlines()
    offered = [
        line for line in lines if line.startswith(("# layout:", "# score:", "# sinks:", "# captured:"))
    ]
    assert len(offered) == 4
    text = "\n".join([*(line for line in lines if line not in offered), *(line[2:] for line in offered)])
    text = text.replace("50 * tanh(s / 50)", "50 * tanh(s / 50) + slopes[h] * (j - i)")
    spec = load_text(text, "mine.yaml")
    assert (spec.layout, spec.sinks, [c.name for c in spec.captured]) == ("bhsd", True, ["slopes"])


@pytest.mark.parametrize("name", ["../x", "class", "torch", "Big", "a b", "", "x" * 65])
def test_new_refuses_names_that_no_spec_can_have(name: str, here: Path) -> None:
    refused("new", name)
    assert os.listdir(here / "specs") == ["small.yaml"]
    assert os.listdir(here) == ["specs"]


def test_new_says_what_cannot_be_written(here: Path) -> None:
    (here / "specs/small.yaml").unlink()
    (here / "specs").rmdir()
    (here / "specs").write_text("a file")
    assert "specs/mine.yaml: cannot be written" in refused("new", "mine")


def test_schema_is_the_schema() -> None:
    assert json.loads(good("schema")) == json_schema()


# ---- which specs


def test_a_spec_is_a_path_or_a_name(here: Path) -> None:
    (here / "elsewhere.yaml").write_text(CAUSAL)
    assert (
        good("explain", "small") == good("explain", "specs/small.yaml") == good("explain", "elsewhere.yaml")
    )


def test_an_unknown_name_gets_a_suggestion(here: Path) -> None:
    assert refused("explain", "smal") == (
        "attngen: no spec 'smal' in ./specs; did you mean 'small'? known: small\n"
    )
    assert "nowhere/small.yaml: no such file" in refused("explain", "nowhere/small.yaml")


def test_mistakes_of_all_files_are_reported_at_once_and_nothing_is_written(here: Path) -> None:
    (here / "specs/wrong.yaml").write_text(WRONG)
    (here / "specs/worse.yaml").write_text("attngen: 1\n")
    message = refused("generate")
    assert "specs/wrong.yaml:7:26" in message
    assert "specs/worse.yaml" in message
    assert os.listdir(here) == ["specs"]


def test_two_specs_of_one_name_are_refused(here: Path) -> None:
    (here / "specs/twin.yaml").write_text(CAUSAL)
    assert "specs/small.yaml and specs/twin.yaml are both named 'small'" in refused("generate")
    assert "specs/small.yaml is given twice" in refused("generate", "small", "specs/small.yaml")


# ---- usage


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["explode"], "No such command 'explode'"),
        (["explain"], "Missing argument 'SPEC'"),
        (["explain", "small", "--seqlen-q", "-1"], "Invalid value for '--seqlen-q'"),
        (["explain", "small", "--documents", "0"], "Invalid value for '--documents'"),
        (["explain", "small", "-p", "window"], "--param takes NAME=VALUE, got 'window'"),
        (["explain", "small", "-p", "wndow=3"], "did you mean 'window'?"),
        (["explain", "small", "-p", "window=x"], "--param window: expected int, got 'x'"),
        (["explain", "small", "-p", "window=99999999999"], "--param window: at most 2147483647"),
        (["check", "small", "--workers", "0"], "Invalid value for '--workers'"),
    ],
)
def test_usage_mistakes_exit_2(arguments: list[str], part: str, here: Path) -> None:
    assert part in refused(*arguments)
