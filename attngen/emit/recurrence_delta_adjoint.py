"""The backward of a delta rule: gradients of what tokens write, and what keys, values and beta get of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attngen.emit.faces import KernelFace
from attngen.emit.records_recurrence import AdjointFaces, AdjointRead, ColumnChunk, DeltaAdjoint
from attngen.emit.recurrence_adjoint import Reads
from attngen.emit.recurrence_delta import solved_adjoint
from attngen.emit.recurrence_lines import text_of
from attngen.emit.rules import node_of
from attngen.errors import InternalError
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Map

BETA = (
    "beta_base = beta + batch.to(tl.int64) * stride_beta_0 + first.to(tl.int64) * stride_beta_1"
    " + h * stride_beta_2"
)
BETA_M = "beta_m = tl.load(beta_base + row * stride_beta_1).to(tl.float32)"


class DeltaReads(Reads):
    """Here ``v`` are the tiles of what tokens wrote; those of the caller's values are read once, where they lie."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The caller's values."""
        return self.parts.given.operand

    def delta(self, faces: AdjointFaces) -> DeltaAdjoint:
        """What goes into gradients of states: of each token the gradient of what it wrote, and of its value."""
        self._expect("dwritten", "add", "brought")
        value, weighed = (node_of(self.graph, name, Map) for name in (f"d{self.value}", "weighed"))
        names = {"s": "values", "beta": "beta_n[:, None]"}
        return DeltaAdjoint(
            solved=solved_adjoint(self.graph, self.parts, faces.delta[1]),
            bases=(*self._bases("q", "k", "dread", f"d{self.value}"), BETA),
            value=f"d{self.value}",
            written=text_of(value.expr, names),
            taken=text_of(weighed.expr, names),
        )

    def _expect(self, name: str, op: str, other: str) -> None:
        """Products add themselves to what is there: of these nodes no other formula has a kernel."""
        wanted = ex.apply(op, ex.Symbol("s", "float"), ex.Symbol(other, "float"))
        if node_of(self.graph, name, Map).expr != wanted:
            raise InternalError(
                f"{self.graph.provenance.name}: the templates need: {name} is {ex.text(wanted)}"
            )

    def early(self, faces: AdjointFaces) -> tuple[AdjointRead, ...]:
        """What later tokens of the chunk read of what each writes: the right sides of what is solved."""
        query = self._tiles("k", "query")
        read = self._reversed(
            face=faces.delta[0],
            doc="One program makes some rows of the gradient of what is written, from what the chunk's tokens read of it.",
            query=query,
            partner=self._meeting(query, self._tiles("q", "partner")),
            summed=self._tiles("dread", "summed"),
            bases=self._bases("q", "k", "dread"),
            written=False,
        )
        stores = tuple(self._stores("dwritten_within"))
        of_rows = tuple(line for line in read.of_rows if line.startswith(("own_m", "edge")))
        return (replace(read, of_rows=of_rows, products=(), to_tile="", stores=stores),)

    def reads(self, faces: AdjointFaces) -> tuple[AdjointRead, ...]:
        """Gradients of queries, of beta, and of keys."""
        return (self.queries(faces.queries), self.found(faces.delta[2]), self.keys(faces.keys))

    def found(self, face: KernelFace) -> AdjointRead:
        """What tokens find of states, as queries that are gradients of what they write: for keys, beta and decays."""
        query, summed = self._tiles("dwritten", "query"), self._tiles("k", "summed")
        read = self._forward(
            face=face,
            doc="One program makes some rows of what tokens find in states, by gradients of what they write; gradients of beta.",
            query=query,
            partner=self._meeting(query, self._tiles("v", "partner")),
            summed=summed,
            bases=(*self._bases("k", "v", "dwritten"), BETA),
            strict=True,
        )
        io = f"{self.parts.k.operand}.dtype.element_ty"
        return replace(read, io=io, finish=tuple(self._of_beta()), stores=tuple(self._store_found()))

    def _of_beta(self) -> Iterator[str]:
        for c in self.k_chunks:
            at = f"k_base + row[:, None] * stride_{self.parts.k.operand}t + {c.columns}[None, :]{c.masked}"
            yield f"own_{c.index} = tl.load({at}).to(tl.float32)"
        yield f"of_found = {self._dots(self.parts.key_map, 'acc')}"
        dots: list[str] = []
        for c in self.v_chunks:
            at = self._value_place(self.value, c)
            yield f"value_{c.index} = tl.load({at}, mask=(m < length)[:, None]{c.loaded}, other=0.0)"
            dots.append(f"tl.sum(value_{c.index}.to(tl.float32) * dwritten_{c.index}.to(tl.float32), 1)")
        yield f"of_values = {' + '.join(dots)}"
        dbeta = node_of(self.graph, "dbeta", Map)
        yield f"of_beta = {text_of(dbeta.expr, {'s': 'of_values', 'of_found': 'of_found'})}"
        at = "dbeta + batch.to(tl.int64) * stride_dbeta_0 + (first + m).to(tl.int64) * stride_dbeta_1"
        yield f"tl.store({at} + h * stride_dbeta_2, of_beta.to(dbeta.dtype.element_ty), mask=m < length)"
        if self.of_decays:
            erased = node_of(self.graph, "of_erased", Map)
            value = text_of(erased.expr, {"s": "of_found", "beta": "beta_m"})
            yield BETA_M
            at = f"(slot.to(tl.int64) * num_heads + h) * {self.parts.chunk} + m"
            yield f"tl.store(of_erased + {at}, {value}, mask=m < length)"

    def _found_place(self, chunk: ColumnChunk) -> str:
        columns = self.parts.k.columns
        base = f"found + ((batch.to(tl.int64) * seqlen + first) * num_heads + h) * {columns}"
        return f"{base} + m.to(ROW_INDEX)[:, None] * (num_heads * {columns}) + {chunk.columns}[None, :]"

    def _store_found(self) -> Iterator[str]:
        for c in self.k_chunks:
            mask = f"mask=(m < length)[:, None]{c.loaded}"
            yield f"tl.store({self._found_place(c)}, acc_{c.index}, {mask})"

    def keys(self, face: KernelFace) -> AdjointRead:
        """Of what a token wrote: read by later tokens, less what later tokens took out of it."""
        read, query = super().keys(face), self._tiles("v", "query")
        self._expect("dk_written_within", "sub", "dk_written_taken")
        term = self._term(
            self._meeting(query, self._tiles(f"d{self.value}", "partner")),
            self._tiles("k", "summed"),
            self._later(written=False, strict=True),
            signed="-pairs_tile",
        )
        bases = (*read.bases, *self._bases(f"d{self.value}"), BETA)
        return replace(read, terms=(*read.terms, term), bases=bases)

    def _erased(self) -> Iterator[str]:
        keys = node_of(self.graph, "chunk_states", Fold).element
        name = f"d{keys.removesuffix('_tile')}"
        adjoint = node_of(self.graph, name, Map)
        yield BETA_M
        for c in self.k_chunks:
            mask = f"mask=(m < length)[:, None]{c.loaded}, other=0.0"
            yield f"found_{c.index} = tl.load({self._found_place(c)}, {mask})"
            names = {"s": f"acc_{c.index}", "found": f"found_{c.index}", "beta": "beta_m[:, None]"}
            yield f"acc_{c.index} = {text_of(adjoint.expr, names)}"

    def _stores(self, tensor: str) -> Iterator[str]:
        for c in self.v_chunks:
            value = f"acc_{c.index}.to({tensor}.dtype.element_ty)"
            yield f"tl.store({self._value_place(tensor, c)}, {value}, mask=(m < length)[:, None]{c.loaded})"


def kind_of(graph: Graph) -> type[Reads]:
    """The kernels of a graph's backward that read."""
    return DeltaReads if "weighed" in graph.nodes else Reads
