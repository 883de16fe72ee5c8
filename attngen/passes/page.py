"""Page: keys and values in pages of a cache, queries of all sequences in a row, query heads of a group in one tile."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Input, Launch, Load, Node, Slice
from attngen.passes.schedules import ANYTHING, Wanted, paged_configurations, restricted
from attngen.passes.tile_backward import reads_per_element


@dataclass(frozen=True, slots=True)
class Page:
    """Needs: a scheduled graph. Leaves: loads that find keys in pages, and a launch that searches its rows; nothing to do
    where no argument is in pages."""

    wanted: Wanted = ANYTHING
    name: str = "page"

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with address maps for what is in pages, and a row map for a mixed batch."""
        changed: dict[str, Node] = {}
        for name, load in graph.all(Load):
            pages = _argument(graph, load).pages
            if pages is not None:
                changed[name] = replace(load, address=pages)
        if not changed:
            return graph
        name, launch = graph.only(Launch)
        return graph.with_nodes({**changed, name: self._mixed(graph, launch)})

    def _mixed(self, graph: Graph, launch: Launch) -> Launch:
        """Decode, chunked prefill and mixed batches are one row map.

        The query heads of a group share a tile, unless the keys that a tile meets depend on the head.
        """
        sizes = [graph.axis(n).size for n in ("Dqk", "Dv")]
        dims = [int(s.value) for s in sizes if isinstance(s, Const)]
        by_head = any(
            "h" in fold.tiles.end_symbols() for _, fold in graph.all(Fold) if fold.tiles is not None
        )
        scales = {node.scales for _, node in graph.all(Input)}
        prefill, decode = paged_configurations(
            dims[0],
            dims[1],
            group=1 if by_head else graph.axis("Hkv").group,
            stored=scales != {""},
            scale_per_key="token_head" in scales,
            reads_per_element=reads_per_element(graph),
            prefix=any(fold.domain.prefix is not None for _, fold in graph.all(Fold)),
        )
        return replace(
            launch,
            rows="search",
            program_axes=("Hq",) if by_head else ("Hkv",),
            configs=restricted(prefill, self.wanted),
            decode=restricted(decode, self.wanted),
        )


def _argument(graph: Graph, load: Load) -> Input:
    node = graph.nodes[load.operand]
    node = graph.nodes[node.operand] if isinstance(node, Slice) else node
    assert isinstance(node, Input)
    return node
