"""Specs: YAML text to a frozen, validated `Spec`. Imports neither torch nor triton nor sympy."""

from attngen.spec.formula import Env, Formula, Type, infer, parse_formula
from attngen.spec.loader import load_spec, load_text
from attngen.spec.model import Cache, Captured, HeadDim, Heads, Param, Schedule, Spec, Splits

__all__ = [
    "Cache",
    "Captured",
    "Env",
    "Formula",
    "HeadDim",
    "Heads",
    "Param",
    "Schedule",
    "Spec",
    "Splits",
    "Type",
    "infer",
    "load_spec",
    "load_text",
    "parse_formula",
]
