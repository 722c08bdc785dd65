# SPDX-License-Identifier: MIT
"""Contents compressed for EROFS, in a temporary file until their places are known.

A content is cut into pieces of 16 blocks. One that LZ4 makes shorter by whole blocks becomes a physical
cluster of so many, its data at the end of them (LZ4_0PADDING); else its blocks stand as they are. So every
piece begins with a block of the content, and an index of 8 bytes a block says where.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import lz4.block

from imgvm.pack import from_tar
from imgvm.pack.erofs_format import BLOCK_BYTES
from imgvm.pack.tree import Content, placed

PIECE_BLOCKS = 16
_PIECE_BYTES = PIECE_BLOCKS * BLOCK_BYTES
_WINDOW_BYTES = 1 << 20  # read before it is compressed
_LEVEL = 6  # higher ones take twice the time for half a percent

# Kinds of a block in the index: as it is, the first of a compressed piece, a further one.
_PLAIN, _HEAD, _NONHEAD = 0, 1, 2
_BLOCK_COUNT = 1 << 11  # the first further block's distance, which is 1, is the piece's blocks on the disk
_BIG_CLUSTERS = 0x2  # a piece may have several blocks on the disk


@dataclass
class Stored:
    """A content in the temporary file. `pieces`: (its blocks, those on the disk); none: it was not cut."""

    start: int
    size_bytes: int
    length: int = 0
    pieces: list[tuple[int, int]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        return sum(there for _, there in self.pieces)


class Store:
    """The temporary file; it is gone with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._file = from_tar.temporary(stack)
        self._pool = stack.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0))))
        self._end = 0

    def keep(self, content: Content, pieces: Iterator[bytes], name: str) -> Stored:
        """A content that is not to be compressed."""
        stored = Stored(self._end, content.size_bytes)
        for _, data in placed(content, pieces, name):
            self._append(stored, data)
        return stored

    def compress(self, content: Content, pieces: Iterator[bytes], name: str) -> Stored:
        """A content without holes. Where nothing is won, it is kept as it is."""
        stored = Stored(self._end, content.size_bytes)
        window = bytearray()
        for _, data in placed(content, pieces, name):
            window += data
            while len(window) >= _WINDOW_BYTES:
                self._compress(stored, window[:_WINDOW_BYTES])
                del window[:_WINDOW_BYTES]
        self._compress(stored, window)
        return stored

    def _compress(self, stored: Stored, data: bytearray) -> None:
        parts = [bytes(data[at : at + _PIECE_BYTES]) for at in range(0, len(data), _PIECE_BYTES)]
        results = self._pool.map(_packed, parts) if len(parts) > 1 else map(_packed, parts)
        for part, packed in zip(parts, results, strict=True):
            blocks = -(-len(part) // BLOCK_BYTES)
            there = -(-len(packed) // BLOCK_BYTES)
            if there < blocks:
                self._append(stored, packed.rjust(there * BLOCK_BYTES, b"\0"))
            else:
                self._append(stored, part.ljust(blocks * BLOCK_BYTES, b"\0"))
            stored.pieces.append((blocks, min(there, blocks)))

    def _append(self, stored: Stored, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._end += len(data)
        stored.length += len(data)

    def pieces(self, stored: Stored) -> Iterator[bytes]:
        """What was stored, in its order. Nothing is stored any more."""
        at, end = stored.start, stored.start + stored.length
        self._file.flush()
        while at < end:
            data = os.pread(self._file.fileno(), min(_WINDOW_BYTES, end - at), at)
            yield data
            at += len(data)


def _packed(data: bytes) -> bytes:
    out: bytes = lz4.block.compress(data, mode="high_compression", compression=_LEVEL, store_size=False)
    return out


def index_bytes(size_bytes: int) -> int:
    """The header, a gap of 8 bytes, and an entry for each block."""
    return 16 + 8 * -(-size_bytes // BLOCK_BYTES)


def index(stored: Stored, start: int) -> bytes:
    """What stands behind the inode, at a multiple of 8: where the blocks of a content are, whose pieces lie
    one after the other from block `start` on."""
    out = bytearray(struct.pack("<IHBB8x", 0, _BIG_CLUSTERS, 0, 0))
    for blocks, there in stored.pieces:
        if there == blocks:
            for number in range(blocks):
                out += struct.pack("<HHI", _PLAIN, 0, start + number)
        else:
            out += struct.pack("<HHI", _HEAD, 0, start)
            for number in range(1, blocks):
                back = there | _BLOCK_COUNT if number == 1 else number
                out += struct.pack("<HHHH", _NONHEAD, 0, back, blocks - number)
        start += there
    rest = stored.size_bytes % BLOCK_BYTES
    blocks, there = stored.pieces[-1]
    if rest and there < blocks:
        # The content ends inside a block: a beginning of nothing there says how long its last piece is.
        struct.pack_into("<HHI", out, len(out) - 8, _PLAIN, rest, 0)
        for number in range(1, blocks - 1):
            struct.pack_into("<H", out, len(out) - 8 * (blocks - number) + 6, blocks - 1 - number)
    return bytes(out)
