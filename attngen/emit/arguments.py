"""The arguments of a generated module's kernels and functions: what each takes, in which order, from one graph."""

from __future__ import annotations

from attngen.emit.cascade import PREFIX_TENSORS
from attngen.emit.paged import table_tensors
from attngen.emit.parts import attending
from attngen.emit.split import measures
from attngen.ir import expr as ex
from attngen.ir.expr import Const, Element, Expr, Symbol
from attngen.ir.graph import Graph
from attngen.ir.nodes import OWNED_AXES, Axis, Fold, Input, Map

TRITON = {
    "io": "io",
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32", "int64": "i64", "bool": "i1",
    "float8_e4m3fn": "fp8e4nv", "float8_e5m2": "fp8e5", "int8": "i8", "int4": "u8",
}  # fmt: skip


class Arguments:
    """What the argument lists of one graph's module have in common."""

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
        self.v_dim = number(graph.axis("Dv").size)

    def host(self, tensor: str) -> str:
        """The caller's name of a tensor."""
        return self.inputs[tensor].argument or tensor

    def counts(self) -> dict[str, tuple[str, str, str]]:
        """How many places there are of the axes of which a program has one each: kernel arguments by axis."""
        kv_heads = f"k.shape[{self.inputs['k'].layout.index('h')}]"
        return {
            "B": ("batch", "i32", self.batch()),
            "Hq": ("num_q_heads", "i32", f"q.shape[{self.heads}]"),
            "Hkv": ("num_kv_heads", "i32", kv_heads),
        }

    def tested_counts(self, *known: str) -> list[tuple[str, str, str]]:
        """Those that a formula's index is tested against, without those that a kernel has."""
        rows = [row for axis, row in self.counts().items() if axis in self._tested()]
        return [row for row in rows if row[0] not in known]

    def _tested(self) -> set[str]:
        """Axes of which a formula reads another place than the program's own or a fixed one."""
        return {
            axis.name
            for element in elements(self.graph)
            for index, axis in self.read_axes(element)
            if axis.name in OWNED_AXES and not isinstance(index, Const) and index != Symbol(axis.symbol)
        }

    def read_axes(self, element: Element) -> list[tuple[Expr, Axis]]:
        """The indices of an element and the axes that they are places of."""
        axes = map(self.graph.axis, self.inputs[element.tensor].axes)
        return list(zip(element.indices, axes, strict=True))

    def batch(self) -> str:
        return "(cu_seqlens_q.shape[0] - 1)" if self.packed else "q.shape[0]"

    def dim(self, letter: str) -> int:
        return self.layout.replace("t", "s").index(letter)

    def key_dim(self, tensor: str, letter: str) -> int:
        return self.inputs[tensor].layout.replace("t", "s").index(letter)

    def rank(self, captured: str) -> int:
        return len(self.inputs[captured].axes)

    def stride(self, tensor: str, letter: str) -> tuple[str, str, str]:
        short = "o" if tensor == "out" else tensor
        layout = self.inputs["q" if tensor == "out" else tensor].layout.replace("t", "s")
        return f"stride_{short}{letter}", "i32", f"{tensor}.stride({layout.index(letter)})"

    def stored_type(self, tensor: str) -> str:
        """Triton's name of what a tensor stores."""
        dtype = self.inputs[tensor].dtype if tensor in self.inputs else "io"
        return TRITON.get(dtype, dtype)

    def dropout_arguments(self) -> list[tuple[str, str, str]]:
        names = (("seed", "*i64"), ("dropout_threshold", "i32")) if self.has_dropout else ()
        return [(name, kind, name) for name, kind in names]

    def drops(self) -> list[tuple[str, str]]:
        return [("DROPOUT", "dropout_threshold > 0")] if self.has_dropout else []

    def length_tensors(self) -> tuple[str, ...]:
        """int32 tensors that say where sequences and their keys lie."""
        if self.pages is not None:
            own = ("places", "prefix_starts") if self.pages.prefix else ()
            return ("cu_seqlens_q", *table_tensors(self.pages), *own)
        return ("cu_seqlens_q", "cu_seqlens_k", "seqused_k") if self.packed else ()

    def tables(self) -> tuple[str, ...]:
        """The caller's int32 tensors that say where keys lie in pages."""
        assert self.pages is not None
        return (*table_tensors(self.pages), *(PREFIX_TENSORS if self.pages.prefix else ()))

    def lengths(self) -> list[tuple[str, str, str]]:
        if self.pages is not None:
            row = [("stride_table", "i32", "page_table.stride(0)")] if self.pages.table == "dense" else []
            row += [("num_tiles_m", "i32", "num_tiles_m"), ("num_seqs", "i32", "num_seqs")]
            split = [("num_splits", "i32", "num_splits"), ("total_q", "i32", "q.shape[0]")]
            split += [("first_part", "i32", "prefix_splits")] if self.pages.prefix else []
            split += [("num_sms", "i32", "num_sms")] if measures(self.splits) else []
            return [*row, *(split if self.splits else [])]
        if self.packed:
            return [("max_seqlen_q", "i32", "max_seqlen_q")]
        at = self.dim("s")
        return [("seqlen_q", "i32", f"q.shape[{at}]"), ("seqlen_k", "i32", f"k.shape[{at}]")]

    def mask_constants(self) -> list[tuple[str, str]]:
        """Compile-time constants that positions and masks need, with their launch values."""
        rows = [(f"{c.upper()}_INDEX", f"{c}_index") for c in self.captured]
        has_used = self.packed and self.pages is None
        return [*rows, ("HAS_SEQUSED_K", "seqused_k is not None")] if has_used else rows

    def constants(self) -> list[tuple[str, str]]:
        """Compile-time constants of the kernel with their launch values ('' where the schedule gives them)."""
        rows = self.mask_constants()
        if any(uses_tanh(e) for e in formulas(self.graph)):
            rows.append(("PRECISE", "q.dtype == torch.float32"))
        if self.pages is not None:
            alike = "k.stride() == v.stride()"
            if self.inputs["k"].scales == "token_head":
                alike += " and k_scale.stride() == v_scale.stride()"
            same = [("SAME_STRIDES", alike)] if "v" in self.tensors else []
            rows += [("LARGE_CACHE", "large"), *same, ("ONE_TILE", "one_tile")]
            rows += [("SPLIT", "split")] if self.splits else []
            rows += [("COUNT", "False")] if measures(self.splits) else []
            rows += [("PREFIX", "False")] if self.pages.prefix else []
            return [*rows, ("BLOCK_M", ""), ("BLOCK_N", "")]
        rows += [*self.drops(), ("LARGE_STRIDES", "large"), ("BLOCK_M", ""), ("BLOCK_N", "")]
        return [*rows, ("USE_DESCRIPTORS", "")]

    def kernel_arguments(self) -> list[tuple[str, str, str]]:
        """Name, Triton type and launch value of each run-time argument ("*io": pointer to the tensors' dtype)."""
        rows = [(t, f"*{self.stored_type(t)}", t) for t in (*self.tensors, "out")] + [("lse", "*fp32", "lse")]
        rows += [(n, "*fp32", n) for n in self.scale_names]
        rows += [(n, "*fp32", n) for n in ("partial_out", "partial_lse") if self.splits]
        if measures(self.splits):  # first of prefixes
            behind = self.pages is not None and self.pages.prefix
            rows += [(n, "*i32", f"{n}[1:]" if behind else n) for n in ("tiles_of_rows", "total_tiles")]
        rows += [(c, f"*{TRITON[self.inputs[c].dtype]}", c) for c in self.captured]
        rows += [(n, "*i32", n) for n in self.length_tensors()]
        rows += self.dropout_arguments()
        rows.append(("softmax_scale", "fp32", "softmax_scale"))
        rows += [(p, TRITON[self.inputs[p].dtype], p) for p in self.params]
        rows += [
            self.stride(t, letter)
            for t in (*self.tensors, "out")
            for letter in self.inputs["q" if t == "out" else t].layout.replace("t", "s")[:-1]
        ]
        rows += [("stride_lh", "i32", "lse.stride(-2)")]
        rows += [] if self.packed else [("stride_lb", "i32", "lse.stride(0)")]
        rows += [
            (f"stride_{c}_{p}", "i32", f"_stride({c}, {p})")
            for c in self.captured
            for p in range(self.rank(c))
        ]
        if self.inputs["k"].scales == "token_head":
            dims = {c: n for n, c in enumerate(self.inputs["k"].layout)}
            rows += [
                (f"stride_{n}_{c}", "i32", f"{n}.stride({dims[c]})") for n in self.scale_names for c in "psh"
            ]
        rows += (
            [("table", "*i32", "table"), ("stride_table", "i32", "table.stride(0)")] if self.has_table else []
        )
        rows.append(self.counts()["Hq"])
        return [*rows, *self.tested_counts("num_q_heads"), *self.lengths()]

    def table_arguments(self) -> list[tuple[str, str, str]]:
        """The kernel's arguments without the tensors that only the fold reads."""
        skipped = {*self.tensors, "out", "lse", "sinks", "softmax_scale", "num_q_heads", "stride_sinks_0"}
        skipped |= {"seed", "dropout_threshold"}
        short = [f"stride_{'o' if t == 'out' else t}" for t in (*self.tensors, "out", "l")]
        fold_only = {f"{s}{c}" for s in short for c in "bsh"} | skipped
        heads = ("num_q_heads", "i32", "table_heads")
        return [heads, *(a for a in self.kernel_arguments() if a[0] not in fold_only)]

    def op_arguments(self) -> list[tuple[str, str]]:
        rows = [(t, "torch.Tensor") for t in self.tensors]
        if self.pages is not None:
            tables = [*self.tables(), "cu_seqlens_q"]
            rows += [*((n, "torch.Tensor") for n in tables), ("max_seqlen_q", "int")]
            rows += [(n, "torch.Tensor") for n in self.scale_names]
        elif self.packed:
            rows += [("cu_seqlens_q", "torch.Tensor"), ("cu_seqlens_k", "torch.Tensor")]
            rows += [("max_seqlen_q", "int"), ("max_seqlen_k", "int"), ("seqused_k", "torch.Tensor | None")]
        rows.append(("softmax_scale", "float"))
        rows += [(p, "int" if self.inputs[p].dtype == "int32" else "float") for p in self.params]
        rows += [(c, "torch.Tensor") for c in self.captured]
        return rows + ([("dropout_p", "float"), ("seed", "torch.Tensor | None")] if self.has_dropout else [])

    def public_arguments(self) -> tuple[str, ...]:
        rows = [f"{self.host(t)}: torch.Tensor" for t in self.tensors]
        if self.pages is not None:
            rows += [f"{n}: torch.Tensor" for n in (*self.tables(), "cu_seqlens_q")]
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

    def per_head(self) -> bool:
        """Whether dk and dv are summed per query head first, since formulas vary with the head."""
        return "dk_heads" in self.graph.nodes


def formulas(graph: Graph) -> list[Expr]:
    """Return every formula of a graph: what maps compute and what folds mask by."""
    maps = [node.expr for _, node in graph.all(Map)]
    return maps + [node.domain.mask for _, node in graph.all(Fold)]


def elements(graph: Graph) -> list[Element]:
    """Return every way in which formulas read captured tensors."""
    found = (e for formula in formulas(graph) for e in ex.walk(formula))
    return list(dict.fromkeys(e for e in found if isinstance(e, Element)))


def uses_tanh(expr: Expr) -> bool:
    return any(isinstance(e, ex.Apply) and e.op == "tanh_exp2" for e in ex.walk(expr))


def number(size: Expr) -> int:
    assert isinstance(size, Const)
    return int(size.value)


def index_type(captured: str) -> str:
    return f"{captured}_index = tl.int64 if _extent({captured}) >= 2**31 else tl.int32"
