"""The argument lists of a generated module: kernel, launcher, custom op and public function, from one graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attngen.emit.paged import table_tensors, tile_lines
from attngen.emit.parts import SMALLEST_TILE, attending, launch_of
from attngen.emit.split import num_splits_lines
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import Axis, Config, Fold, Input, Map, Store


@dataclass(frozen=True, slots=True)
class CapturedArgument:
    """A captured tensor of the public function: the shape it must have, as the text of a tuple, and its dtypes."""

    name: str
    shape: str
    dtypes: str
    is_sorted: bool
    doc: str


@dataclass(frozen=True, slots=True)
class ScalarArgument:
    """A run-time parameter of the public function: its name and Python type."""

    name: str
    kind: str
    is_int: bool
    is_axis: bool  # the size of a captured tensor's axis


@dataclass(frozen=True, slots=True)
class KernelFace:
    """The argument list of one backward kernel, and what the launcher passes."""

    name: str
    arguments: tuple[str, ...]
    types: tuple[tuple[str, str], ...]
    constants: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def unspecialized(self) -> str:
        """The numbers that vary from call to call: no kernel is compiled again for theirs."""
        return _unspecialized(self.types)


@dataclass(frozen=True, slots=True)
class CapturedFace:
    """How the launcher runs a kernel of the gradient of one captured tensor."""

    stores: str
    kernel: KernelFace
    before: tuple[str, ...]  # statements that make its buffers
    programs: str


@dataclass(frozen=True, slots=True)
class BackwardFace:
    """The argument lists of the backward: its kernels, its launcher, its custom op."""

    rows: KernelFace
    dq: KernelFace
    dkdv: KernelFace
    op_arguments: tuple[str, ...]
    op_call: str
    returns: str
    saved: str  # tensors that autograd keeps
    kept: str  # and plain values
    named: str  # the gradients of the backward op
    results: str  # a gradient, or None, per argument of the forward op
    without: tuple[tuple[int, str], ...]  # captured tensors of floats that get none, by their place
    fake: str
    grads: str  # of q, k and v
    gradient_arguments: tuple[str, ...]
    gradient_call: str
    index_types: tuple[str, ...]
    padded: str  # the shape of statistics per row
    keys_length: str
    keys_heads: str
    wants: str  # the sums that a launch over keys may be asked for, as variables of the launcher
    flags: tuple[str, ...]  # and as arguments of the kernel
    group_sums: str  # what adds up the heads of each group, where programs own query heads
    row_strides: str
    descriptor_tensors: str
    grads_empty: tuple[str, ...]
    buffers: tuple[str, ...]  # of gradients of captured tensors
    captured: tuple[CapturedFace, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """Argument lists as finished text, one entry per line."""

    kernel_arguments: tuple[str, ...]
    kernel_types: tuple[tuple[str, str], ...]
    kernel_constants: tuple[str, ...]
    unspecialized: str
    launch_values: tuple[str, ...]
    table_arguments: tuple[str, ...]
    table_types: tuple[tuple[str, str], ...]
    table_constants: tuple[str, ...]
    table_values: tuple[str, ...]
    index_types: tuple[str, ...]
    op_name: str
    op_arguments: tuple[str, ...]
    op_call: str
    public_call: str
    public_arguments: tuple[str, ...]
    scalars: tuple[ScalarArgument, ...]
    captured: tuple[CapturedArgument, ...]
    reads_values: bool  # some checks look at values, where that needs no device sync
    has_sinks: bool
    has_extents: bool  # the launcher asks how far a tensor reaches
    default_scale: str
    q_sizes: str
    k_sizes: str
    q_doc: str
    k_doc: str
    v_doc: str
    lse_doc: str
    rank: int
    out_empty: str
    lse_empty: str
    nothing: str  # the test of a call without work
    configs: str  # schedules to choose from
    aligned: str  # whether descriptors can address the tensors
    large_name: str
    large: str  # whether offsets within a tile need 64 bits
    tile_lines: tuple[str, ...]
    programs: str
    has_decode: bool  # schedules of their own for few queries
    chooses_splits: bool
    combine_arguments: tuple[str, ...]
    combine_types: tuple[tuple[str, str], ...]
    combine_values: tuple[str, ...]
    combine_bases: tuple[str, ...]
    is_csr: bool
    stored: str  # dtype of a cache
    stored_doc: str
    scales: tuple[str, ...]  # arguments that bring scales of what is stored
    scale_shape: str
    scale_doc: str
    cache_strides: tuple[str, ...]  # axes of a cache: pages, slots, heads
    cache_head: int
    append_arguments: tuple[str, ...]
    caches: str
    k_scale_given: str
    v_scale_given: str
    page_size: int
    heads_first: bool
    grid_length: str
    launch_length: str
    launch_keys: str
    launch_heads: str
    launch_batch: str
    heads: int  # the axis of heads in q's layout
    group_axis: int  # the one after it, when heads are split into groups
    keys_grid_length: str
    backward: BackwardFace | None


def interface(graph: Graph) -> Interface:
    """Return the argument lists of a scheduled graph's module."""
    return _Builder(graph).build()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs = dict(graph.all(Input))
        self.tensors = tuple(n for n, i in self.inputs.items() if i.role == "tensor")
        self.captured = tuple(n for n, i in self.inputs.items() if i.role == "captured")
        self.params = tuple(n for n, i in self.inputs.items() if i.role == "scalar" and not i.default)
        self.has_dropout = "seed" in self.inputs
        self.layout = self.inputs["q"].layout
        self.packed = graph.packed
        self.launch = attending(graph)
        self.splits = next(fold.domain.splits for _, fold in graph.all(Fold) if fold.monoid == "softmax")
        self.pages = self.inputs["k"].pages
        caches = [t for t in self.tensors if self.inputs[t].scales]
        self.scale_names = tuple(f"{t}_scale" for t in caches)
        self.in_rows = self.launch.program_axes == ("Hkv",)
        self.group = graph.axis("Hkv").group
        self.has_table = any(fold.domain.table for _, fold in graph.all(Fold))
        self.heads = self.layout.index("h")
        self.v_dim = _number(graph.axis("Dv").size)

    def build(self) -> Interface:
        arguments = self._kernel_arguments()
        table = self._table_arguments()
        op_arguments = self._op_arguments()
        empty = "zeros" if self.packed else "empty"  # tokens of no sequence have out 0, lse -inf
        letters = self.layout if not self.packed else "thd"
        return Interface(
            kernel_arguments=tuple(name for name, _, _ in arguments),
            kernel_types=tuple((name, kind) for name, kind, _ in arguments),
            kernel_constants=tuple(name for name, _ in self._constants()),
            unspecialized=_unspecialized((n, kind) for n, kind, _ in arguments),
            launch_values=(
                *(value for _, _, value in arguments),
                *(f"{n}={v}" for n, v in self._constants() if v),
            ),
            table_arguments=tuple(name for name, _, _ in table),
            table_types=tuple((name, kind) for name, kind, _ in table),
            table_constants=(*(n for n, _ in self._mask_constants()), "BLOCK_M", "BLOCK_N"),
            table_values=(
                *(value for _, _, value in table),
                *(f"{n}={v}" for n, v in self._mask_constants()),
            ),
            index_types=tuple(_index_type(n) for n in self.captured),
            op_name=f"{self.graph.provenance.name}_{self.graph.digest()[:12]}",
            op_arguments=tuple(f"{n}: {t}" for n, t in op_arguments),
            op_call=", ".join(n for n, _ in op_arguments),
            public_call=", ".join(self._host(n) if n in self.tensors else n for n, _ in op_arguments),
            public_arguments=self._public_arguments(),
            scalars=tuple(self._scalar_argument(n) for n in self.params),
            captured=tuple(self._captured_argument(n) for n in self.captured),
            reads_values=self.packed or any(self.inputs[n].sorted for n in self.captured),
            has_sinks="sinks" in self.inputs,
            has_extents=bool(self.captured) or self.pages is not None,
            default_scale=self.inputs["softmax_scale"].default,
            q_sizes=self._sizes(letters, "q"),
            k_sizes=self._sizes(letters, "k"),
            q_doc=self._doc(letters, "q", _number(self.graph.axis("Dqk").size)),
            k_doc=self._key_doc(letters, _number(self.graph.axis("Dqk").size)),
            v_doc=self._key_doc(letters, self.v_dim),
            lse_doc="[Hq, Tq]" if self.packed else "[B, Hq, Sq]",
            rank=len(letters),
            out_empty=f"torch.{empty}([*q.shape[:-1], {self.v_dim}], dtype=q.dtype, device=q.device)",
            lse_empty=self._lse_empty(),
            **self._launching(),
            **self._combining(),
            grid_length="max_seqlen_q" if self.packed else "seqlen_q",
            launch_keys="max_seqlen_k" if self.packed else f"k.shape[{self._dim('s')}]",
            launch_length="max_seqlen_q" if self.packed else f"q.shape[{self._dim('s')}]",
            launch_heads=f"q.shape[{self.heads}]",
            launch_batch=self._batch(),
            heads=self.heads,
            group_axis=self.heads + 1,
            keys_grid_length="max_seqlen_k" if self.packed else "seqlen_k",
            backward=self._backward() if "dq" in self.graph.nodes else None,
        )

    def _launching(self) -> dict[str, Any]:
        """How the launcher sizes the grid and chooses a schedule."""
        pages = self.pages
        nothing = "out.numel() == 0 and lse.numel() == 0"
        if pages is None:
            keys = [t for t in self.tensors if t != "q"]
            strides = ", ".join(f"{t}.stride({self._dim('s')})" for t in keys)
            length = "max_seqlen_q" if self.packed else f"q.shape[{self._dim('s')}]"
            batch = "(cu_seqlens_q.shape[0] - 1)" if self.packed else "q.shape[0]"
            return {
                "nothing": nothing,
                "configs": "CONFIGS",
                "aligned": f"_descriptors_fit({', '.join(keys)})",
                "large_name": "LARGE_STRIDES",
                "large": f'max(0, {strides}) * config["BLOCK_N"] >= 2**31',
                "tile_lines": (f'num_tiles_m = triton.cdiv({length}, config["BLOCK_M"])',),
                "programs": f"num_tiles_m * q.shape[{self.heads}] * {batch}",
                "is_csr": False,
                "stored": "",
                "stored_doc": "",
                "scales": (),
                "scale_shape": "",
                "scale_doc": "",
                "cache_strides": (),
                "cache_head": 0,
                "append_arguments": (),
                "caches": "",
                "k_scale_given": "",
                "v_scale_given": "",
                "page_size": 0,
                "heads_first": False,
            }
        dtype = self.inputs["k"].dtype
        extents = ", ".join(f"_extent({t})" for t in self.tensors if t != "q")
        heads = f"k.shape[{self._key_dim('k', 'h')}]"
        if self.group > SMALLEST_TILE:
            heads += f' * triton.cdiv({self.group}, min({self.group}, config["BLOCK_M"]))'
        programs = f"num_tiles_m * {heads if self.in_rows else 'q.shape[1]'}"
        lines = tile_lines(self.group, self.in_rows)
        if self.splits:
            lines += num_splits_lines(self.splits, pages, programs)
        few = (
            max(SMALLEST_TILE // self.group, 1) if self.in_rows else SMALLEST_TILE
        )  # queries in a small tile
        return {
            "nothing": f"{nothing} or cu_seqlens_q.shape[0] == 1",
            "configs": f"CONFIGS if max_seqlen_q > {few} else DECODE_CONFIGS"
            if self.launch.decode
            else "CONFIGS",
            "aligned": "False",
            "large_name": "LARGE_CACHE",
            "large": f"max(0, {extents}) >= 2**31",
            "tile_lines": lines,
            "programs": f"{programs} * num_splits" if self.splits else programs,
            "is_csr": pages.table == "csr",
            "stored": "q.dtype" if not self.scale_names else f"torch.{UNPACKED.get(dtype, dtype)}",
            "stored_doc": "same dtype" if not self.scale_names else UNPACKED.get(dtype, dtype),
            "scales": self.scale_names,
            "scale_shape": self._scale_shape(),
            "scale_doc": self._scale_doc(),
            **self._appending(),
            "page_size": pages.size,
            "heads_first": self.inputs["k"].layout == "phsd",
        }

    def _combining(self) -> dict[str, Any]:
        """The argument list of the kernel that merges splits."""
        sink = [("sinks", "*fp32", "sinks")] if "sinks" in self.inputs else []
        rows = [(n, "*fp32", n) for n in ("partial_out", "partial_lse")]
        rows += [
            ("out", "*io", "out"),
            ("lse", "*fp32", "lse"),
            *sink,
            ("cu_seqlens_q", "*i32", "cu_seqlens_q"),
        ]
        rows += [(f"stride_o{c}", "i32", f"out.stride({n})") for n, c in enumerate("sh")]
        rows += [("stride_lh", "i32", "lse.stride(-2)")]
        rows += [("stride_sinks_0", "i32", "sinks.stride(0)")] if sink else []
        rows += [("num_q_heads", "i32", "q.shape[1]"), ("num_seqs", "i32", "num_seqs")]
        rows += [("num_splits", "i32", "num_splits"), ("total_rows", "i32", "rows")]
        rows = rows if self.splits else []
        return {
            "has_decode": bool(self.launch.decode),
            "chooses_splits": self.splits is not None and not (self.splits.count or self.splits.keys),
            "combine_arguments": tuple(n for n, _, _ in rows),
            "combine_types": tuple((n, t) for n, t, _ in rows),
            "combine_values": tuple(f"{n}={v}" for n, _, v in rows),
            "combine_bases": ("out_base = out", "lse_base = lse"),
        }

    def _key_dim(self, tensor: str, letter: str) -> int:
        return self.inputs[tensor].layout.replace("t", "s").index(letter)

    def _appending(self) -> dict[str, Any]:
        """How new rows are written."""
        layout = self.inputs["k"].layout
        rows = [t for t in self.tensors if t != "q"]
        return {
            "cache_strides": tuple(str(layout.index(c)) for c in "psh"),
            "cache_head": layout.index("h"),
            "append_arguments": tuple(f"{n}: torch.Tensor" for n in (*rows, *(self._host(t) for t in rows))),
            "caches": ", ".join(self._host(t) for t in rows),
            "k_scale_given": "k_scale" if self.scale_names else "None",
            "v_scale_given": "v_scale" if self.scale_names else "None",
        }

    def _scale_shape(self) -> str:
        shapes = {
            "tensor": "()",
            "head": f"(k_cache.shape[{self.inputs['k'].layout.index('h')}],)",
            "token_head": "tuple(k_cache.shape[:-1])",
            "": "",
        }
        return shapes[self.inputs["k"].scales]

    def _scale_doc(self) -> str:
        docs = {
            "tensor": "[] or [1]",
            "head": "[Hkv]",
            "token_head": "as the cache without its last axis",
            "": "",
        }
        return f"{', '.join(self.scale_names)}: {docs[self.inputs['k'].scales]}"

    def _host(self, tensor: str) -> str:
        """The caller's name of a tensor."""
        return self.inputs[tensor].argument or tensor

    def _stored_type(self, tensor: str) -> str:
        """Triton's name of what a tensor stores."""
        dtype = self.inputs[tensor].dtype if tensor in self.inputs else "io"
        return TRITON.get(dtype, dtype)

    def _key_doc(self, letters: str, dim: int) -> str:
        if self.pages is None:
            return self._doc(letters, "k", dim)
        columns = dim // 2 if self.inputs["k"].dtype == "int4" else dim
        names = {"p": "num_pages", "s": str(self.pages.size), "h": "Hkv", "d": str(columns)}
        return f"[{', '.join(names[c] for c in self.inputs['k'].layout)}]"

    def _backward(self) -> BackwardFace:
        stored = {name: self._stored(name) for name in ("lse2", "dq")}
        added = [n for n in stored["dq"][1:] if self._fold(n).into]
        sums = [n for n in (*stored["lse2"][2:], *stored["dq"][1:]) if n not in added]
        graded = [n for n, i in self.inputs.items() if i.grad]
        forward = [n for n, _ in self._op_arguments()]
        tensors = [n for n, t in self._op_arguments() if t.startswith("torch.Tensor")]
        plain = [n for n in forward if n not in tensors]
        op = [
            ("dout", "torch.Tensor"),
            ("dlse", "torch.Tensor | None"),
            ("out", "torch.Tensor"),
            ("lse", "torch.Tensor"),
        ]
        op += self._op_arguments()
        per_head = self.per_head()
        heads = "num_q_heads" if per_head else "num_kv_heads"
        sinks = ["sinks"] if "sinks" in self.inputs else []
        keys = self.tensors[1:]
        wants = ("want_dk", "want_dv") if "v" in keys else ("want_low", "want_high")
        return BackwardFace(
            rows=self._face(
                "_backward_rows", ["out", "dout"], ["lse", "dlse", *stored["lse2"]], sinks, ["HAS_DLSE"]
            ),
            dq=self._face(
                "_backward_dq",
                [*self.tensors, "dout", "dq"],
                ["lse2", "delta", *(n for n in sums if n in stored["dq"])],
                None,
                [],
                more=[row for n in added for row in self._places(n)],
                indices=added,
            ),
            dkdv=self._face(
                "_backward_dkdv",
                [*self.tensors, "dout", *(f"d{t}" for t in keys)],
                ["lse2", "delta"],
                None,
                [flag.upper() for flag in wants],
                heads,
            ),
            op_arguments=tuple(f"{n}: {t}" for n, t in op),
            op_call=", ".join(n for n, _ in op),
            returns=f"tuple[{', '.join(['torch.Tensor'] * len(graded))}]",
            saved=", ".join([*tensors, "out", "lse"]),
            kept=", ".join(plain) + ",",
            named=", ".join(f"d{n}" for n in graded),
            fake=", ".join(f"torch.empty({n}.shape, dtype={n}.dtype, device={n}.device)" for n in graded),
            grads=", ".join(f"d{t}" for t in self.tensors),
            gradient_arguments=tuple(f"{t}: torch.Tensor" for t in self.tensors),
            gradient_call=", ".join(self.tensors),
            results=", ".join(f"d{n}" if n in graded else "None" for n in forward),
            without=tuple((p, n) for p, n in enumerate(forward) if self._is_ungraded(n)),
            index_types=tuple(_index_type(n) for n in self.captured if n != "sinks"),
            padded=self._padded(),
            keys_length=self._lengths_of_keys(),
            keys_heads=f"q.shape[{self.heads}]" if per_head else f"k.shape[{self.heads}]",
            wants=", ".join(wants),
            flags=tuple(f"{want.upper()}={want}" for want in wants),
            group_sums=f"{', '.join(f'd{t}' for t in keys)} = {', '.join(f'_group_sum(d{t}, {t})' for t in keys)}",
            row_strides=", ".join(f"{t}.stride({self._dim('s')})" for t in (*self.tensors, "dout")),
            descriptor_tensors=", ".join([*self.tensors, "dout"]),
            grads_empty=tuple(self._gradient(n, per_head) for n in self.tensors),
            buffers=(
                *(f"{n} = torch.zeros_like(lse)" for n in sums),
                *(line for n in added for line in (self._zeros(n), _index_type(n))),
            ),
            captured=self._captured_faces(),
        )

    def _fold(self, name: str) -> Fold:
        fold = self.graph.nodes[name]
        assert isinstance(fold, Fold)
        return fold

    def _zeros(self, gradient: str) -> str:
        tensor = gradient.removeprefix("d")
        return f"{gradient} = torch.zeros({tensor}.shape, dtype=torch.float32, device=q.device)"

    def _places(self, gradient: str) -> list[tuple[str, str, str]]:
        """The arguments by which a kernel finds the places of a captured gradient."""
        rank = self._rank(gradient.removeprefix("d"))
        strides = [(f"stride_{gradient}_{p}", "i32", f"{gradient}.stride({p})") for p in range(rank)]
        return [(gradient, "*fp32", gradient), *strides]

    def _captured_faces(self) -> tuple[CapturedFace, ...]:
        """The kernels of captured gradients that have their own: over tiles of scores, then over places of diagonals."""
        folds = [(n, f) for n, f in self.graph.all(Fold) if f.level == "tile" and f.order == "sequential"]
        return tuple(face for name, fold in folds for face in self._captured_face(name, fold))

    def _captured_face(self, stored: str, fold: Fold) -> list[CapturedFace]:
        _, launch = launch_of(self.graph, stored)
        long_q, long_k = ("max_seqlen_q", "max_seqlen_k") if self.packed else ("seqlen_q", "seqlen_k")
        sizes = dict(zip((long_q, long_k), self._long(), strict=True))
        tiles_m = f'triton.cdiv({sizes[long_q]}, config["BLOCK_M"])'
        tiles_n = f'triton.cdiv({sizes[long_k]}, config["BLOCK_N"])'
        counts = {"B": self._batch(), "Hq": f"q.shape[{self.heads}]"}
        kept = [counts[axis] for axis in launch.program_axes]
        gradient = stored if fold.into else stored.removesuffix("_diagonals")
        diagonal = not fold.into
        tiles = {"Sq": [tiles_m, tiles_n], "Sk": [tiles_n], "Sd": ["num_diagonals"]}[launch.tile_axis]
        before = [self._zeros(gradient)]
        if not diagonal:
            before.append(_index_type(gradient))
        else:
            before += [
                f"first_diagonal = {tiles_m if self.packed else tiles_n}",
                f"num_diagonals = {tiles_m} + {tiles_n} + 1",
                'span = 2 * config["BLOCK_M"]',
                f"shape = [{', '.join([*kept, 'num_diagonals', 'span'])}]",
                f"{stored} = torch.empty(shape, dtype=torch.float32, device=q.device)",
            ]
        more = [(stored, "*fp32", stored)] if diagonal else self._places(gradient)
        name = f"_backward_captured_{stored.removeprefix('d')}"
        face = self._face(
            name,
            [*self.tensors, "dout"],
            ["lse2", "delta"],
            None,
            [],
            more=[*more, ("batch", "i32", self._batch())],
            indices=[] if diagonal else [gradient],
        )
        own = CapturedFace(stored, face, tuple(before), " * ".join([*tiles, *kept]))
        return [own, self._place_face(gradient, stored)] if diagonal else [own]

    def _place_face(self, gradient: str, diagonals: str) -> CapturedFace:
        rank = self._rank(gradient.removeprefix("d"))
        rows = [(diagonals, "*fp32", diagonals), (gradient, "*fp32", gradient)]
        rows += [(p, TRITON[self.inputs[p].dtype], p) for p in self.params]
        rows += [(f"size_{p}", "i32", f"{gradient}.shape[{p}]") for p in range(rank)]
        rows += [("num_q_heads", "i32", f"q.shape[{self.heads}]")]
        rows += [(n, "i32", n) for n in ("num_diagonals", "first_diagonal")]
        rows += [] if self.packed else self._lengths()
        face = KernelFace(
            name=f"_backward_captured_{gradient.removeprefix('d')}",
            arguments=tuple(n for n, _, _ in rows),
            types=tuple((n, t) for n, t, _ in rows),
            constants=("SPAN", "BLOCK_N"),
            values=(*(f"{n}={v}" for n, _, v in rows), "SPAN=span"),
        )
        return CapturedFace(gradient, face, (), f"{gradient}.numel()")

    def _long(self) -> tuple[str, str]:
        if self.packed:
            return "max_seqlen_q", "max_seqlen_k"
        return f"q.shape[{self._dim('s')}]", f"k.shape[{self._dim('s')}]"

    def _batch(self) -> str:
        return "(cu_seqlens_q.shape[0] - 1)" if self.packed else "q.shape[0]"

    def _is_ungraded(self, name: str) -> bool:
        node = self.inputs.get(name)
        return node is not None and node.role == "captured" and not node.grad and "float" in node.dtype

    def _padded(self) -> str:
        heads = f"q.shape[{self.heads}]"
        if self.packed:
            return f"{heads}, q.shape[0] + 128 * (cu_seqlens_q.shape[0] - 1)"
        return f"q.shape[0], {heads}, triton.cdiv(q.shape[{self._dim('s')}], 128) * 128"

    def per_head(self) -> bool:
        """Whether dk and dv are summed per query head first, since formulas vary with the head."""
        return "dk_heads" in self.graph.nodes

    def _stored(self, result: str) -> list[str]:
        _, launch = launch_of(self.graph, result)
        return [s.name for n in launch.stores if isinstance(s := self.graph.nodes[n], Store)]

    def _lengths_of_keys(self) -> str:
        return "max_seqlen_k" if self.packed else f"k.shape[{self._dim('s')}]"

    def _gradient(self, name: str, per_head: bool) -> str:
        """Allocate a gradient: of packed tokens zeros, since some may belong to no sequence."""
        kind = "zeros" if self.packed else "empty"
        if name == "q" or not per_head:
            return f"d{name} = torch.{kind}({name}.shape, dtype={name}.dtype, device={name}.device)"
        shape = f"[*{name}.shape[:{self.heads}], q.shape[{self.heads}], *{name}.shape[{self.heads + 1}:]]"
        return f"d{name} = torch.{kind}({shape}, dtype=torch.float32, device={name}.device)"

    def _face(
        self,
        name: str,
        tensors: list[str],
        statistics: list[str],
        captured: list[str] | None,
        constants: list[str],
        heads: str = "num_q_heads",
        more: Sequence[tuple[str, str, str]] = (),
        indices: Sequence[str] = (),
    ) -> KernelFace:
        """The argument list of a backward kernel over some tensors and per-row statistics."""
        used = [c for c in self.captured if c != "sinks"] if captured is None else captured
        rows = [(t, "*fp32" if t in ("dk", "dv") and self.per_head() else "*io", t) for t in tensors]
        rows += [(n, "*fp32", n) for n in statistics]
        rows += [(c, f"*{TRITON[self.inputs[c].dtype]}", c) for c in used]
        if self.packed:
            rows += [(n, "*i32", n) for n in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")]
        if captured is None:
            rows += self._dropout_arguments()
            rows.append(("softmax_scale", "fp32", "softmax_scale"))
            rows += [(p, TRITON[self.inputs[p].dtype], p) for p in self.params]
        shorts = {"out": "o", "dout": "g"}
        rows += [
            (f"stride_{shorts.get(t, t)}{letter}", "i32", f"{t}.stride({self._dim(letter)})")
            for t in tensors
            for letter in self.layout.replace("t", "s")[:-1]
        ]
        rows += [("stride_lh", "i32", "lse.stride(-2)"), ("stride_rh", "i32", "lse2.stride(-2)")]
        rows += (
            []
            if self.packed
            else [("stride_lb", "i32", "lse.stride(0)"), ("stride_rb", "i32", "lse2.stride(0)")]
        )
        rows += [(f"stride_{c}_{p}", "i32", f"{c}.stride({p})") for c in used for p in range(self._rank(c))]
        number = {"num_q_heads": f"q.shape[{self.heads}]", "num_kv_heads": f"k.shape[{self.heads}]"}
        rows.append((heads, "i32", number[heads]))
        rows += more
        both = captured is None and not {"dq", "dk"} & {*tensors}
        if self.packed:
            longest = ["max_seqlen_q"] * (both or "dk" not in tensors)
            longest += ["max_seqlen_k"] * (both or "dk" in tensors)
            rows += [(n, "i32", n) for n in longest]
        else:
            rows += self._lengths()
        fixed = self._backward_constants(used, captured is None) + [(n, "") for n in constants]
        fixed = [row for row in fixed if not both or row[0] != "LARGE_STRIDES"]
        fixed += [(f"{n.upper()}_INDEX", f"{n}_index") for n in indices]
        fixed += [("BLOCK_M", ""), ("BLOCK_N", "")]
        fixed += [] if both or captured is not None else [("USE_DESCRIPTORS", "")]
        merged = not both and any(config.merged for config in self._configs(tensors))
        fixed += [("MERGED", "")] if merged else []
        values = [*(f"{n}={v}" for n, _, v in rows), *(f"{n}={v}" for n, v in fixed if v)]
        return KernelFace(
            name=name,
            arguments=tuple(n for n, _, _ in rows),
            types=tuple((n, t) for n, t, _ in rows),
            constants=tuple(n for n, _ in fixed),
            values=tuple(values),
        )

    def _configs(self, tensors: list[str]) -> list[Config]:
        keys = "dk_heads" if self.per_head() else "dk"
        result = keys if "dk" in tensors else "dq" if "dq" in tensors else "lse2"
        _, launch = launch_of(self.graph, result)
        return [config for _, choices in launch.configs for config in choices]

    def _backward_constants(self, used: list[str], formulas_too: bool) -> list[tuple[str, str]]:
        rows = [(f"{c.upper()}_INDEX", f"{c}_index") for c in used if formulas_too]
        rows += [("HAS_SEQUSED_K", "seqused_k is not None")] if self.packed else []
        if formulas_too and any(_uses_tanh(e) for e in formulas(self.graph)):
            rows.append(("PRECISE", "q.dtype == torch.float32"))
        return [*rows, *self._drops(), ("LARGE_STRIDES", "large")] if formulas_too else rows

    def _dropout_arguments(self) -> list[tuple[str, str, str]]:
        names = (("seed", "*i64"), ("dropout_threshold", "i32")) if self.has_dropout else ()
        return [(name, kind, name) for name, kind in names]

    def _drops(self) -> list[tuple[str, str]]:
        return [("DROPOUT", "dropout_threshold > 0")] if self.has_dropout else []

    def _dim(self, letter: str) -> int:
        return self.layout.replace("t", "s").index(letter)

    def _lse_empty(self) -> str:
        kind = "dtype=torch.float32, device=q.device"
        if self.packed:
            return f'torch.full([q.shape[{self.heads}], q.shape[0]], float("-inf"), {kind})'
        return f"torch.empty([q.shape[0], q.shape[{self.heads}], q.shape[{self._dim('s')}]], {kind})"

    def _sizes(self, letters: str, tensor: str) -> str:
        names = {"b": "batch", "s": f"seqlen_{tensor}", "t": f"total_{tensor}", "d": f"{tensor}_dim"}
        names["h"] = "num_q_heads" if tensor == "q" else "num_kv_heads"
        return ", ".join(names[c] for c in letters)

    def _doc(self, letters: str, tensor: str, dim: int) -> str:
        names = {
            "b": "B",
            "s": f"S{tensor}",
            "t": f"T{tensor}",
            "d": str(dim),
            "h": "Hq" if tensor == "q" else "Hkv",
        }
        return f"[{', '.join(names[c] for c in letters)}]"

    def _kernel_arguments(self) -> list[tuple[str, str, str]]:
        """Name, Triton type and launch value of each run-time argument ("*io": pointer to the tensors' dtype)."""
        rows = [(t, f"*{self._stored_type(t)}", t) for t in (*self.tensors, "out")] + [
            ("lse", "*fp32", "lse")
        ]
        rows += [(n, "*fp32", n) for n in self.scale_names]
        rows += [(n, "*fp32", n) for n in ("partial_out", "partial_lse") if self.splits]
        rows += [(c, f"*{TRITON[self.inputs[c].dtype]}", c) for c in self.captured]
        rows += [(n, "*i32", n) for n in self._length_tensors()]
        rows += self._dropout_arguments()
        rows.append(("softmax_scale", "fp32", "softmax_scale"))
        rows += [(p, TRITON[self.inputs[p].dtype], p) for p in self.params]
        rows += [
            self._stride(t, letter)
            for t in (*self.tensors, "out")
            for letter in self.inputs["q" if t == "out" else t].layout.replace("t", "s")[:-1]
        ]
        rows += [("stride_lh", "i32", "lse.stride(-2)")]
        rows += [] if self.packed else [("stride_lb", "i32", "lse.stride(0)")]
        rows += [
            (f"stride_{c}_{p}", "i32", f"{c}.stride({p})")
            for c in self.captured
            for p in range(self._rank(c))
        ]
        if self.inputs["k"].scales == "token_head":
            dims = {c: n for n, c in enumerate(self.inputs["k"].layout)}
            rows += [
                (f"stride_{n}_{c}", "i32", f"{n}.stride({dims[c]})") for n in self.scale_names for c in "psh"
            ]
        rows += (
            [("table", "*i32", "table"), ("stride_table", "i32", "table.stride(0)")] if self.has_table else []
        )
        return [*rows, ("num_q_heads", "i32", f"q.shape[{self.heads}]"), *self._lengths()]

    def _length_tensors(self) -> tuple[str, ...]:
        """int32 tensors that say where sequences and their keys lie."""
        if self.pages is not None:
            return ("cu_seqlens_q", *table_tensors(self.pages))
        return ("cu_seqlens_q", "cu_seqlens_k", "seqused_k") if self.packed else ()

    def _lengths(self) -> list[tuple[str, str, str]]:
        if self.pages is not None:
            row = [("stride_table", "i32", "page_table.stride(0)")] if self.pages.table == "dense" else []
            row += [("num_tiles_m", "i32", "num_tiles_m"), ("num_seqs", "i32", "num_seqs")]
            split = [("num_splits", "i32", "num_splits"), ("total_q", "i32", "q.shape[0]")]
            return [*row, *(split if self.splits else [])]
        if self.packed:
            return [("max_seqlen_q", "i32", "max_seqlen_q")]
        at = self._dim("s")
        return [("seqlen_q", "i32", f"q.shape[{at}]"), ("seqlen_k", "i32", f"k.shape[{at}]")]

    def _table_arguments(self) -> list[tuple[str, str, str]]:
        """The kernel's arguments without the tensors that only the fold reads."""
        skipped = {*self.tensors, "out", "lse", "sinks", "softmax_scale", "num_q_heads", "stride_sinks_0"}
        skipped |= {"seed", "dropout_threshold"}
        short = [f"stride_{'o' if t == 'out' else t}" for t in (*self.tensors, "out", "l")]
        fold_only = {f"{s}{c}" for s in short for c in "bsh"} | skipped
        heads = ("num_q_heads", "i32", "table_heads")
        return [heads, *(a for a in self._kernel_arguments() if a[0] not in fold_only)]

    def _rank(self, captured: str) -> int:
        return len(self.inputs[captured].axes)

    def _stride(self, tensor: str, letter: str) -> tuple[str, str, str]:
        short = "o" if tensor == "out" else tensor
        layout = self.inputs["q" if tensor == "out" else tensor].layout.replace("t", "s")
        return f"stride_{short}{letter}", "i32", f"{tensor}.stride({layout.index(letter)})"

    def _mask_constants(self) -> list[tuple[str, str]]:
        """Compile-time constants that positions and masks need, with their launch values."""
        rows = [(f"{c.upper()}_INDEX", f"{c}_index") for c in self.captured]
        has_used = self.packed and self.pages is None
        return [*rows, ("HAS_SEQUSED_K", "seqused_k is not None")] if has_used else rows

    def _constants(self) -> list[tuple[str, str]]:
        """Compile-time constants of the kernel with their launch values ('' where the schedule gives them)."""
        rows = self._mask_constants()
        if any(_uses_tanh(e) for e in formulas(self.graph)):
            rows.append(("PRECISE", "q.dtype == torch.float32"))
        if self.pages is not None:
            same = [("SAME_STRIDES", "k.stride() == v.stride()")] if "v" in self.tensors else []
            rows += [("LARGE_CACHE", "large"), *same, ("ONE_TILE", "one_tile")]
            rows += [("SPLIT", "split")] if self.splits else []
            return [*rows, ("BLOCK_M", ""), ("BLOCK_N", "")]
        rows += [*self._drops(), ("LARGE_STRIDES", "large"), ("BLOCK_M", ""), ("BLOCK_N", "")]
        return [*rows, ("USE_DESCRIPTORS", "")]

    def _op_arguments(self) -> list[tuple[str, str]]:
        rows = [(t, "torch.Tensor") for t in self.tensors]
        if self.pages is not None:
            tables = [*table_tensors(self.pages), "cu_seqlens_q"]
            rows += [*((n, "torch.Tensor") for n in tables), ("max_seqlen_q", "int")]
            rows += [(n, "torch.Tensor") for n in self.scale_names]
        elif self.packed:
            rows += [("cu_seqlens_q", "torch.Tensor"), ("cu_seqlens_k", "torch.Tensor")]
            rows += [("max_seqlen_q", "int"), ("max_seqlen_k", "int"), ("seqused_k", "torch.Tensor | None")]
        rows.append(("softmax_scale", "float"))
        rows += [(p, "int" if self.inputs[p].dtype == "int32" else "float") for p in self.params]
        rows += [(c, "torch.Tensor") for c in self.captured]
        return rows + ([("dropout_p", "float"), ("seed", "torch.Tensor | None")] if self.has_dropout else [])

    def _public_arguments(self) -> tuple[str, ...]:
        rows = [f"{self._host(t)}: torch.Tensor" for t in self.tensors]
        if self.pages is not None:
            rows += [f"{n}: torch.Tensor" for n in (*table_tensors(self.pages), "cu_seqlens_q")]
            rows += ["max_seqlen_q: int"]
        elif self.packed:
            rows += [
                "cu_seqlens_q: torch.Tensor",
                "cu_seqlens_k: torch.Tensor",
                "max_seqlen_q: int",
                "max_seqlen_k: int",
            ]
        rows += ["*", *(f"{n}: torch.Tensor" for n in self.scale_names)]
        rows += ["softmax_scale: float | None = None"]
        rows += [f"{p}: {'int' if self.inputs[p].dtype == 'int32' else 'float'}" for p in self.params]
        rows += [f"{c}: torch.Tensor" for c in self.captured]
        rows += [] if "sinks" in self.captured else ["sinks: None = None"]
        rows += ["seqused_k: torch.Tensor | None = None"] if self.packed and self.pages is None else []
        seed = "seed: int | torch.Tensor | None = None" if self.has_dropout else "seed: int | None = None"
        return (*rows, "dropout_p: float = 0.0", seed, "return_lse: bool = False")

    def _scalar_argument(self, name: str) -> ScalarArgument:
        whole = self.inputs[name].dtype == "int32"
        sizes = {a.size for c in self.captured for a in map(self.graph.axis, self.inputs[c].axes)}
        return ScalarArgument(name, "int" if whole else "float", whole, Symbol(name, "int") in sizes)

    def _captured_argument(self, name: str) -> CapturedArgument:
        node = self.inputs[name]
        axes = [self.graph.axis(a) for a in node.axes]
        sizes = [_size(a) for a in axes]
        dtypes = f"torch.{node.dtype}"
        dtypes = f"({dtypes}, torch.bfloat16, torch.float16)" if name == "sinks" else f"({dtypes},)"
        shown = ", ".join(a if "." not in a else s for a, s in zip(node.axes, sizes, strict=True))
        sorted_note = ", ascending along its last axis" if node.sorted else ""
        return CapturedArgument(
            name=name,
            shape=f"({', '.join(sizes)},)",
            dtypes=dtypes,
            is_sorted=node.sorted,
            doc=f"[{shown}] {node.dtype}{sorted_note}",
        )


TRITON = {
    "io": "io",
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32", "int64": "i64", "bool": "i1",
    "float8_e4m3fn": "fp8e4nv", "float8_e5m2": "fp8e5", "int8": "i8", "int4": "u8",
}  # fmt: skip
UNPACKED = {"int4": "uint8"}  # torch's names of packed numbers


def formulas(graph: Graph) -> list[Expr]:
    """Return every formula of a graph: what maps compute and what folds mask by."""
    maps = [node.expr for _, node in graph.all(Map)]
    return maps + [node.domain.mask for _, node in graph.all(Fold)]


def _uses_tanh(expr: Expr) -> bool:
    return any(isinstance(e, ex.Apply) and e.op == "tanh_exp2" for e in ex.walk(expr))


def _unspecialized(types: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f'"{n}"' for n, kind in types if kind in ("i32", "fp32") and "stride" not in n)


def _size(axis: Axis) -> str:
    if axis.origin:
        return "total_q" if axis.origin == "q_start" else "total_k"
    match axis.size:
        case Const(value):
            return repr(value)
        case Symbol(name, _):
            return name
        case _:
            return ex.text(axis.size)


def _number(size: Expr) -> int:
    assert isinstance(size, Const)
    return int(size.value)


def _index_type(captured: str) -> str:
    return f"{captured}_index = tl.int64 if _extent({captured}) >= 2**31 else tl.int32"
