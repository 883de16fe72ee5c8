"""Sections of a file put together here; `tests/inspect` compares sizes in cubins with listings, `test_sass` joins cubins."""

import struct

import pytest

from attngen.target.elf import joined, section_size

NAMES = b"\0.strtab\0.text.kernel\0.text.kernel_2\0"


def image(sections):
    """An ELF-64 file of a header, the names, and a header for each section of (name, size)."""
    headers = [struct.pack("<I20xQQ24x", 0, 0, 0), struct.pack("<I20xQQ24x", 1, 64, len(NAMES))]
    headers += [struct.pack("<I20xQQ24x", NAMES.index(name + b"\0"), 0, size) for name, size in sections]
    start = 64 + len(NAMES)
    header = b"\x7fELF".ljust(40, b"\0") + struct.pack("<Q10xHHH", start, 64, len(headers), 1)
    return header + NAMES + b"".join(headers)


def test_the_size_of_a_section_is_found_by_its_whole_name():
    file = image([(b".text.kernel_2", 32), (b".text.kernel", 160)])
    assert section_size(file, ".text.kernel") == 160
    assert section_size(file, ".text.kernel_2") == 32
    assert section_size(file, ".text.kern") == 0


@pytest.mark.parametrize("file", [b"", b"\x7fELF", image([(b".text.kernel", 1)])[:120]])
def test_half_a_file_is_refused(file):
    with pytest.raises(ValueError, match="not an ELF file"):
        section_size(file, ".text.kernel")


@pytest.mark.parametrize("file", [b"", image([(b".text.kernel", 1)])[:120], image([(b".text.kernel", 16)])])
def test_what_is_no_cubin_is_not_joined(file):
    with pytest.raises(ValueError, match=r"not an ELF file|not a cubin"):
        joined([file])
