# SPDX-License-Identifier: MIT
"""What an image is and whether it holds together: its facts, and a comparison with an independent reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from imgvm import units
from imgvm.errors import ImageError

if TYPE_CHECKING:
    from imgvm.qcow2 import Image

_PIECE_BYTES, _END_BYTES = units.MIB, 4096


def describe(image: Image) -> dict[str, Any]:
    """Plain facts, as `imgvm inspect --json` shows them."""
    info = image.info
    return {
        "format": info.format,
        "version": info.version,
        "disk_bytes": info.disk_bytes,
        "file_bytes": info.file_bytes,
        "cluster_bytes": info.cluster_bytes,
        "further_disks": dict(_further_disks(image)),
        "backing_file": info.backing_file,
        "snapshots": [snapshot.name for snapshot in image.snapshots()],
        "blobs": [
            {"name": blob.name, "bytes": blob.bytes, "sha256": blob.sha256} for blob in image.config_blobs()
        ],
    }


def _further_disks(image: Image) -> Iterator[tuple[str, int]]:
    for name in image.disk_names():
        with image.open_disk(name) as disk:
            yield name, disk.info.disk_bytes


def verify(image: Image) -> Iterator[str]:
    """What is wrong with an image: in its tables, its blobs' digests, and against a second reader."""
    from imgvm.qcow2.reader import IndependentReader

    found = image.check()
    if found.corruptions:
        yield f"{found.corruptions} corruptions in its tables"
    if found.leaks:
        yield f"{found.leaks} leaked clusters"
    if image.has_config:
        for blob in image.config_blobs():
            try:
                image.read_config(blob.name)
            except ImageError as error:
                yield error.message
    with IndependentReader(image.path) as second:
        yield from _differences(image, second)


def _differences(image: Image, second: Any) -> Iterator[str]:
    size = image.info.disk_bytes
    if second.disk_bytes != size:
        yield f"the disk has {size} bytes, libqcow says {second.disk_bytes}"
        return
    for offset, length in _compared(image):
        ours, theirs = image.read(offset, length), second.read(offset, length)
        if ours != theirs:
            same = (one == other for one, other in zip(ours, theirs, strict=False))
            first = next((index for index, equal in enumerate(same) if not equal), len(theirs))
            yield f"libqcow reads other bytes from {offset + first} on"
            return


def _compared(image: Image) -> Iterator[tuple[int, int]]:
    """(offset, size) of all that is read of a disk: everything, but of what a whole L2 table says to be zeros
    only the ends. A disk can be said to have a pebibyte, in a file of nothing."""
    table_bytes = image.info.cluster_bytes**2 // 8
    for offset, size, zero in image.extents():
        if zero and size >= table_bytes > 2 * _END_BYTES:
            yield from ((offset, _END_BYTES), (offset + size - _END_BYTES, _END_BYTES))
        else:
            for at in range(offset, offset + size, _PIECE_BYTES):
                yield at, min(_PIECE_BYTES, offset + size - at)
