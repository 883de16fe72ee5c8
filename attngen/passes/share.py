"""Share: cut a fold after the prefix that rows of several sequences share, so that each piece counts its own keys from 0."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attngen.errors import PlanError
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.linear import normal
from attngen.ir.nodes import Fold, Map, Node, symbol

START = symbol("prefix_start")
CAUSAL = ex.apply("le", symbol("j"), symbol("i"))


@dataclass(frozen=True, slots=True)
class Share:
    """Needs: a semantic graph whose formulas say nothing of one sequence's own numbers (b, row, lengths). Leaves: formulas of a
    fold with a prefix in the positions of a piece: i and j count from `prefix_start`, which is 0 in the prefix and its length
    behind it; nothing to do for other folds.

    One kernel then serves both pieces: a group's queries are rows of one fold over the prefix, a sequence's of one over the
    rest, and what both find is merged as splits are (Juravsky et al., Hydragen, arXiv:2402.05099).
    """

    name: str = "share"

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with the formulas of folds that have a prefix moved by `prefix_start`."""
        changed: dict[str, Node] = {}
        for name, fold in graph.all(Fold):
            if fold.domain.prefix is not None:
                _check_invariance(graph, fold)
                mask = moved(fold.domain.mask)
                changed[name] = replace(fold, domain=replace(fold.domain, mask=mask))
                changed |= {n: replace(node, expr=moved(node.expr)) for n, node in graph.all(Map)}
        return graph.with_nodes(changed) if changed else graph


def _check_invariance(graph: Graph, fold: Fold) -> None:
    """Splits of a fixed size promise the same bits in any group. Rows of a group share tiles of the prefix: where the mask
    cuts these for one row and not for another, neighbours would decide which tiles come first."""
    splits = fold.domain.splits
    if splits is not None and splits.keys and fold.domain.mask not in (ex.TRUE, CAUSAL):
        raise PlanError(
            f"{graph.provenance.name}: splits: splits of {splits.keys} keys have the same bits in any group only where all"
            " rows see the whole prefix: with mask j <= i, or none; give a number of splits, or auto"
        )


def moved(formula: ex.Expr) -> ex.Expr:
    """A formula of positions in a sequence as one of positions in a piece; distances are the same in both."""
    return normal(ex.substitute(formula, {at: ex.apply("add", symbol(at), START) for at in ("i", "j")}))
