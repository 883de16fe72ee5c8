"""The argument lists of the backward of a recurrence's module."""

from __future__ import annotations

from collections.abc import Iterator

from attngen.emit.faces import KernelFace
from attngen.emit.interface_delta import delta_buffers, delta_faces, keys_rows, scan_face
from attngen.emit.interface_rows import (
    BLOCKS,
    HEADS,
    INDEX,
    LENGTHS,
    PACKED,
    SIZES,
    Rows,
    all_strides,
    decays,
    face,
    features,
    precise,
    row_strides,
)
from attngen.emit.records_recurrence import AdjointFaces
from attngen.emit.recurrence_parts import Parts
from attngen.ir.graph import Graph
from attngen.ir.nodes import Input


def adjoint_faces(
    graph: Graph, parts: Parts, inputs: dict[str, Input], op_call: str, raw_values: tuple[str, ...]
) -> AdjointFaces | None:
    """Return the argument lists of a graph's backward; None where it has none."""
    if "dfold" not in graph.nodes:
        return None
    made = _Adjoint(graph, parts, inputs)
    gradients = tuple(n for n, i in inputs.items() if i.grad)
    tensors = [n for n, i in inputs.items() if i.role in ("tensor", "captured")]
    numbers = [n for n, i in inputs.items() if i.role == "scalar"]
    buffers = [n for n, _, _ in decays(parts)]
    buffers += [
        "chunk_states",
        *(["pairs"] if parts.pairs_kernel else []),
        *([made.v] if parts.solve else []),
        *(["raw"] if made.needs_raw else []),
    ]
    kept = ["slots", "chosen", "row_index", *buffers]
    given = {n: "None" for n in op_call.split(", ")}
    return AdjointFaces(
        out=made.out(),
        states=made.states(),
        scan=made.scan(),
        pairs=made.pairs() if parts.has_rows else None,
        queries=made.queries(),
        keys=made.keys(),
        values=made.values(),
        tokens=made.tokens(),
        delta=delta_faces(parts, of_decays=made.of_decays) if parts.solve else (),
        needs_raw=made.needs_raw,
        arguments=("dout: torch.Tensor", "dstates: torch.Tensor | None"),
        call=f"{op_call}, dout, dstates",
        saved=", ".join([*tensors, "cu_seqlens"]),
        kept=", ".join(numbers) + ("," if len(numbers) == 1 else ""),
        gradients=gradients,
        buffers=tuple(made.buffers()),
        results=tuple(made.results()),
        returned=", ".join((given | {n: f"d{n}" for n in gradients}).values()),
        named=", ".join(f"d{n}" for n in gradients),
        asked=", ".join(gradients),
        raw_values=raw_values,
        kept_buffers=repr(tuple(kept)),
        buffer_names=tuple(n for n in kept if n not in ("slots", "chosen", "row_index")),
    )


