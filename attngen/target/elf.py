"""The size of a kernel's code, from the section headers of its cubin (ELF-64, little endian)."""

from __future__ import annotations

import struct

_HEADER = struct.Struct(
    "<40x Q 10x HHH"
)  # place of the section headers; size of one, how many, which holds the names
_SECTION = struct.Struct("<I 20x QQ 24x")  # place of the name among the names; place and size of the content


def section_size(image: bytes, name: str) -> int:
    """Bytes of a section; 0 if there is none of that name. Raises ValueError for what is no such file."""
    try:
        start, step, count, of_names = _HEADER.unpack_from(image)
        sections = [_SECTION.unpack_from(image, start + step * n) for n in range(count)]
        names = sections[of_names][1]
    except (struct.error, IndexError) as error:
        raise ValueError(f"not an ELF file: {error}") from error
    wanted = name.encode() + b"\0"
    return next((size for at, _, size in sections if image.startswith(wanted, names + at)), 0)
