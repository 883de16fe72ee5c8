"""How columns are cut into the powers of two that products take."""

from __future__ import annotations


def narrow(chunks: tuple[tuple[int, int], ...], widest: int) -> tuple[tuple[int, int], ...]:
    """Cut chunks that are wider."""
    return tuple(
        (place, min(width, widest))
        for start, width in chunks
        for place in range(start, start + width, widest)
    )


def cover(columns: int, least: int = 16) -> tuple[tuple[int, int], ...]:
    """Cover columns by descending powers of two of at least 16, as (start, width): 72 is 64 + 16, with 8 idle lanes.

    Splitting costs less than padding to the next power of two: the products of the idle columns are not computed.
    """
    rest = -(-columns // least) * least
    chunks: list[tuple[int, int]] = []
    start = 0
    while rest:
        width = 1 << (rest.bit_length() - 1)
        chunks.append((start, width))
        start, rest = start + width, rest - width
    return tuple(chunks)
