"""Split: share the keys of a row between programs (flash decoding), and merge what they carry in a kernel of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Fold, Launch, Node, Splits, Store
from attngen.passes.schedules import within_split

PARTIAL = {"partial_out": "float32", "partial_lse": "float32"}
_WIDE = 256  # columns of V: rows of more need the registers of twice as many threads


@dataclass(frozen=True, slots=True)
class Split:
    """Needs: a scheduled graph. Leaves: folds whose domain asks for splits cut across programs; one kernel stores partial
    results in fp32, another merges them, then the sink, and stores what the first one stored before.

    Splits of no fixed size differ in number from row to row, so the first kernel also stores that. Where lengths decide it,
    a launch before counts the tiles of keys that all programs have to fold.
    """

    name: str = "split"

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with its softmax fold cut once more, if it asks for that."""
        for name, fold in graph.all(Fold):
            splits = fold.domain.splits
            if splits is not None and fold.level == "tile":
                graph = _cut(graph, name, fold, splits)
        return graph


def _cut(graph: Graph, name: str, fold: Fold, splits: Splits) -> Graph:
    kernel, launch = graph.only(Launch)
    stored = PARTIAL if splits.keys else {**PARTIAL, "partial_count": "int32"}
    parts: dict[str, Node] = {
        f"store_{part}": Store(operand=name, name=part, dtype=dtype, axes=fold.axes)
        for part, dtype in stored.items()
    }
    first = replace(launch, stores=tuple(parts))
    if splits.keys:  # one schedule for all calls, since tiles decide the order of sums
        first = replace(first, configs=within_split(launch.configs, splits.keys), decode=())
    columns = graph.axis("Dv").size
    warps = 8 if isinstance(columns, Const) and columns.value > _WIDE else 4
    merging = (("default", (Config(block_m=16, block_n=16, num_warps=warps, num_stages=2),)),)
    last = Launch(stores=launch.stores, tile_axis=launch.tile_axis, program_axes=("Hq",), configs=merging)
    cut = replace(fold, level="split", carrier="buffer")
    if splits == Splits():
        parts["store_total_tiles"] = Store(operand=name, name="total_tiles", dtype="int32", axes=())
        parts["kernel_count"] = replace(launch, stores=("store_total_tiles",))
    return graph.with_nodes({**parts, name: cut, kernel: first, "combine": last})
