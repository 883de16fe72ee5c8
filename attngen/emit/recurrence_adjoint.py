"""The backward of a recurrence's module: what each kernel loads, multiplies and stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from attngen.emit.faces import KernelFace
from attngen.emit.records_recurrence import (
    Adjoint,
    AdjointFaces,
    AdjointRead,
    AdjointSide,
    ChunkProducts,
    ColumnChunk,
    DeltaAdjoint,
    ReadProduct,
    Term,
    Tile,
)
from attngen.emit.recurrence_adjoint_rows import (
    check_products,
    faded_keys,
    faded_queries,
    launched,
    side,
    value_products,
)
from attngen.emit.recurrence_lines import feature, place_in_state, text_of
from attngen.emit.recurrence_parts import Parts
from attngen.errors import InternalError
from attngen.ir.graph import Graph
from attngen.ir.nodes import Fold, Input, Map, Merge, Node

_SLOT = "(slot.to(tl.int64) * num_heads + h)"


def adjoint(
    graph: Graph,
    parts: Parts,
    faces: AdjointFaces,
    columns: tuple[tuple[ColumnChunk, ...], tuple[ColumnChunk, ...]],
    token_lines: tuple[str, ...],
    kind: type[Reads],
) -> Adjoint:
    """Return the backward of a scheduled graph; ``columns`` are those of keys and of values."""
    made = kind(graph, parts, *columns)
    reads = tuple(map(made.with_bases, made.reads(faces)))
    return Adjoint(
        out=faces.out,
        out_sums=tuple(made.out_sums()),
        out_lines=tuple(made.out_lines()),
        out_stores=tuple(made.out_stores()),
        states=faces.states,
        states_bases=(parts.base("q"), parts.base("dread")),
        query_lines=(*feature(parts.query_map, "queries", parts.q.operand, ""), *faded_queries(parts)),
        weight="tl.math.exp2(tl.load(total_base + n))" if parts.total and not parts.has_rows else "1.0",
        scan=faces.scan,
        dstates_place=place_in_state(parts.states_axes, "stride_dstates_"),
        dinit_place="place" if parts.states_axes[-1] != "K" else f"e * {parts.k.columns} + d",
        pairs=made.value_products(faces.pairs),
        sides=made.sides(faces),
        delta=made.delta(faces),
        early=tuple(map(made.with_bases, made.early(faces))),
        reads=reads,
        launched=launched(parts, faces, reads),
        tokens=faces.tokens,
        of_decays=made.of_decays and not parts.has_rows,
        of_columns=parts.has_rows,
        of_both=text_of(
            _map(graph, "of_both").expr,
            {"s": "of_queries_tile", **{o: f"{o}_tile" for o in ("of_keys", "of_erased")}},
        )
        if made.of_decays
        else "",
        token_lines=(*_but_decays(token_lines, parts), *_token_lines(graph, parts)) if made.of_decays else (),
        read_columns=parts.read_columns,
    )


def _but_decays(token_lines: tuple[str, ...], parts: Parts) -> tuple[str, ...]:
    """What makes decays again, without the last of it: gradients need the step alone."""
    return tuple(line for line in token_lines if not line.startswith("decay = ")) if parts.step else ()


def _map(graph: Graph, name: str) -> Map:
    node = graph.nodes.get(name)
    if not isinstance(node, Map):
        raise InternalError(f"{graph.provenance.name}: the templates need: {name} is a map")
    return node


@dataclass(frozen=True, slots=True)
class Reads:
    """The kernels that read, of one graph; those of a delta rule are a kind of their own."""

    graph: Graph
    parts: Parts
    k_chunks: tuple[ColumnChunk, ...]
    v_chunks: tuple[ColumnChunk, ...]

    @property
    def of_decays(self) -> bool:
        """Whether a gradient of decays is asked for."""
        return "of_both" in self.graph.nodes

    def delta(self, faces: AdjointFaces) -> DeltaAdjoint | None:
        """What a delta rule has besides."""
        return None

    def early(self, faces: AdjointFaces) -> tuple[AdjointRead, ...]:
        """The kernels before the scan over chunks."""
        return ()

    def reads(self, faces: AdjointFaces) -> tuple[AdjointRead, ...]:
        """The kernels after it."""
        values = self.values(faces.values)
        if self.parts.has_rows:
            return (values,)
        return (self.queries(faces.queries), self.keys(faces.keys), values)

    # ---- tiles

    def _tiles(self, which: str, role: str) -> tuple[Tile, ...]:
        """Tiles of q, k, v or dread, as queries, as what they meet, or as what is summed up."""
        parts = self.parts
        by_rows = which in "qk"
        chunks = self.k_chunks if by_rows else self.v_chunks
        own = {"query": "row", "partner": "near", "summed": "near"}[role]
        found: list[Tile] = []
        for chunk in chunks:
            name = f"{which}_{chunk.index}"
            stride = {
                "q": f"stride_{parts.q.operand}t",
                "k": f"stride_{parts.k.operand}t",
                "v": f"stride_{parts.v.operand}t",
                "dread": f"num_heads * {parts.read_columns}",
            }.get(which, f"stride_{which}t")
            lines: tuple[str, ...] = ()
            if which in "qk":
                limit = chunk.loaded.removeprefix(" & ")
                mapped = parts.query_map if which == "q" else parts.key_map
                load = parts.q if which == "q" else parts.k
                lines = feature(mapped, name, load.operand, limit)
            elif which == "v" and chunk.fill:
                lines = (f"{name} = tl.where({chunk.fill}, 1.0, {name})",)
            base = f"{which}_base"
            found.append(
                Tile(
                    name=name,
                    index=chunk.index,
                    width=chunk.width,
                    columns=chunk.columns,
                    base=base,
                    walked=base,
                    row=own,
                    stride=stride,
                    masked="" if which == "dread" else chunk.masked,
                    lines=lines,
                    own="",
                    plus="",
                )
            )
        return tuple(found)

    def _meeting(self, query: tuple[Tile, ...], partner: tuple[Tile, ...]) -> tuple[Tile, ...]:
        return tuple(
            replace(p, own=q.name, plus=", pairs_tile" if n else "")
            for n, (q, p) in enumerate(zip(query, partner, strict=True))
        )

    def _products(self, query: tuple[Tile, ...], *, by_rows: bool) -> tuple[ReadProduct, ...]:
        """Queries times states: over their rows, or over their columns."""
        wide = self.parts.wide
        results = self.v_chunks if by_rows else self.k_chunks
        found: list[ReadProduct] = []
        for result in results:
            for n, tile in enumerate(query):
                of_query, of_result = f"{tile.columns}[:, None]", f"{result.columns}[None, :]"
                limits = [
                    limit
                    for limit in (
                        self._limit(tile.columns, "[:, None]", by_rows),
                        self._limit(result.columns, "[None, :]", not by_rows),
                    )
                    if limit
                ]
                found.append(
                    ReadProduct(
                        query=tile.name,
                        result=f"state_{result.index}",
                        plus=f", state_{result.index}" if n else "",
                        rows=f"{of_query} * {wide}" if by_rows else f"{of_result} * {wide}",
                        columns=of_result if by_rows else of_query,
                        mask=f", mask={' & '.join(limits)}, other=0.0" if limits else "",
                    )
                )
        return tuple(found)

    def _limit(self, columns: str, axis: str, of_rows: bool) -> str:
        """The test that columns are there, where they fill up a power of two."""
        spans = self.parts.k_spans if of_rows else self.parts.v_spans
        size = self.parts.k.columns if of_rows else self.parts.wide
        start, width = spans[int(columns.split("_")[1])]
        return f"({columns} < {size}){axis}" if start + width > size else ""

    def _bases(self, *which: str) -> tuple[str, ...]:
        return tuple(self.parts.base(name) for name in which)

    # ---- decays per column

    def value_products(self, face: KernelFace | None) -> ChunkProducts | None:
        """Products of gradients of what is read and values, which other kernels read."""
        if face is None:
            return None
        query = self._tiles("dread", "query")
        partner = [replace(t, row="near") for t in self._tiles("v", "partner")]
        met = (
            replace(t, plus=t.plus.replace("pairs_tile", "acc")) for t in self._meeting(query, tuple(partner))
        )
        return value_products(self.parts, face, (query, tuple(met)))

    def sides(self, faces: AdjointFaces) -> tuple[AdjointSide, ...]:
        """The gradients of queries and keys."""
        if not self.parts.has_rows:
            return ()
        check_products(self.graph)
        return tuple(
            side(
                self.graph,
                self.parts,
                face,
                which,
                tuple(zip(self._tiles(met, "query"), self.v_chunks, strict=True)),
            )
            for face, which, met in ((faces.queries, "q", "dread"), (faces.keys, "k", "v"))
        )

    # ---- the three kernels

    def queries(self, face: KernelFace) -> AdjointRead:
        query, summed = self._tiles("dread", "query"), self._tiles("k", "summed")
        heads = self.parts.heads_together
        read = self._forward(
            face=face,
            doc="One program makes some rows of the gradient of queries: what they would add to out, by its gradient.",
            query=query,
            partner=self._meeting(query, self._tiles("v", "partner")),
            summed=summed,
            bases=self._bases("q", "k", "v", "dread"),
            strict=self.of_decays,
        )
        own = self.parts.q.operand
        return replace(read, **self._sides(own, "q", "of_queries", heads))

    def keys(self, face: KernelFace) -> AdjointRead:
        query, summed = self._tiles("v", "query"), self._tiles("q", "summed")
        read = self._reversed(
            face=face,
            doc="One program makes some rows of the gradient of keys, from the tokens that come after them.",
            query=query,
            partner=self._meeting(query, self._tiles("dread", "partner")),
            summed=summed,
            bases=self._bases("q", "k", "v", "dread"),
            written=True,
        )
        own = self.parts.k.operand
        return replace(read, **self._sides(own, "k", "of_keys", self.parts.heads_together))

    def values(self, face: KernelFace) -> AdjointRead:
        query = self._tiles("k", "query")
        if self.parts.has_rows:
            query = tuple(faded_keys(self.parts, tile) for tile in query)
        shared = self.parts.pairs_kernel is not None
        read = self._reversed(
            face=face,
            doc="One program makes some rows of the gradient of values, from the tokens that come after them.",
            query=query,
            partner=() if shared else self._meeting(query, self._tiles("q", "partner")),
            summed=self._tiles("dread", "summed"),
            bases=self._bases(*(("k", "dread") if shared else ("q", "k", "dread"))),
            written=False,
        )
        finish, stores = tuple(self._finish_values()), tuple(self._store_values())
        (term,) = read.terms
        if shared:
            term = replace(term, stored_pairs=f"pairs_base + n[None, :] * {self.parts.chunk} + m[:, None]")
        group = self.parts.group
        base = f"pairs_base = pairs + (slot.to(tl.int64) * (num_heads // {group}) + h // {group}) * {self.parts.chunk**2}"
        return replace(
            read,
            io=f"{self.parts.k.operand}.dtype.element_ty" if self.parts.has_rows else read.io,
            terms=(term,),
            bases=(*read.bases, *([base] if shared else [])),
            finish=finish,
            stores=stores,
        )

    def _forward(
        self,
        *,
        face: KernelFace,
        doc: str,
        query: tuple[Tile, ...],
        partner: tuple[Tile, ...],
        summed: tuple[Tile, ...],
        bases: tuple[str, ...],
        strict: bool,
    ) -> AdjointRead:
        """Of the state before the chunk and of earlier tokens, which were written."""
        decays = self.parts.total is not None
        late = self.parts.of_tokens
        weight = (
            (f"weight = tl.math.exp2(edge - tl.load({late} + n))", *self._step("weight", "n", ""))
            if decays
            else ()
        )
        rows = (
            "total_m = tl.load(total_base + m)",
            "edge = tl.load(total_base + start_m - 1, mask=start_m > 0, other=0.0)",
        )
        earlier = f"n[None, :] {'<' if strict else '<='} m[:, None]"
        diagonal = (
            (
                f'apart = tl.where({earlier}, total_m[:, None] - tl.load({late} + n)[None, :], float("-inf"))',
                f"pairs_tile = {self._kept(earlier)} * tl.math.exp2(apart)",
                *self._step("pairs_tile", "n", "[None, :]"),
            )
            if decays
            else (f"pairs_tile = tl.where({earlier}, pairs_tile, 0.0)",)
        )
        walked = [
            tuple(replace(t, walked=f"{t.base} + far * {t.stride}") for t in x) for x in (partner, summed)
        ]
        return self._read(
            face=face,
            doc=doc,
            query=query,
            terms=(self._term(walked[0], walked[1], diagonal),),
            summed=walked[1],
            bases=bases,
            of_rows=(f"state_base = chunk_states + {_SLOT} * {self._size}", *(rows if decays else ())),
            products=self._products(query, by_rows=False),
            to_tile="tl.math.exp2(edge)" if decays else "",
            begin="0",
            end="start_m",
            near="tl.arange(0, BLOCK_N).to(ROW_INDEX)",
            walks_far=True,
            weight=weight,
            from_tile="tl.math.exp2(total_m - edge)" if decays else "",
            times_step=(),
            weighs_pairs=decays,
        )

    def _reversed(
        self,
        *,
        face: KernelFace,
        doc: str,
        query: tuple[Tile, ...],
        partner: tuple[Tile, ...],
        summed: tuple[Tile, ...],
        bases: tuple[str, ...],
        written: bool,
    ) -> AdjointRead:
        """Of the state's gradient after the chunk and of later tokens, by tokens that were written (or their keys)."""
        decays = self.parts.total is not None and not self.parts.has_rows
        own = self.parts.of_tokens if written else "total_base"
        rows = (
            f"own_m = tl.load({own} + m)",
            "edge = tl.load(total_base + start_m + BLOCK_M - 1)",
            f"last = tl.load(total_base + {self.parts.chunk - 1})",
        )
        diagonal = self._later(written=written, strict=written and self.of_decays)
        weight = "tl.math.exp2(tl.load(total_base + n) - edge)" if decays else "1.0"
        return self._read(
            face=face,
            doc=doc,
            query=query,
            terms=(self._term(partner, summed, diagonal),),
            summed=summed,
            bases=bases,
            of_rows=(f"state_base = chunk_adjoints + {_SLOT} * {self._size}", *(rows if decays else ())),
            products=self._products(query, by_rows=query[0].columns.startswith("d")),
            to_tile="tl.math.exp2(last - edge)" if decays else "",
            begin="start_m + BLOCK_M",
            end="length",
            near="tl.minimum(n, length - 1).to(ROW_INDEX)",
            walks_far=False,
            weight=(f"weight = tl.where(n < length, {weight}, 0.0)",),
            from_tile="tl.math.exp2(edge - own_m)" if decays else "",
            times_step=self._step("from_tile", "m", "") if written else (),
            weighs_pairs=decays and written,
        )

    def _term(
        self, partner: tuple[Tile, ...], summed: tuple[Tile, ...], diagonal: tuple[str, ...], signed: str = ""
    ) -> Term:
        return Term(partner=partner, stored_pairs="", signed=signed, summed=summed, diagonal=diagonal)

    def _later(self, *, written: bool, strict: bool) -> tuple[str, ...]:
        """Products with later tokens of the tile, those of the token itself too if not `strict`."""
        later = f"(n[None, :] {'>' if strict else '>='} m[:, None]) & (n < length)[None, :]"
        if self.parts.total is None or self.parts.has_rows:
            return (f"pairs_tile = tl.where({later}, pairs_tile, 0.0)",)
        step = self._step("pairs_tile", "m", "[:, None]") if written else ()
        apart = f'tl.where({later}, tl.load(total_base + n)[None, :] - own_m[:, None], float("-inf"))'
        return (f"apart = {apart}", f"pairs_tile = {self._kept(later)} * tl.math.exp2(apart)", *step)

    def _kept(self, inside: str) -> str:
        """Products before they decay, by 0 outside: those of a delta rule, whose states may grow, may be infinite there."""
        return f"tl.where({inside}, pairs_tile, 0.0)" if self.parts.solve else "pairs_tile"

    def _read(self, **given: object) -> AdjointRead:
        fixed = {
            "heads": 1,
            "sums_heads": False,
            "io": f"{self.parts.first}.dtype.element_ty",
            "precision": self.parts.contract.precision,
            "of_state": (),
            "within": (),
            "finish": (),
            "stores": (),
        }
        return AdjointRead(**{**fixed, **given})  # pyright: ignore[reportArgumentType]

    def with_bases(self, read: AdjointRead) -> AdjointRead:
        """The kernel with where its tensors begin: of those that it reads."""
        shown = repr(replace(read, bases=()))
        bases = (*read.bases, *self._bases_of_decays())
        return replace(read, bases=tuple(base for base in bases if base.partition(" = ")[0] in shown))

    def _bases_of_decays(self) -> Iterator[str]:
        parts = self.parts
        columns = parts.k.columns if parts.has_rows else 1
        for name, tensor, there, size in (
            ("total", "total", parts.total, parts.chunk * columns),
            ("late", "late", parts.late, parts.chunk),
            ("step", "step_of", parts.step, parts.chunk),
        ):
            if there is not None:
                yield f"{name}_base = {tensor} + {_SLOT} * {size}"

    @property
    def _size(self) -> int:
        return self.parts.k.columns * self.parts.wide

    def _step(self, name: str, tokens: str, axis: str) -> tuple[str, ...]:
        """Multiply by what values are multiplied by, where the exponent does not hold it."""
        if self.parts.step is None:
            return ()
        return (f"if {self.parts.weighs_step}:", f"    {name} *= tl.load(step_base + {tokens}){axis}")

    # ---- what becomes of what is read

    def _sides(self, tensor: str, which: str, dots: str, heads: int) -> dict[str, object]:
        """For the gradient of queries or keys: products with themselves per head, the slope of their map, and stores."""
        lines: list[str] = []
        within: list[str] = []
        state: list[str] = []
        load = self.parts.q if which == "q" else self.parts.k
        node = self.parts.query_map if which == "q" else self.parts.key_map
        loads = [
            f"own_{c.index} = tl.load({which}_base + row[:, None] * stride_{tensor}t"
            f" + {c.columns}[None, :]{c.masked}).to(tl.float32)"
            for c in self.k_chunks
        ]
        if self.of_decays:
            # what is read of the state and of other tokens, each times the reader itself: the gradient of decays
            at = f"{_SLOT} * {self.parts.chunk} + m"
            names = (dots, "of_states") if which == "k" else (dots, dots)
            within = [*loads, f"dots = {self._dots(node, 'acc')}"]
            state = [f"of_state = {self._dots(node, 'state')}"]
            if which == "k":
                within.append(f"tl.store({names[0]} + {at}, dots, mask=m < length)")
                state.append(f"tl.store({names[1]} + {at}, of_state, mask=m < length)")
            else:
                state.append(f"tl.store({names[0]} + {at}, dots + of_state, mask=m < length)")
            lines += self._own_token(which)
        elif node:
            lines += loads
        if which == "k":
            lines += self._erased()
        slope = self.graph.nodes.get(f"d{load.operand}")
        if node and isinstance(slope, Map):
            lines += [
                f"acc_{c.index} = {text_of(slope.expr, {'s': f'acc_{c.index}', load.operand: f'own_{c.index}'})}"
                for c in self.k_chunks
            ]
        sums = heads > 1
        parts = self.parts.group_of(load) // heads
        where = f"owner % {parts} * stride_d{tensor}p + " if parts > 1 else ""
        head = f"owner // {parts}" if parts > 1 else "owner"
        base = f"d{tensor} + {where}batch.to(tl.int64) * stride_d{tensor}b"
        base += f" + first.to(tl.int64) * stride_d{tensor}t + {head} * stride_d{tensor}h"
        result = "sum" if sums else "acc"
        stores = [f"own_base = {base}"]
        for chunk in self.k_chunks:
            at = f"own_base + m.to(ROW_INDEX)[:, None] * stride_d{tensor}t + {chunk.columns}[None, :]"
            value = f"{result}_{chunk.index}.to(d{tensor}.dtype.element_ty)"
            stores.append(f"tl.store({at}, {value}, mask=(m < length)[:, None]{chunk.loaded})")
        return {
            "heads": heads,
            "sums_heads": sums,
            "within": tuple(within),
            "of_state": tuple(state),
            "finish": tuple(lines),
            "stores": tuple(stores),
        }

    def _erased(self) -> Iterator[str]:
        """What else the gradient of keys holds."""
        return iter(())

    def _dots(self, node: Map | None, name: str) -> str:
        """Rows of queries or keys times rows of what was added up for them."""
        found: list[str] = []
        for chunk in self.k_chunks:
            value = text_of(node.expr, {"s": f"own_{chunk.index}"}) if node else f"own_{chunk.index}"
            limit = chunk.loaded.removeprefix(" & ")
            product = f"({value}) * {name}_{chunk.index}" if node else f"{value} * {name}_{chunk.index}"
            found.append(f"tl.sum({f'tl.where({limit}, {product}, 0.0)' if limit else product}, 1)")
        return " + ".join(found)

    def _own_token(self, which: str) -> Iterator[str]:
        """What a token reads of what it writes itself: no decay lies between, so that it is added after the products that tell
        of decays, which it would drown where decays are strong."""
        other = "v" if which == "q" else "dread"
        mine = "dread" if which == "q" else "v"
        dots: list[str] = []
        for tile in self._tiles(other, "query"):
            at = f"{tile.base} + row[:, None] * ({tile.stride}) + {tile.columns}[None, :]{tile.masked}"
            yield f"{tile.name} = tl.load({at})"
            yield from tile.lines
            dots.append(f"tl.sum({mine}_{tile.index}.to(tl.float32) * {tile.name}.to(tl.float32), 1)")
        step = " * tl.load(step_base + m)" if self.parts.step else ""
        yield f"own_token = ({' + '.join(dots)}){step}"
        for tile in self._tiles("k" if which == "q" else "q", "query"):
            at = f"{tile.base} + row[:, None] * {tile.stride} + {tile.columns}[None, :]{tile.masked}"
            yield f"{tile.name} = tl.load({at})"
            yield from tile.lines
            yield f"acc_{tile.index} += own_token[:, None] * {tile.name}.to(tl.float32)"

    def _value_place(self, tensor: str, chunk: ColumnChunk) -> str:
        return (
            f"{tensor} + batch.to(tl.int64) * stride_{tensor}b + first.to(tl.int64) * stride_{tensor}t + h * stride_{tensor}h"
            f" + m.to(ROW_INDEX)[:, None] * stride_{tensor}t + {chunk.columns}[None, :]"
        )

    @property
    def _out_chunks(self) -> tuple[ColumnChunk, ...]:
        return tuple(c for c in self.v_chunks if c.index < len(self.parts.v.chunks))

    def _finish_values(self) -> Iterator[str]:
        """Mamba-2: values are x times the step, and D x was added to what is read."""
        v = self.parts.v.operand
        if self.parts.step is None:
            return
        dots: list[str] = []
        for c in self._out_chunks:
            yield f"x_of = tl.load({self._value_place(v, c)}, mask=(m < length)[:, None]{c.loaded}, other=0.0).to(tl.float32)"
            each = _map(self.graph, "dstep_value_each")
            yield f"of_step_{c.index} = {text_of(each.expr, {'s': f'acc_{c.index}', v: 'x_of'})}"
            dots.append(f"tl.sum(of_step_{c.index}, 1)")
            times = _map(self.graph, f"d{v}_value")
            yield f"acc_{c.index} = {text_of(times.expr, {'s': f'acc_{c.index}', 'step': 'tl.load(step_base + m)[:, None]'})}"
        if self.of_decays:
            yield f"tl.store(dstep_value + {_SLOT} * {self.parts.chunk} + m, {' + '.join(dots)}, mask=m < length)"
        skipped = _map(self.graph, f"d{v}_skipped")
        yield "if HAS_D:"
        for c in self._out_chunks:
            limit = c.loaded.removeprefix(" & ")
            at = f"D + h * stride_D_0 + {c.columns}.to(tl.int64)[None, :] * stride_D_1"
            yield f"    D_of = tl.load({at}{f', mask={limit}, other=0.0' if limit else ''}).to(tl.float32)"
            own = (
                f"dread_base + row[:, None] * (num_heads * {self.parts.read_columns}) + {c.columns}[None, :]"
            )
            names = {"s": f"tl.load({own}).to(tl.float32)", "D": "D_of"}
            yield f"    acc_{c.index} += {text_of(skipped.expr, names)}"

    def _store_values(self) -> Iterator[str]:
        v = self.parts.v.operand
        for c in self._out_chunks:
            value = f"acc_{c.index}.to(d{v}.dtype.element_ty)"
            yield f"tl.store({self._value_place(f'd{v}', c)}, {value}, mask=(m < length)[:, None]{c.loaded})"

    # ---- the gradient of what is read

    def out_sums(self) -> Iterator[str]:
        yield self.parts.base("dread")
        if "dD_each" in self.graph.nodes:
            yield from (f"of_D_{c.index} = tl.zeros([{c.width}], tl.float32)" for c in self._out_chunks)

    def out_stores(self) -> Iterator[str]:
        if "dD_each" in self.graph.nodes:
            yield "if HAS_D:"
            for c in self._out_chunks:
                mask = f", mask={c.columns} < {self.parts.v.columns}" if c.loaded else ""
                yield f"    tl.store(dD + {_SLOT} * {self.parts.v.columns} + {c.columns}, of_D_{c.index}{mask})"

    def out_lines(self) -> Iterator[str]:
        normalises = any(c.fill for c in self.v_chunks)
        for c in self._out_chunks:
            at = self._value_place("dout", c)
            yield f"dout_{c.index} = tl.load({at}, mask=(m < length)[:, None]{c.loaded}, other=0.0).to(tl.float32)"
        if normalises:
            yield from self._normalised()
        elif self.parts.step is not None:
            yield from (line for c in self._out_chunks for line in self._gated(c))
        else:
            dread = _map(self.graph, "dread")
            yield from (
                f"dread_{c.index} = {text_of(dread.expr, {'s': f'dout_{c.index}'})}" for c in self._out_chunks
            )
        for c in self.v_chunks:
            at = f"dread_base + m.to(ROW_INDEX)[:, None] * (num_heads * {self.parts.read_columns}) + {c.columns}[None, :]"
            yield f"tl.store({at}, dread_{c.index}.to(dread.dtype.element_ty), mask=(m < length)[:, None])"

    def _raw(self, c: ColumnChunk) -> str:
        wide = self.parts.read_columns
        at = f"raw + (batch.to(tl.int64) * seqlen + first) * (num_heads * {wide}) + h * {wide}"
        at += f" + m.to(ROW_INDEX)[:, None] * (num_heads * {wide}) + {c.columns}[None, :]"
        return f"tl.load({at}, mask=(m < length)[:, None], other=0.0)"

    def _gated(self, c: ColumnChunk) -> Iterator[str]:
        """Mamba-2: out = (read + D x) silu(z)."""
        n = c.index
        seen = f"mask=(m < length)[:, None]{c.loaded}, other=0.0).to(tl.float32)"
        dskipped, dz, dD = (_map(self.graph, name) for name in ("dskipped", "dz", "dD_each"))
        names = {"s": f"dout_{n}", "z": "z_of", "skipped": "raw_of"}
        yield f"dread_{n} = dout_{n}"
        yield "if HAS_Z:"
        yield f"    z_of = tl.load({self._value_place('z', c)}, {seen}"
        yield f"    raw_of = {self._raw(c)}"
        yield f"    of_z = {text_of(dz.expr, names)}"
        yield f"    tl.store({self._value_place('dz', c)}, of_z.to(dz.dtype.element_ty), mask=(m < length)[:, None]{c.loaded})"
        yield f"    dread_{n} = {text_of(dskipped.expr, names)}"
        yield "if HAS_D:"
        yield f"    x_of = tl.load({self._value_place('x', c)}, {seen}"
        yield f"    of_D_{n} += tl.sum({text_of(dD.expr, {'s': f'dread_{n}', 'x': 'x_of'})}, 0)"

    def _normalised(self) -> Iterator[str]:
        """Out is what is read, divided by its last column."""
        below = _map(self.graph, "dscaled")
        dread = _map(self.graph, "dread")
        (last,) = [c for c in self.v_chunks if c.fill]
        yield from (f"raw_{c.index} = {self._raw(c)}" for c in self.v_chunks)
        place = f"{last.columns}[None, :] == {self.parts.v.columns}"
        yield f"weight = tl.sum(tl.where({place}, raw_{last.index}, 0.0), 1)[:, None]"
        yield "weighs = tl.where(weight == 0.0, 0.0, 1.0 / weight)"
        dots = [f"tl.sum(raw_{c.index} * dout_{c.index}, 1)" for c in self._out_chunks]
        yield f"out_dout = ({' + '.join(dots)})[:, None] * weighs"
        given = {c.index for c in self._out_chunks}
        for c in self.v_chunks:
            value = f"dout_{c.index}" if c.index in given else f"tl.zeros([BLOCK_M, {c.width}], tl.float32)"
            names = {"s": value, "out_dout": "out_dout", "weight": "weight", "w": f"{c.columns}[None, :]"}
            yield f"dscaled_{c.index} = {text_of(below.expr, names)}"
            yield f"dread_{c.index} = {text_of(dread.expr, {'s': f'dscaled_{c.index}'})}"