class _Adjoint:
    """The kernels of one graph's backward."""

    def __init__(self, graph: Graph, parts: Parts, inputs: dict[str, Input]) -> None:
        self.graph = graph
        self.inputs = {n: i for n, i in inputs.items() if i.role != "gradient"}
        self.parts = parts
        self.q, self.k, self.v = (x.operand for x in (parts.q, parts.k, parts.v))
        self.of_decays = "of_both" in graph.nodes
        self.normalises = parts.wide > parts.v.columns
        self.needs_raw = "True" if self.normalises else "z is not None" if "z" in inputs else ""

    def optional_rows(self, name: str) -> Rows:
        return [
            (f"stride_{name}{c}", "i32", f"0 if {name} is None else {name}.stride({p})")
            for p, c in enumerate("bth")
        ]

    def out(self) -> KernelFace:
        mamba = self.parts.is_mamba
        rows: Rows = [("dout", "*io", "dout")]
        rows += [("raw", "*fp32", "raw")] if self.needs_raw else []
        rows += (
            [("x", "*io", "x"), ("D", "*fp32", "D"), ("z", "*io", "z"), ("dz", "*io", "dz")] if mamba else []
        )
        rows += [("dread", "*io", "dread")] + ([("dD", "*fp32", "dD")] if mamba else [])
        rows += LENGTHS + row_strides("dout")
        if mamba:
            rows += [*row_strides("x"), *self.optional_rows("z"), *self.optional_rows("dz")]
        rows += [(n, "fp32", n) for n in ("scale",) if n in self.inputs] + HEADS + SIZES
        flags = [("HAS_D", "D is not None"), ("HAS_Z", "z is not None")] if mamba else []
        return face("_out_adjoint", rows, [*flags, PACKED, INDEX, BLOCKS[0]])

    def states(self) -> KernelFace:
        rows: Rows = [(self.q, "*io", self.q), ("dread", "*io", "dread")]
        rows += [("total", self.parts.total_type, "total")] if self.parts.total else []
        rows += [
            ("chunk_adjoints", "*fp32", "chunk_adjoints"),
            *LENGTHS,
            *row_strides(self.q),
            *features(self.parts),
            *HEADS,
            *SIZES,
        ]
        return face("_chunk_adjoints", rows, [PACKED, INDEX, *BLOCKS])

    def scan(self) -> KernelFace:
        if self.parts.solve:
            return scan_face(self.parts, of_decays=self.of_decays)
        rows: Rows = []
        if self.parts.total:
            rows += [("total", self.parts.total_type, "total")]
        if self.of_decays and not self.parts.has_rows:
            rows += [(n, "*fp32", n) for n in ("chunk_states", "edges")]
        rows += [
            ("chunk_adjoints", "*fp32", "chunk_adjoints"),
            ("dstates", "*fp32", "dstates"),
            ("dinit", "*fp32", "dinit"),
        ]
        rows += LENGTHS + [(f"stride_dstates_{p}", "i32", f"_stride(dstates, {p})") for p in range(4)]
        rows += HEADS + SIZES[1:]
        return face("_adjoint_scan", rows, [("HAS_DSTATES", "dstates is not None"), PACKED, BLOCKS[0]])

    def pairs(self) -> KernelFace:
        """Where each column decays by itself: products of gradients of what is read and values."""
        rows: Rows = [(n, "*io", n) for n in ("dread", self.v, "adjoint_pairs")]
        rows += LENGTHS + row_strides(self.v) + HEADS + SIZES
        return face("_adjoint_pairs", rows, [PACKED, INDEX, *BLOCKS])

    def queries(self) -> KernelFace:
        return self._side("_backward_queries", self.q, "of_queries", "chunk_states")

    def keys(self) -> KernelFace:
        return self._side("_backward_keys", self.k, "of_keys", "chunk_adjoints")

    def _side(self, name: str, tensor: str, dots: str, states: str) -> KernelFace:
        read = [self.q, self.k, self.v, "dread"]
        if self.parts.has_rows:  # products of the last two are stored
            read = [self.q, self.k, "dread" if tensor == self.q else self.v, "adjoint_pairs"]
        rows: Rows = [(n, "*io", n) for n in read]
        rows += [*decays(self.parts), (states, "*fp32", states), (f"d{tensor}", "*io", f"d{tensor}_parts")]
        stored = [dots, *(["of_states"] if dots == "of_keys" else [])]
        rows += [(n, "*fp32", n) for n in stored] if self.of_decays else []
        of_keys, of_strides = keys_rows(self.parts) if self.parts.solve and tensor == self.k else ([], [])
        rows += (
            of_keys + LENGTHS + row_strides(*(n for n in read if n in (self.q, self.k, self.v))) + of_strides
        )
        rows += [
            (f"stride_d{tensor}{c}", "i32", f"d{tensor}_parts.stride({p})") for p, c in enumerate("pbth")
        ]
        rows += features(self.parts) + HEADS + SIZES
        return face(name, rows, [*precise(self.parts), PACKED, INDEX, *BLOCKS])

    def values(self) -> KernelFace:
        mamba, shared = self.parts.is_mamba, self.parts.pairs_kernel is not None
        own = [self.k, *([] if shared else [self.q])]
        rows: Rows = [(n, "*io", n) for n in own]
        rows += [("pairs", "*io", "pairs")] if shared else []
        rows += [("x", "*io", "x"), ("D", "*fp32", "D")] if mamba else []
        rows += [
            ("dread", "*io", "dread"),
            *decays(self.parts),
            ("chunk_adjoints", "*fp32", "chunk_adjoints"),
        ]
        rows += [(f"d{self.v}", "*io", f"d{self.v}")]
        rows += [("dstep_value", "*fp32", "dstep_value")] if mamba and self.of_decays else []
        rows += LENGTHS + row_strides(*own, *(["x"] if mamba else []), f"d{self.v}")
        rows += all_strides("D", self.inputs["D"]) if mamba else []
        rows += features(self.parts)
        rows += HEADS + SIZES
        flags = [("HAS_D", "D is not None")] if mamba else []
        return face("_backward_values", rows, [*flags, *precise(self.parts), PACKED, INDEX, *BLOCKS])

    def tokens(self) -> KernelFace:
        mamba = self.parts.is_mamba
        rows: Rows = []
        if mamba:
            rows += [(n, "*fp32", n) for n in ("dt", "dt_bias", "A")]
        erased = ["of_erased"] if self.parts.solve else []
        states = ("chunk_states", "chunk_adjoints") if self.parts.has_rows else ("edges",)
        rows += [(n, "*fp32", n) for n in ("of_queries", "of_keys", *erased, "of_states", *states)]
        rows += [("total", self.parts.total_type, "total")] if self.parts.has_rows else []
        rows += [(n, "*fp32", n) for n in (("dstep_value", "ddt", "dA", "ddt_bias") if mamba else ("dg",))]
        rows += LENGTHS
        made = ("dt", "dt_bias", "A") if mamba else ()
        rows += [row for n in made for row in all_strides(n, self.inputs[n])]
        out = "ddt" if mamba else "dg"
        axes = 3 + self.parts.has_rows
        rows += [(f"stride_{out}_{p}", "i32", f"{out}.stride({p})") for p in range(axes)]
        rows += [(n, "fp32", n) for n in ("dt_least", "dt_most") if n in self.inputs]
        rows += HEADS + SIZES
        flags = [("HAS_DT_BIAS", "dt_bias is not None")] if mamba else []
        return face("_backward_tokens", rows, [*flags, PACKED, BLOCKS[0]])

    # ---- what the launcher allocates and returns

    def buffers(self) -> Iterator[str]:
        q, k, v = self.q, self.k, self.v
        parts = self.parts.group_of(self.parts.k) // self.parts.heads_together
        fp32 = "dtype=torch.float32, device=device"
        io = "torch.float32" if parts > 1 else f"{q}.dtype"
        yield f"dread = torch.empty([*{v}.shape[:3], {self.parts.read_columns}], dtype={v}.dtype, device=device)"
        for name in (q, k):
            yield f"d{name}_parts = new([{parts}, *{name}.shape], dtype={io}, device=device)"
        if self.parts.solve:
            yield from delta_buffers(self.parts, of_decays=self.of_decays)
        else:
            yield f"d{v} = new({v}.shape, dtype={v}.dtype, device=device)"
        size = self.parts.k.columns * self.parts.wide
        yield f"chunk_adjoints = torch.empty([slots, num_heads, {size}], {fp32})"
        yield f"dinit = torch.empty(states.shape, {fp32})"
        if self.parts.is_mamba:
            yield "dz = None if z is None else new(z.shape, dtype=z.dtype, device=device)"
            yield f"dD = None if D is None else torch.zeros([slots, num_heads, {self.parts.v.columns}], {fp32})"
        if self.of_decays:
            made = f"torch.empty(total.shape, {fp32})" if self.parts.has_rows else "torch.empty_like(total)"
            yield f"of_queries, of_keys, of_states = ({made} for _ in range(3))"
        if self.parts.has_rows:
            yield f"adjoint_pairs = torch.empty([slots, num_heads, CHUNK, CHUNK], dtype={q}.dtype, device=device)"
        elif self.of_decays:
            columns = self.parts.wide if self.parts.solve else size
            yield f'tiles = triton.cdiv({columns}, chosen["_adjoint_scan"]["BLOCK_M"])'
            yield f"edges = torch.zeros([slots, num_heads, tiles], {fp32})"
        if self.of_decays and self.parts.is_mamba:
            yield "dstep_value = torch.empty_like(total)"
            yield "ddt = new(dt.shape, dtype=dt.dtype, device=device)"
            yield f"dA, ddt_bias = (torch.zeros([slots, num_heads], {fp32}) for _ in range(2))"
        elif self.of_decays:
            yield "dg = new(g.shape, dtype=g.dtype, device=device)"

    def results(self) -> Iterator[str]:
        """A tensor for each input that asks for a gradient; an empty one where it was left out."""
        none = "torch.empty(0, device=device)"
        for name, node in self.inputs.items():
            if not node.grad:
                continue
            if name in (self.q, self.k):
                yield f"d{name}_parts.sum(0).to({name}.dtype) if d{name}_parts.shape[0] > 1 else d{name}_parts[0]"
            elif name == self.parts.init:
                yield f"{none} if {name} is None else dinit.to({name}.dtype)"
            elif name in ("A", "dt_bias"):
                made = f"d{name}.sum(0).to({name}.dtype)"
                yield f"{none} if {name} is None else {made}" if node.optional else made
            elif name == "D":
                yield f"{none} if D is None else dD.sum(0).to(D.dtype)"
            else:
                yield f"{none} if {name} is None else d{name}" if node.optional else f"d{name}"
