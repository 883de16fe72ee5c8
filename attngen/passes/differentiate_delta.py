"""Adjoints of a fold that erases (a delta rule), in terms of states that tokens find and of gradients of states.

Token t finds D_t = exp(a_t) S_(t-1) and leaves S_t = D_t + k_t w_t, where it writes w_t = beta_t (v_t - D_t^T k_t). With G_t the
gradient with respect to S_t, x_t = G_t^T k_t is that with respect to w_t, and

    dv_t = beta_t x_t,  dbeta_t = <x_t, v_t - D_t^T k_t>,  dk_t = G_t w_t - beta_t D_t x_t

    G_t = q_t dy_t + exp(a_(t+1)) (G_(t+1) - k_(t+1) dv_(t+1))

so that gradients of states are a delta rule from the last token to the first (arXiv:2406.06484, section 3, derives chunks of it).
"""

from __future__ import annotations

from attngen.ir import expr as ex
from attngen.ir.expr import Symbol
from attngen.ir.nodes import Contract, Fold, Map, Node, Read

S = Symbol("s", "float")
TOKENS = ("B", "L", "H")


def erased_nodes(name: str, fold: Fold) -> dict[str, Node]:
    """What tokens write and its gradient, and the parts of the adjoints of keys, values and beta (see `erased_adjoints`)."""
    beta, keys, values = fold.erase, (*TOKENS, "K"), (*TOKENS, fold.axes[-1])
    left = ex.apply("sub", S, Symbol("held", "float"))
    return {
        "held": Read(query=fold.element, state=name, before=True, axes=values),
        "written": Map(
            operand=fold.value, others=("held", beta), expr=ex.apply("mul", left, _of(beta)), axes=values
        ),
        "dwritten": Read(query=fold.element, state=f"d{name}", axes=values),
        "dk_written": Read(query="written", state=f"d{name}", axes=keys),
        "found": Read(query="dwritten", state=name, before=True, axes=keys),
        "of_found": Contract(left=fold.element, right="found", over="K", axes=TOKENS),
        "of_values": Contract(left=fold.value, right="dwritten", over=fold.axes[-1], axes=TOKENS),
    }


def of_erased(fold: Fold) -> Map:
    """What gradients of decays lose by what tokens found."""
    weighed = ex.apply("mul", S, _of(fold.erase))
    return Map(operand="of_found", others=(fold.erase,), expr=weighed, axes=TOKENS)


def erased_adjoints(fold: Fold) -> dict[str, Node]:
    """The adjoints of keys, values and beta, by the operand."""
    beta = fold.erase
    gone = ex.apply("mul", _of("found"), _of(beta))
    return {
        fold.element: Map(
            operand="dk_written",
            others=("found", beta),
            expr=ex.apply("sub", S, gone),
            axes=(*TOKENS, "K"),
        ),
        fold.value: Map(
            operand="dwritten",
            others=(beta,),
            expr=ex.apply("mul", S, _of(beta)),
            axes=(*TOKENS, fold.axes[-1]),
        ),
        beta: Map(
            operand="of_values",
            others=("of_found",),
            expr=ex.apply("sub", S, _of("of_found")),
            axes=TOKENS,
        ),
    }


def _of(name: str) -> Symbol:
    return Symbol(name, "float")
