# SPDX-License-Identifier: MIT
"""What of a disk is worth copying: pieces of it in order, and the stretches of them that are not zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from imgvm.qcow2 import Image

Piece = tuple[int, bytes]  # where on the disk, and what


def of_disk(image: Image, piece_bytes: int) -> Iterator[Piece]:
    """What is not known to be zeros, in pieces of up to `piece_bytes`."""
    return _pieces(image.extents(), image.read, piece_bytes)


def of_snapshot(image: Image, name: str, piece_bytes: int) -> Iterator[Piece]:
    """The same of a snapshot's disk."""

    def read(offset: int, size: int) -> bytes:
        return image.read_snapshot(name, offset, size)

    return _pieces(image.snapshot_extents(name), read, piece_bytes)


def _pieces(
    extents: Iterable[tuple[int, int, bool]], read: Callable[[int, int], bytes], piece_bytes: int
) -> Iterator[Piece]:
    for offset, size, zero in extents:
        if not zero:
            for at in range(offset, offset + size, piece_bytes):
                yield at, read(at, min(piece_bytes, offset + size - at))


def runs(
    data: bytes | bytearray, offset: int, grain_bytes: int, size: int | None = None
) -> Iterator[tuple[int, int]]:
    """The stretches of `data` (which begins at `offset` of the disk) whose grains are not all zero."""
    start: int | None = None
    position = 0
    size = len(data) if size is None else size
    zeroes = bytes(grain_bytes)
    while position < size:
        end = min(position + grain_bytes - (offset + position) % grain_bytes, size)
        if data.startswith(zeroes if end - position == grain_bytes else bytes(end - position), position):
            if start is not None:
                yield start, position
                start = None
        elif start is None:
            start = position
        position = end
    if start is not None:
        yield start, position


def fill(image: Image, parts: Iterable[Piece], grain_bytes: int) -> None:
    """Writes what is not zeros to an empty disk."""
    for offset, data in parts:
        for start, end in runs(data, offset, grain_bytes):
            image.write(offset + start, memoryview(data)[start:end])
