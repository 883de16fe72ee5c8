"""Where tensors lie: chunks of the head dimension, bases of a program's rows, offsets and descriptors of tiles."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.emit.parts import Parts
from attngen.emit.records import Chunk
from attngen.ir.nodes import Load


def chunks(
    load: Load,
    vector: str,
    valid: str,
    value: str = "v",
    *,
    owner: str = "row_valid",
    walked: bool = False,
    cast: str = "",
) -> tuple[Chunk, ...]:
    """The chunks of a tensor's rows. `valid` guards walked keys, `owner` the tile that the program owns, `walked`
    says that walked rows of queries may reach past the last one, `cast` what turns a loaded tile into numbers of q's dtype."""
    chunks: list[Chunk] = []
    for index, (start, width) in enumerate(_pieces(load)):
        last = load.chunks[index // 2 if load.halves else index]
        inside = "" if sum(last) <= load.columns else f"({vector}_{index} < {load.columns})[None, :]"
        masks = [m for m in (valid, inside) if m]
        rows = [m for m in (f"{owner}[:, None]", inside) if m]
        chunks.append(
            Chunk(
                index=index,
                start=start,
                width=width,
                columns=f"{vector}_{index}",
                mask=_masked(masks),
                stored=" & ".join(rows),
                plus=", qk" if index else "",
                plus_dp=", dp" if index else "",
                walked=_masked([*(["row_valid[:, None]"] if walked else []), *([inside] if inside else [])]),
                value=f"{value}_{index}",
                want="",
                cast=cast,
                half=("low", "high")[index % 2] if load.halves else "",
                brings_bytes=index % 2 == 0,
                bytes_of=index - index % 2,
            )
        )
    return tuple(chunks)


def _pieces(load: Load) -> tuple[tuple[int, int], ...]:
    """What a program holds of a row, as (first column, width): chunks, or the even and the odd columns of each."""
    if not load.halves:
        return load.chunks
    return tuple((start + odd, width // 2) for start, width in load.chunks for odd in (0, 1))


def _masked(tests: list[str]) -> str:
    """What a load adds after its pointer."""
    return f", mask={' & '.join(tests)}, other=0.0" if tests else ""


def columns(parts: Parts) -> tuple[str, ...]:
    rows = [("d", parts.k), ("e", parts.v)]
    return tuple(
        f"{vector}_{n} = {_vector(load, start, width)}"
        for vector, load in rows
        for n, (start, width) in enumerate(_pieces(load))
    )


def _vector(load: Load, start: int, width: int) -> str:
    """The columns of a piece."""
    if not load.halves:
        return f"tl.arange({start}, {start + width})"
    return f"{f'{start} + ' if start else ''}2 * tl.arange(0, {width})"


def bases(parts: Parts) -> tuple[str, ...]:
    """Where the rows, keys and values of a program's head begin."""
    packed = parts.packed
    in_rows = parts.heads_in_rows
    tensors = [("q", "q", "h"), ("k", "k", "hk"), ("v", "v", "hk"), ("out", "o", "h")]
    lines: list[str] = []
    for name, short, head in tensors:
        if name == "v" and parts.v_in_k:
            continue
        if parts.pages is not None and head == "hk":
            lines.append(f"{name}_base = {name} + tl.cast(hk, tl.int64) * stride_{short}h")
            continue
        start = "q_start" if head == "h" else "k_start"
        terms = [
            f"tl.cast({start}, tl.int64) * stride_{short}s"
            if packed
            else f"tl.cast(b, tl.int64) * stride_{short}b"
        ]
        terms += [f"tl.cast({head}, tl.int64) * stride_{short}h"] if not in_rows else []
        lines.append(f"{name}_base = {name} + {' + '.join(terms)}")
    where = "q_start" if packed else "tl.cast(b, tl.int64) * stride_lb"
    lines.append(f"lse_base = lse + {where}{'' if in_rows else ' + tl.cast(h, tl.int64) * stride_lh'}")
    return tuple(lines)


def _tile_loads(parts: Parts) -> list[tuple[str, str, Load]]:
    return [("k", "d", parts.k)] + ([] if parts.v_in_k else [("v", "e", parts.v)])


@dataclass(frozen=True, slots=True)
class Hull:
    """The keys that some row of a program may see: [begin, end), and the intervals inside it if there are several.

    A begin of '' is 0. Where a program owns keys (``letter`` m), they are the rows that may see some of them.

    Nothing outside is loaded: unused slots of a cache may hold NaN, and 0 * NaN would reach the output.
    """

    begin: str
    end: str
    pieces: tuple[tuple[str, str], ...] = ()
    usable: tuple[
        str, ...
    ] = ()  # statements that leave `usable`: keys that a condition on the key alone excludes
    letter: str = "n"
    searched: bool = False  # ends are searches, which are of tiles: they say nothing of a single place

    def tile_row(self) -> str:
        """Return where a tile of keys begins in the descriptors' coordinates, which count from the hull's begin."""
        return f"start_{self.letter} - {self.begin}" if self.begin else f"start_{self.letter}"

    def valid(self) -> str:
        """Return the test of a tile's rows."""
        return f"{self.within()} & usable" if self.usable else self.within()

    def exact(self) -> bool:
        """Whether the hull is all that is excluded: descriptors can cut off ends, and nothing between them."""
        return not self.pieces and not self.usable

    def within(self) -> str:
        """Return the test that keys lie in the hull."""
        place, start = f"rows_{self.letter}", f"start_{self.letter}"
        if self.pieces:
            tests = (f"({place} >= {lo} - {start}) & ({place} < {hi} - {start})" for lo, hi in self.pieces)
            return f"({' | '.join(f'({test})' for test in tests)})"
        below = f"({place} < {self.end} - {start})"
        return f"{below} & ({place} >= {self.begin} - {start})" if self.begin else below


def row_places(parts: Parts, short: str) -> str:
    """Where a program's rows of q or out lie from their base; a tile may hold rows of several heads."""
    heads = f" + head_offsets * stride_{short}h" if parts.heads_in_rows else ""
    return f"row_offsets * stride_{short}s{heads}"


def _places(load: Load, vector: str) -> list[tuple[int, str]]:
    """Where the columns of a chunk lie in its row, by the number of its first piece; halves are bytes."""
    if not load.halves:
        return [(n, f"{vector}_{n}") for n in range(len(load.chunks))]
    return [
        (2 * n, f"tl.arange({start // 2}, {(start + width) // 2})")
        for n, (start, width) in enumerate(load.chunks)
    ]


def descriptors(parts: Parts, hull: Hull) -> tuple[str, ...]:
    if parts.pages is not None:
        return ()
    first = f" + tl.cast({hull.begin}, tl.int64) * stride_" if hull.begin else ""
    rows = f"{hull.end} - {hull.begin}" if hull.begin else hull.end
    return tuple(
        f"{name}_descriptor_{n} = tl.make_tensor_descriptor("
        f"{name}_base{first + name + 's' if first else ''}, [{rows}, {load.columns}], [stride_{name}s, 1], [BLOCK_N, {width}])"
        for name, _, load in _tile_loads(parts)
        for n, (_, width) in enumerate(load.chunks)
    )


def offsets(parts: Parts) -> tuple[str, ...]:
    if parts.pages is not None:  # rows are found one by one
        return tuple(
            f"{name}_offsets_{n} = {place}[None, :]"
            for name, vector, load in _tile_loads(parts)
            for n, place in _places(load, vector)
        )
    return tuple(
        f"{name}_offsets_{n} = rows_n[:, None] * stride_{name}s + {vector}_{n}[None, :]"
        for name, vector, load in _tile_loads(parts)
        for n in range(len(load.chunks))
    )
