"""Split: share the keys of a row between programs (flash decoding), and merge what they carry in a kernel of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Fold, Launch, Node, Splits, Store
from attngen.passes.schedules import within_split

PARTIAL = ("partial_out", "partial_lse")
_WIDE = 256  # columns of V: rows of more need the registers of twice as many threads


@dataclass(frozen=True, slots=True)
class Split:
    """Needs: a scheduled graph. Leaves: folds whose domain asks for splits cut across programs; one kernel stores partial
    results in fp32, another merges them, then the sink, and stores what the first one stored before.

    Where lengths decide how many splits there are, a launch before counts the tiles of keys of each row, and of all programs.
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
    parts: dict[str, Node] = {
        f"store_{part}": Store(operand=name, name=part, dtype="float32", axes=fold.axes) for part in PARTIAL
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
        counts = {
            f"store_{number}": Store(operand=name, name=number, dtype="int32", axes=axes)
            for number, axes in (("tiles_of_rows", fold.axes), ("total_tiles", ()))
        }
        parts |= {**counts, "kernel_count": replace(launch, stores=tuple(counts))}
    return graph.with_nodes({**parts, name: cut, kernel: first, "combine": last})
