"""A fold shared between programs: which tiles a program folds, and the launcher's number of splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attngen.ir.nodes import Pages, Splits

if TYPE_CHECKING:
    from attngen.emit.addresses import Hull


def split_lines(splits: Splits, hull: Hull) -> tuple[str, ...]:
    """Statements that leave ``split_first`` and ``split_end``: the tiles of a program's split.

    Splits of a fixed size count from key 0, so that nothing but the request decides which keys are summed together. Others
    share what this sequence has: its own length decides, not the longest of the batch.
    """
    if splits.keys:
        size = f"({splits.keys} // BLOCK_N)"
        return (f"split_first = split * {size}", f"split_end = split_first + {size}")
    first = f"{hull.begin} // BLOCK_N" if hull.begin else "0"
    count = f"tl.cdiv({hull.end}, BLOCK_N)"
    return (
        f"split_tiles = tl.cdiv({f'{count} - {first}' if hull.begin else count}, num_splits)",
        f"split_first = {f'{first} + ' if hull.begin else ''}split * split_tiles",
        "split_end = split_first + split_tiles",
    )


def clipped(begin: str, end: str) -> tuple[str, str]:
    """The part of a range of tiles that lies in the program's split."""
    return f"tl.maximum({begin}, split_first)", f"tl.minimum({end}, split_end)"


def num_splits(
    splits: Splits, pages: Pages, programs: str, *, table: str = "page_table", config: str = "config"
) -> str:
    """The number of splits as text, from shapes alone: of the keys in ``table``, for so many ``programs`` without splits."""
    most = f"{table}.shape[1] * {pages.size}"
    if splits.keys:
        return f"max(triton.cdiv({most}, {splits.keys}), 1)"
    chosen = str(splits.count)
    if not splits.count:
        if pages.table == "csr":  # of all sequences together: an average is all that shapes tell
            most = f"triton.cdiv(page_indices.shape[0], max(num_seqs, 1)) * {pages.size}"
        chosen = f'_num_splits({programs}, triton.cdiv({most}, {config}["BLOCK_N"]), q.device)'
    return f'{config}.get("num_splits") or {chosen}'


def without_splits(splits: Splits, config: str = "config") -> tuple[str, ...]:
    """Statements that leave a schedule with what the kernel takes of it."""
    kept = f'{{name: value for name, value in {config}.items() if name != "num_splits"}}'
    return () if splits.keys else (f"{config} = {kept}",)


def num_splits_lines(splits: Splits, pages: Pages, programs: str) -> tuple[str, ...]:
    """Statements of the launcher that leave ``num_splits`` and ``split``."""
    return (
        f"num_splits = {num_splits(splits, pages, programs)}",
        *without_splits(splits),
        *(("split = True",) if splits.keys or pages.prefix else ("split = num_splits > 1",)),
    )
