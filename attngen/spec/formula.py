"""Formulas of a spec: text, through Python's `ast` and a whitelist, to a checked tree. No text is evaluated.

The grammar, whole:
    literals   integers (32 bit), finite floats, True, False
    names      symbols (b, h, hk, row, i, j, seqlen_q, seqlen_k; s in a score) and params
    operators  + - * / // %, ** with a literal exponent 0 to 8, unary + -
    logic      not, and, or, < <= > >= == != (chained too)
    choice     a if c else b, where(c, a, b)
    calls      abs min max exp exp2 log log2 sqrt tanh sigmoid floor sin cos int float, and elu silu, which are written out
    index      captured[e, ...] with one integer per axis
`//` and `%` mean floor, as in Python. `spec/formula_types.py` has the types of all this.
"""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import dataclass, field
from typing import Final, cast

from attngen.errors import SpecError
from attngen.spec.formula_types import FUNCTIONS, Env, Type, infer

__all__ = ["FUNCTIONS", "Env", "Formula", "Type", "infer", "parse_formula"]

SHORT: Final = {"elu": "x if x > 0 else exp(min(x, 0.0)) - 1", "silu": "x * sigmoid(x)"}
"""Functions of one number x by what they are short for; the exponential is that of no large number, which would be inf."""

MAX_TEXT: Final = 2_000
MAX_NODES: Final = 400
MAX_DEPTH: Final = 64

_ALLOWED_TEXT: Final = re.compile(r"[A-Za-z0-9_+\-*/%().,<>=!\[\]\s]")
_HINTS: Final = {
    "&": "write `and`",
    "|": "write `or`",
    "~": "write `not`",
    "^": "write `**` for a power",
    "@": "matrix products are not part of formulas",
    ":": "slices and lambdas are not part of formulas",
    "'": "text is not part of formulas",
    '"': "text is not part of formulas",
}

_CONSTRUCTS: Final[dict[type[ast.AST], str]] = {
    ast.Attribute: "attribute access",
    ast.Lambda: "lambda",
    ast.GeneratorExp: "comprehension",
    ast.ListComp: "comprehension",
    ast.List: "list",
    ast.Tuple: "tuple",
    ast.Starred: "star argument",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
}


@dataclass(frozen=True)
class Formula:
    """A checked formula. Two formulas are equal when their canonical text and type are.

    Attributes:
        text: canonical text; parsing it again gives an equal formula.
        type: 'bool', 'int' or 'float': what the text computes (a score may be 'int').
        names: the scalar names used (symbols and params), sorted.
        tensors: the captured tensors used, sorted.
        tree: the validated tree: only nodes of the grammar, every name known, every type right.
    """

    text: str
    type: Type
    names: tuple[str, ...]
    tensors: tuple[str, ...]
    tree: ast.expr = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.text


def parse_formula(text: str, env: Env, *, key: str, want: Type) -> Formula:
    """Parse `text` with the names of `env`; `want` is 'bool' (a mask) or 'float' (a score; ints promote).

    Raises:
        SpecError: with `key` and `column` (1-based, in `text`); the loader finds the place in the file.
    """
    tree = _parse(text, key)
    _check_limits(tree, key)
    tree = cast(ast.expr, _Written().visit(tree))
    _check_limits(tree, key)
    try:
        actual = infer(tree, env)
    except SpecError as error:
        raise SpecError(error.message, key=key, column=error.column) from None
    if not (actual == want or (want == "float" and actual == "int")):
        what = "true or false (such as `j <= i`)" if want == "bool" else "a number (such as `s`)"
        raise SpecError(
            f"the {key} must be {what}, this formula is a {actual}", key=key, column=_column(tree)
        )
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return Formula(
        text=ast.unparse(tree),
        type=actual,
        names=tuple(sorted(used & env.scalars.keys())),
        tensors=tuple(sorted(used & env.tensors.keys())),
        tree=tree,
    )


def _parse(text: str, key: str) -> ast.expr:
    """Text to a Python expression; every character is looked at before Python's parser sees any."""
    if len(text) > MAX_TEXT:
        raise SpecError(f"a formula has at most {MAX_TEXT:,} characters, this one has {len(text):,}", key=key)
    if not text.strip():
        raise SpecError("the formula is empty", key=key)
    for offset, char in enumerate(text):
        if not _ALLOWED_TEXT.match(char) or not char.isascii():
            hint = f"; {_HINTS[char]}" if char in _HINTS else ""
            raise SpecError(f"character {char!r} is not part of formulas{hint}", key=key, column=offset + 1)
    flat = re.sub(r"\s", " ", text)
    start = len(flat) - len(flat.lstrip())
    try:
        module = ast.parse(flat.strip(), mode="eval")
    except SyntaxError as error:
        length = len(flat.strip())
        column = start + min(error.offset or length, length)
        raise SpecError(f"not a formula: {_reason(error)}", key=key, column=column) from None
    except (MemoryError, RecursionError, ValueError):
        raise SpecError("the formula is nested too deeply", key=key) from None
    _shift(module.body, start)
    return module.body


class _Written(ast.NodeTransformer):
    """Functions that are short for a formula, written out."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id in SHORT and len(node.args) == 1):
            return node
        written = _Argument(node.args[0]).visit(ast.parse(SHORT[node.func.id], mode="eval").body)
        for part in ast.walk(written):
            if isinstance(part, ast.expr):
                part.col_offset = node.col_offset
        return cast(ast.expr, written)


class _Argument(ast.NodeTransformer):
    """Put an argument in the place of x."""

    def __init__(self, argument: ast.expr) -> None:
        self.argument = argument

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self.argument) if node.id == "x" else node


def _reason(error: SyntaxError) -> str:
    """Python's own words, without its advice about Python."""
    return error.msg.split(". ")[0].split(" (")[0]


def _shift(tree: ast.expr, start: int) -> None:
    """Make the columns of `tree` count from the start of the original text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.col_offset += start


def _column(node: ast.AST) -> int:
    return cast(int, getattr(node, "col_offset", 0)) + 1


def _check_limits(tree: ast.expr, key: str) -> None:
    """Refuse what is too large to treat, before anything recurses over it."""
    count = 0
    stack: list[tuple[ast.AST, int, int]] = [(tree, 1, _column(tree))]
    while stack:
        node, depth, column = stack.pop()
        construct = _CONSTRUCTS.get(type(node))
        is_index = isinstance(node, ast.Tuple) and depth < 0
        if construct is not None and not is_index:
            raise SpecError(f"{construct} is not part of formulas", key=key, column=column)
        count += isinstance(node, ast.expr)
        depth = abs(depth)
        if count > MAX_NODES:
            raise SpecError(f"a formula has at most {MAX_NODES} operations and names", key=key, column=column)
        if depth > MAX_DEPTH:
            raise SpecError(f"a formula is nested at most {MAX_DEPTH} deep", key=key, column=column)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.Subscript) and child is node.slice
            place = _column(child) if isinstance(child, ast.expr) else column
            stack.append((child, -(depth + 1) if inside else depth + 1, place))