def _token_lines(graph: Graph, parts: Parts) -> Iterator[str]:
    """From the gradient of decays to those of what made them."""
    decays = next(n.removesuffix("_across") for n, f in graph.all(Fold) if f.prefix == "i")
    if decays != "ddecay":
        yield f"{decays}_value = ddecay"
        yield _store(graph, decays, f"{decays}_value", parts)
        return
    yield "dstep_value_tile = tl.load(dstep_value + place, mask=valid, other=0.0)"
    known = {"ddecay": "ddecay", "dstep_value": "dstep_value_tile"}
    for name in graph.order():
        node: Node = graph.nodes[name]
        if isinstance(node, Merge) and {node.left, node.right} <= set(known):
            yield f"{name} = {known[node.left]} + {known[node.right]}"
            known[name] = name
        elif isinstance(node, Map) and node.operand in known:
            names = {"s": known[node.operand]}
            for other in node.others:
                of_head = (
                    f"tl.load({other} + h * stride_{other}_0, mask=there, other=0.0).to(tl.float32)[None, :]"
                )
                names[other] = of_head if isinstance(graph.nodes[other], Input) else other
            known[name] = f"{name}_value"
            yield f"{name}_value = {text_of(node.expr, names)}"
            if _gradient_of(graph, name):
                yield _store(graph, name, f"{name}_value", parts)
        elif isinstance(node, Fold) and node.element in known and node.axes == ("H",):
            guard = graph.nodes[name.removeprefix("d")]
            total = f"tl.sum(tl.where(valid, {known[node.element]}, 0.0), 0)"
            store = f"tl.store({name} + slot.to(tl.int64) * num_heads + h, {total}, mask=there)"
            if isinstance(guard, Input) and guard.optional:
                yield f"if HAS_{name.removeprefix('d').upper()}:"
                yield f"    {store}"
            else:
                yield store


def _gradient_of(graph: Graph, name: str) -> bool:
    return isinstance(graph.nodes.get(name.removeprefix("d")), Input)


def _store(graph: Graph, name: str, value: str, parts: Parts) -> str:
    at = (
        f"{name} + batch.to(tl.int64) * stride_{name}_0 + (first + t[:, None]).to(tl.int64) * stride_{name}_1"
    )
    at += (
        f" + h * stride_{name}_2 + d[None, :] * stride_{name}_3"
        if parts.has_rows
        else f" + h[None, :] * stride_{name}_2"
    )
    return f"tl.store({at}, ({value}).to({name}.dtype.element_ty), mask=valid)"
