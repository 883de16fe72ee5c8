"""Cubins are ELF files (64 bits, little endian): the size of a kernel's code, and several kernels in one file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_PLACE = struct.Struct("<Q")  # of the section headers, in the file's header
_COUNTS = struct.Struct("<HHHHH")  # program headers' size and number; section headers', and which holds names
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")  # name, kind, other, section, value, size
_RELOCATION = struct.Struct("<QQ")  # place; symbol in the upper half, kind in the lower
_WITHOUT_CONTENT = 8  # the type of a section that takes no place in the file
_FIRST_CODE = (
    6  # of a joined file: sections 0 to 5 are nothing, names, symbols' names, symbols, lines, relocations
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section with those fields of its header that do not say where it lies; `size` is that of `content`, if it has one."""

    name: str
    type: int
    flags: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry: int = 0
    size: int = 0
    content: bytes = b""


def sections(image: bytes) -> list[Section]:
    """The sections of a file, in order. Raises ValueError for what is no such file."""
    try:
        (start,) = _PLACE.unpack_from(image, 40)
        _, _, step, count, of_names = _COUNTS.unpack_from(image, 54)
        headers = [_SECTION.unpack_from(image, start + step * n) for n in range(count)]
        names = headers[of_names][4]
        return [_section(image, names, header) for header in headers]
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"not an ELF file: {error}") from error


def _section(image: bytes, names: int, header: tuple[int, ...]) -> Section:
    name, kind, flags, _, place, size, link, info, align, entry = header
    return Section(
        name=_text(image, names + name),
        type=kind,
        flags=flags,
        link=link,
        info=info,
        align=align,
        entry=entry,
        size=size,
        content=b"" if kind == _WITHOUT_CONTENT else image[place : place + size],
    )


def _text(content: bytes, start: int) -> str:
    return content[start : content.index(b"\0", start)].decode("utf-8")


def section_size(image: bytes, name: str) -> int:
    """Bytes of a section; 0 if there is none of that name. Raises ValueError for what is no such file."""
    return next((s.size for s in sections(image) if s.name == name), 0)


def prefix(number: int) -> str:
    """What the names of image `number` start with in a joined file; no name of a kernel has a dot."""
    return f"cubin.{number}."


def joined(images: Sequence[bytes]) -> bytes:
    """One file with the code of several cubins for the same GPU, the names of places in it, and its source lines.

    It is for disassembling, not for running: constants and the like are left out. Section ``.text.kernel`` of image n becomes
    ``.text.<prefix(n)>kernel``, and symbols are renamed in the same way. Raises ValueError for what is no cubin.
    """
    code: list[Section] = []
    texts, symbols = bytearray(1), bytearray(_SYMBOL.size)
    lines, moves = bytearray(), bytearray()
    moved = Section(name=".rela.debug_line", type=4, entry=24)
    for number, image in enumerate(images):
        found = sections(image)
        named = {s.name: s for s in found}
        base = len(symbols) // _SYMBOL.size
        places: dict[int, int] = {}
        for place, section in enumerate(found):
            if section.name.startswith(".text."):
                places[place] = _FIRST_CODE + len(code)
                code.append(_renamed(section, number, base))
        if not places or ".symtab" not in named or ".strtab" not in named:
            raise ValueError("not a cubin: it has no code, or no symbols")
        symbols += _symbols(named[".symtab"].content, named[".strtab"].content, number, places, texts)
        for name in (".rel.debug_line", ".rela.debug_line"):
            if name in named:
                moved = named[name]
                moves += _relocations(moved, len(lines), base)
        lines += named[".debug_line"].content if ".debug_line" in named else b""
    return _file(
        images[0],
        [
            Section(name=".strtab", type=3, content=bytes(texts)),
            Section(name=".symtab", type=2, link=2, info=1, align=8, entry=24, content=bytes(symbols)),
            Section(name=".debug_line", type=1, content=bytes(lines)),
            Section(
                name=moved.name,
                type=moved.type,
                link=3,
                info=4,
                align=8,
                entry=moved.entry,
                content=bytes(moves),
            ),
            *code,
        ],
    )


def _renamed(section: Section, number: int, base: int) -> Section:
    """Code for a joined file. The lower 24 bits of `info` name the kernel's symbol, the upper eight count registers."""
    return Section(
        name=f".text.{prefix(number)}{section.name.removeprefix('.text.')}",
        type=section.type,
        flags=section.flags,
        link=3,
        info=(section.info & 0xFF000000) | ((section.info & 0xFFFFFF) + base),
        align=section.align,
        content=section.content,
    )


def _symbols(table: bytes, names: bytes, number: int, places: dict[int, int], texts: bytearray) -> bytes:
    """A cubin's symbols with their names added to `texts`; those of what is left out keep their number and nothing else."""
    kept = bytearray()
    for name, kind, other, section, value, size in _SYMBOL.iter_unpack(table):
        if section not in places:
            kept += bytes(_SYMBOL.size)
            continue
        at = 0
        if text := _text(names, name):
            at = len(texts)
            texts += f"{prefix(number)}{text}\0".encode()
        kept += _SYMBOL.pack(at, kind, other, places[section], value, size)
    return bytes(kept)


def _relocations(section: Section, lines: int, base: int) -> bytes:
    """A cubin's relocations of source lines, for lines and symbols that stand behind those of others."""
    moved = bytearray()
    for start in range(0, len(section.content), section.entry):
        place, what = _RELOCATION.unpack_from(section.content, start)
        moved += _RELOCATION.pack(place + lines, what + (base << 32))
        moved += section.content[start + _RELOCATION.size : start + section.entry]
    return bytes(moved)


def _file(like: bytes, content: Sequence[Section]) -> bytes:
    """A file of sections, with the header of another."""
    names = "".join(f"\0{name}" for name in (".shstrtab", *(s.name for s in content))).encode() + b"\0"
    body, headers = bytearray(like[:64]), bytearray(_SECTION.size)
    at = 1
    for section in (Section(name=".shstrtab", type=3, content=names), *content):
        body += bytes(-len(body) % section.align)
        headers += _SECTION.pack(
            at,
            section.type,
            section.flags,
            0,
            len(body),
            len(section.content),
            section.link,
            section.info,
            section.align,
            section.entry,
        )
        body += section.content
        at += len(section.name.encode()) + 1
    body += bytes(-len(body) % 8)
    _PLACE.pack_into(body, 32, 0)  # no program headers
    _PLACE.pack_into(body, 40, len(body))
    _COUNTS.pack_into(body, 54, 0, 0, _SECTION.size, len(content) + 2, 1)
    return bytes(body + headers)
