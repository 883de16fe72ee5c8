"""The innermost loops with matrix work, counted along one turn: the shortest one that does all products and loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from attngen.inspect.assembly import Instruction, Listing, Source
from attngen.inspect.flow import busiest_path, flow, innermost, natural_loops
from attngen.inspect.instructions import Isa, Kind, Operands, Product, bytes_of, kind_of, product_of

_PAIRS = ("FFMA2", "FMUL2", "FADD2")


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedLoop:
    """One turn of a loop, as a warp that does all of its matrix work issues it.

    Calls of subroutines count with the shortest way through them. FLOPs are those of the whole program (CTA), by operand
    type; bytes are those of one warp. Loads by descriptor are counted in all of the loop, since one thread issues them,
    apart from the others.
    """

    instructions: int
    most_instructions: (
        int  # on the longest way round: where a partial tile takes a branch of a loop over all tiles
    )
    kinds: Mapping[Kind, int]
    ops: Mapping[str, int]
    matrix: Mapping[str, int]  # shape to count
    flops: Mapping[Operands, int]
    fma_flops: int  # of products by FMA, in a kernel without matrix instructions
    warp_wide: bool  # by mma.sync or mfma
    shared_bytes: int
    global_bytes: int
    descriptor_loads: int
    loads: Mapping[Source, int]  # line to bytes that one thread loads there
    sources: Mapping[Source, int]  # line to instructions made from it
    code: tuple[Instruction, ...]

    @property
    def fma_slots(self) -> int:
        """Turns of the FMA pipe: an instruction on pairs (FFMA2, sm_100) takes two."""
        return self.kinds.get("fma", 0) + sum(n for op, n in self.ops.items() if op in _PAIRS)

    @property
    def all_flops(self) -> int:
        """FLOPs of the products of one turn."""
        return sum(self.flops.values()) + self.fma_flops


def matrix_loops(
    listing: Listing, isa: Isa, *, num_warps: int, lanes: int, wanted: Callable[[Source], bool]
) -> list[CountedLoop]:
    """Count the innermost loops with matrix instructions; of a kernel without any (fp32 products by FMA),
    the innermost loops with multiply-adds from a `wanted` source line, which says that they are of products."""
    code = listing.instructions
    found = flow(listing)
    starts = [0]
    for block in found.blocks:
        starts.append(starts[-1] + len(block))
    products = {
        n: product_of(isa, code, n, num_warps) for n, i in enumerate(code) if kind_of(isa, i.op) == "matrix"
    }

    def work(n: int) -> int:
        if products:
            return products[n].flops if n in products else 0
        source = code[n].source
        return _multiply_adds(code[n].op) if source is not None and wanted(source) else 0

    blocks = [range(a, b) for a, b in pairwise(starts)]
    works = [sum(work(n) for n in block) for block in blocks]
    loads = [sum(_loads(isa, code[n].op) for n in block) for block in blocks]
    counted: list[CountedLoop] = []
    for loop in innermost(natural_loops(found), works):
        weights = list(zip(works, loads, strict=True))
        path = busiest_path(found, loop, weights)
        most = sum(len(found.issued(block)) for block in busiest_path(found, loop, weights, longest=True))
        turn = [i for block in path for i in found.issued(block)]
        computed = [products[n] for block in path for n in blocks[block] if n in products]
        by_fma = 0 if products else 2 * num_warps * lanes * sum(works[block] for block in path)
        everywhere = [i for block in loop.blocks for i in found.blocks[block]]
        counted.append(_count(turn, most, computed, by_fma, everywhere, isa, lanes))
    return counted


def _count(
    turn: list[Instruction],
    most: int,
    products: list[Product],
    by_fma: int,
    everywhere: list[Instruction],
    isa: Isa,
    lanes: int,
) -> CountedLoop:
    kinds: Counter[Kind] = Counter(kind_of(isa, i.op) for i in turn)
    flops: Counter[Operands] = Counter()
    for product in products:
        flops[product.operands] += product.flops
    return CountedLoop(
        instructions=len(turn),
        most_instructions=most,
        kinds=kinds,
        ops=Counter(i.op.split(".")[0] for i in turn),
        matrix=Counter(p.shape for p in products),
        flops=flops,
        fma_flops=by_fma,
        warp_wide=any(p.warp_wide for p in products),
        shared_bytes=lanes * sum(bytes_of(isa, i.op) for i in turn if kind_of(isa, i.op) == "shared"),
        global_bytes=lanes * sum(bytes_of(isa, i.op) for i in turn if _loads(isa, i.op)),
        descriptor_loads=sum(i.op.startswith("UTMALDG") for i in everywhere),
        loads=_by_line(turn, isa),
        sources=Counter(i.source for i in everywhere if i.source is not None),
        code=tuple(turn),
    )


def _by_line(turn: list[Instruction], isa: Isa) -> Counter[Source]:
    """Bytes that one thread loads from global memory, by the line that they are loaded for."""
    found: Counter[Source] = Counter()
    for i in turn:
        if _loads(isa, i.op):
            found[i.source or ("", 0)] += bytes_of(isa, i.op)
    return found


def _multiply_adds(op: str) -> int:
    """How many fp32 multiply-adds an instruction does in each lane."""
    return {"FFMA": 1, "FFMA2": 2}.get(op.split(".")[0], 0)


def _loads(isa: Isa, op: str) -> bool:
    """Whether an instruction loads from global memory."""
    return kind_of(isa, op) == "global" and (
        op.startswith(("LDG", "LD.")) if isa == "sass" else "_load_" in op
    )
