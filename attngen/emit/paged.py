"""Keys in pages: how a tile of keys is found, and the arguments that say where pages lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attngen.ir.graph import Graph
from attngen.ir.nodes import Input, Pages

if TYPE_CHECKING:
    from attngen.emit.addresses import Hull
    from attngen.emit.parts import Parts

LARGEST = {"float8_e4m3fn": "448.0", "float8_e5m2": "57344.0", "int8": "127.0", "int4": "7.0"}
LEAST_SCALE = 1e-30
TABLES = {"dense": ("page_table", "cache_seqlens"), "csr": ("page_indptr", "page_indices", "last_page_len")}


def find_keys(parts: Parts, pages: Pages, hull: Hull, *, masked: bool) -> tuple[str, ...]:
    """Statements that leave ``pages`` and ``slots`` of a tile's keys, and ``k_rows``, where the keys begin.

    Of a page the number is read where some key of it may be seen, so what the table holds past the end does no harm.
    """
    mask = f", mask={hull.within()}, other=0" if masked else ""
    size = pages.size
    by_lane = (
        f"pages = tl.load(table_row + (start_n + rows_n) // {size}{mask})",
        f"slots = (start_n + rows_n) % {size}",
    )
    whole_pages = (
        f"pages = tl.load(table_row + (tile_n * (BLOCK_N // {size}) + rows_n // {size}){mask})",
        f"slots = rows_n % {size}",
    )
    in_a_page = (f"pages = tl.load(table_row + start_n // {size})", f"slots = start_n % {size} + rows_n")
    power = size & -size
    cases = [
        *([(f"BLOCK_N % {size} == 0", whole_pages)] if size == power else []),
        *([(f"{size} % BLOCK_N == 0", in_a_page)] if power > 16 else []),
        *([("", by_lane)] if size != power else []),
    ]
    return (
        *_branches(cases),
        "if LARGE_CACHE:",
        "    pages = pages.to(tl.int64)",
        "key_places = pages * stride_kp + slots * stride_ks",
        "k_rows = (k_base + key_places)[:, None]",
        *(
            ("scale_places = pages * stride_k_scale_p + slots * stride_k_scale_s",)
            if parts.scales == "token_head"
            else ()
        ),
        *_load_scales(parts, "k", "scale_places", hull, masked=masked),
    )


def _branches(cases: list[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """Branches that the tile's size decides when a kernel is compiled; the last needs no test."""
    if len(cases) == 1:
        return cases[0][1]
    lines: list[str] = []
    for n, (test, body) in enumerate(cases):
        head = "else:" if n + 1 == len(cases) else f"{'if' if n == 0 else 'elif'} {test}:"
        lines += [head, *(f"    {line}" for line in body)]
    return tuple(lines)


def find_values(parts: Parts, hull: Hull, *, masked: bool) -> tuple[str, ...]:
    """Statements that leave ``v_rows``; where both caches (and scales) have the same strides, places are those of the keys."""
    per_key = parts.scales == "token_head"
    if parts.v_in_k:
        return ("v_scales = k_scales",) if per_key else ()
    same, other = ["v_places = key_places"], ["v_places = pages * stride_vp + slots * stride_vs"]
    if per_key:
        same.append("v_scale_places = scale_places")
        other.append("v_scale_places = pages * stride_v_scale_p + slots * stride_v_scale_s")
    return (
        *_branches([("SAME_STRIDES", tuple(same)), ("", tuple(other))]),
        "v_rows = (v_base + v_places)[:, None]",
        *_load_scales(parts, "v", "v_scale_places", hull, masked=masked),
    )


def _load_scales(parts: Parts, tensor: str, places: str, hull: Hull, *, masked: bool) -> tuple[str, ...]:
    """A statement that loads a scale per key."""
    if parts.scales != "token_head":
        return ()
    mask = f", mask={hull.within()}, other=0.0" if masked else ""
    return (f"{tensor}_scales = tl.load({tensor}_scale_base + {places}{mask})",)


def scale_lines(parts: Parts) -> tuple[str, ...]:
    """Statements that prepare the scales: one of all keys goes into the scale of the scores."""
    tensors = ("k",) if parts.v_in_k else ("k", "v")
    if parts.scales == "token_head":
        return tuple(
            f"{t}_scale_base = {t}_scale + tl.cast(hk, tl.int64) * stride_{t}_scale_h" for t in tensors
        )
    if not parts.scales:
        return ()
    # of a head without any key but zeros it may be 0, and scores of -inf times 0 would be NaN
    return (f"softmax_scale = softmax_scale * tl.maximum(tl.load({_of_all(parts, 'k')}), {LEAST_SCALE})",)


def value_scale(parts: Parts) -> str:
    """The scale that all values of a program share, '' where there is none."""
    if parts.scales not in ("tensor", "head"):
        return ""
    return f"tl.load({_of_all(parts, 'k' if parts.v_in_k else 'v')})"


def _of_all(parts: Parts, tensor: str) -> str:
    return f"{tensor}_scale" + (" + hk" if parts.scales == "head" else "")


def sequence_lines(pages: Pages) -> tuple[str, ...]:
    """Statements that leave the number of keys of sequence b and where its pages are listed."""
    if pages.table == "dense":
        return (
            "seqlen_k = tl.load(cache_seqlens + b)",
            "table_row = page_table + tl.cast(b, tl.int64) * stride_table",
        )
    return (
        "first_page = tl.load(page_indptr + b)",
        "num_pages = tl.load(page_indptr + b + 1) - first_page",
        f"seqlen_k = tl.maximum(num_pages - 1, 0) * {pages.size}",
        "seqlen_k += tl.where(num_pages > 0, tl.load(last_page_len + b), 0)",
        "table_row = page_indices + first_page",
    )


def table_tensors(pages: Pages) -> tuple[str, ...]:
    """Names of the int32 tensors that say which pages belong to which sequence."""
    return TABLES[pages.table]


def page_numbers(pages: Pages) -> str:
    """The table of pages' numbers."""
    return {"dense": "page_table", "csr": "page_indices"}[pages.table]


def queries_per_tile(group: int, heads_in_rows: bool, config: str = "config") -> str:
    """How many queries a tile of rows holds, as text of the launcher."""
    rows = f'{config}["BLOCK_M"]'
    return f"{rows} // min({group}, {rows})" if heads_in_rows else rows


def tile_lines(group: int, heads_in_rows: bool) -> tuple[str, ...]:
    """Statements of the launcher that bound the tiles of all sequences, from shapes alone."""
    return (
        f"block_q = {queries_per_tile(group, heads_in_rows)}",
        "num_seqs = cu_seqlens_q.shape[0] - 1",
        "one_tile = max_seqlen_q <= block_q",
        "num_tiles_m = num_seqs if one_tile else q.shape[0] // block_q + num_seqs",
    )


def stored_dtype(graph: Graph) -> str:
    """What caches store: ``io`` where that is numbers of q's dtype."""
    k = graph.nodes["k"]
    assert isinstance(k, Input)
    return k.dtype


def torch_name(stored: str) -> str:
    """torch's dtype of a cache: 4-bit numbers are bytes there."""
    return "uint8" if stored == "int4" else stored
