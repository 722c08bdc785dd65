# SPDX-License-Identifier: MIT
"""A disk with one partition: an MBR, or a GPT (UEFI specification, chapter 5) with its protective MBR."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass

from imgvm import units
from imgvm.errors import PackError

SECTOR_BYTES = 512
START_BYTES = units.MIB
_ENTRIES, _ENTRY_BYTES = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR_BYTES
# The type of a root partition in the Discoverable Partitions Specification.
_ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
_LINUX_MBR, _PROTECTIVE = 0x83, 0xEE
_NO_CHS = b"\xfe\xff\xff"  # the place cannot be said in cylinders, heads and sectors


@dataclass(frozen=True)
class Layout:
    """Where the partition is, and what is written before and behind it."""

    disk_bytes: int
    start_bytes: int
    head: bytes
    tail: bytes  # the disk's last bytes


def around_bytes(kind: str) -> int:
    """What a table needs besides the partition."""
    return {"none": 0, "mbr": START_BYTES, "gpt": 2 * START_BYTES}[kind]


def layout(kind: str, size_bytes: int, disk_bytes: int, seed: str, name: str) -> Layout:
    """A table of that kind for a partition of `size_bytes` on a disk that is at least so much larger."""
    if kind == "none":
        return Layout(disk_bytes, 0, b"", b"")
    start, sectors = START_BYTES // SECTOR_BYTES, size_bytes // SECTOR_BYTES
    disk_id = uuid.uuid5(uuid.NAMESPACE_URL, f"imgvm:disk:{seed}")
    if kind == "mbr":
        if start + sectors > 0xFFFFFFFF:
            raise PackError("rootfs.partition_table: an MBR ends at 2 TiB", hint="use gpt")
        return Layout(disk_bytes, START_BYTES, _mbr(_LINUX_MBR, start, sectors, disk_id.bytes[:4]), b"")
    total = disk_bytes // SECTOR_BYTES
    part_id = uuid.uuid5(disk_id, "1")
    entry = struct.pack(
        "<16s16sQQQ72s", _ROOT_X86_64.bytes_le, part_id.bytes_le, start, start + sectors - 1, 0,
        name.encode("utf-16-le"),
    )  # fmt: skip
    entries = entry.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    protective = _mbr(_PROTECTIVE, 1, min(total - 1, 0xFFFFFFFF), bytes(4))
    first = _gpt(1, total - 1, 2, total, disk_id, entries)
    last = _gpt(total - 1, 1, total - 1 - _TABLE_SECTORS, total, disk_id, entries)
    return Layout(disk_bytes, START_BYTES, protective + first + entries, entries + last)


def _mbr(kind: int, start: int, sectors: int, disk_id: bytes) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, _NO_CHS, kind, _NO_CHS, start, sectors)
    return bytes(440) + disk_id + bytes(2) + entry.ljust(64, b"\0") + b"\x55\xaa"


def _gpt(own: int, other: int, table: int, total: int, disk_id: uuid.UUID, entries: bytes) -> bytes:
    """The header at sector `own`, whose twin is at `other`."""
    usable = 2 + _TABLE_SECTORS, total - 2 - _TABLE_SECTORS

    def header(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, own, other, *usable,
            disk_id.bytes_le, table, _ENTRIES, _ENTRY_BYTES, zlib.crc32(entries),
        )  # fmt: skip

    return header(zlib.crc32(header(0))).ljust(SECTOR_BYTES, b"\0")
