"""A shared prefix: where rows of several sequences stand, and the launch that folds prefixes before the one for the rest.

Both launches are of one kernel. A group of sequences takes the place of a sequence in the first: its queries follow each
other, so tiles are found among them in the same way, and its table names the prefix's pages. What a launch finds is a
partial result like that of a split, and the kernel that merges splits merges all of them.
"""

from __future__ import annotations

from attngen.emit.split import num_splits, without_splits
from attngen.ir.nodes import Pages, Splits

PREFIX_TENSORS = ("prefix_table", "prefix_seqlens", "cu_groups")
FOR_PREFIXES = {
    "cu_seqlens_q": "group_starts",
    "page_table": "prefix_table",
    "cache_seqlens": "prefix_seqlens",
    "stride_table": "prefix_table.stride(0)",
    "num_tiles_m": "prefix_tiles",
    "num_seqs": "num_groups",
    "num_splits": "prefix_splits",
    "tiles_of_rows": "tiles_of_rows",
    "total_tiles": "total_tiles",
    "first_part": "0",
    "ONE_TILE": "False",
    "PREFIX": "True",
}


_STARTS = ("if PREFIX:", "    prefix_start = 0", "else:", "    prefix_start = tl.load(prefix_starts + b)")


def position_lines(rows: str, *, with_start: bool) -> tuple[str, ...]:
    """Statements that leave the positions of rows among a launch's keys, and those of its first and last row.

    ``with_start``: also `prefix_start`, where those keys begin in the sequence.
    """
    return (
        *(_STARTS if with_start else ()),
        "if PREFIX:  # rows of several sequences, whose last positions are their queries'",
        "    i = tl.load(places + q_start + row, mask=row_valid, other=0)",
        "    i_lo = tl.min(tl.where(row_valid, i, 2147483647), 0)",
        "    i_hi = tl.max(tl.where(row_valid, i, -2147483647), 0)",
        "else:",
        "    shift = seqlen_k - seqlen_q",
        "    i = row + shift",
        f"    i_lo = tile_m * {rows} + shift",
        f"    i_hi = tl.minimum(tile_m * {rows} + {rows}, seqlen_q) - 1 + shift",
    )


def prefix_config(few: int, has_decode: bool) -> str:
    """The schedule of the launch over prefixes: how many rows a group has on average is all that shapes tell."""
    configs = f"CONFIGS if q.shape[0] > {few} * prefix_table.shape[0] else DECODE_CONFIGS"
    return f"_schedule({configs if has_decode else 'CONFIGS'}, q.device, q.element_size() * 8)"


def prefix_lines(splits: Splits, pages: Pages, block_q: str, heads: str) -> tuple[str, ...]:
    """Statements of the launcher that bound tiles and splits of prefixes, from shapes alone.

    ``block_q`` is how many queries a tile of `prefix_config` holds, ``heads`` how many programs share the keys of one.
    """
    programs = f"prefix_tiles * {heads}"
    count = num_splits(splits, pages, heads, table="prefix_table", config="prefix_config")
    return (
        "num_groups = prefix_table.shape[0]",
        f"prefix_tiles = q.shape[0] // ({block_q}) + num_groups",
        f"prefix_splits = {count}",
        *without_splits(splits, "prefix_config"),
        f"prefix_programs = {programs}",
        "group_starts, places, prefix_starts = _rows_of_groups(",
        "    cu_seqlens_q, cache_seqlens, prefix_seqlens, cu_groups, q.shape[0]",
        ")",
    )
