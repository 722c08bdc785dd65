# SPDX-License-Identifier: MIT
"""Extended attributes as ext4 has them: in the inode's spare room or in a block of their own."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from imgvm.pack import xattr
from imgvm.pack.ext4_format import BLOCK_BYTES, EXTRA_BYTES, INODE_BYTES

_MAGIC = 0xEA020000
_HEAD_BYTES = 32  # of a block
_ROOM_IN_INODE = INODE_BYTES - 128 - EXTRA_BYTES
Row = tuple[int, bytes, bytes]  # the prefix' number, the rest of the name, the value


class XattrError(ValueError):
    """Extended attributes that ext4 cannot hold."""


def pack_xattrs(xattrs: Mapping[str, bytes]) -> tuple[bytes, bytes]:
    """Extended attributes for the inode's own room, or else for a block of their own."""
    if not xattrs:
        return b"", b""
    rows = sorted((_row(name, value) for name, value in xattrs.items()), key=_order)
    head = struct.pack("<I", _MAGIC)
    inside = _entries(rows, _ROOM_IN_INODE - len(head), 0)
    if inside is not None:
        return head + inside[0], b""
    outside = _entries(rows, BLOCK_BYTES - _HEAD_BYTES, _HEAD_BYTES)
    if outside is None:
        raise XattrError("its extended attributes are larger than 4 KiB")
    body, digest = outside
    return b"", struct.pack("<IIIII12x", _MAGIC, 1, 1, digest, 0) + body


def _order(row: Row) -> tuple[int, int, bytes]:
    return row[0], len(row[1]), row[1]


def _row(name: str, value: bytes) -> Row:
    found = xattr.split(name, xattr.SYSTEM)
    if found is None:
        raise XattrError(f"its extended attribute {name[:80]} is of no kind that ext4 knows")
    return *found, _acl(value) if found[0] in xattr.ACLS else value


def _acl(value: bytes) -> bytes:
    """An ACL as system calls have it (version 2, 8 bytes an entry) as ext4 stores it (version 1, some 4)."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != struct.pack("<I", 2):
        raise XattrError("its access control list is damaged")
    out = struct.pack("<I", 1)
    for tag, permissions, who in struct.iter_unpack("<HHI", value[4:]):
        out += struct.pack("<HH", tag, permissions) + (struct.pack("<I", who) if tag in (2, 8) else b"")
    return out


def _entries(rows: Sequence[Row], room: int, base: int) -> tuple[bytes, int] | None:
    """Entries from the start, values from the end of `room` bytes, and the hash of all; None if they do not
    fit. Offsets of values count from `base` before the entries."""
    area = bytearray(room)
    at, end, digest = 0, room, 0
    for index, name, value in rows:
        length = 16 + (len(name) + 3 & ~3)
        padded = value.ljust(len(value) + 3 & ~3, b"\0")
        end -= len(padded)
        if at + length + 4 > end:
            return None
        entry_hash = _hash(name, padded)
        digest = (digest << 16 ^ digest >> 16 ^ entry_hash) & 0xFFFFFFFF
        offset = end + base if value else 0
        struct.pack_into("<BBHIII", area, at, len(name), index, offset, 0, len(value), entry_hash)
        area[at + 16 : at + 16 + len(name)] = name
        area[end : end + len(padded)] = padded
        at += length
    return bytes(area), digest


def _hash(name: bytes, padded: bytes) -> int:
    found = 0
    for byte in name:
        signed = byte - 256 if byte > 127 else byte
        found = (found << 5 ^ found >> 27 ^ signed) & 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", padded):
        found = (found << 16 ^ found >> 16 ^ word) & 0xFFFFFFFF
    return found
