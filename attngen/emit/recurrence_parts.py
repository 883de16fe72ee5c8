"""The nodes of a recurrence's kernels, found by walking the scheduled graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attngen.emit.rules import node_of
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import (
    Contract,
    Finish,
    Fold,
    Input,
    Launch,
    Load,
    Map,
    Merge,
    Node,
    Pad,
    Read,
    Solve,
    Store,
)


@dataclass(frozen=True, slots=True)
class Parts:
    """The nodes of the kernels of a recurrence."""

    is_mamba: bool
    first: str  # the input that the others are compared with
    chunk: int
    group: int
    total: Fold | None
    total_dtype: str  # of its buffer
    step: Map | None
    late: Map | None
    solve: Solve | None
    faded: Map | None
    contract: Contract
    q: Load
    k: Load
    v: Load  # what queries read
    given: Load  # what the caller gives
    query_map: Map | None
    key_map: Map | None
    feature_params: tuple[
        tuple[str, str], ...
    ]  # run-time numbers that the two read, and their types in kernels
    wide: int  # columns of a state
    k_spans: tuple[tuple[int, int], ...]
    v_spans: tuple[tuple[int, int], ...]
    init: str
    states_axes: tuple[str, ...]
    epilogue: tuple[tuple[str, Map | Finish], ...]
    totals_kernel: Launch | None
    states_kernel: Launch | None
    solve_kernel: Launch | None
    scan_kernel: Launch
    pairs_kernel: Launch | None
    kernel: Launch
    needs_raw: bool  # the backward needs what is read before its last change

    @property
    def has_rows(self) -> bool:
        """Whether each row of a state has a decay of its own."""
        return self.total is not None and "K" in self.total.axes

    @property
    def total_type(self) -> str:
        """The Triton type of the buffer of decays; ``sums`` is fp64 beside tensors of fp32, else fp32."""
        return "*sums" if self.total_dtype == "sums" else "*fp32"

    def group_of(self, load: Load) -> int:
        """How many heads share the rows of a load."""
        return self.group if "G" in load.axes else 1

    @property
    def of_tokens(self) -> str:
        """Where the decay up to each written token is."""
        return "late_base" if self.late else "total_base"

    @property
    def weighs_step(self) -> str:
        """When values are multiplied by the step: always, or where the exponent does not hold it."""
        return "PRECISE" if self.late else "True"

    @property
    def read_columns(self) -> int:
        """Columns of what is read, as it lies between kernels: whole powers of two."""
        return sum(width for _, width in self.v_spans)

    @property
    def heads_together(self) -> int:
        """Heads of a group whose gradients of shared rows one program adds up: at most 8, so that programs suffice."""
        group = self.group_of(self.k)
        return max(n for n in range(1, 9) if group % n == 0)

    def base(self, name: str) -> str:
        """The statement that says where a chunk's rows begin: of q, k, v, or of what is read."""
        if name == "dread":
            wide = self.read_columns
            return f"dread_base = dread + (batch.to(tl.int64) * seqlen + first) * (num_heads * {wide}) + h * {wide}"
        load = {"q": self.q, "k": self.k, "v": self.v}.get(name)
        tensor, group = (load.operand, self.group_of(load)) if load else (name, 1)
        head = "h" if group == 1 else f"h // {group}"
        return (
            f"{name}_base = {tensor} + batch.to(tl.int64) * stride_{tensor}b"
            f" + first.to(tl.int64) * stride_{tensor}t + {head} * stride_{tensor}h"
        )


def find_parts(graph: Graph) -> Parts:
    fold, local = node_of(graph, "fold", Fold), node_of(graph, "chunk_states", Fold)
    within = node_of(graph, "within", Fold)
    contract = node_of(graph, within.element, Contract)
    q, query_map = _tile(graph, contract.left)
    k, key_map = _tile(graph, contract.right)
    v, _ = _tile(graph, within.value)
    solve = node_of(graph, local.value, Solve) if local.erase else None
    faded = node_of(graph, local.erase, Solve).weight if local.erase else ""
    node = graph.nodes[within.value]
    pad = node if isinstance(node, Pad) else None
    wide = v.columns + (pad is not None)
    spans = (
        v.chunks
        if pad is None or v.chunks[-1][0] + v.chunks[-1][1] > v.columns
        else (*v.chunks, (v.columns, 16))
    )
    states = node_of(graph, "states", Finish)
    launches = dict(graph.all(Launch))
    return Parts(
        is_mamba="dt" in graph.nodes,
        first="x" if "dt" in graph.nodes else "q",
        chunk=local.chunk,
        group=graph.axis("G").group,
        total=node_of(graph, local.decay, Fold) if local.decay else None,
        total_dtype=node_of(graph, f"store_{local.decay}", Store).dtype if local.decay else "",
        step=node_of(graph, "step", Map) if "step" in graph.nodes else None,
        late=node_of(graph, local.late, Map) if local.late else None,
        solve=solve,
        faded=node_of(graph, faded, Map) if local.erase and local.decay else None,
        contract=contract,
        q=q,
        k=k,
        v=v,
        given=_tile(graph, solve.rhs)[0] if solve else v,
        query_map=query_map,
        key_map=key_map,
        feature_params=tuple(_params(graph, query_map, key_map)),
        wide=wide,
        k_spans=k.chunks,
        v_spans=spans,
        init=fold.init,
        states_axes=states.axes,
        epilogue=_epilogue(graph),
        totals_kernel=launches.get("totals_kernel"),
        states_kernel=launches.get("chunk_states_kernel"),
        solve_kernel=launches.get("solve_kernel"),
        scan_kernel=launches["scan_kernel"],
        pairs_kernel=launches.get("pairs_kernel"),
        kernel=launches["kernel"],
        needs_raw="dfold" in graph.nodes and ("z" in graph.nodes or pad is not None),
    )


def _tile(graph: Graph, name: str) -> tuple[Load, Map | None]:
    """The load below a node, and the map between the two."""
    node: Node = graph.nodes[name]
    if isinstance(node, Load):
        return node, None
    if isinstance(node, Map | Pad):
        below = graph.nodes[node.operand]
        if isinstance(below, Load):
            return below, node if isinstance(node, Map) else None
    raise InternalError(f"{graph.provenance.name}: the templates need: {name} is a map of a load")


def _params(graph: Graph, *maps: Map | None) -> Iterator[tuple[str, str]]:
    """The run-time numbers that maps read."""
    read = {name for node in maps if node for name in ex.symbols(node.expr)}
    for name, node in graph.all(Input):
        if node.role == "scalar" and name in read:
            yield name, "fp32" if node.dtype == "float32" else "i32"


def _epilogue(graph: Graph) -> tuple[tuple[str, Map | Finish], ...]:
    """What becomes of what is read, in order."""
    found: list[tuple[str, Map | Finish]] = []
    name = "out"
    while not isinstance(node := graph.nodes[name], Merge | Read):
        assert isinstance(node, Map | Finish)
        found.append((name, node))
        name = node.operand
    return tuple(reversed(found))


def inputs_of(graph: Graph) -> dict[str, Input]:
    """The arguments of the module by name: all inputs but the gradients that its backward is given."""
    return {name: node for name, node in graph.all(Input) if node.role != "gradient"}
