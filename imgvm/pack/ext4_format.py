# SPDX-License-Identifier: MIT
"""The structures of an ext4 file system as bytes, after the kernel's Documentation/filesystems/ext4.

Blocks are of 4 KiB, inodes of 256 bytes; the features are those of COMPAT, INCOMPAT and READ_ONLY. Only group
descriptors have checksums; block numbers have 32 bits (16 TiB are enough), and no space is reserved.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from imgvm.pack import crc

BLOCK_BYTES = 4096
BLOCKS_PER_GROUP = 8 * BLOCK_BYTES
INODE_BYTES = 256
DESCRIPTOR_BYTES = 32
ROOT_INODE, JOURNAL_INODE, FIRST_INODE = 2, 8, 11

_HAS_JOURNAL = 0x4
COMPAT = 0x8 | 0x20  # ext_attr, dir_index
INCOMPAT = 0x2 | 0x40 | 0x200  # filetype, extent, flex_bg
# sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize
READ_ONLY = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40

FLAG_INDEX, FLAG_EXTENTS = 0x1000, 0x80000
MAX_EXTENT_BLOCKS = 32768
EXTENTS_IN_INODE = 4
EXTENTS_IN_BLOCK = (BLOCK_BYTES - 12) // 12
FAST_LINK_BYTES = 59  # a target that fits into the inode, with its NUL
MAX_LINKS = 65000

# Flags of a group: its bitmap is not there, for nothing is used; Linux need not clear its table.
INODES_UNUSED, BLOCKS_UNUSED, TABLE_ZEROED = 1, 2, 4
EXTRA_BYTES = 32  # of the inode beyond the classic 128 bytes, before its extended attributes
_EXTENT_MAGIC = 0xF30A
_LEAF_OF_ONE = struct.Struct("<HHHHIIHHI")
_INODE = struct.Struct(f"<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII{INODE_BYTES - 128 - EXTRA_BYTES}s")
_HALF_MD4 = 1


@dataclass(slots=True)
class Extent:
    """Blocks of a file: the first in the file, how many, the first on the disk."""

    logical: int
    count: int
    start: int


def has_backup(group: int) -> bool:
    """Whether a group holds a copy of the superblock (sparse_super): 0, 1 and the powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def extent_leaf(extents: Sequence[Extent], room: int = EXTENTS_IN_INODE) -> bytes:
    """A node of an extent tree that has the extents themselves."""
    if len(extents) == 1:
        (e,) = extents
        return _LEAF_OF_ONE.pack(_EXTENT_MAGIC, 1, room, 0, 0, e.logical, e.count, 0, e.start)
    head = struct.pack("<HHHHI", _EXTENT_MAGIC, len(extents), room, 0, 0)
    return head + b"".join(struct.pack("<IHHI", e.logical, e.count, 0, e.start) for e in extents)


def extent_index(children: Sequence[tuple[int, int]], depth: int, room: int = EXTENTS_IN_INODE) -> bytes:
    """A node above others: (first logical block, block of the child) of each."""
    head = struct.pack("<HHHHI", _EXTENT_MAGIC, len(children), room, depth, 0)
    return head + b"".join(struct.pack("<IIHH", logical, block, 0, 0) for logical, block in children)


def device_block(major: int, minor: int) -> bytes:
    """A device's number, as it stands in the inode instead of blocks."""
    if major < 256 and minor < 256:
        return struct.pack("<II", major << 8 | minor, 0)
    return struct.pack("<II", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)


