"""The control flow of a listing: basic blocks, and natural loops found by dominators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from attngen.inspect.assembly import Instruction, Listing


@dataclass(frozen=True, slots=True)
class Flow:
    """Basic blocks in the order of the listing, and which may follow which (a graph of their numbers).

    `subroutines` gives, for each label that is called, the blocks of its shortest way to a return.
    """

    blocks: tuple[tuple[Instruction, ...], ...]
    graph: nx.DiGraph[int]
    subroutines: Mapping[str, tuple[int, ...]]

    def issued(self, block: int) -> list[Instruction]:
        """What a block issues at least: its instructions, after each call without condition those of the subroutine."""
        found: list[Instruction] = []
        for instruction in self.blocks[block]:
            called = () if instruction.guarded else self.subroutines.get(instruction.calls or "", ())
            found += [instruction, *(i for b in called for i in self.issued(b))]
        return found


@dataclass(frozen=True, slots=True)
class NaturalLoop:
    """A header and the blocks that come back to it without leaving: a source loop, or a wait."""

    header: int
    blocks: frozenset[int]


def flow(listing: Listing) -> Flow:
    """Cut a listing into basic blocks."""
    code = listing.instructions
    ends = {n + 1 for n, i in enumerate(code) if i.ends}
    starts = sorted({0, *ends, *listing.labels.values()} & set(range(len(code))))
    number = {start: n for n, start in enumerate(starts)}
    bounds = [*starts, len(code)]
    blocks = tuple(code[a:b] for a, b in pairwise(bounds))
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(blocks)))
    for n, block in enumerate(blocks):
        last = block[-1]
        if last.goes_to is not None:
            place = listing.labels.get(last.goes_to)
            if place in number:
                graph.add_edge(n, number[place])
        if (not last.ends or last.guarded) and n + 1 < len(blocks):
            graph.add_edge(n, n + 1)
    called = {i.calls for i in code if i.calls in listing.labels}
    entries = {name: number.get(listing.labels[name]) for name in called if name}
    ways = {
        name: _way_to_return(blocks, graph, entry) for name, entry in entries.items() if entry is not None
    }
    return Flow(blocks, graph, ways)


def _way_to_return(
    blocks: Sequence[Sequence[Instruction]], graph: nx.DiGraph[int], entry: int
) -> tuple[int, ...]:
    """The blocks of fewest instructions from an entry to a return; none if there is no return (a trap)."""
    ways = nx.single_source_dijkstra_path(graph, entry, weight=lambda a, b, edge: len(blocks[b]))
    returning = [way for b, way in ways.items() if blocks[b][-1].op.startswith("RET")]
    return tuple(min(returning, key=lambda way: sum(len(blocks[b]) for b in way), default=()))


def natural_loops(found: Flow) -> list[NaturalLoop]:
    """Return all natural loops, by header; loops with one header are one loop."""
    if not found.blocks:
        return []
    graph = found.graph.subgraph(nx.descendants(found.graph, 0) | {0})
    dominator: dict[int, int] = dict(nx.immediate_dominators(graph, 0))
    bodies: dict[int, set[int]] = {}
    for end, header in graph.edges:
        if _dominates(header, end, dominator):
            bodies.setdefault(header, {header}).update(_reaching(graph, end, header))
    return [NaturalLoop(header, frozenset(body)) for header, body in sorted(bodies.items())]


def _dominates(upper: int, lower: int, dominator: dict[int, int]) -> bool:
    while lower != upper:
        above = dominator.get(lower, lower)
        if above in (lower, None):
            return False
        lower = above
    return True


def _reaching(graph: nx.DiGraph[int], end: int, header: int) -> set[int]:
    """Blocks from which `end` is reached without passing the header."""
    found, todo = {end}, [end]
    while todo:
        block = todo.pop()
        if block == header:
            continue
        todo += [b for b in graph.predecessors(block) if b not in found]
        found.update(graph.predecessors(block))
    return found


def innermost(loops: Sequence[NaturalLoop], weights: Sequence[int]) -> list[NaturalLoop]:
    """Loops with weight (by block) that contain no smaller loop with weight."""
    heavy = [loop for loop in loops if any(weights[b] for b in loop.blocks)]
    return [loop for loop in heavy if not any(other.blocks < loop.blocks for other in heavy)]


def busiest_path(
    found: Flow, loop: NaturalLoop, weights: Sequence[tuple[int, ...]], *, longest: bool = False
) -> list[int]:
    """One turn of a loop: of the paths from its header back to it, the one of most weight, then of fewest (or, for the
    `longest`, most) instructions."""
    body = _without_back_edges(found, loop)
    sign = -1 if longest else 1
    cost = {b: (*(-w for w in weights[b]), sign * len(found.issued(b))) for b in body}
    best: dict[int, tuple[tuple[int, ...], int | None]] = {loop.header: (cost[loop.header], None)}
    for block in nx.topological_sort(body):
        if block not in best:
            continue
        for after in body.successors(block):
            reached = tuple(a + b for a, b in zip(best[block][0], cost[after], strict=True))
            if after not in best or reached < best[after][0]:
                best[after] = (reached, block)
    latches = [b for b in loop.blocks if b in best and found.graph.has_edge(b, loop.header)]
    path: list[int] = []
    step: int | None = min(latches, key=lambda b: best[b][0])
    while step is not None:
        path.append(step)
        step = best[step][1]
    return path[::-1]


def _without_back_edges(found: Flow, loop: NaturalLoop) -> nx.DiGraph[int]:
    """The body of a loop as a DAG: edges to a header that dominates them are cut, as are other ways round."""
    body: nx.DiGraph[int] = nx.DiGraph(found.graph.subgraph(loop.blocks))
    dominator: dict[int, int] = dict(nx.immediate_dominators(body, loop.header))
    body.remove_nodes_from([b for b in list(body) if b != loop.header and b not in dominator])
    body.remove_edges_from([(a, b) for a, b in list(body.edges) if _dominates(b, a, dominator)])
    while not nx.is_directed_acyclic_graph(body):  # an irreducible wait: cut one edge of each way round
        body.remove_edge(*nx.find_cycle(body, loop.header)[-1][:2])
    return body
