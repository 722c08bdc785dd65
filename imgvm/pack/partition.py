# SPDX-License-Identifier: MIT
"""A disk with one partition: an MBR, or a GPT (UEFI specification, chapter 5) with its protective MBR. What a
BIOS starts lies between the MBR and the partition; in a GPT, in a partition of its own there."""

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
_BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
_BIOS_BOOT_NUMBER = 14  # so that the root is the first
_LINUX_MBR, _PROTECTIVE = 0x83, 0xEE
_ACTIVE = 0x80
# Where a boot loader's core may lie, up to the partition.
CORE_SECTORS = {"mbr": 1, "gpt": 2 + _TABLE_SECTORS}
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


def layout(
    kind: str,
    size_bytes: int,
    disk_bytes: int,
    seed: str,
    name: str,
    boot_code: bytes = b"",
    core: bytes = b"",
) -> Layout:
    """A table of that kind for a partition of `size_bytes` on a disk that is at least so much larger. A boot
    loader has up to 440 bytes in the MBR, and its core at the sector of CORE_SECTORS."""
    if kind == "none":
        return Layout(disk_bytes, 0, b"", b"")
    start, sectors = START_BYTES // SECTOR_BYTES, size_bytes // SECTOR_BYTES
    disk_id = uuid.uuid5(uuid.NAMESPACE_URL, f"imgvm:disk:{seed}")
    if kind == "mbr":
        if start + sectors > 0xFFFFFFFF:
            raise PackError("rootfs.partition_table: an MBR ends at 2 TiB", hint="use gpt")
        head = _mbr(_LINUX_MBR, start, sectors, disk_id.bytes[:4], boot_code) + core
        return Layout(disk_bytes, START_BYTES, _before_partition(head), b"")
    total = disk_bytes // SECTOR_BYTES
    rows = bytearray(_ENTRIES * _ENTRY_BYTES)
    rows[:_ENTRY_BYTES] = _entry(_ROOT_X86_64, uuid.uuid5(disk_id, "1"), start, start + sectors, name)
    if core:
        at = (_BIOS_BOOT_NUMBER - 1) * _ENTRY_BYTES
        own = uuid.uuid5(disk_id, str(_BIOS_BOOT_NUMBER))
        rows[at : at + _ENTRY_BYTES] = _entry(_BIOS_BOOT, own, CORE_SECTORS[kind], start, "bios")
    entries = bytes(rows)
    protective = _mbr(_PROTECTIVE, 1, min(total - 1, 0xFFFFFFFF), bytes(4), boot_code)
    first = _gpt(1, total - 1, 2, total, disk_id, entries)
    last = _gpt(total - 1, 1, total - 1 - _TABLE_SECTORS, total, disk_id, entries)
    head = _before_partition(protective + first + entries + core)
    return Layout(disk_bytes, START_BYTES, head, entries + last)


def _before_partition(head: bytes) -> bytes:
    if len(head) > START_BYTES:
        raise PackError("rootfs.bootloader: it does not fit before the partition")
    return head


def _entry(kind: uuid.UUID, own: uuid.UUID, start: int, end: int, name: str) -> bytes:
    label = name.encode("utf-16-le")
    return struct.pack("<16s16sQQQ72s", kind.bytes_le, own.bytes_le, start, end - 1, 0, label)


def _mbr(kind: int, start: int, sectors: int, disk_id: bytes, boot_code: bytes) -> bytes:
    active = _ACTIVE if boot_code and kind != _PROTECTIVE else 0
    entry = struct.pack("<B3sB3sII", active, _NO_CHS, kind, _NO_CHS, start, sectors)
    return boot_code.ljust(440, b"\0") + disk_id + bytes(2) + entry.ljust(64, b"\0") + b"\x55\xaa"


def _gpt(own: int, other: int, table: int, total: int, disk_id: uuid.UUID, entries: bytes) -> bytes:
    """The header at sector `own`, whose twin is at `other`."""
    usable = 2 + _TABLE_SECTORS, total - 2 - _TABLE_SECTORS

    def header(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, own, other, *usable,
            disk_id.bytes_le, table, _ENTRIES, _ENTRY_BYTES, zlib.crc32(entries),
        )  # fmt: skip

    return header(zlib.crc32(header(0))).ljust(SECTOR_BYTES, b"\0")
