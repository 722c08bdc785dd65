# SPDX-License-Identifier: MIT
"""A directory of ext4 as blocks: a plain list of its names where one block holds them, else an index by the
hash of the names (the kernel's Documentation/filesystems/ext4/directory.rst)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from imgvm import binding
from imgvm.pack.ext4_format import BLOCK_BYTES

# The type of an entry, by the type bits of the mode.
_TYPES = {0o10: 1, 0o04: 2, 0o02: 3, 0o06: 4, 0o01: 5, 0o14: 6, 0o12: 7}
_HEAD = struct.Struct("<IHBB")  # of an entry
_HALF_MD4 = 1
_ROOT_ROOM = (BLOCK_BYTES - 32) // 8
_NODE_ROOM = (BLOCK_BYTES - 8) // 8
MAX_LEAVES = _ROOT_ROOM * _NODE_ROOM

Row = tuple[bytes, int, int]  # name, inode, mode


class FolderError(ValueError):
    """A folder that ext4 cannot hold."""


def folder_blocks(own: int, parent: int, rows: Sequence[Row], seed: bytes) -> tuple[bytes, bool]:
    """The blocks of a folder, and whether it has an index. `own`, `parent`: the inodes of `.` and `..`."""
    dots = [_entry(b".", own, 0o040000), _entry(b"..", parent, 0o040000)]
    entries = [_entry(name, inode, mode) for name, inode, mode in rows]
    if sum(map(len, entries)) + 24 <= BLOCK_BYTES:
        return _block([*dots, *entries]), False
    hash_of = NameHash(seed)
    hashed = sorted(zip((hash_of(name) for name, _, _ in rows), entries, strict=True))
    leaves: list[bytes] = []
    starts: list[int] = []
    block: list[bytes] = []
    room, last = 0, -1
    for found, entry in hashed:
        if len(entry) > room:
            if block:
                leaves.append(_block(block))
            starts.append(found[0] | (found[0] == last))  # odd: the leaf before has names of that hash, too
            block, room = [], BLOCK_BYTES
        block.append(entry)
        room -= len(entry)
        last = found[0]
    leaves.append(_block(block))
    return b"".join([*_index(own, parent, starts), *leaves]), True


def _entry(name: bytes, inode: int, mode: int) -> bytes:
    size = len(name)
    room = size + 3 & ~3
    return _HEAD.pack(inode, 8 + room, size, _TYPES[mode >> 12]) + name.ljust(room, b"\0")


def _block(entries: Sequence[bytes]) -> bytes:
    """Entries in one block; the last reaches to its end."""
    out = bytearray(b"".join(entries))
    last = len(out) - len(entries[-1])
    struct.pack_into("<H", out, last + 4, BLOCK_BYTES - last)
    return bytes(out.ljust(BLOCK_BYTES, b"\0"))


def _index(own: int, parent: int, starts: Sequence[int]) -> list[bytes]:
    """The root of the index, and the nodes below it when there are too many leaves for the root alone. The
    leaves follow in the folder."""
    if len(starts) > MAX_LEAVES:
        raise FolderError("it has too many names")
    levels = len(starts) > _ROOT_ROOM
    nodes = -(-len(starts) // _NODE_ROOM) if levels else 0
    first = 1 + nodes
    rows = [(start, first + index) for index, start in enumerate(starts)]
    parts = [rows[at : at + _NODE_ROOM] for at in range(0, len(rows), _NODE_ROOM)]
    root_rows = [(part[0][0], 1 + index) for index, part in enumerate(parts)] if levels else rows
    dots = struct.pack("<IHBB4s", own, 12, 1, 2, b".") + struct.pack(
        "<IHBB4s", parent, BLOCK_BYTES - 12, 2, 2, b".."
    )
    root = dots + struct.pack("<IBBBB", 0, _HALF_MD4, 8, levels, 0) + _rows(root_rows, _ROOT_ROOM)
    fake = struct.pack("<IHBB", 0, BLOCK_BYTES, 0, 0)
    below = [fake + _rows(part, _NODE_ROOM) for part in parts] if levels else []
    return [block.ljust(BLOCK_BYTES, b"\0") for block in (root, *below)]


def _rows(rows: Iterable[tuple[int, int]], room: int) -> bytes:
    """(hash, block) of each; the first needs no hash, its place has how many there are."""
    (_, first), *others = rows
    head = struct.pack("<HHI", room, len(others) + 1, first)
    return head + b"".join(struct.pack("<II", start, block) for start, block in others)


class NameHash:
    """The half MD4 of a name: (major, minor)."""

    def __init__(self, seed: bytes) -> None:
        self._seed = binding.ffi().new("uint32_t[4]", struct.unpack("<4I", seed))
        self._out = binding.ffi().new("uint32_t[2]")
        self._hash = binding.lib().imgvm_ext4_name_hash

    def __call__(self, name: bytes) -> tuple[int, int]:
        self._hash(self._seed, name, len(name), self._out)
        return self._out[0], self._out[1]
