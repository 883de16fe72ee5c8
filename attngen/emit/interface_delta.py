"""The argument lists of the kernels that the backward of a delta rule has besides, or in another form."""

from __future__ import annotations

from collections.abc import Iterator

from attngen.emit.faces import KernelFace
from attngen.emit.interface_rows import (
    BLOCKS,
    HEADS,
    INDEX,
    LENGTHS,
    PACKED,
    SIZES,
    Rows,
    face,
    features,
    row_strides,
)
from attngen.emit.recurrence_parts import Parts

BETA: Rows = [(f"stride_beta_{p}", "i32", f"_stride(beta, {p})") for p in range(3)]


def delta_faces(parts: Parts, *, of_decays: bool) -> tuple[KernelFace, ...]:
    """Of what chunks read of their own tokens, of what is solved, and of what tokens find."""
    return (_writes(parts), _solve(parts), _found(parts, of_decays=of_decays))


def _total(parts: Parts) -> Rows:
    return [("total", "*fp32", "total")] if parts.total else []


def _writes(parts: Parts) -> KernelFace:
    q, k, made = parts.q.operand, parts.k.operand, "dwritten_within"
    rows: Rows = [(q, "*io", q), (k, "*io", k), ("dread", "*io", "dread"), *_total(parts)]
    rows += [(made, "*io", made), *LENGTHS, *row_strides(q, k, made), *features(parts), *HEADS, *SIZES]
    return face("_backward_writes", rows, [PACKED, INDEX, *BLOCKS])


def _solve(parts: Parts) -> KernelFace:
    k, given = parts.k.operand, "dwritten_within"
    rows: Rows = [(k, "*io", k), (given, "*io", given), ("beta", "*fp32", "beta"), *_total(parts)]
    rows += [("dwrites", "*fp32", "dwrites"), ("derases", "*io", "derases")]
    rows += [*LENGTHS, *row_strides(k, given), *BETA, *features(parts), *HEADS, *SIZES]
    return face("_backward_solve", rows, [PACKED, INDEX])


def _found(parts: Parts, *, of_decays: bool) -> KernelFace:
    k, v, value = parts.k.operand, parts.v.operand, parts.given.operand
    rows: Rows = [(n, "*io", n) for n in (k, value, v, f"d{v}")]
    rows += [("beta", "*fp32", "beta"), *_total(parts), ("chunk_states", "*fp32", "chunk_states")]
    rows += [("found", "*fp32", "found"), ("dbeta", "*fp32", "dbeta")]
    rows += [("of_erased", "*fp32", "of_erased")] * of_decays
    rows += [*LENGTHS, *row_strides(k, value, v, f"d{v}"), *BETA]
    rows += [(f"stride_dbeta_{p}", "i32", f"dbeta.stride({p})") for p in range(3)]
    return face("_backward_found", [*rows, *features(parts), *HEADS, *SIZES], [PACKED, INDEX, *BLOCKS])


def keys_rows(parts: Parts) -> tuple[Rows, Rows]:
    """What the kernel of keys reads besides: pointers, and strides."""
    made = f"d{parts.given.operand}"
    pointers: Rows = [("beta", "*fp32", "beta"), ("found", "*fp32", "found"), (made, "*io", made)]
    return pointers, [*row_strides(made), *BETA]


def scan_face(parts: Parts, *, of_decays: bool) -> KernelFace:
    """Of gradients of states, that go from chunk to chunk."""
    q, k, v, made = parts.q.operand, parts.k.operand, f"d{parts.v.operand}", f"d{parts.given.operand}"
    rows: Rows = [(q, "*io", q), (k, "*io", k), ("dread", "*io", "dread"), ("beta", "*fp32", "beta")]
    rows += _total(parts)
    rows += [("dwrites", "*fp32", "dwrites"), ("derases", "*io", "derases")]
    rows += [(n, "*fp32", n) for n in ("chunk_states", "edges")] * of_decays
    rows += [(n, "*fp32", n) for n in ("chunk_adjoints", "dstates", "dinit")]
    rows += [(v, "*io", v), (made, "*io", made), *LENGTHS, *row_strides(q, k, made), *BETA]
    rows += [(f"stride_dstates_{p}", "i32", f"_stride(dstates, {p})") for p in range(4)]
    flags = [("HAS_DSTATES", "dstates is not None"), PACKED, INDEX, BLOCKS[0]]
    return face("_adjoint_scan", [*rows, *features(parts), *HEADS, *SIZES[1:]], flags)


def delta_buffers(parts: Parts, *, of_decays: bool) -> Iterator[str]:
    """Statements that allocate what goes between the kernels, and the gradients of values and of beta."""
    v, value, io = parts.v.operand, parts.given.operand, f"dtype={parts.first}.dtype, device=device"
    fp32 = "dtype=torch.float32, device=device"
    keys = f"[batch, seqlen, num_heads, {parts.k.columns}]"
    yield f"d{v}, d{v}_within = (torch.empty({value}.shape, {io}) for _ in range(2))"
    yield f"dwrites = torch.empty([batch, seqlen, num_heads, {parts.wide}], {fp32})"
    yield f"derases, found = torch.empty({keys}, {io}), torch.empty({keys}, {fp32})"
    yield f"d{value} = new({value}.shape, dtype={value}.dtype, device=device)"
    yield "dbeta = new(beta.shape, dtype=beta.dtype, device=device)"
    if of_decays:
        yield "of_erased = torch.empty_like(total)"
