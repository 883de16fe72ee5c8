"""The oracle's view of a paged cache: keys and values of every sequence, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attngen.errors import TensorError
from attngen.spec import Cache, Spec

PREFIXES = ("prefix_table", "prefix_seqlens", "cu_groups")
TABLES = {"dense": ("page_table", "cache_seqlens"), "csr": ("page_indptr", "page_indices", "last_page_len")}


def required(spec: Spec, cache: Cache) -> list[str]:
    """Names of the arguments that a call with a cache needs, params and captured tensors aside."""
    caches = ["k_cache"] if spec.head_dim.v_from_k else ["k_cache", "v_cache"]
    scales = [name.replace("cache", "scale") for name in caches] if cache.dtype else []
    return ["q", *caches, *_tables(cache), "cu_seqlens_q", "max_seqlen_q", *scales]


def unpaged(spec: Spec, cache: Cache, inputs: Mapping[str, Any], *, same: bool) -> dict[str, Any]:
    """The same call on keys in a row: k, v and cu_seqlens_k instead of caches and tables.

    What a cache stores is multiplied by its scales in float64, or for `same` in float32, as kernels do; q is then of that
    dtype too.
    """
    tables = [_page_ids(name, inputs) for name in _tables(cache)]
    k_cache = inputs["k_cache"]
    if cache.prefix:
        pieces = _behind_prefixes(cache, *tables)
    else:
        own = _dense(cache, *tables) if cache.table == "dense" else _csr(cache, *tables)
        pieces = [[place] for place in own]
    places = [place for sequence in pieces for place in sequence]
    num_pages = k_cache.shape[0] if isinstance(k_cache, Tensor) and k_cache.dim() else 0
    for b, sequence in enumerate(pieces):
        outside = [p for pages, _ in sequence for p in pages if not 0 <= p < num_pages]
        if outside:
            raise TensorError(f"sequence {b} has page {outside[0]}, the cache has {num_pages} pages")
    lengths = [0, *(sum(keys for _, keys in sequence) for sequence in pieces)]
    given = {name: value for name, value in inputs.items() if name not in _tables(cache)}
    given = {name: value for name, value in given.items() if name not in CACHES}
    rows = {
        name[0]: _rows(name, inputs[name], cache, places) for name in ("k_cache", "v_cache") if name in inputs
    }
    if cache.dtype:
        wide = torch.float32 if same else torch.float64
        rows |= {n: _scaled(n, row.to(wide), inputs[f"{n}_scale"], cache, places) for n, row in rows.items()}
        rows["q"] = inputs["q"].to(wide)
    cu_seqlens_k = torch.tensor(lengths, dtype=torch.int32).cumsum(0).int()
    return given | rows | {"cu_seqlens_k": cu_seqlens_k, "max_seqlen_k": max(lengths)}


CACHES = ("k_cache", "v_cache", "k_scale", "v_scale")
Places = list[tuple[list[int], int]]
"""Per sequence the pages that hold keys, and the number of keys."""


def _tables(cache: Cache) -> tuple[str, ...]:
    return (*TABLES[cache.table], *(PREFIXES if cache.prefix else ()))


def _page_ids(name: str, inputs: Mapping[str, Any]) -> Tensor:
    value = inputs[name]
    if not isinstance(value, Tensor) or value.dtype != torch.int32:
        raise TensorError(
            f"{name} must be an int32 tensor, got {getattr(value, 'dtype', type(value).__name__)}"
        )
    return value


def _dense(cache: Cache, page_table: Tensor, cache_seqlens: Tensor) -> Places:
    places: Places = []
    for b, keys in enumerate(int(n) for n in cache_seqlens):
        room = page_table.shape[1] * cache.page_size
        if not 0 <= keys <= room:
            raise TensorError(f"cache_seqlens[{b}] is {keys}, page_table has room for 0 to {room} keys")
        pages = page_table[b, : -(-keys // cache.page_size)]
        places.append(([int(p) for p in pages], keys))
    return places


def _behind_prefixes(
    cache: Cache,
    page_table: Tensor,
    cache_seqlens: Tensor,
    prefix_table: Tensor,
    prefix_seqlens: Tensor,
    cu_groups: Tensor,
) -> list[Places]:
    """Per sequence the pages of its group's prefix, then its own."""
    own, shared = _dense(cache, page_table, cache_seqlens), _dense(cache, prefix_table, prefix_seqlens)
    sizes = [int(n) for n in cu_groups.diff()]
    if int(cu_groups[0]) != 0 or min(sizes, default=0) < 0 or int(cu_groups[-1]) != len(own):
        raise TensorError(
            f"cu_groups must rise from 0 to {len(own)}, the number of sequences, got {cu_groups.tolist()}"
        )
    of_group = [prefix for prefix, size in zip(shared, sizes, strict=True) for _ in range(size)]
    return [[prefix, rest] for prefix, rest in zip(of_group, own, strict=True)]


