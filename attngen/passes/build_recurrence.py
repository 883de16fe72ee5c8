"""Build: a recurrence -> its semantic graph. Mamba-2 and linear attention differ in what they make keys, values and decays of."""

from __future__ import annotations

from typing import Final

from attngen.ir import expr as ex
from attngen.ir.expr import Apply, Const, Expr, Symbol
from attngen.ir.graph import name_taken
from attngen.ir.nodes import Axis, Domain, Finish, Fold, Input, Map, Node, Pad, Read, symbol
from attngen.passes.lower import lower
from attngen.spec import Formula, Spec
from attngen.spec.model import Recurrence

S: Final = Symbol("s", "float")
TOKENS: Final = ("B", "L", "H")


def recurrence_axes(spec: Spec, recurrence: Recurrence) -> tuple[Axis, ...]:
    """B counts batch entries or packed sequences; states have K rows and W columns, values V."""
    keys = recurrence.state if recurrence.kind == "ssd" else spec.head_dim.qk
    assert keys is not None
    columns = spec.head_dim.v
    wide = columns + recurrence.normalise
    return (
        Axis(name="B", size=symbol("batch"), symbol="b"),
        Axis(name="H", size=symbol("num_heads"), symbol="h"),
        Axis(
            name="G",
            size=symbol("num_groups"),
            symbol="g",
            parent="H",
            group=spec.heads.q // recurrence.groups if recurrence.kind == "ssd" else 1,
        ),
        Axis(name="L", size=symbol("seqlen"), symbol="t", origin="start"),
        Axis(name="K", size=Const(keys), symbol="d"),
        Axis(name="V", size=Const(columns), symbol="e"),
        *([Axis(name="W", size=Const(wide), symbol="w")] if recurrence.normalise else []),
    )


def recurrence_nodes(spec: Spec, recurrence: Recurrence) -> dict[str, Node]:
    """The nodes of a recurrence: what is folded, the fold, what is read, and what becomes of that."""
    nodes: dict[str, Node] = {}
    for param in spec.params:
        if param.value is None:
            dtype = {"int": "int32", "float": "float32"}[param.type]
            nodes[param.name] = Input(axes=(), dtype=dtype, role="scalar")
    params = dict(nodes)
    (_mamba if recurrence.kind == "ssd" else _linear)(spec, recurrence, nodes)
    for name, node in params.items():
        if nodes[name] is not node:
            raise name_taken(spec.name, name)
    return nodes


def _token(spec: Spec, *axes: str) -> Input:
    return Input(axes=(*axes,), dtype="io", dtypes=spec.dtypes, layout="bshd", grad=spec.grad)


def _extra(spec: Spec, *axes: str, optional: bool = False) -> Input:
    return Input(axes=(*axes,), dtype="float", role="captured", grad=spec.grad, optional=optional)


def _fold(nodes: dict[str, Node], queries: str, fold: Fold, *, states: tuple[str, ...]) -> None:
    """The states, and what queries read of them."""
    nodes["fold"] = fold
    nodes["read"] = Read(query=queries, state="fold", axes=(*TOKENS, fold.axes[-1]))
    nodes["states"] = Finish(monoid="decay", operand="fold", result="states", axes=states)


def _mamba(spec: Spec, recurrence: Recurrence, nodes: dict[str, Node]) -> None:
    """Mamba-2 (arXiv:2405.21060): dt scales x and, times A, is the decay; then D x is added and z gates."""
    nodes["x"] = _token(spec, "B", "L", "H", "V")
    nodes["dt"] = _extra(spec, *TOKENS)
    nodes["A"] = _extra(spec, "H")
    nodes["B"] = _token(spec, "B", "L", "G", "K")
    nodes["C"] = _token(spec, "B", "L", "G", "K")
    nodes["D"] = _extra(spec, "H", "V", optional=True)
    nodes["z"] = Input(
        axes=("B", "L", "H", "V"),
        dtype="io",
        dtypes=spec.dtypes,
        layout="bshd",
        grad=spec.grad,
        optional=True,
    )
    nodes["dt_bias"] = _extra(spec, "H", optional=True)
    nodes["dt_least"] = Input(axes=(), dtype="float32", role="scalar", default="0.0")
    nodes["dt_most"] = Input(axes=(), dtype="float32", role="scalar", default='float("inf")')
    nodes["initial_states"] = _extra(spec, "B", "H", "V", "K", optional=True)
    nodes["biased"] = Map(
        operand="dt",
        others=("dt_bias",),
        given="dt_bias",
        expr=ex.apply("add", S, Symbol("dt_bias", "float")),
        axes=TOKENS,
    )
    raw = "biased"
    if recurrence.dt_softplus:
        raw = "positive"
        nodes[raw] = Map(operand="biased", expr=ex.apply("softplus", S), axes=TOKENS)
    least, most = Symbol("dt_least", "float"), Symbol("dt_most", "float")
    below = ex.apply(
        "where", ex.apply("gt", S, most), most, S
    )  # with torch's derivative at the limits, which is 1
    clamped = ex.apply("where", ex.apply("lt", S, least), least, below)
    nodes["step"] = Map(operand=raw, expr=clamped, axes=TOKENS)
    nodes["decay"] = Map(
        operand="step", others=("A",), expr=ex.apply("mul", S, Symbol("A", "float")), axes=TOKENS
    )
    nodes["value"] = Map(
        operand="x", others=("step",), expr=ex.apply("mul", S, Symbol("step", "float")), axes=(*TOKENS, "V")
    )
    fold = Fold(
        monoid="decay",
        element="B",
        value="value",
        decay="decay",
        init="initial_states",
        axis="L",
        domain=Domain(size=symbol("seqlen")),
        axes=("B", "H", "K", "V"),
    )
    _fold(nodes, "C", fold, states=("B", "H", "V", "K"))
    skipped = ex.apply("mul", Symbol("x", "float"), Symbol("D", "float"))
    nodes["skipped"] = Map(
        operand="read", others=("x", "D"), given="D", expr=ex.apply("add", S, skipped), axes=(*TOKENS, "V")
    )
    z = Symbol("z", "float")
    gated = ex.apply("mul", S, ex.apply("mul", z, ex.apply("sigmoid", z)))
    nodes["out"] = Map(operand="skipped", others=("z",), given="z", expr=gated, axes=(*TOKENS, "V"))


