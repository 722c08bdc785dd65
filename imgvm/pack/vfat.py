# SPDX-License-Identifier: MIT
"""Writes a small FAT file system, a few files with long names in its root (Microsoft's "FAT: General Overview
of On-Disk Format", version 1.03). It has 12-bit entries, as any with so few clusters.

The bytes depend on the arguments alone.
"""

from __future__ import annotations

import re
import struct
import time
import zlib
from collections.abc import Mapping

from imgvm import units
from imgvm.errors import PackError

SECTOR_BYTES = 512
_CLUSTER_SECTORS = 4
_CLUSTER_BYTES = SECTOR_BYTES * _CLUSTER_SECTORS
_RESERVED_SECTORS, _FATS, _ROOT_ENTRIES = 1, 2, 512
_ROOT_SECTORS = _ROOT_ENTRIES * 32 // SECTOR_BYTES
MEDIA, HARD_DISK = 0xF8, 0x80
_MAX_CLUSTERS = 4084  # with more, the entries would have 16 bits
_FIRST_CLUSTER = 2
_END_OF_CHAIN = 0xFFF
_READ_ONLY, VOLUME_LABEL, _ARCHIVE, _LONG_NAME = 0x01, 0x08, 0x20, 0x0F
_EARLIEST_SEC = 315532800  # 1980 begins
_LATEST_SEC = 4354819198  # 2107 ends


def image(label: str, files: Mapping[str, bytes], mtime_sec: int = 0) -> bytes:
    """A volume of whole MiB, with room for the files."""
    rows = sorted(files.items())
    needed = sum(-(-len(data) // _CLUSTER_BYTES) for _, data in rows)
    size = units.MIB
    while _clusters(size) < needed:
        size += units.MIB
    clusters = _clusters(size)
    if clusters > _MAX_CLUSTERS:
        raise PackError("a FAT file system of ours holds less than 8MiB")
    fat_sectors = _fat_sectors(size)

    when = stamp(mtime_sec)
    folder = bytearray(entry(label.upper().encode().ljust(11), VOLUME_LABEL, when, 0, 0))
    table = [MEDIA | 0xF00, _END_OF_CHAIN]
    content = bytearray()
    for number, (name, data) in enumerate(rows, 1):
        count = -(-len(data) // _CLUSTER_BYTES)
        first = len(table) if count else 0
        table += [*range(len(table) + 1, len(table) + count), _END_OF_CHAIN] if count else []
        content += data.ljust(count * _CLUSTER_BYTES, b"\0")
        short = _short_name(name, number)
        folder += _long_name(name, short) + entry(short, _ARCHIVE | _READ_ONLY, when, first, len(data))
    if len(folder) > _ROOT_SECTORS * SECTOR_BYTES:
        raise PackError("a FAT file system of ours holds fewer files")
    fat = _twelve_bits(table).ljust(fat_sectors * SECTOR_BYTES, b"\0")
    serial = zlib.crc32(b"\0".join(name.encode() + data for name, data in rows))
    parts: list[bytes | bytearray] = [
        _boot_sector(label, size, fat_sectors, serial),
        fat * _FATS,
        folder.ljust(_ROOT_SECTORS * SECTOR_BYTES, b"\0"),
        content,
    ]
    return b"".join(parts).ljust(size, b"\0")


def _fat_sectors(size: int) -> int:
    """Enough for all clusters that there could be without the tables."""
    entries = size // _CLUSTER_BYTES + _FIRST_CLUSTER
    return -(-entries * 3 // 2 // SECTOR_BYTES)


def _clusters(size: int) -> int:
    before = _RESERVED_SECTORS + _FATS * _fat_sectors(size) + _ROOT_SECTORS
    return (size // SECTOR_BYTES - before) // _CLUSTER_SECTORS


def _boot_sector(label: str, size: int, fat_sectors: int, serial: int) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s", b"\xeb\x3c\x90", b"imgvm   ", SECTOR_BYTES, _CLUSTER_SECTORS,
        _RESERVED_SECTORS, _FATS, _ROOT_ENTRIES, size // SECTOR_BYTES, MEDIA, fat_sectors,
        32, 64, 0, 0, HARD_DISK, 0, 0x29, serial, label.upper().encode().ljust(11), b"FAT12   ",
    )  # fmt: skip
    return head.ljust(510, b"\0") + b"\x55\xaa"


def _twelve_bits(table: list[int]) -> bytes:
    whole = sum(value << 12 * index for index, value in enumerate(table))
    return whole.to_bytes(-(-len(table) * 3 // 2), "little")


def entry(name: bytes, attributes: int, when: tuple[int, int], first: int, size: int) -> bytes:
    clock, date = when
    return struct.pack(
        "<11sBBBHHHHHHHI", name, attributes, 0, 0, clock, date, date, 0, clock, date, first, size
    )


def _short_name(name: str, number: int) -> bytes:
    """For those who do not know long names; told apart by the number."""
    base = re.sub(r"[^A-Z0-9_-]", "_", name.upper())[:5]
    return f"{base}~{number:02}".encode().ljust(11)


def _long_name(name: str, short: bytes) -> bytes:
    """The entries before the short one, the end of the name first."""
    text = name.encode("utf-16-le")
    count = -(-len(text) // 26)
    if len(text) < count * 26:
        text = (text + b"\0\0").ljust(count * 26, b"\xff")
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7) + (checksum >> 1) + byte & 0xFF
    out = b""
    for index in reversed(range(count)):
        part = text[index * 26 : (index + 1) * 26]
        order = index + 1 | (0x40 if index == count - 1 else 0)
        out += struct.pack(
            "<B10sBBB12sH4s", order, part[:10], _LONG_NAME, 0, checksum, part[10:22], 0, part[22:]
        )
    return out


def stamp(mtime_sec: int) -> tuple[int, int]:
    """A time of day and a date, as FAT has them."""
    when = time.gmtime(min(max(mtime_sec, _EARLIEST_SEC), _LATEST_SEC))
    clock = when.tm_hour << 11 | when.tm_min << 5 | when.tm_sec // 2
    return clock, when.tm_year - 1980 << 9 | when.tm_mon << 5 | when.tm_mday
