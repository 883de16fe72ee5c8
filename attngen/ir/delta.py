"""Delta, the sum over a row of its weights times dp, as formulas: one place for the passes that cut and the templates that print.

The backward begins with the sum of out times dout, less dlse. Out is rounded, so that this is off; the kernel of dq sums
p times dp itself, and those that run after it take delta from there.
"""

from __future__ import annotations

from attngen.ir import expr as ex
from attngen.ir.expr import Symbol

_OPERAND = Symbol("s", "float")
P_DP = ex.apply("mul", _OPERAND, Symbol("p", "float"))  # of dp
# of delta: what rounding of out did to it
DELTA_ERROR = ex.apply(
    "sub", ex.apply("add", _OPERAND, Symbol("dlse", "float")), Symbol("p_dp_rows", "float")
)
DELTA_RIGHT = ex.apply("sub", _OPERAND, Symbol("delta_error", "float"))  # of delta
