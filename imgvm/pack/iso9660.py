# SPDX-License-Identifier: MIT
"""Writes a small ISO 9660 image (ECMA-119), a few files in its root; their true names are in its Joliet tree.

The bytes depend on the arguments alone.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from imgvm.errors import PackError

SECTOR_BYTES = 2048
_SYSTEM_SECTORS = 16
_PRIMARY, _JOLIET, _TERMINATOR = 1, 2, 255  # types of volume descriptors (8.1.1)
_UCS2_LEVEL_3 = b"%/E"  # Joliet: the names are UCS-2, big-endian
_FOLDER = 2  # file flags (9.1.6)
_PATH_TABLE_BYTES = 10
# Sectors, in their order; the contents follow.
_PATH_TABLES = {_PRIMARY: (19, 20), _JOLIET: (21, 22)}  # little- and big-endian
_ROOTS = {_PRIMARY: 23, _JOLIET: 24}
_FIRST_FILE = 25


@dataclass(frozen=True)
class _File:
    name: str
    sector: int
    data: bytes


def image(label: str, files: Mapping[str, bytes], mtime_sec: int = 0) -> bytes:
    """A volume of at most a sector of folder entries, which is some twenty files."""
    rows = []
    sector = _FIRST_FILE
    for name, data in sorted(files.items()):
        rows.append(_File(name, sector, data))
        sector += _sectors(len(data))
    out = bytearray(SECTOR_BYTES * sector)

    def put(at: int, data: bytes) -> None:
        out[at * SECTOR_BYTES : at * SECTOR_BYTES + len(data)] = data

    for index, kind in enumerate((_PRIMARY, _JOLIET)):
        put(_SYSTEM_SECTORS + index, _volume(kind, label, sector, mtime_sec))
        for at, order in zip(_PATH_TABLES[kind], "<>", strict=True):
            put(at, struct.pack(f"{order}BBIHxx", 1, 0, _ROOTS[kind], 1))
        put(_ROOTS[kind], _folder(kind, rows, mtime_sec))
    put(_SYSTEM_SECTORS + 2, bytes([_TERMINATOR]) + b"CD001\1")
    for row in rows:
        put(row.sector, row.data)
    return bytes(out)


def _sectors(count: int) -> int:
    return -(-count // SECTOR_BYTES)


def _both(value: int) -> bytes:
    """A number in both byte orders (7.3.3)."""
    return struct.pack("<I", value) + struct.pack(">I", value)


def _both16(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def _text(kind: int, text: str, size: int) -> bytes:
    """Padded with spaces (7.4), in UCS-2 for Joliet."""
    if kind == _PRIMARY:
        return text.encode("ascii").ljust(size, b" ")
    raw = text.encode("utf-16-be")[: size // 2 * 2]
    return (raw + " ".encode("utf-16-be") * (size // 2 - len(raw) // 2)).ljust(size, b"\0")


def _volume(kind: int, label: str, sectors: int, mtime_sec: int) -> bytes:
    little, big = _PATH_TABLES[kind]
    made = time.strftime("%Y%m%d%H%M%S00", time.gmtime(mtime_sec)).encode() + b"\0"
    return b"".join([
        bytes([kind]), b"CD001\1\0",
        _text(kind, "", 32), _text(kind, label, 32),  # system and volume identifier
        bytes(8), _both(sectors),
        (_UCS2_LEVEL_3 if kind == _JOLIET else b"").ljust(32, b"\0"),
        _both16(1), _both16(1), _both16(SECTOR_BYTES),  # one volume of a set of one
        _both(_PATH_TABLE_BYTES), struct.pack("<II", little, 0), struct.pack(">II", big, 0),
        _entry(b"\0", _ROOTS[kind], SECTOR_BYTES, _FOLDER, mtime_sec),
        *(_text(kind, "", 128) for _ in ("set", "publisher", "preparer", "application")),
        *(_text(kind, "", 37) for _ in ("copyright", "abstract", "bibliography")),
        made, made, b"0" * 16 + b"\0", b"0" * 16 + b"\0",  # made, changed; no expiry, no date of effect
        b"\1",
    ])  # fmt: skip


def _folder(kind: int, rows: list[_File], mtime_sec: int) -> bytes:
    entries = [_entry(name, _ROOTS[kind], SECTOR_BYTES, _FOLDER, mtime_sec) for name in (b"\0", b"\1")]
    named = {_identifier(kind, row.name): row for row in rows}
    if len(named) != len(rows):
        raise PackError("an ISO image cannot tell its files apart by the first eight letters of their names")
    for name, row in sorted(named.items()):
        entries.append(_entry(name, row.sector, len(row.data), 0, mtime_sec))
    out = b"".join(entries)
    if len(out) > SECTOR_BYTES:
        raise PackError("an ISO image of ours holds fewer files")
    return out


def _identifier(kind: int, name: str) -> bytes:
    """What a file is called (7.5): eight letters, digits and _ for those who do not know Joliet."""
    if kind == _JOLIET:
        return name.encode("utf-16-be")
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())[:8].encode() + b".;1"


def _entry(name: bytes, sector: int, size: int, flags: int, mtime_sec: int) -> bytes:
    """A directory record (9.1); of an even length."""
    when = time.gmtime(mtime_sec)
    date = bytes([when.tm_year - 1900, *when[1:6], 0])
    fixed = _both(sector) + _both(size) + date + bytes([flags, 0, 0]) + _both16(1) + bytes([len(name)])
    padded = name + b"\0" * (len(name) % 2 == 0)
    return bytes([2 + len(fixed) + len(padded), 0]) + fixed + padded