def _csr(cache: Cache, page_indptr: Tensor, page_indices: Tensor, last_page_len: Tensor) -> Places:
    places: Places = []
    for b in range(len(page_indptr) - 1):
        pages = [int(p) for p in page_indices[int(page_indptr[b]) : int(page_indptr[b + 1])]]
        last = int(last_page_len[b])
        if pages and not 1 <= last <= cache.page_size:
            raise TensorError(f"last_page_len[{b}] is {last}, expected 1 to {cache.page_size}")
        places.append((pages, (len(pages) - 1) * cache.page_size + last if pages else 0))
    return places


def _rows(name: str, whole: Any, cache: Cache, places: Places) -> Tensor:
    """[keys of all sequences, Hkv, D]."""
    if not isinstance(whole, Tensor) or whole.dim() != 4:
        raise TensorError(f"{name} must be a tensor of 4 dimensions, got {getattr(whole, 'shape', whole)}")
    slots = whole if cache.layout == "nhd" else whole.transpose(1, 2)
    if slots.shape[1] != cache.page_size:
        raise TensorError(
            f"{name} has pages of {slots.shape[1]} keys, the spec says page_size {cache.page_size}"
        )
    if cache.dtype == "int4":
        slots = _unpacked(name, slots)
    elif cache.dtype:  # torch gathers no 8-bit floats
        slots = slots.double()
    found = [slots[pages].flatten(0, 1)[:keys] for pages, keys in places if pages]
    return torch.cat(found) if found else slots[:0, 0]


def _unpacked(name: str, slots: Tensor) -> Tensor:
    """Two numbers of each byte, the low four bits before the high ones; from 8 on they stand for 16 less."""
    if slots.dtype != torch.uint8:
        raise TensorError(f"{name} must be uint8, two 4-bit numbers in a byte, got {slots.dtype}")
    nibbles = torch.stack([slots & 15, slots >> 4], -1).flatten(-2).double()
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def _scaled(name: str, rows: Tensor, scale: Any, cache: Cache, places: Places) -> Tensor:
    """Stored numbers [keys, Hkv, D] times their scales."""
    if not isinstance(scale, Tensor):
        raise TensorError(f"{name}_scale must be a float32 tensor, got {type(scale).__name__}")
    if cache.scales == "per_token_head":
        slots = (scale if cache.layout == "nhd" else scale.transpose(1, 2)).to(rows.dtype)
        found = [slots[pages].flatten(0, 1)[:keys] for pages, keys in places if pages]
        return rows * torch.cat(found)[..., None] if found else rows
    heads = 1 if cache.scales == "per_tensor" else rows.shape[1]
    if scale.numel() != heads:
        raise TensorError(f"{name}_scale has shape {list(scale.shape)}, expected {heads} numbers")
    return rows * scale.reshape(-1, 1).to(rows.dtype)