def _linear(spec: Spec, recurrence: Recurrence, nodes: dict[str, Node]) -> None:
    """S = T S + k v, out = q S, with q and k through a feature map; see the oracle's sources."""
    nodes["q"], nodes["k"] = _token(spec, *TOKENS, "K"), _token(spec, *TOKENS, "K")
    nodes["v"] = _token(spec, *TOKENS, "V")
    scale = repr(spec.head_dim.qk**-0.5)
    nodes["scale"] = Input(axes=(), dtype="float32", role="scalar", default=scale)
    if isinstance(recurrence.decay, str):
        nodes["g"] = _extra(spec, *TOKENS, *(["K"] if recurrence.decay == "vector" else []))
    if recurrence.transition == "delta":
        nodes["beta"] = _extra(spec, *TOKENS)
    wide = "W" if recurrence.normalise else "V"
    nodes["initial_state"] = _extra(spec, "B", "H", "K", wide, optional=True)
    decay = ""
    if recurrence.decay is not None:
        decay = "g"
    if isinstance(recurrence.decay, Formula):
        decay = "decay"
        nodes["decay"] = Map(expr=_formula(lower(recurrence.decay, spec)), axes=TOKENS)
    queries, keys = "q", "k"
    if recurrence.feature is not None:
        feature = _formula(ex.substitute(lower(recurrence.feature, spec), {"x": S}))
        queries, keys = "queries", "keys"
        nodes[queries] = Map(operand="q", expr=feature, axes=(*TOKENS, "K"))
        nodes[keys] = Map(operand="k", expr=feature, axes=(*TOKENS, "K"))
    if recurrence.normalise:
        nodes["value"] = Pad(operand="v", fill=1.0, axes=(*TOKENS, "W"))
    fold = Fold(
        monoid="decay",
        element=keys,
        value="value" if recurrence.normalise else "v",
        decay=decay,
        erase="beta" if recurrence.transition == "delta" else "",
        init="initial_state",
        axis="L",
        domain=Domain(size=symbol("seqlen")),
        axes=("B", "H", "K", wide),
    )
    _fold(nodes, queries, fold, states=fold.axes)
    scaled = "scaled" if recurrence.normalise else "out"
    times = ex.apply("mul", S, Symbol("scale", "float"))
    nodes[scaled] = Map(operand="read", expr=times, axes=(*TOKENS, wide))
    if recurrence.normalise:
        nodes["out"] = Finish(monoid="decay", operand="scaled", result="out", axes=(*TOKENS, "V"))


def _formula(lowered: Expr) -> Expr:
    """A formula as kernels compute it: a float, and tanh by the sigmoid, 2 / (1 + exp(-2 x)) - 1."""
    whole = _without_tanh(lowered)
    if isinstance(whole, Const):
        return Const(float(whole.value))
    return whole if ex.type_of(whole) == "float" else ex.apply("float", whole)


def _without_tanh(expr: Expr) -> Expr:
    made = ex.rebuild(expr, tuple(_without_tanh(part) for part in ex.children(expr)))
    if not (isinstance(made, Apply) and made.op == "tanh"):
        return made
    twice = ex.apply("sigmoid", ex.apply("mul", made.args[0], Const(2.0)))
    return ex.apply("sub", ex.apply("mul", twice, Const(2.0)), Const(1.0))
