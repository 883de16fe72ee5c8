"""What to compile of a generated module: its kernels with their default schedules, as its manifest describes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from attngen.errors import LoadError, UserError
from attngen.target.compile import CompileRequest

ROW_STRIDE = r"stride_((q|k|v|o|g|dq|dk|dv)[bpsth]|(x|B|C|z|out|written)[bth])$"
TRITON_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def manifest(module: Path) -> dict[str, Any]:
    """Read the manifest of a generated module without importing it (which would need torch and triton)."""
    try:
        text = module.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{module}: not a generated module: {error}") from error
    _, found, rest = text.partition('\nMANIFEST = json.loads(r"""')
    try:
        return json.loads(rest.partition('""")')[0])
    except ValueError as error:
        reason = error if found else "it has no MANIFEST"
        raise LoadError(f"{module}: not a generated module: {reason}") from None


def requests(
    module: Path, target: str, dtype: str, config: dict[str, Any] | None = None
) -> list[CompileRequest]:
    """Return one request per kernel of a module for a target and a dtype, with its default schedule there.

    Tensors are taken as a caller's usually are: contiguous and 16-byte aligned, of sizes that fit 32-bit offsets.
    """
    if dtype not in TRITON_DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(TRITON_DTYPES)}")
    described = manifest(module)
    found: list[CompileRequest] = []
    for name, kernel in described["kernels"].items():
        chosen = [config] if config is not None else _chosen(described, kernel, target, dtype)
        chosen = [kernel.get("flags", {}) | one for one in chosen]
        flags = [name for name in kernel["constants"] if name.startswith("WANT_")]
        parts = (part for one in chosen for part in _parts(one, flags))
        found += [_request(module, name, target, dtype, kernel, part) for part in parts]
    return found


def _chosen(
    described: dict[str, Any], kernel: dict[str, Any], target: str, dtype: str
) -> list[dict[str, Any]]:
    """The default schedules of a kernel: one, and another for decode where keys lie in pages; the
    first is that of shared prefixes, where there are some."""
    found = [_config(kernel.get("configs") or described["configs"], target, dtype)]
    if "PREFIX" in kernel["constants"]:
        found[0] = {**found[0], "SPLIT": True, "PREFIX": True}
    if "configs" not in kernel and "decode_configs" in described:
        found.append({**_config(described["decode_configs"], target, dtype), "ONE_TILE": True, "SPLIT": True})
    return found


def _config(configs: dict[str, Any], target: str, dtype: str) -> dict[str, Any]:
    """The first schedule of a kernel for a target."""
    bits = 32 if dtype == "float32" else 16
    return configs.get(f"{target}/{bits}", configs["default"])[0]


def _parts(config: dict[str, Any], flags: list[str]) -> list[dict[str, Any]]:
    """The launches of a schedule: sums by programs of their own are one each."""
    if not config.get("APART"):
        return [config]
    return [{**config, **{flag: flag == wanted for flag in flags}} for wanted in flags]


def _request(
    module: Path, name: str, target: str, dtype: str, kernel: dict[str, Any], config: dict[str, Any]
) -> CompileRequest:
    arguments: dict[str, str] = kernel["arguments"]
    kinds = {"io": TRITON_DTYPES[dtype], "sums": "fp64" if dtype == "float32" else "fp32"}
    types = {a: kinds.get(kind.lstrip("*"), kind.lstrip("*")) for a, kind in arguments.items()}
    types = {a: "*" * arguments[a].startswith("*") + kind for a, kind in types.items()}
    unit = [a for a in types if _is_last_captured_stride(a, types)]
    constants = {c: _constant(c, dtype, config) for c in kernel["constants"]}
    aligned = [a for a, kind in types.items() if kind.startswith("*") or re.match(ROW_STRIDE, a)]
    scheduled = name != "_mask_table"
    return CompileRequest(
        module=module,
        kernel=name,
        target=target,
        signature={a: kind for a, kind in types.items() if a not in unit},
        constexprs=constants | dict.fromkeys(unit, 1),
        num_warps=config["num_warps"] if scheduled else 4,
        num_stages=config["num_stages"] if scheduled else 3,
        divisible=tuple(a for a in aligned if a not in unit),
    )


def _is_last_captured_stride(argument: str, types: dict[str, str]) -> bool:
    """Whether an argument is ``stride_<tensor>_<n>`` with the largest n: a contiguous tensor's stride 1."""
    stem, _, last = argument.rpartition("_")
    return stem.startswith("stride_") and last.isdigit() and f"{stem}_{int(last) + 1}" not in types


def _constant(name: str, dtype: str, config: dict[str, Any]) -> Any:
    if name in config:
        return config[name]
    if name.endswith("_INDEX"):
        return "tl.int32"
    if name.startswith("WANT_") or name in ("SAME_STRIDES", "DROPOUT"):
        return True
    return dtype == "float32" if name == "PRECISE" else False
