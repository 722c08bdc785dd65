# SPDX-License-Identifier: MIT
"""Stream-optimized VMDK, written (Virtual Disk Format 5.0, "Stream-Optimized Compressed").

    sector 0        header, whose grain directory is "at the end"
    then            descriptor, a text
    from sector 128 grains: a marker and 64 KiB of deflated data each; after 512 of them their grain table
    at the end      grain directory, footer (the header with the directory's place), end-of-stream marker

Numbers are little-endian; places are in sectors of 512 bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from imgvm.errors import ImageError

SECTOR_BYTES = 512
GRAIN_SECTORS, TABLE_GRAINS = 128, 512
GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
OVERHEAD_SECTORS = 128  # before the first grain
AT_END = 0xFFFFFFFFFFFFFFFF
MARKER_EOS, MARKER_GT, MARKER_GD, MARKER_FOOTER = range(4)
FLAGS = 1 | 1 << 16 | 1 << 17  # newline test, compressed grains, markers
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MAGIC, _VERSION, _DEFLATE = b"KDMV", 3, 1
_NEWLINES = b"\n \r\n"
MAX_DISK_BYTES = 64 << 40

_DESCRIPTOR = """\
# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY {sectors} SPARSE "disk.vmdk"

# The disk database
ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.virtualHWVersion = "10"
"""


def write(stream: BinaryIO, disk_bytes: int, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Writes a disk from (offset, bytes) in order; what is not given, or zero, takes no space."""
    writer = _Writer(stream, disk_bytes)
    for number, grain in _grains(pieces):
        writer.grain(number, grain)
    writer.finish()


def _grains(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The grains that are not all zero, by number."""
    current, content = -1, bytearray()
    for offset, data in pieces:
        position = 0
        while position < len(data):
            number, inside = divmod(offset + position, GRAIN_BYTES)
            part = data[position : position + GRAIN_BYTES - inside]
            if number != current:
                if any(content):
                    yield current, bytes(content)
                current, content = number, bytearray(GRAIN_BYTES)
            content[inside : inside + len(part)] = part
            position += len(part)
    if any(content):
        yield current, bytes(content)


class _Writer:
    def __init__(self, stream: BinaryIO, disk_bytes: int) -> None:
        if disk_bytes > MAX_DISK_BYTES:
            raise ImageError("the disk is too large for a VMDK file")
        self._stream = stream
        self._sectors = -(-disk_bytes // SECTOR_BYTES)
        tables = -(-self._sectors // (GRAIN_SECTORS * TABLE_GRAINS))
        self._directory = [0] * tables
        self._table: list[int] = [0] * TABLE_GRAINS
        self._table_number = 0
        cylinders = min(self._sectors // (255 * 63), 65535)
        cid = zlib.crc32(str(disk_bytes).encode())
        text = _DESCRIPTOR.format(cid=cid, sectors=self._sectors, cylinders=cylinders)
        self._descriptor_sectors = -(-len(text) // SECTOR_BYTES)
        stream.write(self._header(AT_END))
        stream.write(text.encode().ljust((OVERHEAD_SECTORS - 1) * SECTOR_BYTES, b"\0"))

    def _header(self, directory: int) -> bytes:
        return _HEADER.pack(
            _MAGIC, _VERSION, FLAGS, self._sectors, GRAIN_SECTORS, 1, self._descriptor_sectors, TABLE_GRAINS,
            0, directory, OVERHEAD_SECTORS, 0, _NEWLINES, _DEFLATE,
        ).ljust(SECTOR_BYTES, b"\0")  # fmt: skip

    def _place(self) -> int:
        return self._stream.tell() // SECTOR_BYTES

    def grain(self, number: int, data: bytes) -> None:
        table, entry = divmod(number, TABLE_GRAINS)
        if table != self._table_number:
            self._end_table()
            self._table_number = table
        self._table[entry] = self._place()
        packed = zlib.compress(data, 6)
        self._padded(struct.pack("<QI", number * GRAIN_SECTORS, len(packed)) + packed)

    def _padded(self, data: bytes) -> None:
        self._stream.write(data + bytes(-len(data) % SECTOR_BYTES))

    def _marker(self, sectors: int, kind: int) -> None:
        self._padded(struct.pack("<QII", sectors, 0, kind))

    def _end_table(self) -> None:
        if any(self._table):
            self._marker(TABLE_GRAINS * 4 // SECTOR_BYTES, MARKER_GT)
            self._directory[self._table_number] = self._place()
            self._padded(struct.pack(f"<{TABLE_GRAINS}I", *self._table))
        self._table = [0] * TABLE_GRAINS

    def finish(self) -> None:
        self._end_table()
        data = struct.pack(f"<{len(self._directory)}I", *self._directory)
        self._marker(-(-len(data) // SECTOR_BYTES), MARKER_GD)
        place = self._place()
        self._padded(data)
        self._marker(1, MARKER_FOOTER)
        self._stream.write(self._header(place))
        self._marker(0, MARKER_EOS)
