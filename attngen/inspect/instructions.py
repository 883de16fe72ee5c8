"""What an instruction is: its kind (which pipe takes it), the bytes it moves, the products it computes."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from attngen.errors import InternalError
from attngen.inspect.assembly import Instruction

Kind = Literal[
    "matrix",
    "mufu",  # transcendental functions, and conversions that share their pipe
    "fma",
    "alu",
    "convert",
    "shuffle",
    "shared",
    "tensor_memory",
    "global",
    "descriptor",
    "barrier",
    "wait",  # for loads, copies or products that were started before
    "spill",
    "scalar",  # one value per warp: its own datapath
    "other",
]

# First match wins; patterns match the start of the mnemonic.
_SASS: tuple[tuple[Kind, str], ...] = (
    ("matrix", r"HGMMA|IGMMA|QGMMA|HMMA|IMMA|QMMA|DMMA|UTC[A-Z]*MMA"),
    ("convert", r"F2FP|F2IP|I2FP|I2IP"),
    ("mufu", r"MUFU|F2F|F2I|I2F|FRND|FLO|POPC"),
    ("fma", r"FFMA|FMUL|FADD|HFMA2|HMUL2|HADD2|IMAD|IDP"),
    ("shuffle", r"SHFL"),
    ("spill", r"LDL|STL"),
    ("shared", r"LDSM?\b|STSM?\b|ATOMS|UBLKCP"),
    ("tensor_memory", r"LDTM|STTM|UTCCP"),
    ("wait", r"DEPBAR|LDGDEPBAR|WARPGROUP\.DEPBAR"),
    ("descriptor", r"UTMALDG|UTMASTG|UTMAREDG|UTMAPF"),
    ("global", r"LDGSTS|LDG\b|STG|LD\b|ST\b|REDG?\b|ATOM"),
    (
        "barrier",
        r"BAR|SYNCS|WARPGROUP|WARPSYNC|MEMBAR|FENCE|UTCBAR|ARRIVES|B(?:SSY|SYNC|REAK)|UTMA",
    ),
    ("scalar", r"U[A-Z]|R2UR|S2UR|LDCU|VOTEU|REDUX|CREDUX"),
    (
        "alu",
        r"FMNMX|FSEL|FSETP?|FCHK|ISETP|IADD|IABS|IMNMX|LOP|PLOP|LEA|SEL|SH[FLR]|PRMT|MOV|VI|BMSK|SGXT|P2R|R2P|HSET|HMNMX|VHMNMX",
    ),
)
_AMD: tuple[tuple[Kind, str], ...] = (
    ("matrix", r"v_s?mfmac?_"),
    ("mufu", r"v_(?:exp|log|rcp|rsq|sqrt|sin|cos)_"),
    ("convert", r"v_cvt_"),
    ("shuffle", r"ds_b?permute|ds_swizzle"),
    ("fma", r"v_(?:pk_)?(?:fma(?:c|[am]k)?|mul|add|sub(?:rev)?|mad)_f"),
    # scalar registers are spilled to lanes of vector registers
    ("spill", r"scratch_|v_(?:read|write)lane_"),
    ("shared", r"ds_"),
    ("global", r"global_|buffer_|flat_"),
    ("barrier", r"s_barrier"),
    ("wait", r"s_wait"),
    ("other", r"s_branch|s_cbranch|s_setpc|s_endpgm|s_nop"),
    ("scalar", r"s_"),
    ("alu", r"v_"),
)
Isa = Literal["sass", "amd"]
_TABLES: dict[Isa, list[tuple[Kind, re.Pattern[str]]]] = {
    "sass": [(kind, re.compile(f"(?:{pattern})")) for kind, pattern in _SASS],
    "amd": [(kind, re.compile(f"(?:{pattern})")) for kind, pattern in _AMD],
}


@functools.cache
def kind_of(isa: Isa, op: str) -> Kind:
    """The kind of a mnemonic; "other" where it loads no pipe that the model knows."""
    for kind, pattern in _TABLES[isa]:
        if pattern.match(op):
            return kind
    return "other"


def bytes_of(isa: Isa, op: str) -> int:
    """Bytes that one thread moves with a load or store."""
    if isa == "amd":
        return _amd_bytes(op)
    if "LDSM" in op or "STSM" in op:
        return {"4": 16, "2": 8}.get(op[-1], 4)
    widths = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((size for name, size in widths.items() if name in op.split(".")), 4)


def _amd_bytes(op: str) -> int:
    pair = 2 if re.match(r"ds_(?:read|write)2", op) else 1
    if match := re.search(r"_b(\d+)", op):
        return pair * int(match[1]) // 8
    if match := re.search(r"_dword(?:x(\d))?", op):
        return 4 * int(match[1] or 1)
    return 2 if re.search(r"short|[ui]16", op) else 1 if re.search(r"byte|[ui]8", op) else 4


Operands = Literal["16", "8", "tf32", "32"]  # bits of what is multiplied; tf32 is stored in 32


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix instruction: what it multiplies, and the FLOPs that all warps of a program do with it together."""

    shape: str
    flops: int
    operands: Operands
    warp_wide: bool  # issued for one warp alone (mma.sync, mfma), not for a group of warps or the program


