# SPDX-License-Identifier: MIT
"""The structures of an EROFS file system as bytes, after the kernel's Documentation/filesystems/erofs.rst and
fs/erofs/erofs_fs.h. Blocks are of 4 KiB; extended attributes are not shared.

An inode's number is its place: it lies at so many times 32 bytes from the start of the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imgvm.pack import crc, xattr

BLOCK_BYTES = 4096
SLOT_BYTES = 32  # inodes begin at multiples of it
SUPER_OFFSET = 1024
_SUPER_BYTES = 128
ROOT_OFFSET = SUPER_OFFSET + _SUPER_BYTES + 32  # the first place behind the superblock and what LZ4 needs
MAX_BLOCKS = (1 << 32) - 1
NO_BLOCK = 0xFFFFFFFF  # of a chunk that is a hole

# Where an inode's content is: in blocks; compressed, with an index behind the inode; in blocks, with its last
# bytes behind the inode; in chunks.
PLAIN, COMPRESSED, INLINE, CHUNKS = 0, 1, 2, 4

_MAGIC = 0xE0F5E1E2
_HAS_CHECKSUM, _HAS_MTIME = 0x1, 0x2
_ZERO_PADDING, _BIG_CLUSTERS, _CHUNKED = 0x1, 0x2, 0x4
_LZ4 = 1 << 0
_EXTENDED = 1
_COMPACT_BYTES, _EXTENDED_BYTES = 32, 64

# The type of an entry, by the type bits of the mode.
_TYPES = {0o10: 1, 0o04: 2, 0o02: 3, 0o06: 4, 0o01: 5, 0o14: 6, 0o12: 7}
_ENTRY_BYTES = 12

_XATTR_HEAD_BYTES, _XATTR_ENTRY_BYTES = 12, 4
_MAX_XATTR_BYTES = _XATTR_HEAD_BYTES + 4 * 0xFFFE


class ErofsError(ValueError):
    """What EROFS cannot hold."""


@dataclass
class InodeRow:
    """The fields of an inode."""

    mode: int
    number: int  # what programs of 32 bits see
    layout: int = PLAIN
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    mtime_sec: int = 0
    links: int = 1
    where: int = 0  # the first block, the form of the chunks, or the device's number
    xattr_bytes: int = 0

    def is_compact(self, time_sec: int) -> bool:
        """Whether the short form says it all; its time is that of the file system."""
        return (
            self.mtime_sec == time_sec
            and max(self.uid, self.gid, self.links) <= 0xFFFF
            and self.size_bytes <= 0xFFFFFFFF
        )

    def length(self, time_sec: int) -> int:
        return _COMPACT_BYTES if self.is_compact(time_sec) else _EXTENDED_BYTES

    def pack(self, time_sec: int) -> bytes:
        xattrs = (self.xattr_bytes - _XATTR_HEAD_BYTES) // 4 + 1 if self.xattr_bytes else 0
        if self.is_compact(time_sec):
            return struct.pack(
                "<HHHHIIIIHHI", self.layout << 1, xattrs, self.mode, self.links, self.size_bytes, 0,
                self.where, self.number, self.uid, self.gid, 0,
            )  # fmt: skip
        return struct.pack(
            "<HHHHQIIIIQII16x", self.layout << 1 | _EXTENDED, xattrs, self.mode, 0, self.size_bytes,
            self.where, self.number, self.uid, self.gid, self.mtime_sec, 0, self.links,
        )  # fmt: skip


def device_number(major: int, minor: int) -> int:
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def super_block(
    *,
    root: int,
    inodes: int,
    blocks: int,
    time_sec: int,
    uuid: bytes,
    label: bytes,
    chunked: bool,
    cluster_blocks: int,
    rest: bytes,
) -> bytes:
    """The first block: the superblock, and from ROOT_OFFSET on `rest`, as the checksum is of the whole.
    `chunked`: there is a file of CHUNKS, which Linux knows since 5.15. `cluster_blocks`: how long a
    compressed piece may be on the disk, 0 without compression; Linux knows more than 1 since 5.13."""
    features = (_CHUNKED if chunked else 0) | (_ZERO_PADDING | _BIG_CLUSTERS if cluster_blocks else 0)
    out = bytearray(BLOCK_BYTES)
    struct.pack_into(
        "<IIIBBHQQIIII16s16sIHHH", out, SUPER_OFFSET, _MAGIC, 0, _HAS_CHECKSUM | _HAS_MTIME,
        BLOCK_BYTES.bit_length() - 1, 0, root, inodes, time_sec, 0, blocks, 0, 0, uuid, label,
        features, _LZ4 if cluster_blocks else 0, 0, 0,
    )  # fmt: skip
    if cluster_blocks:
        struct.pack_into("<HHH10x", out, SUPER_OFFSET + _SUPER_BYTES, 14, 0, cluster_blocks)
    out[ROOT_OFFSET : ROOT_OFFSET + len(rest)] = rest
    struct.pack_into("<I", out, SUPER_OFFSET + 4, _crc32c(out[SUPER_OFFSET:]))
    return bytes(out)


def _crc32c(data: bytes | bytearray) -> int:
    """Castagnoli's, not inverted at its end."""
    table, found = crc.table(0x82F63B78), 0xFFFFFFFF
    for byte in data:
        found = found >> 8 ^ table[(found ^ byte) & 0xFF]
    return found


def xattr_area(xattrs: Mapping[str, bytes]) -> bytes:
    """The extended attributes, as they stand behind an inode. An ACL is kept as system calls have it."""
    if not xattrs:
        return b""
    out = bytearray(_XATTR_HEAD_BYTES)
    for name, value in sorted(xattrs.items()):
        found = xattr.split(name)
        if found is None:
            raise ErofsError(f"its extended attribute {name[:80]} is of no kind that EROFS knows")
        index, rest = found
        if len(value) > 0xFFFF:
            raise ErofsError(f"its extended attribute {name[:80]} has {len(value)} bytes; 65535 is the most")
        out += struct.pack("<BBH", len(rest), index, len(value)) + rest + value
        out += bytes(-len(out) % 4)
    if len(out) > _MAX_XATTR_BYTES:
        raise ErofsError("its extended attributes are larger than 256 KiB")
    return bytes(out)


def folder_bytes(names: Sequence[bytes]) -> int:
    """The size of a folder of these names (in their order, with the dots)."""
    *whole, last = _blocks_of(names)
    return len(whole) * BLOCK_BYTES + sum(_ENTRY_BYTES + len(name) for name in last)


def folder_content(rows: Sequence[tuple[bytes, int, int]]) -> bytes:
    """A folder of (name, inode, mode), in the order of the names. A block has its entries, then the names."""
    out, at = bytearray(), 0
    for names in _blocks_of([name for name, _, _ in rows]):
        out += bytes(-len(out) % BLOCK_BYTES)
        place = _ENTRY_BYTES * len(names)
        for name, inode, mode in rows[at : at + len(names)]:
            out += struct.pack("<QHBB", inode, place, _TYPES[mode >> 12], 0)
            place += len(name)
        out += b"".join(names)
        at += len(names)
    return bytes(out)


def _blocks_of(names: Sequence[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    used = 0
    for name in names:
        used += _ENTRY_BYTES + len(name)
        if used > BLOCK_BYTES:
            yield block
            block, used = [], _ENTRY_BYTES + len(name)
        block.append(name)
    yield block
