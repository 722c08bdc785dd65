# SPDX-License-Identifier: MIT
"""The blocks of an ext4 file system as they are given out, from the start of the disk to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from imgvm.pack.ext4_format import BLOCKS_PER_GROUP, MAX_EXTENT_BLOCKS, Extent, has_backup


class FullError(Exception):
    """The tree does not fit."""


class Blocks:
    """Hands out blocks from the start to the end, around the copies of the superblock."""

    def __init__(self, total: int, descriptor_blocks: int) -> None:
        self.total = total
        self.next = 0
        self.gaps: list[tuple[int, int]] = []  # (start, count) of what was passed over, all below `next`
        groups = range(-(-total // BLOCKS_PER_GROUP))
        self.copy_blocks = 1 + descriptor_blocks
        starts = (group * BLOCKS_PER_GROUP for group in groups if has_backup(group))
        self.reserved = [(start, start + self.copy_blocks) for start in starts]
        self._ahead = list(reversed(self.reserved))  # the nearest is the last

    def take(self, count: int, *, whole: bool = False) -> Iterator[tuple[int, int]]:
        """(start, count) of pieces that together have so many blocks; `whole`: of one piece."""
        while count:
            while self._ahead and self.next >= self._ahead[-1][0]:
                self.next = max(self.next, self._ahead.pop()[1])
            limit = self._ahead[-1][0] if self._ahead else self.total
            piece = min(count, limit - self.next)
            if piece <= 0 or (whole and piece < count):
                if limit >= self.total:
                    raise FullError
                self.gaps.append((self.next, limit - self.next))
                self.next = limit
                continue
            yield self.next, piece
            self.next += piece
            count -= piece

    def take_run(self, count: int) -> int | None:
        """The start of so many blocks, if the next ones are in one piece."""
        start = self.next
        if start + count > (self._ahead[-1][0] if self._ahead else self.total):
            return None
        self.next += count
        return start

    def bitmap(self, group: int) -> int:
        """The used blocks of a group as bits, with those behind the disk's end."""
        first = group * BLOCKS_PER_GROUP
        used = bits(first, 0, self.next)
        for start, count in self.gaps:
            used &= ~bits(first, start, start + count)
        if has_backup(group):
            used |= bits(first, first, first + self.copy_blocks)
        return used | bits(first, self.total, first + BLOCKS_PER_GROUP)


def bits(first: int, start: int, end: int) -> int:
    """The blocks from `start` to `end` in the group that begins at `first`."""
    low, high = max(start - first, 0), min(end - first, BLOCKS_PER_GROUP)
    return (1 << high) - (1 << low) if low < high else 0


def extents_of(blocks: Blocks, ranges: Sequence[tuple[int, int]]) -> list[Extent]:
    found: list[Extent] = []
    for first, count in ranges:
        if count <= MAX_EXTENT_BLOCKS and (run := blocks.take_run(count)) is not None:
            found.append(Extent(first, count, run))
            continue
        for start, piece in blocks.take(count):
            for done in range(0, piece, MAX_EXTENT_BLOCKS):
                part = min(MAX_EXTENT_BLOCKS, piece - done)
                found.append(Extent(first, part, start + done))
                first += part
    return found
