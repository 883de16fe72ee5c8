"""The argument lists of a recurrence's module: kernels, launcher, custom op and public function, and the manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from attngen.emit.decode_parts import DecodeParts, find_decode
from attngen.emit.faces import KernelFace
from attngen.emit.interface_adjoint import adjoint_faces
from attngen.emit.interface_rows import (
    BLOCKS,
    HEADS,
    INDEX,
    LENGTHS,
    PACKED,
    SIZES,
    Rows,
    all_strides,
    decays,
    face,
    features,
    precise,
    row_strides,
)
from attngen.emit.records_recurrence import AdjointFaces, TensorArgument
from attngen.emit.recurrence_parts import Parts, inputs_of
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Input, Launch

PUBLIC: Final = {
    "B": "batch", "L": "seqlen", "H": "num_heads", "G": "num_groups",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Faces:
    """The argument lists of one module."""

    totals: KernelFace
    states: KernelFace
    scan: KernelFace
    solve: KernelFace
    pairs: KernelFace
    read: KernelFace
    op_arguments: tuple[str, ...]
    op_call: str
    public_arguments: tuple[str, ...]
    public_call: str
    tensors: tuple[TensorArgument, ...]
    sizes: tuple[str, ...]
    state_shape: str
    large: str
    function: str
    documented: tuple[str, ...]
    prepared: tuple[str, ...]
    return_flag: str
    states_doc: str
    manifest: dict[str, Any]
    adjoint: AdjointFaces | None


def faces(graph: Graph, parts: Parts) -> Faces:
    """Return the argument lists of a scheduled graph of a recurrence."""
    inputs = inputs_of(graph)
    made = {
        "_totals": (_totals(parts, inputs), parts.totals_kernel),
        "_chunk_states": (_states(parts), parts.states_kernel),
        "_solve": (_solve(parts), parts.solve_kernel),
        "_scan": (_delta_scan(parts) if parts.solve else _scan(parts, inputs), parts.scan_kernel),
        "_pairs": (_pairs(parts), parts.pairs_kernel),
        "_read": (_read(graph, parts, inputs), parts.kernel),
        "_decode": (decode_face(graph, decode := find_decode(graph)), decode.kernel),
    }
    op = _op_arguments(inputs)
    raw = tuple(
        {"RAW=False": "RAW=True", "out": "raw"}.get(v, v.replace("out.stride", "raw.stride"))
        for v in made["_read"][0].values
    )
    reverse = adjoint_faces(graph, parts, inputs, ", ".join(n for n, _ in op), raw)
    kernels = {n: (f, k) for n, (f, k) in made.items() if k is not None}
    if reverse:
        launched = dict(graph.all(Launch))
        kernels |= {f.name: (f, launched[name]) for name, f in _backward(reverse).items() if name in launched}
    tokens = [n for n, i in inputs.items() if "L" in i.axes]
    strides = ", ".join(
        f"{n}.stride(1)" if not inputs[n].optional else f"(0 if {n} is None else {n}.stride(1))"
        for n in tokens
    )
    widest = max(parts.k.columns, parts.read_columns)
    return Faces(
        totals=made["_totals"][0],
        states=made["_chunk_states"][0],
        scan=made["_scan"][0],
        solve=made["_solve"][0],
        pairs=made["_pairs"][0],
        read=made["_read"][0],
        op_arguments=tuple(f"{n}: {kind}" for n, kind in op),
        op_call=", ".join(n for n, _ in op),
        public_arguments=_public_arguments(parts, inputs),
        public_call=", ".join(n for n, _ in op),
        tensors=tuple(_tensor(graph, n, i) for n, i in inputs.items() if i.role != "scalar"),
        sizes=_sizes(parts, inputs),
        state_shape=_shape(graph, parts.states_axes).replace("batch", "num_seqs"),
        large=f"max(num_heads * {widest}, {strides}) * CHUNK >= 2**31",
        function="ssd" if parts.is_mamba else "recurrence",
        documented=_documented(parts, inputs),
        prepared=_prepared(graph, parts, inputs),
        return_flag="return_final_states" if parts.is_mamba else "return_final_state",
        states_doc=f"[{', '.join(_letter(graph, a) for a in parts.states_axes)}]",
        manifest=_manifest(graph, parts, kernels),
        adjoint=reverse,
    )


# ---- kernels


def _backward(made: AdjointFaces) -> dict[str, KernelFace]:
    """The kernels of the backward by the nodes that launch them."""
    return ({"adjoint_pairs_kernel": made.pairs} if made.pairs else {}) | {
        "out_adjoint_kernel": made.out,
        "chunk_adjoints_kernel": made.states,
        **dict(
            zip(("writes_adjoint_kernel", "solve_adjoint_kernel", "found_kernel"), made.delta, strict=False)
        ),
        "adjoint_scan_kernel": made.scan,
        "queries_kernel": made.queries,
        "keys_kernel": made.keys,
        "values_kernel": made.values,
        "tokens_kernel": made.tokens,
    }


def _totals(parts: Parts, inputs: dict[str, Input]) -> KernelFace:
    read = [n for n, i in inputs.items() if i.role == "captured" and _is_of_tokens(n, i, parts)]
    scalars = [
        (n, "fp32" if i.dtype == "float32" else "i32", n)
        for n, i in inputs.items()
        if i.role == "scalar" and n != "scale"
    ]
    rows: Rows = [(n, "*fp32", n) for n in read] + decays(parts) + LENGTHS
    rows += [row for n in read for row in all_strides(n, inputs[n])]
    rows += [*scalars, *HEADS, *SIZES]
    flags = [(f"HAS_{n.upper()}", f"{n} is not None") for n in read if inputs[n].optional]
    return face("_totals", rows, [*flags, *precise(parts), PACKED, BLOCKS[0]])


def _is_of_tokens(name: str, node: Input, parts: Parts) -> bool:
    """Whether a tensor makes decays: it has tokens or heads, and nothing else."""
    is_beta = parts.solve is not None and name == parts.solve.scale
    rows = {"K"} if parts.has_rows else set[str]()
    return name != parts.init and not is_beta and set(node.axes) <= {"B", "L", "H"} | rows


def _states(parts: Parts) -> KernelFace:
    k, v = parts.k.operand, parts.v.operand
    rows: Rows = [(k, "*io", k), (v, "*io", v), *decays(parts), ("chunk_states", "*fp32", "chunk_states")]
    rows += LENGTHS + row_strides(k, v) + features(parts) + HEADS + SIZES
    return face(
        "_chunk_states",
        rows,
        [*precise(parts), PACKED, INDEX, *BLOCKS],
    )


def _solve(parts: Parts) -> KernelFace:
    rows: Rows = [("k", "*io", "k"), ("v", "*io", "v"), ("beta", "*fp32", "beta"), *decays(parts)]
    rows += [("writes", "*fp32", "writes"), ("erases", "*io", "erases"), *LENGTHS, *row_strides("k", "v")]
    rows += [(f"stride_beta_{p}", "i32", f"_stride(beta, {p})") for p in range(3)]
    return face("_solve", [*rows, *features(parts), *HEADS, *SIZES], [PACKED, INDEX])


def _delta_scan(parts: Parts) -> KernelFace:
    rows: Rows = [("k", "*io", "k"), ("writes", "*fp32", "writes"), ("erases", "*io", "erases")]
    rows += [*decays(parts), ("written", "*io", "written"), ("chunk_states", "*fp32", "chunk_states")]
    rows += [(parts.init, "*fp32", parts.init), ("states", "*fp32", "states"), *LENGTHS, *row_strides("k")]
    rows += [(f"stride_init_{p}", "i32", f"_stride({parts.init}, {p})") for p in range(4)]
    flags = [("HAS_INIT", f"{parts.init} is not None"), PACKED, INDEX]
    return face("_scan", [*rows, *features(parts), *HEADS, *SIZES[1:]], [*flags, BLOCKS[0]])


def _scan(parts: Parts, inputs: dict[str, Input]) -> KernelFace:
    rows: Rows = [("total", parts.total_type, "total")] if parts.total else []
    rows += [
        ("chunk_states", "*fp32", "chunk_states"),
        (parts.init, "*fp32", parts.init),
        ("states", "*fp32", "states"),
    ]
    rows += LENGTHS
    rows += [(f"stride_init_{p}", "i32", f"_stride({parts.init}, {p})") for p in range(4)]
    rows += HEADS + SIZES[1:]
    return face("_scan", rows, [("HAS_INIT", f"{parts.init} is not None"), PACKED, BLOCKS[0]])


def _pairs(parts: Parts) -> KernelFace:
    q, k = parts.q.operand, parts.k.operand
    rows: Rows = [(q, "*io", q), (k, "*io", k), ("pairs", "*io", "pairs"), *LENGTHS, *row_strides(q, k)]
    rows += features(parts)
    if parts.has_rows:
        rows = [*decays(parts), *rows, *HEADS, *SIZES]
    else:
        rows += [("num_groups", "i32", "num_groups"), *SIZES]
    return face("_pairs", rows, [PACKED, INDEX, *BLOCKS])


def _read(graph: Graph, parts: Parts, inputs: dict[str, Input]) -> KernelFace:
    q, k, v = (x.operand for x in (parts.q, parts.k, parts.v))
    others = [o for _, node in parts.epilogue for o in getattr(node, "others", ()) if o in inputs]
    tensors = [o for o in others if inputs[o].role == "tensor" and o != v]
    extra = [o for o in others if inputs[o].role == "captured"]
    scalars = [n for n in ("scale",) if n in inputs]
    shared = parts.pairs_kernel is not None
    rows: Rows = [(n, "*io", n) for n in ([q, v] if shared else [q, k, v])]
    rows += [("pairs", "*io", "pairs")] if shared else []
    rows += [*decays(parts), ("chunk_states", "*fp32", "chunk_states"), ("out", "*io", "out")]
    rows += [(n, "*io", n) for n in tensors] + [(n, "*fp32", n) for n in extra] + LENGTHS
    rows += row_strides(*([q, v] if shared else [q, k, v]), "out")
    for n in tensors:
        given = [
            (f"stride_{n}{c}", "i32", f"0 if {n} is None else {n}.stride({p})") for p, c in enumerate("bth")
        ]
        rows += given if inputs[n].optional else row_strides(n)
    rows += [row for n in extra for row in all_strides(n, inputs[n])]
    rows += [(n, "fp32", n) for n in scalars] + features(parts) + HEADS + SIZES
    flags = [(f"HAS_{n.upper()}", f"{n} is not None") for n in (*extra, *tensors) if inputs[n].optional]
    flags += [("RAW", "False")] if parts.needs_raw else []
    return face(
        "_read",
        rows,
        [*flags, *precise(parts), PACKED, INDEX, *BLOCKS],
    )


# ---- functions

MEANT = {
    "g": ", natural logarithms of decays, at most 0",
    "beta": ", how much of its value a token writes, 0 to 1",
}
"""What a shape does not say of an argument."""


def _op_arguments(inputs: dict[str, Input]) -> list[tuple[str, str]]:
    found = [
        (n, "torch.Tensor | None" if i.optional else "torch.Tensor")
        for n, i in inputs.items()
        if i.role != "scalar"
    ]
    numbers = [(n, "int" if i.dtype == "int32" else "float") for n, i in inputs.items() if i.role == "scalar"]
    return [*found, ("cu_seqlens", "torch.Tensor | None"), *numbers]


def _public_arguments(parts: Parts | DecodeParts, inputs: dict[str, Input]) -> tuple[str, ...]:
    positional = ("x", "dt", "A", "B", "C") if parts.is_mamba else ("q", "k", "v")
    found = [f"{n}: torch.Tensor" for n in positional] + ["*"]
    for name, node in inputs.items():
        if name in positional or name.startswith("dt_least") or name.startswith("dt_most"):
            continue
        if node.role == "scalar":
            kind = "int" if node.dtype == "int32" else "float"
            found.append(f"{name}: {kind} | None = None" if node.default else f"{name}: {kind}")
        elif node.optional:
            found.append(f"{name}: torch.Tensor | None = None")
        else:
            found.append(f"{name}: torch.Tensor")
    if parts.is_mamba:
        found.append("dt_limit: tuple[float, float] = (0.0, float('inf'))")
    last = "return_final_states" if parts.is_mamba else "return_final_state"
    return (*found, "cu_seqlens: torch.Tensor | None = None", f"{last}: bool = False")


def _tensor(graph: Graph, name: str, node: Input) -> TensorArgument:
    shape = _shape(graph, node.axes)
    if node.axes[0] == "B" and "L" not in node.axes:
        shape = shape.replace("batch", "num_seqs")
    shown = [_letter(graph, a) for a in node.axes]
    return TensorArgument(
        name=name,
        shape=shape,
        doc=f"[{', '.join(shown)}]" + (" or [H]" if node.axes == ("H", "V") else "") + MEANT.get(name, ""),
        required=not node.optional,
        of_dtype=node.role == "tensor",
    )


def _shape(graph: Graph, axes: tuple[str, ...]) -> str:
    def size(name: str) -> str:
        found = graph.axis(name).size
        return repr(found.value) if isinstance(found, Const) else PUBLIC[name]

    return f"({', '.join(map(size, axes))},)"


def _letter(graph: Graph, name: str) -> str:
    found = graph.axis(name).size
    return repr(found.value) if isinstance(found, Const) else name


def _sizes(parts: Parts, inputs: dict[str, Input]) -> tuple[str, ...]:
    """Statements that name the sizes of a call."""
    if not parts.is_mamba:
        return ("batch, seqlen, num_heads, _ = q.shape",)
    return ("batch, seqlen, num_heads, _ = x.shape", f"num_groups = num_heads // {parts.group}")


def _documented(parts: Parts, inputs: dict[str, Input]) -> tuple[str, ...]:
    lines: list[str] = []
    if parts.is_mamba:
        lines.append("dt_limit: the least and the greatest dt, after bias and softplus.")
    for name, node in inputs.items():
        if node.role == "scalar" and not name.startswith(("dt_least", "dt_most")):
            kind = "int" if node.dtype == "int32" else "float"
            tail = f"default {node.default}" if node.default else "a parameter of the formulas"
            lines.append(f"{name}: {kind}, {tail}.")
    return tuple(lines)


def _prepared(graph: Graph, parts: Parts, inputs: dict[str, Input]) -> tuple[str, ...]:
    """Statements that complete and check what is no tensor, and give D its second axis."""
    lines: list[str] = []
    if parts.is_mamba:
        heads = (
            f"{{num_heads}} heads cannot share B's and C's groups: expected a multiple of {parts.group} heads"
        )
        lines += [
            f'_expect(num_heads % {parts.group} == 0, f"x: {heads}")',
            "numbers = isinstance(dt_limit, tuple | list) and all(isinstance(n, int | float) for n in dt_limit)",
            "_expect(numbers and len(dt_limit) == 2 and dt_limit[0] <= dt_limit[1],"
            ' f"dt_limit: expected two numbers, (least, greatest), got {dt_limit!r}")',
            "dt_least, dt_most = float(dt_limit[0]), float(dt_limit[1])",
            "if isinstance(D, torch.Tensor) and D.dim() == 1:",
            f'    _expect(D.shape[0] == num_heads, f"D: expected shape {{(num_heads, {parts.v.columns})}} or'
            ' {(num_heads,)}, got {tuple(D.shape)}")',
            f"    D = D[:, None].expand(-1, {parts.v.columns})",
        ]
    for name, node in inputs.items():
        if node.role == "scalar" and not name.startswith(("dt_least", "dt_most")):
            kind = "int" if node.dtype == "int32" else "float"
            if node.default:
                lines.append(f"{name} = {node.default} if {name} is None else {name}")
            lines += [
                f"if isinstance({name}, bool) or not isinstance({name}, {'int' if kind == 'int' else 'float | int'}):",
                f'    raise TypeError(f"{graph.provenance.name}: {name}: expected {kind}, got {{type({name}).__name__}}")',
            ]
            lines += [f"{name} = float({name})"] if kind == "float" and node.default else []
    return tuple(lines)


# ---- manifest


def _manifest(graph: Graph, parts: Parts, kernels: dict[str, tuple[KernelFace, Launch]]) -> dict[str, Any]:
    inputs = inputs_of(graph)
    loops = _loops(parts)
    return {
        "mechanism": "ssd" if parts.is_mamba else "recurrence",
        "compiled_in": {
            "dtypes": list(inputs[parts.first].dtypes),
            "chunk": parts.chunk,
            "group": parts.group,
            "head_dim": {"qk": parts.k.columns, "v": parts.v.columns},
            "precision": parts.contract.precision,
            **{n: ex.text(m.expr) for n, m in (("queries", parts.query_map), ("keys", parts.key_map)) if m},
        },
        "run_time": ["batch", "seqlen", "num_heads", *(n for n, i in inputs.items() if i.role == "scalar")],
        "deterministic": True,
        "kernels": {
            name: {
                "arguments": dict(face.types),
                "constants": list(face.constants),
                "loops": loops[name],
                "configs": {
                    target: [_config(graph, c, face) for c in choices] for target, choices in launch.configs
                },
                "flags": {c: True for c in face.constants if c.startswith("HAS_")},
            }
            for name, (face, launch) in kernels.items()
        },
    }


UNUSED: Final = 16
"""What a schedule says of the size of a block that its kernel does not have."""


def _config(graph: Graph, config: Config, face: KernelFace) -> dict[str, int]:
    """A schedule as the launcher takes it; one that says more is refused."""
    sizes = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    chosen = {name: size for name, size in sizes.items() if name in face.constants}
    block_m, block_n = (chosen.get(name, UNUSED) for name in sizes)
    warps, stages = config.num_warps, config.num_stages
    if config != Config(block_m=block_m, block_n=block_n, num_warps=warps, num_stages=stages):
        raise InternalError(
            f"{graph.provenance.name}: configs of the launch of {face.name}: its kernel does not take all of {config}"
        )
    return {**chosen, "num_warps": warps, "num_stages": stages}


def _loops(parts: Parts) -> dict[str, list[dict[str, Any]]]:
    """The loops of each kernel in the order of its text, and what a turn of each multiplies and loads."""
    wide = {"columns": parts.wide, "padded": sum(width for _, width in parts.v_spans)}
    keys = {"columns": parts.k.columns, "padded": sum(width for _, width in parts.k_spans)}
    tile = {"tile": ["BLOCK_M", "BLOCK_N"]}
    one = {**tile, "columns": 1, "padded": 1}
    values = {"tensor": parts.v.operand, "tile": ["BLOCK_N"], **wide}
    within = [{"node": "within", **tile, **wide}]
    loads: list[dict[str, Any]] = [values]
    if parts.pairs_kernel is None:
        within.insert(0, {"node": "pairs", **tile, **keys})
        loads.append({"tensor": parts.k.operand, "tile": ["BLOCK_N"], **keys})
    else:
        loads.append({"tensor": "pairs", **one})
    state = {
        "role": "chunk state",
        "node": "chunk_states",
        "products": [{"node": "chunk_states", **tile, **wide}],
    }
    meets_values = {"node": "dread pairs", **tile, **wide}
    meets_keys = [] if parts.pairs_kernel else [{"node": "pairs", **tile, **keys}]
    products: dict[str, list[dict[str, Any]]] = {
        "queries": [meets_values, {"node": "queries", **tile, **keys}],
        "keys": [meets_values, {"node": "keys", **tile, **keys}],
        "values": [*meets_keys, {"node": "values", **tile, **wide}],
    }
    if parts.solve is not None:
        products["writes"] = products.pop("values")
        products["found"] = products["queries"]
        products["keys"] = products["keys"] * 2
    backward = {
        f"_backward_{name}": [
            {"role": f"{name} {where}", "node": name, "products": made, "loads": []}
            for where in ("far", "diagonal")
        ]
        for name, made in products.items()
    }
    if parts.has_rows:
        backward |= _row_loops()
    reverse: dict[str, list[dict[str, Any]]] = {
        "_adjoint_pairs": [],
        "_out_adjoint": [{"role": "out", "node": "dread", "products": [], "loads": []}],
        "_chunk_adjoints": [{**state, "role": "chunk adjoint", "node": "chunk_adjoints", "loads": []}],
        "_adjoint_scan": [_adjoint_scan_loop(parts, keys)],
        "_backward_solve": [{"role": "inverse", "node": "dwrites", "products": [], "loads": []}],
        "_backward_tokens": [{"role": "edge", "node": "edges", "products": [], "loads": []}] * parts.has_rows,
        **backward,
    }
    return reverse | {
        "_totals": [],
        "_chunk_states": [
            {
                **state,
                "loads": [
                    values,
                    {"tensor": parts.k.operand, "tile": ["BLOCK_M", "BLOCK_N"], "columns": 1, "padded": 1},
                ],
            }
        ],
        "_solve": [{"role": "inverse", "node": "writes", "products": [], "loads": []}],
        "_scan": [_scan_loop(parts, keys)],
        "_pairs": _pairs_loops(parts, tile, keys),
        "_decode": [{"role": "token", "node": "token_fold", "products": [], "loads": []}],
        "_read": [
            {"role": role, "node": "within", "products": within, "loads": loads}
            for role in ("below", "diagonal")
        ],
    }


def _row_loops() -> dict[str, list[dict[str, Any]]]:
    """Where each column decays by itself, gradients of queries and keys are read tile after tile, within a tile by blocks of
    16 tokens, and within these token after token."""
    one = {"columns": 1, "padded": 1}
    far = {"tile": ["BLOCK_M", "BLOCK_M", "BLOCK_N"], **one}
    near = {"tile": ["BLOCK_M", "BLOCK_N"], "columns": 16, "padded": 16}
    return {
        f"_backward_{node}": [
            {"role": f"{node} far", "node": node, "products": [{"node": node, **far}], "loads": []},
            {"role": f"{node} near", "node": node, "products": [{"node": node, **near}], "loads": []},
            {"role": f"{node} here", "node": node, "products": [], "loads": []},
        ]
        for node in ("queries", "keys")
    }


def _scan_loop(parts: Parts, keys: dict[str, int]) -> dict[str, Any]:
    """A turn of the scan: a chunk. That of a delta rule multiplies what it erases, and keys, with the state."""
    found: dict[str, Any] = {"role": "scan", "node": "fold", "products": [], "loads": []}
    if parts.solve is not None:
        whole = {name: parts.chunk * columns for name, columns in keys.items()}
        found["products"] = [{"node": node, "tile": ["BLOCK_M"], **whole} for node in ("taken", "fold")]
        found["loads"] = [{"tensor": tensor, "tile": [], **whole} for tensor in ("k", "erases")]
    return found


def _adjoint_scan_loop(parts: Parts, keys: dict[str, int]) -> dict[str, Any]:
    """The same backward: what tokens take of the gradient, what reads add to it, and what leaves it."""
    found: dict[str, Any] = {"role": "scan", "node": "dfold", "products": [], "loads": []}
    if parts.solve is not None:
        whole = {name: parts.chunk * columns for name, columns in keys.items()}
        found["products"] = [
            {"node": node, "tile": ["BLOCK_M"], **whole} for node in ("brought", "dfold", "dwritten")
        ]
    return found


def _pairs_loops(parts: Parts, tile: dict[str, Any], keys: dict[str, int]) -> list[dict[str, Any]]:
    """Where each column decays by itself, pairs are made key tile after key tile, and then key after key."""
    if not parts.has_rows:
        return []
    pairs: dict[str, Any] = {"node": "pairs"}
    loads = [{"tensor": parts.k.operand, "tile": ["BLOCK_N"], **keys}]
    below = {**pairs, "role": "below", "products": [{**pairs, **tile, **keys}], "loads": loads}
    return [below, {**pairs, "role": "diagonal", "products": [], "loads": []}]


# ---- decode


@dataclass(frozen=True, slots=True)
class DecodeFunction:
    """The argument lists of the function that decodes."""

    name: str
    op_arguments: tuple[str, ...]
    op_call: str
    public_arguments: tuple[str, ...]
    tensors: tuple[TensorArgument, ...]
    token_tensors: str
    all_tensors: str
    state_shape: str
    state_doc: str


def decode_function(graph: Graph, parts: DecodeParts) -> DecodeFunction:
    """Return the argument lists of the function that decodes."""
    inputs = _decode_inputs(graph, parts)
    op = {"state": "torch.Tensor", **dict(_op_arguments(inputs))}
    op = {("state_indices" if n == "cu_seqlens" else n): kind for n, kind in op.items()}
    tensors = [n for n, i in inputs.items() if i.role != "scalar"]
    shown = ["S", *(_letter(graph, a) for a in parts.states_axes[1:])]
    return DecodeFunction(
        name="ssd_step" if parts.is_mamba else "recurrence_step",
        op_arguments=tuple(f"{n}: {kind}" for n, kind in op.items()),
        op_call=", ".join(op),
        public_arguments=(
            "state: torch.Tensor",
            *_public_arguments(parts, inputs)[:-2],
            "state_indices: torch.Tensor | None = None",
        ),
        tensors=tuple(_of_tokens(_tensor(graph, n, inputs[n])) for n in tensors),
        token_tensors=", ".join(n for n in tensors if "L" in inputs[n].axes),
        all_tensors=", ".join(("state", *tensors)),
        state_shape=_shape(graph, parts.states_axes).replace("batch", "states"),
        state_doc=f"[{', '.join(shown)}]",
    )


def _decode_inputs(graph: Graph, parts: DecodeParts) -> dict[str, Input]:
    return {n: i for n, i in inputs_of(graph).items() if n != parts.init and i.role != "gradient"}


def _of_tokens(tensor: TensorArgument) -> TensorArgument:
    """The same tensor of calls that may leave the axis of tokens out."""
    shape = tensor.shape.replace("batch, seqlen", "*lead")
    return replace(tensor, shape=shape, doc=tensor.doc.replace("L,", "[T,]"))


def decode_face(graph: Graph, parts: DecodeParts) -> KernelFace:
    """Return the argument list of the kernel that decodes."""
    inputs = _decode_inputs(graph, parts)
    tensors = [n for n, i in inputs.items() if i.role == "tensor"]
    extra = [n for n, i in inputs.items() if i.role == "captured"]
    numbers = [
        (n, "fp32" if i.dtype == "float32" else "i32", n) for n, i in inputs.items() if i.role == "scalar"
    ]
    rows: Rows = [("state", "*fp32", "state"), ("state_indices", "*i32", "state_indices")]
    rows += [(n, "*io", n) for n in tensors] + [("out", "*io", "out")] + [(n, "*fp32", n) for n in extra]
    rows += [(f"stride_state{c}", "i32", f"state.stride({p})") for p, c in enumerate("bhr")]
    rows += [
        (f"stride_{n}{c}", "i32", f"_stride({n}, {p})")
        for n in (*tensors, "out")
        for p, c in enumerate("bth")
    ]
    rows += [row for n in extra for row in all_strides(n, inputs[n])]
    rows += [*numbers, *HEADS, ("tokens", "i32", "seqlen")]
    flags = [(f"HAS_{n.upper()}", f"{n} is not None") for n in (*extra, *tensors) if inputs[n].optional]
    flags.append(("HAS_INDICES", "state_indices is not None"))
    return face("_decode", rows, [*flags, *([] if parts.whole else [BLOCKS[0]])])
