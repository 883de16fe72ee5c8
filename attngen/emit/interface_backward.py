"""The argument lists of the backward: its kernels, its launcher, its custom op."""

from __future__ import annotations

from collections.abc import Sequence

from attngen.emit.arguments import TRITON, Arguments, formulas, index_type, uses_tanh
from attngen.emit.faces import BackwardFace, CapturedFace, KernelFace
from attngen.emit.parts import LETTERS, launch_of, owned
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Fold, Map, Store
from attngen.ir.tile_ranges import LARGEST_BLOCK


def backward_face(graph: Graph) -> BackwardFace:
    """Return the argument lists of a scheduled graph's backward."""
    return _Backward(graph).build()


class _Backward(Arguments):
    def build(self) -> BackwardFace:
        stored = {name: self._stored(name) for name in ("lse2", "dq")}
        added = [n for n in stored["dq"][1:] if isinstance(self.graph.nodes[n], Fold)]
        per_row = [n for n in stored["dq"][1:] if n not in (*added, "delta")]
        graded = [n for n, i in self.inputs.items() if i.grad]
        forward = [n for n, _ in self.op_arguments()]
        tensors = [n for n, t in self.op_arguments() if t.startswith("torch.Tensor")]
        plain = [n for n in forward if n not in tensors]
        op = [
            ("dout", "torch.Tensor"),
            ("dlse", "torch.Tensor | None"),
            ("out", "torch.Tensor"),
            ("lse", "torch.Tensor"),
        ]
        op += self.op_arguments()
        per_head = self.per_head()
        heads = "num_q_heads" if per_head else "num_kv_heads"
        sinks = ["sinks"] if "sinks" in self.inputs else []
        keys = self.tensors[1:]
        wants = ("want_dk", "want_dv") if "v" in keys else ("want_low", "want_high")
        return BackwardFace(
            rows=self._face(
                "_backward_rows", ["out", "dout"], ["lse", "dlse", *stored["lse2"]], [], ["HAS_DLSE"]
            ),
            dq=self._face(
                "_backward_dq",
                [*self.tensors, "dout", "dq"],
                ["lse2", "delta", *(["dlse"] if per_row else []), *per_row],
                None,
                ["HAS_DLSE"] if per_row else [],
                more=[row for n in added for row in self._places(n)],
                indices=added,
                sinks=sinks if "ds_sinks" in per_row else [],
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
            without=tuple((p, n, self._cure(n)) for p, n in enumerate(forward) if self._is_ungraded(n)),
            index_types=tuple(index_type(n) for n in self.captured if n != "sinks"),
            padded=self._padded(),
            keys_length=self._lengths_of_keys(),
            keys_heads=f"q.shape[{self.heads}]" if per_head else f"k.shape[{self.heads}]",
            wants=", ".join(wants),
            flags=tuple(f"{want.upper()}={want}" for want in wants),
            group_sums=f"{', '.join(f'd{t}' for t in keys)} = {', '.join(f'_group_sum(d{t}, {t})' for t in keys)}",
            row_strides=", ".join(f"{t}.stride({self.dim('s')})" for t in (*self.tensors, "dout")),
            descriptor_tensors=", ".join([*self.tensors, "dout"]),
            grads_empty=tuple(self._gradient(n, per_head) for n in self.tensors),
            buffers=(
                *(f"{n} = torch.zeros_like(lse)" for n in per_row),
                *(line for n in added for line in (self._zeros(n), index_type(n))),
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
        rank = self.rank(gradient.removeprefix("d"))
        strides = [(f"stride_{gradient}_{p}", "i32", f"_stride({gradient}, {p})") for p in range(rank)]
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
        gradient = stored if fold.into else stored.removesuffix("_diagonals")
        diagonal = not fold.into
        name = f"_backward_captured_{stored.removeprefix('d')}"
        letters = owned(launch)
        places = {"n": tiles_n, "m": tiles_m, "h": f"q.shape[{self.heads}]", "b": self.batch()}
        counts = [f"(1 if shared_{x} else {places[x]})" for x in reversed(letters)]
        before = [self._zeros(gradient), *self._shared(gradient, letters)]
        if not diagonal:
            before.append(index_type(gradient))
        else:
            before += [
                'if config["BLOCK_M"] != config["BLOCK_N"]:',
                f'    raise ValueError("{self.graph.provenance.name}: {name}: BLOCK_M must be BLOCK_N,'
                ' so that tiles of a diagonal hold the same i - j")',
                f"first_diagonal = {tiles_m if self.packed else tiles_n}",
                f"num_diagonals = {tiles_m} + {tiles_n} + 1",
                'span = 2 * config["BLOCK_M"]',
                f"shape = [{', '.join([*counts, 'num_diagonals', 'span'])}]",
                f"{stored} = torch.empty(shape, dtype=torch.float32, device=q.device)",
            ]
        more = [(stored, "*fp32", stored)] if diagonal else self._places(gradient)
        face = self._face(
            name,
            [*self.tensors, "dout"],
            ["lse2", "delta"],
            None,
            [],
            more=[*more, ("batch", "i32", self.batch())],
            indices=[] if diagonal else [gradient],
            shared=letters,
        )
        programs = [*counts, "num_diagonals"] if diagonal else counts
        own = CapturedFace(stored, face, tuple(before), " * ".join(programs))
        return [own, self._place_face(gradient, stored)] if diagonal else [own]

    def _shared(self, gradient: str, letters: tuple[str, ...]) -> list[str]:
        """Statements that say which of the axes that programs own have but one place, which a program then walks over.

        A place of packed tokens is of one sequence, unless that axis has but one place.
        """
        tensor = gradient.removeprefix("d")
        ones: dict[str, list[str]] = {x: [] for x in letters}
        lengths = {
            "b": self.batch(),
            "h": f"q.shape[{self.heads}]",
            **dict(zip("mn", self._long(), strict=True)),
        }
        for p, (index, axis) in enumerate(
            zip(self._fold(gradient).at, self.inputs[tensor].axes, strict=True)
        ):
            letter = LETTERS.get(ex.text(index), "")
            origin = self.graph.axis(axis).origin
            length = f"{origin[0]}.shape[0]" if origin else lengths.get(letter, "")
            for x in (letter, "b" if origin else ""):
                if x in letters:
                    ones[x].append(f"{tensor}.shape[{p}] == 1 < {length}")
        return [f"shared_{x} = {' and '.join(tests)}" for x, tests in ones.items()]

    def _place_face(self, gradient: str, diagonals: str) -> CapturedFace:
        rank = self.rank(gradient.removeprefix("d"))
        rows = [(diagonals, "*fp32", diagonals), (gradient, "*fp32", gradient)]
        rows += [(p, TRITON[self.inputs[p].dtype], p) for p in self.params]
        rows += [(f"size_{p}", "i32", f"{gradient}.shape[{p}]") for p in range(rank)]
        kept = [self.graph.axis(axis).symbol for axis in self._fold(diagonals).axes[:-1]]
        rows += [(f"kept_{x}", "i32", f"{diagonals}.shape[{p}]") for p, x in enumerate(kept)]
        rows += [(n, "i32", n) for n in ("num_diagonals", "first_diagonal")]
        rows += [] if self.packed else self.lengths()
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
        return f"q.shape[{self.dim('s')}]", f"k.shape[{self.dim('s')}]"

    def _is_ungraded(self, name: str) -> bool:
        node = self.inputs.get(name)
        return node is not None and node.role == "captured" and not node.grad and "float" in node.dtype

    def _cure(self, name: str) -> str:
        """What to do where a tensor without a gradient asks for one."""
        in_score = any(name in ex.tensors(node.expr) for _, node in self.graph.all(Map))
        if not in_score:
            return "only the mask reads it, so that it has no gradient: detach it"
        return f"the spec asks for no gradient of it: add `grad: true` to captured.{name}, or detach it"

    def _padded(self) -> str:
        heads = f"q.shape[{self.heads}]"
        if self.packed:
            return f"{heads}, q.shape[0] + {LARGEST_BLOCK} * (cu_seqlens_q.shape[0] - 1)"
        return (
            f"q.shape[0], {heads}, triton.cdiv(q.shape[{self.dim('s')}], {LARGEST_BLOCK}) * {LARGEST_BLOCK}"
        )

    def _stored(self, result: str) -> list[str]:
        _, launch = launch_of(self.graph, result)
        return [s.name for n in launch.stores if isinstance(s := self.graph.nodes[n], Store)]

    def _lengths_of_keys(self) -> str:
        return "max_seqlen_k" if self.packed else f"k.shape[{self.dim('s')}]"

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
        shared: Sequence[str] = (),
        sinks: Sequence[str] = (),
    ) -> KernelFace:
        """The argument list of a backward kernel over some tensors and per-row statistics."""
        used = [c for c in self.captured if c != "sinks"] if captured is None else captured
        rows = [(t, "*fp32" if t in ("dk", "dv") and self.per_head() else "*io", t) for t in tensors]
        rows += [(n, "*fp32", n) for n in statistics]
        read = [*used, *sinks]  # sinks are found by h alone
        rows += [(c, f"*{TRITON[self.inputs[c].dtype]}", c) for c in read]
        if self.packed:
            rows += [(n, "*i32", n) for n in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")]
        if captured is None:
            rows += self.dropout_arguments()
            rows.append(("softmax_scale", "fp32", "softmax_scale"))
            rows += [(p, TRITON[self.inputs[p].dtype], p) for p in self.params]
        shorts = {"out": "o", "dout": "g"}
        rows += [
            (f"stride_{shorts.get(t, t)}{letter}", "i32", f"{t}.stride({self.dim(letter)})")
            for t in tensors
            for letter in self.layout.replace("t", "s")[:-1]
        ]
        rows += [("stride_lh", "i32", "lse.stride(-2)"), ("stride_rh", "i32", "lse2.stride(-2)")]
        rows += (
            []
            if self.packed
            else [("stride_lb", "i32", "lse.stride(0)"), ("stride_rb", "i32", "lse2.stride(0)")]
        )
        rows += [(f"stride_{c}_{p}", "i32", f"_stride({c}, {p})") for c in read for p in range(self.rank(c))]
        rows += [row for row in self.counts().values() if row[0] == heads]
        rows += more
        rows += self.tested_counts(heads, *(name for name, *_ in more)) if captured is None else []
        both = captured is None and not {"dq", "dk"} & {*tensors}
        if self.packed:
            longest = ["max_seqlen_q"] * (both or "dk" not in tensors)
            longest += ["max_seqlen_k"] * (both or "dk" in tensors)
            rows += [(n, "i32", n) for n in longest]
        else:
            rows += self.lengths()
        fixed = self._backward_constants(used, captured is None) + [(n, "") for n in constants]
        fixed = [row for row in fixed if not both or row[0] != "LARGE_STRIDES"]
        fixed += [(f"{n.upper()}_INDEX", f"{n}_index") for n in indices]
        fixed += [(f"SHARED_{x.upper()}", f"shared_{x}") for x in shared]
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
        if formulas_too and any(uses_tanh(e) for e in formulas(self.graph)):
            rows.append(("PRECISE", "q.dtype == torch.float32"))
        return [*rows, *self.drops(), ("LARGE_STRIDES", "large")] if formulas_too else rows
