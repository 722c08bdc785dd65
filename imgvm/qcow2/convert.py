# SPDX-License-Identifier: MIT
"""Copying a disk into a new image: sparse, compressed on request, and with the embedded configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imgvm.errors import ImageError, errno_hint
from imgvm.qcow2 import Image
from imgvm.qcow2.foreign import open_foreign
from imgvm.qcow2.pieces import Piece, fill, of_disk, of_snapshot

FORMATS = ("qcow2", "raw")
_PIECE_BYTES = 16 << 20
_GRAIN_BYTES = 65536  # zeros are looked for in units of this


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: str = "qcow2",
    compression: str | None = None,
    cluster_bytes: int = 65536,
    snapshot: str | None = None,
    keep_to_folder: bool = False,
) -> None:
    """Copy the disk of `source` to a new file. Its content says what it is.

    `compression` (zlib, zstd) is for qcow2, which also gets the configuration of a source that has one.
    `snapshot` takes that snapshot's disk. Nothing is left behind after an error.
    """
    source, target = Path(source), Path(target)
    if format not in FORMATS:
        raise ImageError(f"format {format}: {' or '.join(FORMATS)}")
    if compression and format == "raw":
        raise ImageError("a raw disk cannot be compressed", "leave the compression out, or convert to qcow2")
    try:
        with source.open("rb") as stream:
            disk = open_foreign(source, stream)
            if disk is not None:
                if snapshot:
                    raise ImageError(f"{source}: snapshots are those of qcow2 images")
                with _Target(target, format, disk.disk_bytes, cluster_bytes, compression) as out:
                    out.fill(disk.parts())
                return
    except OSError as error:
        hint = errno_hint(error.errno)
        raise ImageError(f"{source}: {error.strerror}", hint, errno=error.errno or 0) from None
    with Image.open(source, keep_to_folder=keep_to_folder) as image:
        size = image.info.disk_bytes
        if snapshot:
            size = next((row.disk_bytes for row in image.snapshots() if snapshot in (row.name, row.id)), size)
        with _Target(target, format, -(-size // 512) * 512, cluster_bytes, compression) as out:
            out.fill(of_snapshot(image, snapshot, _PIECE_BYTES) if snapshot else of_disk(image, _PIECE_BYTES))
            if format == "qcow2" and image.has_config:
                blobs = {blob.name: image.read_config(blob.name) for blob in image.config_blobs()}
                dates = [row.date for row in image.snapshots() if row.name == "imgvm.config"]
                out.image.set_config(blobs, date=int(dates[0]) if dates else 0)
            if format == "qcow2" and not snapshot:
                for name in image.disk_names():
                    out.add_disk(name, image.open_disk(name))


class _Target:
    """A new image being filled; removed when that fails."""

    def __init__(
        self, path: Path, format: str, disk_bytes: int, cluster_bytes: int, compression: str | None
    ) -> None:
        self.path, self.compressed = path, compression is not None
        if format == "qcow2":
            kind = compression or "zlib"
            self.image = Image.create(path, disk_bytes, cluster_bytes=cluster_bytes, compression=kind)
        else:
            try:
                with path.open("xb") as stream:
                    stream.truncate(disk_bytes)
            except OSError as error:
                hint = "choose another name or remove it" if error.errno == 17 else errno_hint(error.errno)
                raise ImageError(f"{path}: {error.strerror}", hint, errno=error.errno or 0) from None
            self.image = Image.open(path, writable=True)
        self.cluster_bytes = self.image.info.cluster_bytes or 512

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self.image.close()
                return
            except ImageError:
                self.path.unlink(missing_ok=True)
                raise
        with suppress(ImageError):
            self.image.close()
        self.path.unlink(missing_ok=True)

    def add_disk(self, name: str, source: Image) -> None:
        """A further disk, as it is."""
        self.image.add_disk(name, source.info.disk_bytes)
        self._fill(self.image.open_disk(name), of_disk(source, _PIECE_BYTES))

    def fill(self, parts: Iterator[Piece]) -> None:
        """Ascending parts of the disk; the rest is zeros."""
        self._fill(self.image, parts)

    def _fill(self, disk: Image, parts: Iterator[Piece]) -> None:
        if self.compressed:
            for offset, data in _whole_clusters(parts, self.cluster_bytes, disk.info.disk_bytes):
                disk.write_compressed(offset, data)
            return
        fill(disk, parts, _GRAIN_BYTES)


def _whole_clusters(parts: Iterator[Piece], cluster_bytes: int, disk_bytes: int) -> Iterator[Piece]:
    """The same data in pieces that begin and end at clusters (or at the disk's end), zeros filled in."""
    start, held = 0, bytearray()
    for offset, data in parts:
        if held and offset // cluster_bytes > (start + len(held) - 1) // cluster_bytes:
            yield start, _padded(start, held, cluster_bytes, disk_bytes)
            held = bytearray()
        if not held:
            start = offset - offset % cluster_bytes
        held += bytes(offset - start - len(held)) + data
        whole = len(held) - len(held) % cluster_bytes
        if whole >= _PIECE_BYTES:
            yield start, bytes(held[:whole])
            start, held = start + whole, held[whole:]
    if held:
        yield start, _padded(start, held, cluster_bytes, disk_bytes)


def _padded(start: int, held: bytearray, cluster_bytes: int, disk_bytes: int) -> bytes:
    end = min(-(-(start + len(held)) // cluster_bytes) * cluster_bytes, disk_bytes)
    return bytes(held).ljust(end - start, b"\0")
