"""Running commands in this process, and a spec to run them on."""

from typer.testing import CliRunner, Result

from attngen.cli.app import app

CAUSAL = """\
# A small causal one
attngen: 1
name: small
heads: {q: 4, kv: 2}
head_dim: 16
dtype: float32
mask: j <= i and i - j < window
params: {window: int}
"""
WRONG = CAUSAL.replace("window\n", "wndow\n", 1)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="attngen")


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: str) -> str:
    """The message of a user error."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert "Traceback" not in result.stderr
    return result.stderr
