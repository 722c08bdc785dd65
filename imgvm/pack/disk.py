# SPDX-License-Identifier: MIT
"""The disks in the image: empty, or copied from raw, qcow2 or other programs' files, but for zeroes."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from imgvm import units
from imgvm.errors import ImageError, PackError
from imgvm.machine import Disk, ImageOptions
from imgvm.pack import sources
from imgvm.pack.progress import Progress
from imgvm.pack.sources import Source
from imgvm.qcow2 import Image, pieces
from imgvm.qcow2.foreign import ForeignDisk, open_foreign

SECTOR_BYTES = 512
NO_DISK_BYTES = units.MIB  # a qcow2 has a disk even if the machine has none
_CHUNK_BYTES = units.MIB
_CHUNKS_WAITING = 4  # to be written
_SEND_BYTES = 32 * units.MIB
_ZEROES = memoryview(bytes(_CHUNK_BYTES))
_QCOW2_MAGIC = b"QFI\xfb"
_FOREIGN = ("vmdk", "vdi", "vhdx")


@dataclass
class DiskSource:
    """An opened source: what the guest will see of it, in pieces that are not all zero."""

    size_bytes: int
    raw: BinaryIO | None = None
    image: Image | None = None
    foreign: ForeignDisk | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order; what is known to be zeros is skipped unread."""
        if self.foreign is not None:
            return self.foreign.parts()
        if self.image is not None:
            return pieces.of_disk(self.image, _CHUNK_BYTES)
        assert self.raw is not None
        return self._of_file(self.raw)

    def _of_file(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        offset = 0
        while (offset := self._next_data(file, offset)) < self.size_bytes:
            count = min(_CHUNK_BYTES - offset % _CHUNK_BYTES, self.size_bytes - offset)
            # The last sector of a file may be incomplete.
            yield offset, os.pread(file.fileno(), count, offset).ljust(count, b"\0")
            offset += count

    def _next_data(self, file: BinaryIO, offset: int) -> int:
        try:
            found = os.lseek(file.fileno(), offset, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: only a hole is left. Others: a file system that knows no holes.
            return self.size_bytes if error.errno == errno.ENXIO else offset
        return found - found % SECTOR_BYTES

    def close(self) -> None:
        self.stack.close()


def open_source(disk: Disk, folder: Path, part: str = "disks[0]") -> DiskSource:
    """Opens the source of a disk, which messages call `part`, after a look at its format."""
    assert disk.source is not None
    path = sources.resolve(folder, disk.source)
    stack = ExitStack()
    if path.exists() and not (path.is_file() or path.is_block_device() or path.is_dir()):
        hint = "give a raw or qcow2 image"
        raise PackError(f"{part}.source: {disk.source} is neither a file nor a block device", hint=hint)
    try:
        raw = stack.enter_context(path.open("rb"))
        head = raw.read(512)
        size_bytes = raw.seek(0, os.SEEK_END)
    except OSError as error:
        stack.close()
        raise sources.failed(f"{part}.source", disk.source, folder, error) from error
    if disk.format in ("auto", *_FOREIGN):
        foreign = _foreign(disk, path, raw, part, stack)
        if foreign is not None:
            return DiskSource(foreign.disk_bytes, foreign=foreign, stack=stack)
    if disk.format == "qcow2" or (disk.format == "auto" and head.startswith(_QCOW2_MAGIC)):
        stack.close()
        stack = ExitStack()
        image = stack.enter_context(Image.open(path, keep_to_folder=True))
        return DiskSource(image.info.disk_bytes, image=image, stack=stack)
    return DiskSource(-(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES, raw=raw, stack=stack)


def _foreign(disk: Disk, path: Path, raw: BinaryIO, part: str, stack: ExitStack) -> ForeignDisk | None:
    """The source as a disk of another program's; None when it is none and was not said to be one."""
    try:
        raw.seek(0)
        foreign = open_foreign(path, raw)
    except ImageError as error:
        stack.close()
        hint = f"{error.hint}; or say `format: raw` to copy it as it is"
        raise PackError(f"{part}.source: {error.message}", hint) from error
    if disk.format != "auto" and (foreign is None or foreign.kind != disk.format):
        stack.close()
        raise PackError(f"{part}.format: {disk.source} is no {disk.format} disk", hint="`auto` looks at it")
    return foreign


def check_digest(disk: Disk, folder: Path, part: str) -> None:
    """Whether the source is the file that `sha256` names."""
    if disk.sha256 is None or disk.source is None:
        return
    try:
        with sources.resolve(folder, disk.source).open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise sources.failed(f"{part}.source", disk.source, folder, error) from error
    if found != disk.sha256:
        raise PackError(f"{part}.sha256: {disk.source} has SHA-256 {found}", hint="is it the right file?")


def disk_bytes(disk: Disk | None, source: DiskSource | None, part: str = "disks[0]", least: int = 0) -> int:
    """The size of a disk; None: that of an image whose machine has none."""
    size = source.size_bytes if source else NO_DISK_BYTES
    if disk is not None and disk.size_bytes is not None:
        if source and disk.size_bytes < source.size_bytes:
            raise PackError(
                f"{part}.size: {units.format_size(disk.size_bytes)} is less than its source has "
                f"({units.format_size(source.size_bytes)})",
                hint="leave size out to take that of the source",
            )
        size = disk.size_bytes
    return max(size, least)


@dataclass(frozen=True)
class Target:
    """A disk in a new image."""

    image: Image
    cluster_bytes: int
    compressed: bool = False


def create_image(path: Path, disk_bytes: int, options: ImageOptions) -> Image:
    """An empty image of the form that a config wants."""
    kind = options.compression if options.compression != "none" else "zlib"
    return Image.create(path, disk_bytes, cluster_bytes=options.cluster_bytes, compression=kind)


def target(disk: Image, options: ImageOptions) -> Target:
    """A disk of such an image, to be filled."""
    return Target(disk, options.cluster_bytes, options.compression != "none")


class Plan(Protocol):
    """A disk in the image, before there is an image."""

    @property
    def size_bytes(self) -> int: ...

    def write(self, target: Target, progress: Progress) -> list[Source]:
        """Writes it, and returns the lock's rows."""


class CopiedDisk:
    """A disk that is empty, or that of a source, which `stack` closes. Messages call it `part`; None: that of
    an image whose machine has none."""

    def __init__(
        self, disk: Disk | None, part: str, folder: Path, stack: ExitStack, least_bytes: int = 0
    ) -> None:
        self._source, self._part, self._origin = None, part, ""
        if disk is not None and disk.source is not None:
            check_digest(disk, folder, part)
            self._source, self._origin = open_source(disk, folder, part), disk.source
            stack.callback(self._source.close)
        self.size_bytes = disk_bytes(disk, self._source, part, least_bytes)

    def write(self, target: Target, progress: Progress) -> list[Source]:
        if self._source is None:
            return []
        return [copy(self._source, self._origin, target, progress, self._part)]


class MadeDisk:
    """A disk of these bytes, which come from the config alone."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def write(self, target: Target, progress: Progress) -> list[Source]:
        with ascending(target) as out:
            out.write(0, self._data)
        return []


def copy(
    source: DiskSource, origin: str, target: Target, progress: Progress, part: str = "disks[0]"
) -> Source:
    """Writes the clusters that are not zero. Returns the lock's row, with the digest of the guest's view."""
    progress.step("copying the disk", source.size_bytes)
    digest = sha256()
    hashed = 0
    with ascending(target) as out:
        for offset, data in source.pieces():
            out.write(offset, data)
            hashed = _hash_zeroes(digest.update, hashed, offset)
            digest.update(data)
            hashed += len(data)
            progress.advance(hashed)
    _hash_zeroes(digest.update, hashed, source.size_bytes)
    return Source(part, origin, digest.hexdigest(), source.size_bytes)


class _Writer:
    """Writes what is not zero to a disk, in a thread of its own: the next is made meanwhile."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._put = target.image.write_compressed if target.compressed else target.image.write
        self._pool = ThreadPoolExecutor(1, "imgvm-write")
        self._waiting: deque[Future[None]] = deque()
        self._unsent_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def write(self, offset: int, data: bytearray, size: int) -> None:
        """So much of `data`, which is the writer's until `_CHUNKS_WAITING` more have been given."""
        self._waiting.append(self._pool.submit(self._work, offset, data, size))
        if len(self._waiting) > _CHUNKS_WAITING:
            self._waiting.popleft().result()

    def _work(self, offset: int, data: bytearray, size: int) -> None:
        view = memoryview(data)
        for start, end in pieces.runs(data, offset, self._target.cluster_bytes, size):
            self._put(offset + start, view[start:end])
            self._unsent_bytes += end - start
        if self._unsent_bytes >= _SEND_BYTES:  # the host's disk works while we do
            self._target.image.write_out()
            self._unsent_bytes = 0


class Ascending:
    """A disk from its start to its end, in whatever pieces it comes, but for clusters of zeros."""

    def __init__(self, writer: _Writer, target: Target) -> None:
        self._writer = writer
        self._disk_bytes = target.image.info.disk_bytes
        self._cluster_bytes = target.cluster_bytes
        self._chunk_bytes = max(_CHUNK_BYTES, target.cluster_bytes)
        self._chunks = deque(bytearray(self._chunk_bytes) for _ in range(_CHUNKS_WAITING + 2))
        self._chunk = self._chunks[0]
        self._start = 0  # of the chunk on the disk
        self._filled = 0  # so much of it is made

    def write(self, offset: int, data: bytes | memoryview) -> None:
        inside = offset - self._start
        size = len(data)
        if inside + size > self._chunk_bytes:
            self._write_across(offset, memoryview(data))
            return
        if inside > self._filled:
            self._clear(inside)
        self._filled = inside + size
        self._chunk[inside : self._filled] = data

    def _clear(self, end: int) -> None:
        """What is not made yet of the chunk, as far as `end`, is zeros."""
        while self._filled < end:
            count = min(end - self._filled, len(_ZEROES))
            self._chunk[self._filled : self._filled + count] = _ZEROES[:count]
            self._filled += count

    def _write_across(self, offset: int, data: memoryview) -> None:
        while len(data):
            if offset - self._start >= self._chunk_bytes:
                self.flush()
                self._start = offset - offset % self._chunk_bytes
            count = min(len(data), self._start + self._chunk_bytes - offset)
            self.write(offset, data[:count])
            data, offset = data[count:], offset + count

    def flush(self) -> None:
        """What has been given is on its way to the image."""
        if not self._filled:
            return
        end = min(self._filled + -self._filled % self._cluster_bytes, self._chunk_bytes)
        end = min(end, self._disk_bytes - self._start)
        self._clear(end)
        self._writer.write(self._start, self._chunk, end)
        self._chunks.rotate(-1)
        self._chunk = self._chunks[0]
        self._filled = 0


@contextmanager
def ascending(target: Target) -> Iterator[Ascending]:
    with _Writer(target) as writer:
        out = Ascending(writer, target)
        yield out
        out.flush()


def _hash_zeroes(update: object, start: int, end: int) -> int:
    assert callable(update)
    for offset in range(start, end, _CHUNK_BYTES):
        update(_ZEROES[: min(_CHUNK_BYTES, end - offset)])
    return max(start, end)
