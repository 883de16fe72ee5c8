"""The argument lists of a generated module: kernel, launcher, custom op and public function, from one graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attngen.emit.arguments import Arguments, elements, index_type, number
from attngen.emit.cascade import FOR_PREFIXES, prefix_config, prefix_lines
from attngen.emit.faces import CapturedArgument, ForwardLaunch, Interface, ScalarArgument, unspecialized
from attngen.emit.interface_backward import backward_face
from attngen.emit.paged import queries_per_tile, tile_lines, torch_name
from attngen.emit.parts import SMALLEST_TILE
from attngen.emit.split import COUNTING, measures, num_splits_lines
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import OWNED_AXES, Axis, Map, Pages


def interface(graph: Graph) -> Interface:
    """Return the argument lists of a scheduled graph's module."""
    return _Forward(graph).build()


class _Forward(Arguments):
    def build(self) -> Interface:
        arguments = self.kernel_arguments()
        table = self.table_arguments()
        op_arguments = self.op_arguments()
        empty = "zeros" if self.packed else "empty"  # tokens of no sequence have out 0, lse -inf
        letters = self.layout if not self.packed else "thd"
        return Interface(
            kernel_arguments=tuple(name for name, _, _ in arguments),
            kernel_types=tuple((name, kind) for name, kind, _ in arguments),
            kernel_constants=tuple(name for name, _ in self.constants()),
            unspecialized=unspecialized((n, kind) for n, kind, _ in arguments),
            launches=self._launches(),
            programs=f"{self._programs()} * num_splits" if self.splits else self._programs(),
            table_arguments=tuple(name for name, _, _ in table),
            table_types=tuple((name, kind) for name, kind, _ in table),
            table_constants=(*(n for n, _ in self.mask_constants()), "BLOCK_M", "BLOCK_N"),
            table_values=(
                *(value for _, _, value in table),
                *(f"{n}={v}" for n, v in self.mask_constants()),
            ),
            index_types=tuple(index_type(n) for n in self.captured),
            op_name=f"{self.graph.provenance.name}_{self.graph.digest()[:12]}",
            op_arguments=tuple(f"{n}: {t}" for n, t in op_arguments),
            op_call=", ".join(n for n, _ in op_arguments),
            public_call=", ".join(self.host(n) if n in self.tensors else n for n, _ in op_arguments),
            public_arguments=self.public_arguments(),
            scalars=tuple(self._scalar_argument(n) for n in self.params),
            captured=tuple(self._captured_argument(n) for n in self.captured),
            reads_values=self.packed
            or bool(self.scale_names)
            or any(self.inputs[n].sorted for n in self.captured),
            has_sinks="sinks" in self.inputs,
            has_extents=bool(self.captured) or self.pages is not None,
            default_scale=self.inputs["softmax_scale"].default,
            q_sizes=self._sizes(letters, "q"),
            k_sizes=self._sizes(letters, "k"),
            q_doc=self._doc(letters, "q", number(self.graph.axis("Dqk").size)),
            k_doc=self._key_doc(letters, number(self.graph.axis("Dqk").size)),
            v_doc=self._key_doc(letters, self.v_dim),
            lse_doc="[Hq, Tq]" if self.packed else "[B, Hq, Sq]",
            rank=len(letters),
            out_empty=f"torch.{empty}([*q.shape[:-1], {self.v_dim}], dtype=q.dtype, device=q.device)",
            lse_empty=self._lse_empty(),
            **self._launching(),
            **self._combining(),
            grid_length="max_seqlen_q" if self.packed else "seqlen_q",
            launch_keys="max_seqlen_k" if self.packed else f"k.shape[{self.dim('s')}]",
            launch_length="max_seqlen_q" if self.packed else f"q.shape[{self.dim('s')}]",
            launch_heads=f"q.shape[{self.heads}]",
            launch_batch=self.batch(),
            heads=self.heads,
            group_axis=self.heads + 1,
            keys_grid_length="max_seqlen_k" if self.packed else "seqlen_k",
            backward=backward_face(self.graph) if "dq" in self.graph.nodes else None,
        )

    def _launching(self) -> dict[str, Any]:
        """How the launcher sizes the grid and chooses a schedule."""
        pages = self.pages
        nothing = "out.numel() == 0 and lse.numel() == 0"
        if pages is None:
            keys = [t for t in self.tensors if t != "q"]
            strides = ", ".join(f"{t}.stride({self.dim('s')})" for t in keys)
            length = "max_seqlen_q" if self.packed else f"q.shape[{self.dim('s')}]"
            return {
                "nothing": nothing,
                "configs": "CONFIGS",
                "aligned": f"_descriptors_fit({', '.join(keys)})",
                "large_name": "LARGE_STRIDES",
                "large": f'max(0, {strides}) * config["BLOCK_N"] >= 2**31',
                "tile_lines": (f'num_tiles_m = triton.cdiv({length}, config["BLOCK_M"])',),
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
                "written": (),
                "k_scale_given": "",
                "v_scale_given": "",
                "page_size": 0,
                "heads_first": False,
                "prefix_config": "",
                "prefix_lines": (),
            }
        stored = torch_name(self.inputs["k"].dtype)
        spread = [t for t in self.tensors if t != "q"]
        spread += self.scale_names if self.inputs["k"].scales == "token_head" else ()
        extents = ", ".join(f"_extent({t})" for t in spread)
        lines = tile_lines(self.group, self.in_rows)
        if self.splits:
            lines += num_splits_lines(self.splits, pages, self._head_programs("config"))
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
            "is_csr": pages.table == "csr",
            "stored": "q.dtype" if not self.scale_names else f"torch.{stored}",
            "stored_doc": "same dtype" if not self.scale_names else stored,
            "scales": self.scale_names,
            "scale_shape": self._scale_shape(),
            "scale_doc": self._scale_doc(),
            **self._appending(),
            "page_size": pages.size,
            "heads_first": self.inputs["k"].layout == "phsd",
            **self._cascading(pages, few),
        }

    def _head_programs(self, config: str) -> str:
        """How many programs share the keys of a tile of queries."""
        if not self.in_rows:
            return "q.shape[1]"
        heads = f"k.shape[{self.key_dim('k', 'h')}]"
        if self.group > SMALLEST_TILE:
            heads += f' * triton.cdiv({self.group}, min({self.group}, {config}["BLOCK_M"]))'
        return heads

    def _cascading(self, pages: Pages, few: int) -> dict[str, Any]:
        """How the launcher folds prefixes that groups of sequences share."""
        if not pages.prefix or self.splits is None:
            return {"prefix_config": "", "prefix_lines": ()}
        block_q = queries_per_tile(self.group, self.in_rows, "prefix_config")
        return {
            "prefix_config": prefix_config(few, bool(self.launch.decode)),
            "prefix_lines": prefix_lines(self.splits, pages, block_q, self._head_programs("prefix_config")),
        }

    def _launches(self) -> tuple[ForwardLaunch, ...]:
        """The launches of the forward kernel, in order: what counts tiles, what folds shared prefixes, and the fold itself."""
        found = [ForwardLaunch("", "", "grid", self._values({}), "config")]
        if self.pages is not None and self.pages.prefix:
            comment = "once for each group: its queries are rows of one fold over the prefix"
            values = self._values(FOR_PREFIXES)
            grid = "(prefix_programs * prefix_splits,)"
            found.insert(0, ForwardLaunch(comment, "", grid, values, "prefix_config"))
        always = len(found) > 1  # what prefixes leave is merged even if it is one piece each
        counting = [
            ForwardLaunch(
                f"how many tiles of keys {there} to share",
                "" if always else "split",
                f"({programs},)",
                self._values({**instead, **COUNTING}),
                config,
            )
            for there, programs, instead, config in (
                ("there are", self._programs(), {}, "config"),
                ("prefixes have", "prefix_programs", FOR_PREFIXES, "prefix_config"),
            )[: len(found)]
        ]
        return (*(counting if measures(self.splits) else ()), *found)

    def _programs(self) -> str:
        """How many programs fold keys, without splits."""
        if self.pages:
            return f"num_tiles_m * {self._head_programs('config')}"
        return f"num_tiles_m * q.shape[{self.heads}] * {self.batch()}"

    def _values(self, instead: Mapping[str, str]) -> tuple[str, ...]:
        """What a launch passes to the kernel, some of it other than usual."""
        return (
            *(instead.get(name, value) for name, _, value in self.kernel_arguments()),
            *(f"{name}={instead.get(name, value)}" for name, value in self.constants() if value),
        )

    def _combining(self) -> dict[str, Any]:
        """The argument list of the kernel that merges splits."""
        sink = [("sinks", "*fp32", "sinks")] if "sinks" in self.inputs else []
        rows = [(n, "*fp32", n) for n in ("partial_out", "partial_lse")]
        if measures(self.splits):
            rows += [(n, "*i32", n) for n in ("tiles_of_rows", "total_tiles")]
        rows += [
            ("out", "*io", "out"),
            ("lse", "*fp32", "lse"),
            *sink,
            ("cu_seqlens_q", "*i32", "cu_seqlens_q"),
        ]
        rows += [(f"stride_o{c}", "i32", f"out.stride({n})") for n, c in enumerate("sh")]
        rows += [("stride_lh", "i32", "lse.stride(-2)")]
        rows += [("stride_sinks_0", "i32", "_stride(sinks, 0)")] if sink else []
        rows += [("num_q_heads", "i32", "q.shape[1]"), ("num_seqs", "i32", "num_seqs")]
        parts = "prefix_splits + num_splits" if self.pages and self.pages.prefix else "num_splits"
        if measures(self.splits):
            rows += [(n, "i32", n) for n in ("prefix_splits", "num_splits") if n in parts]
            rows += [("num_sms", "i32", "num_sms")]
        else:
            rows += [("num_splits", "i32", parts)]
        rows += [("total_rows", "i32", "rows")]
        rows = rows if self.splits else []
        return {
            "has_decode": bool(self.launch.decode),
            "measures": measures(self.splits),
            "combine_arguments": tuple(n for n, _, _ in rows),
            "combine_types": tuple((n, t) for n, t, _ in rows),
            "combine_unspecialized": unspecialized((n, kind) for n, kind, _ in rows),
            "combine_values": tuple(f"{n}={v}" for n, _, v in rows),
            "combine_bases": ("out_base = out", "lse_base = lse"),
        }

    def _key_doc(self, letters: str, dim: int) -> str:
        if self.pages is None:
            return self._doc(letters, "k", dim)
        columns = dim // 2 if self.inputs["k"].dtype == "int4" else dim
        names = {"p": "num_pages", "s": str(self.pages.size), "h": "Hkv", "d": str(columns)}
        return f"[{', '.join(names[c] for c in self.inputs['k'].layout)}]"

    def _lse_empty(self) -> str:
        kind = "dtype=torch.float32, device=q.device"
        if self.packed:
            return f'torch.full([q.shape[{self.heads}], q.shape[0]], float("-inf"), {kind})'
        return f"torch.empty([q.shape[0], q.shape[{self.heads}], q.shape[{self.dim('s')}]], {kind})"

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
            needs=tuple(self._needs(name)),
        )

    def _needs(self, name: str) -> Iterator[tuple[str, str]]:
        """Tests that places of axes exist that formulas read at a constant, or at the head or batch entry of another axis."""
        counts = {self.graph.axis(axis).symbol: row[0] for axis, row in self.counts().items()}
        scores = {e for _, node in self.graph.all(Map) for e in ex.walk(node.expr)}
        for element in elements(self.graph):
            for n, (index, axis) in enumerate(self.read_axes(element) if element.tensor == name else []):
                size, places = _size(axis), ""
                if isinstance(index, Const) and axis.name in OWNED_AXES and index.value:
                    places = str(index.value + 1)
                if (
                    isinstance(index, Symbol)
                    and index.name in counts
                    and element in scores
                    and not axis.origin
                ):
                    places = counts[index.name] * (axis.symbol != index.name)
                if places:
                    said = f"axis {n} is read at {ex.text(index)}, so that it needs {{{places}}} places"
                    yield f"{size} >= {places}", f"{name}: {said}, and has {{{size}}}"

    def _appending(self) -> dict[str, Any]:
        """How new rows are written."""
        layout = self.inputs["k"].layout
        rows = [t for t in self.tensors if t != "q"]
        return {
            "cache_strides": tuple(str(layout.index(c)) for c in "psh"),
            "cache_head": layout.index("h"),
            "append_arguments": tuple(f"{n}: torch.Tensor" for n in (*rows, *(self.host(t) for t in rows))),
            "caches": ", ".join(self.host(t) for t in rows),
            "written": (*(self.host(t) for t in rows), *self.scale_names),
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
