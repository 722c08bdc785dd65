# SPDX-License-Identifier: MIT
"""As much of ELF as packing needs: what a file is, the parts a loader reads, the text of one section.

Files are untrusted: every offset and size is checked, and ElfError says what is wrong.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice

MAGIC = b"\x7fELF"
CLASS_32, CLASS_64 = 1, 2
LITTLE_ENDIAN = 1
EM_386, EM_X86_64 = 3, 62
MACHINES = {
    EM_386: "i386", 21: "PowerPC", 22: "S390", 40: "ARM", EM_X86_64: "x86-64", 183: "ARM64", 243: "RISC-V",
}  # fmt: skip
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_PAGE_BYTES = 4096
_MAX_HEADERS = 4096


class ElfError(ValueError):
    """Not an ELF file of the wanted kind, or a damaged one."""


@dataclass(frozen=True)
class Segment:
    """A program header."""

    type: int
    flags: int
    offset: int
    virtual: int
    physical: int
    file_bytes: int
    memory_bytes: int
    align: int


def is_elf(data: bytes) -> bool:
    return data[:4] == MAGIC


def describe(data: bytes) -> str:
    """Such as `a 64-bit ELF file for ARM64`."""
    if len(data) < 20:
        return "a truncated ELF file"
    big = data[5] != LITTLE_ENDIAN
    (machine,) = struct.unpack_from(">H" if big else "<H", data, 18)
    bits = {CLASS_32: "32", CLASS_64: "64"}.get(data[4], "?")
    return f"a {bits}-bit ELF file for {MACHINES.get(machine, f'machine {machine}')}"


def is_x86_64(data: bytes | memoryview) -> bool:
    head = bytes(data[:20])
    return (
        len(head) == 20
        and is_elf(head)
        and head[4:6] == bytes((CLASS_64, LITTLE_ENDIAN))
        and struct.unpack_from("<H", head, 18)[0] == EM_X86_64
    )


def segments(data: bytes) -> list[Segment]:
    """The program headers of a 64-bit file, each within the file."""
    header = _header(data)
    offset, size, count = header[5], header[9], header[10]
    if size != _PHDR.size or count > _MAX_HEADERS or offset + size * count > len(data):
        raise ElfError("its program headers lie outside the file")
    found = []
    for index in range(count):
        kind, flags, start, virtual, physical, file_bytes, memory_bytes, align = _PHDR.unpack_from(
            data, offset + index * size
        )
        if kind == PT_LOAD and (start + file_bytes > len(data) or file_bytes > memory_bytes):
            raise ElfError(f"segment {index} lies outside the file (it may be cut short)")
        found.append(Segment(kind, flags, start, virtual, physical, file_bytes, memory_bytes, align))
    return found


def is_static(data: bytes) -> bool:
    """Runs without a dynamic loader."""
    return is_x86_64(data) and not any(segment.type == PT_INTERP for segment in segments(data))


def section(data: bytes, name: str) -> bytes | None:
    """The bytes of the first section of that name; None when there is none."""
    header = _header(data)
    offset, size, count, names_index = header[6], header[11], header[12], header[13]
    if count == 0:
        return None
    if size != _SHDR.size or offset + size * count > len(data) or names_index >= count:
        raise ElfError("its section headers lie outside the file")
    rows = [_SHDR.unpack_from(data, offset + index * size) for index in range(count)]
    names = _section_bytes(data, rows[names_index])
    wanted = name.encode() + b"\0"
    for row in rows:
        if row[0] < len(names) and names.startswith(wanted, row[0]):
            return _section_bytes(data, row)
    return None


def loadable(data: bytes) -> bytes:
    """The same program without what no loader reads: sections, symbols, gaps, and zeroes at a segment's end.

    Notes stay reachable (they carry the PVH entry point). The layout depends on nothing but the input.
    """
    header = _header(data)
    old = segments(data)
    loads = [segment for segment in old if segment.type == PT_LOAD]
    if not loads:
        raise ElfError("it has no loadable segment")
    if sum(load.file_bytes for load in loads) > len(data):
        raise ElfError("its segments overlap")
    notes = [(note, host) for note in old if note.type == PT_NOTE for host in _hosts(loads, note)]

    out = bytearray(_EHDR.size + _PHDR.size * (len(loads) + len(notes)))
    rows = []
    moved: dict[int, int] = {}
    for load in loads:
        content = data[load.offset : load.offset + load.file_bytes].rstrip(b"\0")
        note_ends = [note.offset + note.file_bytes - load.offset for note, host in notes if host is load]
        kept = max([len(content), *note_ends])
        # Offset and address agree modulo the page, as the format asks of loadable segments.
        out += bytes((load.virtual - len(out)) % _PAGE_BYTES)
        moved[load.offset] = len(out)
        address = (load.virtual, load.physical)
        rows.append((PT_LOAD, load.flags, len(out), *address, kept, load.memory_bytes, _PAGE_BYTES))
        out += data[load.offset : load.offset + kept]
    for note, host in notes:
        start = moved[host.offset] + note.offset - host.offset
        address = (note.virtual, note.physical)
        rows.append((PT_NOTE, note.flags, start, *address, note.file_bytes, note.memory_bytes, 4))

    ident, kind, machine, version, entry = header[:5]
    _EHDR.pack_into(
        out, 0, ident, kind, machine, version, entry, _EHDR.size, 0, header[7],
        _EHDR.size, _PHDR.size, len(rows), 0, 0, 0,
    )  # fmt: skip
    for index, row in enumerate(rows):
        _PHDR.pack_into(out, _EHDR.size + index * _PHDR.size, *row)
    return bytes(out)


def _hosts(loads: list[Segment], note: Segment) -> list[Segment]:
    """The segment that holds a note; of several, the first."""
    end = note.offset + note.file_bytes
    holding = (load for load in loads if load.offset <= note.offset and end <= load.offset + load.file_bytes)
    return list(islice(holding, 1))


def _header(data: bytes) -> tuple[bytes, int, int, int, int, int, int, int, int, int, int, int, int, int]:
    if not is_x86_64(data) or len(data) < _EHDR.size:
        raise ElfError("it is not an x86-64 ELF file")
    return _EHDR.unpack_from(data, 0)


def _section_bytes(data: bytes, row: tuple[int, ...]) -> bytes:
    kind, offset, size = row[1], row[4], row[5]
    if kind == 8:  # SHT_NOBITS
        return b""
    if offset + size > len(data):
        raise ElfError("a section lies outside the file")
    return data[offset : offset + size]
