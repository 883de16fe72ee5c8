"""A fold shared between programs: which tiles a program folds, how many programs share them, and what is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attngen.emit.records import Piece
from attngen.ir.nodes import Pages, Splits

if TYPE_CHECKING:
    from attngen.emit.addresses import Hull

COUNTING = {"num_splits": "1", "COUNT": "True"}  # what the launch that counts tiles passes


def split_lines(splits: Splits, hull: Hull) -> tuple[str, ...]:
    """Statements that leave ``split_first`` and ``split_end``: the tiles of a program's split.

    Splits of a fixed size count from key 0, so that nothing but the request decides which keys are summed together. Others
    share what these rows have: their own keys decide, not the longest sequence of the batch. Where no number is given, these
    also decide how many splits there are, and programs past them leave.
    """
    if splits.keys:
        size = f"({splits.keys} // BLOCK_N)"
        return (f"split_first = split * {size}", f"split_end = split_first + {size}")
    first = f"{hull.begin} // BLOCK_N" if hull.begin else "0"
    count = f"tl.cdiv({hull.end}, BLOCK_N)"
    return (
        f"num_tiles = {f'{count} - {first}' if hull.begin else count}",
        *(_COUNTED if measures(splits) else ()),
        f"split_tiles = tl.cdiv(num_tiles, {'own_splits' if measures(splits) else 'num_splits'})",
        f"split_first = {f'{first} + ' if hull.begin else ''}split * split_tiles",
        "split_end = split_first + split_tiles",
    )


_COUNTED = (
    "num_tiles = tl.maximum(num_tiles, 0)",
    "if COUNT:  # a launch before: how many tiles of keys there are to share",
    "    count_rows = tl.cast(q_start, tl.int64) * num_q_heads + (row * num_q_heads + h)",
    "    tl.store(tiles_of_rows + count_rows, num_tiles, mask=row_valid)",
    "    tl.atomic_add(total_tiles, num_tiles)",
    "    return",
    "own_splits = num_splits",
    "if SPLIT:",
    "    own_splits = _own_splits(num_tiles, total_tiles, num_sms, num_splits)",
    "    if split >= own_splits:",
    "        return",
)


def measures(splits: Splits | None) -> bool:
    """Whether a launch before counts what there is to share."""
    return splits == Splits()


def merged(splits: Splits | None, *, prefix: bool) -> tuple[tuple[str, ...], tuple[Piece, ...]]:
    """Statements of the merging kernel, and the partial results that it adds up."""
    if not measures(splits):
        return (), (Piece("0", "num_splits", "row_valid"),)
    splits_of = (
        "{} = _own_splits(tl.load(tiles_of_rows + {}, mask=row_valid, other=0), {}, num_sms, {})".format
    )
    found = Piece("0", "tl.max(count, 0)", "row_valid & (split < count)")
    if not prefix:
        return (splits_of("count", "place", "total_tiles", "num_splits"),), (found,)
    own = Piece(
        "prefix_splits",
        "prefix_splits + tl.max(own_count, 0)",
        "row_valid & (split - prefix_splits < own_count)",
    )
    return (
        splits_of("count", "place", "total_tiles", "prefix_splits"),
        splits_of("own_count", "total_rows + place", "total_tiles + 1", "num_splits"),
    ), (found, own)


def partial_doc(splits: Splits | None, columns: int) -> tuple[str, ...]:
    """What a caller should know of the memory that splits of a fixed size take."""
    if splits is None or not splits.keys:
        return ()
    return (
        f"Each {splits.keys} keys of its width take 4 * Tq * Hq * {columns + 1} bytes of partial results: pass as many of its",
        "columns as the longest sequence needs (page_table[:, :n], which changes no bit), and long prompts in chunks.",
    )


def clipped(begin: str, end: str) -> tuple[str, str]:
    """The part of a range of tiles that lies in the program's split."""
    return f"tl.maximum({begin}, split_first)", f"tl.minimum({end}, split_end)"


def num_splits(
    splits: Splits, pages: Pages, programs: str, *, table: str = "page_table", config: str = "config"
) -> str:
    """The largest number of splits as text, from shapes alone: of the keys in ``table``, where rows that are folded together
    need so many ``programs`` without splits."""
    most = f"{table}.shape[1] * {pages.size}"
    if splits.keys:
        return f"max(triton.cdiv({most}, {splits.keys}), 1)"
    chosen = str(splits.count)
    if not splits.count:
        if pages.table == "csr":  # one sequence may have all pages
            most = f"page_indices.shape[0] * {pages.size}"
        columns = "2 * out.numel()" if pages.prefix else "out.numel()"  # two pieces share the memory
        chosen = f'_num_splits({programs}, triton.cdiv({most}, {config}["BLOCK_N"]), {columns}, num_sms)'
    return f'{config}.get("num_splits") or {chosen}'


def without_splits(splits: Splits, config: str = "config") -> tuple[str, ...]:
    """Statements that leave a schedule with what the kernel takes of it."""
    kept = f'{{name: value for name, value in {config}.items() if name != "num_splits"}}'
    return () if splits.keys else (f"{config} = {kept}",)


def num_splits_lines(splits: Splits, pages: Pages, heads: str) -> tuple[str, ...]:
    """Statements of the launcher that leave ``num_splits`` and ``split``. ``heads`` programs share the keys of a row."""
    # a schedule that asks for a number gets it, where there are tiles: as if there were units for all of them
    units = 'num_sms = 2**27 if config.get("num_splits") else _num_sms(q.device)'
    return (
        *((units,) if measures(splits) else ()),
        f"num_splits = {num_splits(splits, pages, f'triton.cdiv(max_seqlen_q, block_q) * {heads}')}",
        *without_splits(splits),
        *(("split = True",) if splits.keys or pages.prefix else ("split = num_splits > 1",)),
    )
