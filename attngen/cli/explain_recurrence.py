"""`attngen explain` of a recurrence: its kernels, what each computes, and what lies in memory between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import prod
from typing import Any, Final

from attngen.cli.example import Example
from attngen.cli.listing import mechanism
from attngen.cli.output import columns
from attngen.errors import UserError
from attngen.ir.expr import Const, Expr, text
from attngen.ir.graph import Graph, graph_text
from attngen.ir.nodes import Fold, Input, Launch, Store
from attngen.passes.build import build
from attngen.passes.chunk import Chunk
from attngen.passes.differentiate_recurrence import DifferentiateRecurrence
from attngen.passes.pipeline import Pass, run
from attngen.spec import Spec
from attngen.spec.model import Recurrence

ITEM_BYTES: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
FUNCTIONS: Final = {
    "kernel": "_read",
    "queries_kernel": "_backward_queries",
    "keys_kernel": "_backward_keys",
    "values_kernel": "_backward_values",
    "tokens_kernel": "_backward_tokens",
    "found_kernel": "_backward_found",
    "solve_adjoint_kernel": "_backward_solve",
    "writes_adjoint_kernel": "_backward_writes",
}
"""The functions of launches; that of another, x_kernel, is _x."""
STRUCTURE: Final = ("head_dim", "recurrence", "precision", "grad")


def recurrence_explanation(spec: Spec, recurrence: Recurrence, example: Example) -> dict[str, Any]:
    """Return everything that `explain` says of a recurrence."""
    if example.seqlen_k != example.seqlen_q:
        raise UserError(f"{spec.name}: a recurrence has one length: give --seqlen-q alone")
    if example.params:
        raise UserError(
            f"{spec.name}: --param: nothing that explain shows of a recurrence depends on a param"
        )
    passes: tuple[Pass, ...] = (DifferentiateRecurrence(), Chunk(recurrence.chunk))
    semantic = build(spec)
    scheduled = run(semantic, passes)
    canonical = spec.canonical()
    params = {param.name: param.value for param in spec.params if not param.runtime}
    return {
        "name": spec.name,
        "summary": spec.summary,
        "mechanism": mechanism(spec),
        "compiled_in": {
            "dtypes": list(spec.dtypes),
            **{key: canonical[key] for key in STRUCTURE if key in canonical},
            **({"params": params} if params else {}),
        },
        "run_time": _run_time(spec, semantic),
        "launches": [_launch(scheduled, name, node) for name, node in _in_order(scheduled)],
        "notes": list(_notes(scheduled, recurrence)),
        "memory": _memory(spec, recurrence, scheduled, example.seqlen_q),
        "passes": [{"name": step.name, "does": _first_paragraph(step)} for step in passes],
        "schedules": {
            kernel_of(name): {target: [asdict(c) for c in choices] for target, choices in node.configs}
            for name, node in _in_order(scheduled)
        },
        "semantic": graph_text(semantic),
        "scheduled": graph_text(scheduled),
    }


def _first_paragraph(step: object) -> str:
    return " ".join((type(step).__doc__ or "").split("\n\n")[0].split())


def kernel_of(launch: str) -> str:
    """The function of a generated module that a launch runs."""
    return FUNCTIONS.get(launch, f"_{launch.removesuffix('_kernel')}")


def _run_time(spec: Spec, graph: Graph) -> dict[str, str]:
    """What a call brings."""
    found = {"heads": f"any number; {spec.heads.q} in the spec", "lengths": "batch, seqlen; or cu_seqlens"}
    if graph.axis("G").group > 1:
        found["heads"] = f"any number in groups of {graph.axis('G').group}; {spec.heads.q} in the spec"
    for name, node in graph.all(Input):
        if name in ("dt_least", "dt_most"):
            found["dt_limit"] = "(least, greatest) of dt, (0, inf) unless given"
        elif node.role == "scalar":
            default = f", {node.default} unless given" if node.default else ""
            found[name] = f"{node.dtype}{default}"
        else:
            kind = "dtype of the spec" if node.role == "tensor" else "any floating point"
            shown = ", ".join(_size(graph, axis) for axis in node.axes)
            found[name] = f"[{shown}], {kind}{', optional' if node.optional else ''}"
    return found


def _size(graph: Graph, axis: str) -> str:
    size: Expr = graph.axis(axis).size
    return text(size) if isinstance(size, Const) else axis


def _in_order(graph: Graph) -> list[tuple[str, Launch]]:
    """Launches in the order they run: each after those whose results it reads; what decodes, apart from them, is the last."""
    left = dict(sorted(graph.all(Launch), key=lambda launch: launch[1].rows == "states"))
    made = {name: {graph.nodes[s].operands()[0] for s in node.stores} for name, node in left.items()}
    owner = {node: name for name, nodes in made.items() for node in nodes}
    needs = {name: {owner[n] for n in _reads(graph, name) if n in owner} for name in left}
    found: list[tuple[str, Launch]] = []
    while left:
        ready = next((name for name in left if not needs[name] & (set(left) - {name})), next(iter(left)))
        found.append((ready, left.pop(ready)))
    return found


def _stored(graph: Graph) -> set[str]:
    return {store.operand for _, store in graph.all(Store)}


def _nodes(graph: Graph, launch: str) -> tuple[set[str], set[str]]:
    """The nodes that a launch computes, and those that it reads: arguments, and what other launches stored."""
    node = graph.nodes[launch]
    assert isinstance(node, Launch)
    own = {graph.nodes[store].operands()[0] for store in node.stores}
    stored = set[str]() if node.rows == "states" else _stored(graph)
    made: set[str] = set()
    read: set[str] = set()
    todo = list(own)
    while todo:
        name = todo.pop()
        if isinstance(graph.nodes[name], Input) or (name in stored and name not in own):
            read.add(name)
        elif name not in made:
            made.add(name)
            todo += graph.nodes[name].operands()
    return made, read


def _reads(graph: Graph, launch: str) -> set[str]:
    return _nodes(graph, launch)[1]


def _launch(graph: Graph, name: str, node: Launch) -> dict[str, Any]:
    made, read = _nodes(graph, name)
    order = [n for n in graph.order() if n in made | read]
    tiles = "" if node.tile_axis in node.program_axes else node.tile_axis
    return {
        "kernel": kernel_of(name),
        "program_axes": list(node.program_axes),
        "tile_axis": tiles,
        "reads": [n for n in order if n in read],
        "computes": [n for n in order if n in made],
        "stores": [graph.nodes[store].operands()[0] for store in node.stores],
    }


def _notes(graph: Graph, recurrence: Recurrence) -> Iterator[str]:
    """Which stages are launches of their own, which are fused, and why."""
    fold, launches = graph.nodes["chunk_states"], dict(graph.all(Launch))
    assert isinstance(fold, Fold)
    if "totals_kernel" in launches:
        yield "_totals is a launch of its own: all that follow read the decay up to each token, of all heads"
    else:
        yield "no _totals: nothing decays"
    if fold.erase:
        yield "_scan makes the states of chunks too: what a chunk writes depends on the state before it (_solve: all else)"
    else:
        yield "_chunk_states and _scan are apart: chunks are independent, and only the scan goes through them in order"
    if "pairs_kernel" not in launches:
        yield "products of queries and keys are fused into _read: no two heads share them"
    elif recurrence.decay == "vector":
        yield "_pairs is a launch of its own: with a decay per column its products are no product of tiles of _read"
    else:
        shared = graph.axis("G").group
        yield f"_pairs is a launch of its own: {shared} heads share each product of queries and keys"
    if "late" in graph.nodes:
        yield "in 16 bits what multiplies values is in the exponent of the decay (late), and costs nothing"
    yield "what becomes of what is read (scale, D, z, normaliser) is fused into _read"
    if "dfold" in graph.nodes:
        yield "backward: the forward runs again up to _read, so autograd keeps the arguments alone; then its chunks in reverse"
    yield "_decode: the fold cut at every token; the state stays in registers for all tokens of a call, and changes in place"


# ---- memory


def _memory(spec: Spec, recurrence: Recurrence, graph: Graph, seqlen: int) -> dict[str, Any]:
    """What lies between kernels for one sequence, in the first dtype: shapes and bytes."""
    slots = -(-seqlen // recurrence.chunk)
    sizes = {"B": 1, "C": slots, "H": spec.heads.q, "L": seqlen, "J": recurrence.chunk}
    sizes["G"] = spec.heads.q // graph.axis("G").group
    rows: list[dict[str, Any]] = []
    for name, node in _in_order(graph):
        for store in (graph.nodes[s] for s in node.stores):
            assert isinstance(store, Store)
            if store.operand in _results(graph) or _in_place(graph, store):
                continue
            own = dict(sizes)
            if name == "totals_kernel" or "J" in store.axes:
                own["L"] = slots * recurrence.chunk  # whole chunks
            dtype = stored_dtype(store, spec.dtypes[0])
            shape = [own.get(axis) or _columns(graph, axis) for axis in store.axes]
            shown = {"by": kernel_of(name), "what": store.operand, "axes": list(store.axes), "dtype": dtype}
            rows.append({**shown, "bytes": prod(shape) * ITEM_BYTES[dtype]})
    return {"seqlen": seqlen, "heads": spec.heads.q, "buffers": rows}


def stored_dtype(store: Store, io: str) -> str:
    """The torch name of what a store writes beside tensors of ``io``."""
    kinds = {"io": io, "sums": "float64" if io == "float32" else "float32"}
    return kinds.get(store.dtype, store.dtype)


def _columns(graph: Graph, axis: str) -> int:
    size = graph.axis(axis).size
    assert isinstance(size, Const)
    return int(size.value)


def _results(graph: Graph) -> set[str]:
    """What a function returns: out, states and gradients."""
    gradients = {f"d{name}" for name, node in graph.all(Input) if node.grad}
    return {"out", "states", "token_out", "token_states"} | gradients


def _in_place(graph: Graph, store: Store) -> bool:
    """Whether a scan writes over the states of chunks that it reads."""
    node = graph.nodes[store.operand]
    return isinstance(node, Fold) and node.axis == "C" and node.element in _stored(graph)


# ---- text


def recurrence_sections(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands between run-time values and graphs in the text form."""
    memory = found["memory"]
    heading = f"between kernels, one sequence of {memory['seqlen']:,} tokens, {memory['heads']} heads"
    return [
        ("kernels, in the order they run", "\n".join(_launch_text(launch) for launch in found["launches"])),
        ("why these", "\n".join(found["notes"])),
        (heading, _memory_text(memory["buffers"])),
    ]


def _launch_text(launch: Mapping[str, Any]) -> str:
    axes = " x ".join(launch["program_axes"])
    tiles = f" x tiles of {launch['tile_axis']}" if launch["tile_axis"] else ""
    rows = [["reads", launch["reads"]], ["computes", launch["computes"]], ["stores", launch["stores"]]]
    body = columns([[name, ", ".join(values)] for name, values in rows])
    return f"{launch['kernel']}: programs {axes}{tiles}\n" + "\n".join(f"  {x}" for x in body.splitlines())


def _memory_text(buffers: list[Mapping[str, Any]]) -> str:
    rows = [
        [x["what"], f"[{', '.join(x['axes'])}]", x["dtype"], f"{x['bytes']:,} bytes", x["by"]]
        for x in buffers
    ]
    return columns([*rows, ["all", "", "", f"{sum(x['bytes'] for x in buffers):,} bytes", ""]])
