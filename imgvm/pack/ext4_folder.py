# SPDX-License-Identifier: MIT
"""A directory of ext4 as blocks: a plain list of its names where one block holds them, else an index by the
hash of the names (the kernel's Documentation/filesystems/ext4/directory.rst)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from imgvm.pack.ext4_format import BLOCK_BYTES

# The type of an entry, by the type bits of the mode.
_TYPES = {0o10: 1, 0o04: 2, 0o02: 3, 0o06: 4, 0o01: 5, 0o14: 6, 0o12: 7}
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
    length = 8 + (len(name) + 3 & ~3)
    return struct.pack("<IHBB", inode, length, len(name), _TYPES[mode >> 12]) + name.ljust(length - 8, b"\0")


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


_MASK = 0xFFFFFFFF


class NameHash:
    """The half MD4 of a name (fs/ext4/hash.c), with names as signed bytes: (major, minor)."""

    def __init__(self, seed: bytes) -> None:
        words = struct.unpack("<4I", seed)
        self._seed = words if any(words) else (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)

    def __call__(self, name: bytes) -> tuple[int, int]:
        state = self._seed
        for start in range(0, len(name), 32):
            state = _half_md4(state, _words(name[start : start + 32], len(name) - start))
        major = state[1] & ~1
        return (major if major != 0xFFFFFFFE else 0xFFFFFFFC), state[2]


def _words(part: bytes, left: int) -> list[int]:
    """Up to 32 bytes as eight words; `left` is how much of the name there is from here on."""
    pad = left & 0xFF
    pad |= pad << 8
    pad |= pad << 16
    whole = len(part) // 4
    words = list(struct.unpack_from(f">{whole}I", part))
    if whole < 8:
        rest = part[whole * 4 :]
        words.append(pad << 8 * len(rest) & _MASK | int.from_bytes(rest))
        words += [pad] * (7 - whole)
    if not part.isascii():  # bytes are signed: what is above 127 borrows from those before it
        for index, byte in enumerate(part):
            if byte > 127:
                place = 4 - index % 4 if index < whole * 4 else len(part) - index
                words[index // 4] = words[index // 4] - (1 << 8 * place) & _MASK
    return words


def _half_md4(state: Sequence[int], x: Sequence[int]) -> tuple[int, int, int, int]:
    a, b, c, d = state
    mask = _MASK
    for i, j, k, m in ((0, 1, 2, 3), (4, 5, 6, 7)):
        t = a + (d ^ b & (c ^ d)) + x[i] & mask
        a = (t << 3 | t >> 29) & mask
        t = d + (c ^ a & (b ^ c)) + x[j] & mask
        d = (t << 7 | t >> 25) & mask
        t = c + (b ^ d & (a ^ b)) + x[k] & mask
        c = (t << 11 | t >> 21) & mask
        t = b + (a ^ c & (d ^ a)) + x[m] & mask
        b = (t << 19 | t >> 13) & mask
    for i, j, k, m in ((1, 3, 5, 7), (0, 2, 4, 6)):
        t = a + (b & c) + ((b ^ c) & d) + x[i] + 0x5A827999 & mask
        a = (t << 3 | t >> 29) & mask
        t = d + (a & b) + ((a ^ b) & c) + x[j] + 0x5A827999 & mask
        d = (t << 5 | t >> 27) & mask
        t = c + (d & a) + ((d ^ a) & b) + x[k] + 0x5A827999 & mask
        c = (t << 9 | t >> 23) & mask
        t = b + (c & d) + ((c ^ d) & a) + x[m] + 0x5A827999 & mask
        b = (t << 13 | t >> 19) & mask
    for i, j, k, m in ((3, 7, 2, 6), (1, 5, 0, 4)):
        t = a + (b ^ c ^ d) + x[i] + 0x6ED9EBA1 & mask
        a = (t << 3 | t >> 29) & mask
        t = d + (a ^ b ^ c) + x[j] + 0x6ED9EBA1 & mask
        d = (t << 9 | t >> 23) & mask
        t = c + (d ^ a ^ b) + x[k] + 0x6ED9EBA1 & mask
        c = (t << 11 | t >> 21) & mask
        t = b + (c ^ d ^ a) + x[m] + 0x6ED9EBA1 & mask
        b = (t << 15 | t >> 17) & mask
    return state[0] + a & mask, state[1] + b & mask, state[2] + c & mask, state[3] + d & mask