def product_of(isa: Isa, code: Sequence[Instruction], place: int, num_warps: int) -> Product:
    """The product of the matrix instruction at `place`. Raises InternalError for one whose shape is not known."""
    op = code[place].op
    if isa == "amd":
        m, n, k, blocks = _numbers(r"_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?", op)
        return Product(op, 2 * m * n * k * (blocks or 1) * num_warps, _operands(op), True)
    if "GMMA" in op:  # a group of four warps does it; each of them issues it
        m, n, k = _numbers(r"\.(\d+)x(\d+)x(\d+)", op)
        return Product(op, 2 * m * n * k * num_warps // 4, _operands(op), False)
    if op.startswith("UTC"):  # one thread issues it for the program
        return _tensor_core_5(code, place)
    m, n, k = _numbers(r"\.(16)(8)(\d+)", op)
    return Product(op, 2 * m * n * k * num_warps, _operands(op), True)


def _operands(op: str) -> Operands:
    """What a matrix instruction multiplies, by its mnemonic."""
    if re.search(r"TF32|xf32", op):
        return "tf32"
    if re.search(r"E4M3|E5M2|fp8|bf8|f8f6f4|IMMA|IGMMA|i8", op):
        return "8"
    return "32" if op.endswith("f32") else "16"


def _numbers(pattern: str, op: str) -> list[int]:
    match = re.search(pattern, op)
    if match is None:
        raise InternalError(f"inspect: the shape of {op} is not known")
    return [int(g or 0) for g in match.groups()]


def _tensor_core_5(code: Sequence[Instruction], place: int) -> Product:
    """A tcgen05 product. Its shape is in its instruction descriptor, a constant (PTX ISA, "Instruction descriptor":
    the format of A in bits 7 to 9, N >> 3 in bits 17 to 22, M >> 4 in bits 24 to 28)."""
    descriptor = _descriptor(code, place)
    m, n = ((descriptor >> 24) & 31) << 4, ((descriptor >> 17) & 63) << 3
    base = code[place].op.split(".")[0]
    operands: Operands = "8" if base == "UTCQMMA" else "tf32" if (descriptor >> 7) & 7 == 2 else "16"
    k = {"8": 32, "16": 16, "tf32": 8}[operands]
    return Product(f"{base}.{m}x{n}x{k}", 2 * m * n * k, operands, False)


def _descriptor(code: Sequence[Instruction], place: int) -> int:
    """The constant that was last moved into the register of the instruction descriptor."""
    match = re.search(r"idesc\[(UR\d+)\]", code[place].operands)
    register = match[1] if match else ""
    for earlier in reversed(code[:place]):
        written, _, value = earlier.operands.partition(", ")
        if written == register and earlier.op == "UMOV" and value.startswith("0x"):
            return int(value, 16)
        if written == register and earlier.op == "UMOV":
            register = value
        elif written == register:
            break
    raise InternalError(f"inspect: the instruction descriptor in {register or '?'} is not known")
