# SPDX-License-Identifier: MIT
"""An empty FAT file system of any size, as pieces to be written (Microsoft's "FAT: General Overview of
On-Disk Format", version 1.03). How many clusters there are decides how wide the entries of its table are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from imgvm import units
from imgvm.pack.vfat import HARD_DISK, MEDIA, SECTOR_BYTES, VOLUME_LABEL, entry, stamp

MIN_BYTES, MAX_BYTES = units.MIB, 2 * units.TIB  # sectors are counted in 32 bits
_FAT16_BYTES, _FAT32_BYTES = 8 * units.MIB, 512 * units.MIB  # from which size on
_FAT16_MAX_CLUSTERS = 65524
_FATS = 2
_ROOT_ENTRIES = 512  # of FAT12 and FAT16
_ROOT_CLUSTER, _INFO_SECTOR, _BACKUP_SECTOR = 2, 1, 6  # of FAT32
_JUMPS = {12: b"\xeb\x3c\x90", 16: b"\xeb\x3c\x90", 32: b"\xeb\x58\x90"}
_SIGNATURE = b"\x55\xaa"


@dataclass(frozen=True)
class _Layout:
    bits: int  # of an entry
    cluster_sectors: int
    sectors: int

    @property
    def reserved(self) -> int:
        return 32 if self.bits == 32 else 1

    @property
    def fat_sectors(self) -> int:
        """Enough for all clusters that there could be without the tables."""
        entries = self.sectors // self.cluster_sectors + 2
        return -(-entries * self.bits // 8 // SECTOR_BYTES)

    @property
    def root_sectors(self) -> int:
        return 0 if self.bits == 32 else _ROOT_ENTRIES * 32 // SECTOR_BYTES

    @property
    def data(self) -> int:
        """The first sector of cluster 2."""
        return self.reserved + _FATS * self.fat_sectors + self.root_sectors

    @property
    def clusters(self) -> int:
        return (self.sectors - self.data) // self.cluster_sectors


def _layout(size_bytes: int) -> _Layout:
    sectors = size_bytes // SECTOR_BYTES
    if size_bytes < _FAT16_BYTES:
        return _Layout(12, 4, sectors)
    if size_bytes < _FAT32_BYTES:
        cluster = 2
        while sectors // cluster > _FAT16_MAX_CLUSTERS:
            cluster *= 2
        return _Layout(16, cluster, sectors)
    # Microsoft's table: 4 KiB up to 8 GiB, 32 KiB from 32 GiB on.
    cluster = next((most for most in (8, 16, 32) if size_bytes <= most * units.GIB), 64)
    return _Layout(32, cluster, sectors)


def pieces(label: str, size_bytes: int, seed: str, mtime_sec: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes, in ascending order; all else is zeros."""
    layout = _layout(size_bytes)
    name, serial = label.upper()[:11].encode().ljust(11), zlib.crc32(seed.encode())
    boot = _boot_sector(layout, name, serial)
    yield 0, boot
    if layout.bits == 32:
        info = _info_sector(layout)
        yield _INFO_SECTOR * SECTOR_BYTES, info
        yield _BACKUP_SECTOR * SECTOR_BYTES, boot
        yield (_BACKUP_SECTOR + _INFO_SECTOR) * SECTOR_BYTES, info
    for number in range(_FATS):
        yield (layout.reserved + number * layout.fat_sectors) * SECTOR_BYTES, _table(layout.bits)
    root = layout.data - layout.root_sectors
    yield root * SECTOR_BYTES, entry(name, VOLUME_LABEL, stamp(mtime_sec), 0, 0)


def _boot_sector(layout: _Layout, name: bytes, serial: int) -> bytes:
    wide, sectors = layout.bits == 32, layout.sectors
    short = 0 if wide or sectors > 0xFFFF else sectors
    head = struct.pack(
        "<3s8sHBHBHHBHHHII", _JUMPS[layout.bits], b"imgvm   ", SECTOR_BYTES, layout.cluster_sectors,
        layout.reserved, _FATS, 0 if wide else _ROOT_ENTRIES, short, MEDIA, 0 if wide else layout.fat_sectors,
        32, 64, 0, 0 if short else sectors,
    )  # fmt: skip
    if wide:
        head += struct.pack(
            "<IHHIHH12x", layout.fat_sectors, 0, 0, _ROOT_CLUSTER, _INFO_SECTOR, _BACKUP_SECTOR
        )
    head += struct.pack("<BBBI11s8s", HARD_DISK, 0, 0x29, serial, name, f"FAT{layout.bits}".encode().ljust(8))
    return head.ljust(510, b"\0") + _SIGNATURE


def _info_sector(layout: _Layout) -> bytes:
    """How many clusters are free (all but the root's), and where to look for one."""
    tail = struct.pack("<4sII12x2s2s", b"rrAa", layout.clusters - 1, _ROOT_CLUSTER + 1, b"\0\0", _SIGNATURE)
    return b"RRaA".ljust(SECTOR_BYTES - len(tail), b"\0") + tail


def _table(bits: int) -> bytes:
    """The entries of clusters 0 and 1, which stand for none; in FAT32 then the root's, its chain's end."""
    if bits == 12:
        return bytes((MEDIA, 0xFF, 0xFF))
    if bits == 16:
        return struct.pack("<HH", 0xFF00 | MEDIA, 0xFFFF)
    return struct.pack("<III", 0x0FFFFF00 | MEDIA, 0x0FFFFFFF, 0x0FFFFFFF)
