"""Plan masks: from a fold's predicate to the tiles that may and must be visited, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Input, symbol
from attngen.ir.tiles import Tiles
from attngen.passes.intervals import plan

SHIFT = ex.apply("sub", symbol("seqlen_k"), symbol("seqlen_q"))
ROW_FROM_I = ex.apply("sub", symbol("i"), SHIFT)
I_FROM_ROW = ex.apply("add", symbol("row"), SHIFT)


@dataclass(frozen=True, slots=True)
class PlanMasks:
    """Needs: folds with a domain. Leaves: the same folds with `Tiles`; nothing that is as long as a sequence is computed."""

    name: str = "plan-masks"

    def apply(self, graph: Graph) -> Graph:
        """Attach a plan to every fold that has none."""
        planned = {
            name: replace(fold, tiles=_tiles(graph, fold))
            for name, fold in graph.all(Fold)
            if fold.tiles is None
        }
        return graph.with_nodes(planned)


def _tiles(graph: Graph, fold: Fold) -> Tiles:
    """The plan along the fold's axis: the keys of a tile of rows, or, transposed, the rows of a tile of keys."""
    sizes = {name: _last_size(graph, node) for name, node in graph.all(Input) if node.sorted}
    if fold.axis == "Sk":
        predicate = ex.substitute(fold.domain.mask, {"row": ROW_FROM_I})
        return plan(predicate, key_size=fold.domain.size, sorted_tensors=sizes)
    predicate = ex.substitute(fold.domain.mask, {"i": I_FROM_ROW})
    known = {"j_lo": 0, "j_hi": 0}
    return plan(
        predicate, key="row", tile="j", key_size=fold.domain.size, sorted_tensors=sizes, known_least=known
    )


def _last_size(graph: Graph, node: Input) -> ex.Expr:
    return graph.axis(node.axes[-1]).size
