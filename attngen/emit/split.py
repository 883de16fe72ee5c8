"""A fold shared between programs: which tiles a program folds, how many share them, and what is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attngen.emit.records import Piece
from attngen.ir.nodes import Pages, Splits

if TYPE_CHECKING:
    from attngen.emit.addresses import Hull

MARGIN = 11, 10  # FlashAttention counts 10 % more tiles than there are
COUNTING = {"num_splits": "1", "COUNT": "True"}  # what the launch that counts tiles passes


def split_lines(splits: Splits, hull: Hull) -> tuple[str, ...]:
    """Statements that leave ``split_first`` and ``split_end``, the tiles of a program's split, and of splits of no fixed size
    ``own_splits``, how many this tile of rows has; programs past them leave.

    Splits of a fixed size count from key 0, so that nothing but the request decides which keys are summed together. Others
    share what these rows have: their own keys decide, not the longest sequence of the batch. Where no number is given, a
    split has as many tiles as a multiprocessor gets when all tiles of all programs are dealt out, as in FlashAttention
    (hopper/flash_prepare_scheduler.cu); there by the lengths of sequences, here by what the mask leaves of them.
    """
    if splits.keys:
        size = f"({splits.keys} // BLOCK_N)"
        return (f"split_first = split * {size}", f"split_end = split_first + {size}")
    first = f"{hull.begin} // BLOCK_N" if hull.begin else "0"
    count = f"tl.cdiv({hull.end}, BLOCK_N)"
    measured = measures(splits)
    wanted = "tl.cdiv(num_tiles, share)" if measured else "num_tiles"
    more, of = MARGIN
    counting = (
        "if COUNT:  # a launch before: how many tiles of keys there are to share",
        "    tl.atomic_add(total_tiles, num_tiles)",
        "    return",
    )
    sharing = (
        f"    share = tl.cdiv(tl.load(total_tiles).to(tl.int64) * {more}, num_sms * {of})",
        "    share = tl.maximum(share, 1).to(tl.int32)",
    )
    return (
        f"num_tiles = tl.maximum({f'{count} - {first}' if hull.begin else count}, 0)",
        *(counting if measured else ()),
        "own_splits = num_splits",
        "if SPLIT:",
        *(sharing if measured else ()),
        f"    own_splits = tl.maximum(tl.minimum({wanted}, num_splits), 1)",
        "    if split >= own_splits:",
        "        return",
        "split_tiles = tl.cdiv(num_tiles, own_splits)",
        f"split_first = {f'{first} + ' if hull.begin else ''}split * split_tiles",
        "split_end = split_first + split_tiles",
    )


def measures(splits: Splits | None) -> bool:
    """Whether a launch before counts what there is to share."""
    return splits == Splits()


def counts(splits: Splits | None) -> bool:
    """Whether rows differ in their number of splits."""
    return splits is not None and not splits.keys


def merged(splits: Splits | None, *, prefix: bool) -> tuple[tuple[str, ...], tuple[Piece, ...]]:
    """Statements of the merging kernel, and the partial results that it adds up.

    Rows whose one program has stored their result are left alone; with a prefix there is always more than one.
    """
    if splits is None or splits.keys:
        return (), (Piece("0", "num_splits", "row_valid"),)
    load = "tl.load(partial_count + {}, mask=row_valid, other=0)"
    found = Piece("0", "tl.max(count, 0)", "split < count")
    if not prefix:
        return (
            f"count = {load.format('place')}",
            "count = tl.where(count > 1, count, 0)  # others have been stored by their one program",
            "row_valid = count > 0",
        ), (found,)
    own = Piece("prefix_splits", "prefix_splits + tl.max(own_count, 0)", "split - prefix_splits < own_count")
    return (
        f"count = {load.format('place')}",
        f"own_count = {load.format('total_rows + place')}",
    ), (found, own)


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
        chosen = f'_num_splits({programs}, triton.cdiv({most}, {config}["BLOCK_N"]), out.numel(), num_sms)'
    return f'{config}.get("num_splits") or {chosen}'


def without_splits(splits: Splits, config: str = "config") -> tuple[str, ...]:
    """Statements that leave a schedule with what the kernel takes of it."""
    kept = f'{{name: value for name, value in {config}.items() if name != "num_splits"}}'
    return () if splits.keys else (f"{config} = {kept}",)


def num_splits_lines(splits: Splits, pages: Pages, heads: str) -> tuple[str, ...]:
    """Statements of the launcher that leave ``num_splits`` and ``split``; and ``measured``, whether lengths decide how many
    there are: a schedule may ask for a number, as far as there are tiles. ``heads`` programs share the keys of a row."""
    measuring = (
        "num_sms = _num_sms(q.device)",
        'measured = not config.get("num_splits")',
    )
    return (
        *(measuring if measures(splits) else ()),
        f"num_splits = {num_splits(splits, pages, f'triton.cdiv(max_seqlen_q, block_q) * {heads}')}",
        *without_splits(splits),
        *(("split = True",) if splits.keys or pages.prefix else ("split = num_splits > 1",)),
    )
