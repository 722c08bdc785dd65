# SPDX-License-Identifier: MIT
"""Disks of other programs, read to be converted: VMDK, VDI, VHD (vpc) and VHDX, each in its usual variants.

A disk that names a parent or is spread over files is refused by name. The files are untrusted: what they say
is checked before it is used, and nothing is allocated on their word but one block.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imgvm.errors import ImageError

SECTOR = 512
BLOCK_BYTES_MAX = 256 << 20
TABLE_BYTES_MAX = 256 << 20
DISK_BYTES_MAX = 1 << 56
QEMU_HINT = "`qemu-img convert -O qcow2` may know it"


class ForeignDisk:
    """An open disk. `parts` gives what is not zeros, in ascending order, as (offset, bytes)."""

    kind = ""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.file_bytes = os.fstat(stream.fileno()).st_size
        self.own_bytes = 0  # of what was read by `own`
        self.disk_bytes = 0
        self.block_bytes = 0
        self._open()
        if self.disk_bytes % SECTOR or not 0 <= self.disk_bytes <= DISK_BYTES_MAX:
            raise self.broken(f"a disk of {self.disk_bytes} bytes")
        if not 0 < self.block_bytes <= BLOCK_BYTES_MAX or self.block_bytes % SECTOR:
            raise self.broken(f"blocks of {self.block_bytes} bytes")

    def _open(self) -> None:
        raise NotImplementedError

    def parts(self) -> Iterator[tuple[int, bytes]]:
        raise NotImplementedError

    def broken(self, what: str) -> ImageError:
        return ImageError(f"{self.path}: damaged {self.kind}: {what}", "restore a copy")

    def refused(self, what: str) -> ImageError:
        return ImageError(f"{self.path}: {self.kind} {what} cannot be read", QEMU_HINT)

    def at(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.file_bytes:
            raise self.broken(f"{size} bytes at {offset} are not in the file")
        self.stream.seek(offset)
        return self.stream.read(size)

    def table(self, form: str, offset: int, count: int) -> Iterator[int]:
        """Numbers of a table, which are not made all at once: there can be tens of millions."""
        size = struct.calcsize(form) * count
        if size > TABLE_BYTES_MAX:
            raise self.broken(f"a table of {count} entries")
        return (value for (value,) in struct.iter_unpack(form, self.own(offset, size)))

    def own(self, offset: int, size: int) -> bytes:
        """A table or block. None shares its place with another, so all of them are no more than the file."""
        self.own_bytes += size
        if self.own_bytes > self.file_bytes:
            raise self.broken("several of its blocks lie in one place")
        return self.at(offset, size)

    def block(self, index: int, offset: int) -> tuple[int, bytes]:
        start = index * self.block_bytes
        return start, self.own(offset, min(self.block_bytes, self.disk_bytes - start))

    def block_count(self) -> int:
        return -(-self.disk_bytes // self.block_bytes)


class Vdi(ForeignDisk):
    kind = "vdi"
    MAGIC_AT, MAGIC = 0x40, b"\x7f\x10\xda\xbe"
    ZERO = 0xFFFFFFFE  # and above: no block

    def _open(self) -> None:
        head = self.at(0, 0x188)
        version, _, image_type = struct.unpack_from("<III", head, 0x44)
        self.map_at, self.data_at = struct.unpack_from("<II", head, 0x154)
        self.disk_bytes, self.block_bytes, extra = struct.unpack_from("<QII", head, 0x170)
        self.disk_bytes = -(-self.disk_bytes // SECTOR) * SECTOR
        if version >> 16 != 1 or image_type not in (1, 2) or extra:
            raise self.refused(f"of version {version:#x} and type {image_type}")

    def parts(self) -> Iterator[tuple[int, bytes]]:
        for index, place in enumerate(self.table("<I", self.map_at, self.block_count())):
            if place < self.ZERO:
                yield self.block(index, self.data_at + place * self.block_bytes)


class Vhd(ForeignDisk):
    kind = "vpc"
    MAGIC = b"conectix"
    FIXED, DYNAMIC = 2, 3

    def _open(self) -> None:
        foot = self.at(self.file_bytes - SECTOR, SECTOR)
        if not foot.startswith(self.MAGIC):
            foot = self.at(0, SECTOR)
        (self.head_at,) = struct.unpack_from(">Q", foot, 16)
        (self.disk_bytes,) = struct.unpack_from(">Q", foot, 48)
        cylinders, heads, sectors, self.type = struct.unpack_from(">HBBI", foot, 56)
        # Virtual PC and QEMU go by the geometry, unless it is at its largest.
        if foot[28:32] in (b"vpc ", b"vs  ", b"qemu") and (cylinders, heads, sectors) != (65535, 16, 255):
            self.disk_bytes = cylinders * heads * sectors * SECTOR
        self.block_bytes = 2 << 20
        if self.type == self.DYNAMIC:
            head = self.at(self.head_at, 1024)
            self.table_at, _, self.entries, self.block_bytes = struct.unpack_from(">QIII", head, 16)
            if head[:8] != b"cxsparse" or self.entries * self.block_bytes < self.disk_bytes:
                raise self.broken("its sparse header")
        elif self.type != self.FIXED:
            raise self.refused("that differs from a parent" if self.type == 4 else f"of type {self.type}")

    def parts(self) -> Iterator[tuple[int, bytes]]:
        if self.type == self.FIXED:
            yield from (self.block(index, index * self.block_bytes) for index in range(self.block_count()))
            return
        bitmap = -(-self.block_bytes // SECTOR // 8 // SECTOR) * SECTOR
        for index, sector in enumerate(self.table(">I", self.table_at, self.block_count())):
            if sector != 0xFFFFFFFF:
                yield self.block(index, sector * SECTOR + bitmap)


class Vmdk(ForeignDisk):
    kind = "vmdk"
    MAGIC = b"KDMV"
    TEXT = b"# Disk DescriptorFile"
    ZERO_GRAINS, COMPRESSED = 1 << 2, 1 << 16
    AT_END = 0xFFFFFFFFFFFFFFFF
    TABLE_ENTRIES_MAX = 512

    def _open(self) -> None:
        head = self.at(0, SECTOR)
        if head.startswith(self.TEXT):
            raise self.refused("of several files")
        self._header(head)
        if self.directory_at == self.AT_END:
            self._header(self.at(self.file_bytes - 2 * SECTOR, SECTOR))
        text = self.at(self.text_at * SECTOR, min(self.text_sectors * SECTOR, 65536)) if self.text_at else b""
        if b"parentCID=" in text and b"parentCID=ffffffff" not in text:
            raise self.refused("that differs from a parent")
        if not 0 < self.table_entries <= self.TABLE_ENTRIES_MAX:
            raise self.broken(f"tables of {self.table_entries} entries")

    def _header(self, head: bytes) -> None:
        magic, _, self.flags, capacity, grain = struct.unpack_from("<4sIIQQ", head)
        self.text_at, self.text_sectors, self.table_entries = struct.unpack_from("<QQI", head, 28)
        (self.directory_at,) = struct.unpack_from("<Q", head, 56)
        if magic != self.MAGIC or grain > BLOCK_BYTES_MAX // SECTOR or capacity > DISK_BYTES_MAX // SECTOR:
            raise self.broken("its header")
        self.disk_bytes, self.block_bytes = capacity * SECTOR, grain * SECTOR

    def _grain(self, index: int, sector: int) -> tuple[int, bytes]:
        if not self.flags & self.COMPRESSED:
            return self.block(index, sector * SECTOR)
        _, size = struct.unpack("<QI", self.at(sector * SECTOR, 12))
        start = index * self.block_bytes
        try:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(self.own(sector * SECTOR + 12, size), self.block_bytes)
        except zlib.error as problem:
            raise self.broken(f"the grain at sector {sector}: {problem}") from None
        wanted = min(self.block_bytes, self.disk_bytes - start)
        if len(data) < wanted:
            raise self.broken(f"the grain at sector {sector} is short")
        return start, data[:wanted]

    def parts(self) -> Iterator[tuple[int, bytes]]:
        tables = -(-self.block_count() // self.table_entries)
        for number, table_at in enumerate(self.table("<I", self.directory_at * SECTOR, tables)):
            if not table_at:
                continue
            first = number * self.table_entries
            count = min(self.table_entries, self.block_count() - first)
            for index, sector in enumerate(self.table("<I", table_at * SECTOR, count), first):
                if sector > (1 if self.flags & self.ZERO_GRAINS else 0):
                    yield self._grain(index, sector)


class Vhdx(ForeignDisk):
    kind = "vhdx"
    MAGIC = b"vhdxfile"
    HEADERS, REGIONS = (64 << 10, 128 << 10), 192 << 10
    MAP = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
    METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
    PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
    DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
    SECTOR_SIZE = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
    PRESENT = 6

    def _open(self) -> None:
        heads = [head for at in self.HEADERS if (head := self.at(at, 4096)).startswith(b"head")]
        if not heads:
            raise self.broken("it has no header")
        head = max(heads, key=lambda one: struct.unpack_from("<Q", one, 8)[0])
        if any(head[48:64]):
            hint = "open it once with the program that wrote it, or with `qemu-img check -r all`"
            raise ImageError(f"{self.path}: this vhdx was not closed properly", hint)
        regions = self._rows(self.REGIONS, b"regi", 8, 16, "<QI")
        if self.MAP not in regions or self.METADATA not in regions:
            raise self.broken("it has no block table or no metadata")
        self.map_at = regions[self.MAP][0]
        start = regions[self.METADATA][0]
        items = self._rows(start, b"metadata", 10, 32, "<II")
        if not {self.PARAMETERS, self.DISK_SIZE, self.SECTOR_SIZE} <= items.keys():
            raise self.broken("its metadata")
        self.block_bytes, flags = struct.unpack("<II", self.at(start + items[self.PARAMETERS][0], 8))
        (self.disk_bytes,) = struct.unpack("<Q", self.at(start + items[self.DISK_SIZE][0], 8))
        (sector,) = struct.unpack("<I", self.at(start + items[self.SECTOR_SIZE][0], 4))
        if flags & 2:
            raise self.refused("that differs from a parent")
        if sector not in (512, 4096) or not 1 << 20 <= self.block_bytes <= BLOCK_BYTES_MAX:
            raise self.broken("its parameters")
        self.ratio = (sector << 23) // self.block_bytes

    def _rows(
        self, at: int, magic: bytes, count_at: int, first: int, form: str
    ) -> dict[uuid.UUID, tuple[int, ...]]:
        """A table of GUIDs: `count` is at `count_at`, its first row of 32 bytes at `first`."""
        table = self.at(at, 65536)
        (count,) = struct.unpack_from("<H", table, count_at)
        if not table.startswith(magic) or count > 2047:
            raise self.broken(f"its table {magic.decode()}")
        if first + 32 * count > len(table):
            raise self.broken(f"{count} rows in its table {magic.decode()}")
        rows = (table[first + 32 * index : first + 32 * (index + 1)] for index in range(count))
        return {uuid.UUID(bytes_le=row[:16]): struct.unpack_from(form, row, 16) for row in rows}

    def parts(self) -> Iterator[tuple[int, bytes]]:
        blocks = self.block_count()
        entries = self.table("<Q", self.map_at, blocks + max(blocks - 1, 0) // self.ratio)
        for at, entry in enumerate(entries):
            chunk, inside = divmod(at, self.ratio + 1)  # a chunk's last entry is not of a block
            if inside < self.ratio and entry & 7 == self.PRESENT:
                yield self.block(chunk * self.ratio + inside, entry >> 20 << 20)


def open_foreign(path: Path, stream: BinaryIO) -> ForeignDisk | None:
    """The disk in an open file, by its content; None when it is none of these."""
    head = stream.read(512)
    size = os.fstat(stream.fileno()).st_size
    stream.seek(max(size - SECTOR, 0))
    tail = stream.read(8)
    if head.startswith((Vmdk.MAGIC, Vmdk.TEXT)):
        return Vmdk(path, stream)
    if head[Vdi.MAGIC_AT :].startswith(Vdi.MAGIC):
        return Vdi(path, stream)
    if head.startswith(Vhdx.MAGIC):
        return Vhdx(path, stream)
    if head.startswith(Vhd.MAGIC) or (tail == Vhd.MAGIC and size >= SECTOR):
        return Vhd(path, stream)
    return None