@dataclass(slots=True)
class InodeRow:
    """The fields of an inode."""

    mode: int
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    mtime_sec: int = 0
    links: int = 1
    sectors: int = 0  # of 512 bytes, metadata of the file included
    flags: int = 0
    block: bytes = b""  # extents, a short link's target, a device's number
    xattr_block: int = 0
    xattrs: bytes = b""  # of the inode's own room

    def pack(self) -> bytes:
        low = self.mtime_sec & 0xFFFFFFFF
        epoch = self.mtime_sec + 0x80000000 >> 32  # the low part is signed
        row = _INODE.pack(
            self.mode, self.uid & 0xFFFF, self.size_bytes & 0xFFFFFFFF, low, low, low, 0,
            self.gid & 0xFFFF, self.links, self.sectors & 0xFFFFFFFF, self.flags, 0,
            self.block, 0, self.xattr_block, self.size_bytes >> 32, 0,
            self.sectors >> 32, 0, self.uid >> 16, self.gid >> 16, 0, 0,
            EXTRA_BYTES, 0, epoch, epoch, epoch, low, epoch, 0, 0, self.xattrs,
        )  # fmt: skip
        return row


@dataclass(frozen=True)
class GroupRow:
    """A group's descriptor."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks: int
    free_inodes: int
    folders: int
    unused_inodes: int  # at the table's end
    flags: int

    def pack(self, group: int, uuid: bytes) -> bytes:
        row = struct.pack(
            "<IIIHHHHIHHH", self.block_bitmap, self.inode_bitmap, self.inode_table, self.free_blocks,
            self.free_inodes, self.folders, self.flags, 0, 0, 0, self.unused_inodes,
        )  # fmt: skip
        return row + struct.pack("<H", _crc16(uuid + struct.pack("<I", group) + row))


_CRC16 = crc.table(0xA001)


def _crc16(data: bytes) -> int:
    found = 0xFFFF
    for byte in data:
        found = found >> 8 ^ _CRC16[(found ^ byte) & 0xFF]
    return found


@dataclass(frozen=True)
class SuperBlock:
    """What the superblock says."""

    inodes: int
    blocks: int
    free_blocks: int
    free_inodes: int
    inodes_per_group: int
    time_sec: int
    uuid: bytes
    label: bytes
    hash_seed: bytes
    journal: InodeRow | None

    def pack(self, group: int) -> bytes:
        """The copy in `group`."""
        out = bytearray(1024)
        time_sec = self.time_sec & 0xFFFFFFFF
        struct.pack_into(
            "<IIIIIIIIIIIIIHhHHHHIIIIHH", out, 0,
            self.inodes, self.blocks, 0, self.free_blocks, self.free_inodes, 0, 2, 2,
            BLOCKS_PER_GROUP, BLOCKS_PER_GROUP, self.inodes_per_group, 0, time_sec,
            0, -1, 0xEF53, 1, 1, 0, time_sec, 0, 0, 1, 0, 0,
        )  # fmt: skip
        compat = COMPAT | (_HAS_JOURNAL if self.journal else 0)
        struct.pack_into("<IHHIII", out, 84, FIRST_INODE, INODE_BYTES, group, compat, INCOMPAT, READ_ONLY)
        out[104:120] = self.uuid
        out[120:136] = self.label.ljust(16, b"\0")
        out[236:252] = self.hash_seed
        out[252] = _HALF_MD4
        struct.pack_into("<I", out, 256, 0xC)  # mounted with user_xattr and acl
        struct.pack_into("<I", out, 264, time_sec)
        struct.pack_into("<HHI", out, 348, EXTRA_BYTES, EXTRA_BYTES, 1)  # and names are hashed as signed
        out[372] = 4  # log2 of the groups that allocate together
        if self.journal:
            struct.pack_into("<I", out, 224, JOURNAL_INODE)
            out[253] = 1  # the journal's inode is backed up here
            out[268:328] = self.journal.block.ljust(60, b"\0")
            size = self.journal.size_bytes
            struct.pack_into("<II", out, 328, size >> 32, size & 0xFFFFFFFF)
        return bytes(out)


def journal_superblock(blocks: int, uuid: bytes) -> bytes:
    """An empty journal's first block (version 2); all numbers are big-endian."""
    head = struct.pack(">IIIIIIIII", 0xC03B3998, 4, 0, BLOCK_BYTES, blocks, 1, 1, 0, 0)
    return (head + bytes(12) + uuid + struct.pack(">I", 1)).ljust(BLOCK_BYTES, b"\0")
