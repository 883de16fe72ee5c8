"""The road from spec to scheduled graph, in one visible tuple."""

from __future__ import annotations

from typing import Protocol

from attngen.ir.graph import Graph, verify
from attngen.passes.base_two import BaseTwo
from attngen.passes.build import build
from attngen.passes.chunk import Chunk
from attngen.passes.differentiate import Differentiate
from attngen.passes.differentiate_recurrence import DifferentiateRecurrence
from attngen.passes.page import Page
from attngen.passes.plan_masks import PlanMasks
from attngen.passes.schedules import ANYTHING, Wanted
from attngen.passes.share import Share
from attngen.passes.split import Split
from attngen.passes.tile import Tile
from attngen.spec import Spec


class Pass(Protocol):
    """A named step: a valid graph in, a valid graph out."""

    @property
    def name(self) -> str:
        """The name that `explain` and errors use."""
        ...

    def apply(self, graph: Graph) -> Graph:
        """Return the changed graph."""
        ...


PIPELINE: tuple[Pass, ...] = (Differentiate(), Share(), PlanMasks(), BaseTwo(), Tile(), Page(), Split())


def run(graph: Graph, passes: tuple[Pass, ...] = PIPELINE) -> Graph:
    """Apply passes in order, verifying after each."""
    for step in passes:
        graph = step.apply(graph)
        verify(graph)
    return graph


def schedule(spec: Spec) -> Graph:
    """Return the scheduled graph of a spec; its `schedule` and `deterministic` say what the tile pass may choose."""
    if spec.recurrence is not None:
        return run(build(spec), (DifferentiateRecurrence(), Chunk(spec.recurrence.chunk)))
    asked = spec.schedule
    wanted = ANYTHING
    if asked is not None:
        wanted = Wanted(
            block_m=asked.block_m, block_n=asked.block_n, num_warps=asked.warps, num_stages=asked.stages
        )
    chosen: dict[type[Pass], Pass] = {Tile: Tile(wanted, spec.deterministic), Page: Page(wanted)}
    return run(build(spec), tuple(chosen.get(type(step), step) for step in PIPELINE))
