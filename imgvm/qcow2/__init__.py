# SPDX-License-Identifier: MIT
"""Disk images: qcow2 (and raw) files, their snapshots, and the configuration embedded in them.

    with Image.create("ci.img", 8 << 30) as image:
        image.write(0, boot_sector)
        image.set_config({"machine.yaml": text}, date=0)
    with Image.open("ci.img") as image:
        yaml = image.read_config("machine.yaml")

All of it is done by the native core (docs/image-format.md); errors are ImageError.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from imgvm import binding
from imgvm.errors import ImageError
from imgvm.record import Record

__all__ = ["MAX_BLOB_BYTES", "Blob", "Check", "Image", "ImageInfo", "Snapshot"]

MAX_BLOB_BYTES = 4 << 30  # no blob that anybody packs is larger

Buffer = bytes | bytearray | memoryview


class ImageInfo(Record):
    """What an image is. Sizes in bytes; `version` is qcow2's (0: a raw file)."""

    version: int
    cluster_bytes: int
    disk_bytes: int  # what the guest sees
    file_bytes: int
    snapshots: int
    incompatible: int  # qcow2 feature bits
    compatible: int
    autoclear: int
    backing_file: str | None

    @property
    def format(self) -> str:
        return "qcow2" if self.version else "raw"


class Snapshot(Record):
    """An internal snapshot. Times: seconds since 1970, nanoseconds of the guest's clock."""

    id: str
    name: str
    disk_bytes: int
    vm_state_bytes: int
    date: float
    vm_clock_ns: int


class Check(Record):
    """Result of a consistency check: leaks only waste space, corruptions are damage."""

    leaks: int
    corruptions: int

    @property
    def clean(self) -> bool:
        return not self.leaks and not self.corruptions


class Blob(Record):
    """One named part of the embedded configuration."""

    name: str
    bytes: int
    sha256: str


class Image:
    """An open image. One handle may be used from several threads; other writers are locked out meanwhile."""

    def __init__(self, handle: Any, path: str, *, writable: bool) -> None:
        self._handle = handle
        self._disks: list[Image] = []  # open further disks
        self._owner: Image | None = None  # of a further disk: what it lies in, which lives as long
        self._below: Image | None = None  # what it was laid over, and closes behind itself
        self.path = path
        self.writable = writable

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        disk_bytes: int,
        *,
        cluster_bytes: int = 65536,
        version: int = 3,
        refcount_bits: int = 16,
        extended_l2: bool = False,
        lazy_refcounts: bool = False,
        compression: str = "zlib",
        backing_file: str | None = None,
        backing_format: str | None = None,
        data_file: str | None = None,
        data_file_raw: bool = False,
    ) -> Self:
        """Make an empty qcow2 image and open it for writing. An existing file is an error.

        `backing_file` must be there; `data_file` is made. Names are relative to the image.
        """
        name = os.fspath(path)
        _check_unsigned(disk_bytes, "the disk's size")
        numbers = {"cluster size": cluster_bytes, "version": version, "refcount": refcount_bits}
        for what, value in numbers.items():
            _check_unsigned(value, f"the {what}", bits=32)
        if compression not in ("zlib", "zstd"):
            raise ImageError(f"compression {compression}: zlib or zstd", errno=errno.EINVAL)
        ffi = binding.ffi()
        texts = {"backing_file": backing_file, "backing_format": backing_format, "data_file": data_file}
        kept = {key: ffi.new("char[]", binding.path_bytes(text)) for key, text in texts.items() if text}
        options = ffi.new(
            "imgvm_image_options *",
            {
                "disk_bytes": disk_bytes,
                "cluster_bytes": cluster_bytes,
                "version": version,
                "refcount_bits": refcount_bits,
                "extended_l2": extended_l2,
                "lazy_refcounts": lazy_refcounts,
                "zstd": compression == "zstd",
                "data_file_raw": data_file_raw,
                **kept,
            },
        )
        binding.call(ImageError, "imgvm_image_create_with", binding.path_bytes(name), options)
        try:
            return cls.open(name, writable=True)
        except ImageError:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        keep_to_folder: bool = False,
        repair: bool = False,
        raw: bool = False,
        keep_below: bool = False,
    ) -> Self:
        """Open by content: qcow2 with its backing files, or else a raw disk.

        `keep_to_folder`, for images from elsewhere: errno EPERM when a backing or data file lies outside the
        folder. `repair`: for writing, and also an image that is marked corrupt; call `repair` on it. `raw`: a
        raw disk, whatever its guest wrote into it. `keep_below`: its backing file may be anywhere, and
        keeps to its own folder.
        """
        name = os.fspath(path)
        lib = binding.lib()
        writable = writable or repair
        mode = lib.IMGVM_IMAGE_READ_WRITE if writable else lib.IMGVM_IMAGE_READ_ONLY
        if keep_to_folder:
            mode |= lib.IMGVM_IMAGE_KEEP_TO_FOLDER
        if repair:
            mode |= lib.IMGVM_IMAGE_REPAIR
        for wish, bit in ((raw, lib.IMGVM_IMAGE_RAW), (keep_below, lib.IMGVM_IMAGE_KEEP_BELOW)):
            mode |= bit if wish else 0
        handle = binding.open_handle(ImageError, "imgvm_image_open", binding.path_bytes(name), mode)
        return cls(handle, name, writable=writable)

    def under(self, path: str | os.PathLike[str]) -> Image:
        """A layer over this image or further disk that takes all writes, in a new file that is of use with it
        alone. It closes this handle, too."""
        handle = binding.open_handle(
            ImageError, "imgvm_image_lay_over", self.handle, binding.path_bytes(os.fspath(path))
        )
        layer = Image(handle, os.fspath(path), writable=True)
        layer._below = self
        return layer

    @property
    def handle(self) -> Any:
        """The core's `imgvm_image *`, for a machine that borrows the image while it lives."""
        if self._handle is None:
            raise ImageError(f"{self.path} is closed", errno=errno.EBADF)
        return self._handle

    def close(self) -> None:
        """Flush and close, further disks too; the handle is gone even if that fails."""
        if self._handle is not None:
            disks, self._disks = self._disks, []
            for disk in reversed(disks):
                disk.close()
            handle, self._handle = self._handle, None
            below, self._below = self._below, None
            try:
                binding.call(ImageError, "imgvm_image_close", handle)
            finally:
                if below is not None:
                    below.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ImageError:
            if kind is None:  # the first error is the one to report
                raise

    def __del__(self) -> None:
        # A forgotten handle is flushed all the same; nobody is left to tell of failure.
        with suppress(Exception):
            self.close()

    @property
    def info(self) -> ImageInfo:
        out = binding.ffi().new("imgvm_image_info *")
        binding.lib().imgvm_image_get_info(self.handle, out)
        return ImageInfo(
            version=out.version,
            cluster_bytes=out.cluster_bytes,
            disk_bytes=out.disk_bytes,
            file_bytes=out.file_bytes,
            snapshots=out.snapshots,
            incompatible=out.incompatible,
            compatible=out.compatible,
            autoclear=out.autoclear,
            backing_file=binding.text(out.backing_file) or None,
        )

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes of the guest's disk; all of them must be inside it."""
        _check_unsigned(offset, "the offset")
        _check_unsigned(size, "the size")
        if offset + size > self.info.disk_bytes:  # before allocating for it
            raise ImageError(f"{self.path}: {size} bytes at {offset} are beyond the end of the disk")
        data = bytearray(size)
        view = binding.ffi().from_buffer(data)
        binding.call(ImageError, "imgvm_image_read", self.handle, offset, view, size)
        return bytes(data)

    def write(self, offset: int, data: Buffer) -> None:
        """Write to the guest's disk. It is safe on the host's disk after the next flush."""
        _check_unsigned(offset, "the offset")
        view = binding.ffi().from_buffer(data)
        binding.call(ImageError, "imgvm_image_write", self.handle, offset, view, len(view))

    def write_compressed(self, offset: int, data: Buffer, *, threads: int | None = None) -> None:
        """Write whole clusters (or up to the disk's end), compressed. The bytes do not depend on threads."""
        _check_unsigned(offset, "the offset")
        count = threads or min(len(os.sched_getaffinity(0)), 64)
        view = binding.ffi().from_buffer(data)
        binding.call(
            ImageError, "imgvm_image_write_compressed", self.handle, offset, view, len(view), count
        )

    def zero(self, offset: int, size: int, *, give_back: bool = True) -> None:
        """Make a part of the disk read as zeros; with `give_back` the host gets its space."""
        _check_unsigned(offset, "the offset")
        _check_unsigned(size, "the size")
        binding.call(ImageError, "imgvm_image_zero", self.handle, offset, size, give_back)

    def discard(self, offset: int, size: int) -> None:
        """Nobody needs this part: what gives space back reads as zeros, the rest stays."""
        _check_unsigned(offset, "the offset")
        _check_unsigned(size, "the size")
        binding.call(ImageError, "imgvm_image_discard", self.handle, offset, size)

    def extents(self, offset: int = 0, size: int | None = None) -> Iterator[tuple[int, int, bool]]:
        """The disk as (offset, size, whether it is known to be zeros)."""
        end = self.info.disk_bytes if size is None else offset + size
        return self._extents("imgvm_image_extent", (), offset, end)

    def snapshot_extents(self, name: str) -> Iterator[tuple[int, int, bool]]:
        """The same of a snapshot's disk."""
        index = self._snapshot_index(name)
        end = self._snapshot(index).disk_bytes
        return self._extents("imgvm_image_snapshot_extent", (index,), 0, end)

    def _extents(
        self, function: str, what: tuple[int, ...], offset: int, end: int
    ) -> Iterator[tuple[int, int, bool]]:
        run = binding.ffi().new("uint64_t *")
        while offset < end:
            zero = binding.call(ImageError, function, self.handle, *what, offset, end - offset, run)
            yield offset, run[0], bool(zero)
            offset += run[0]

    def resize(self, disk_bytes: int) -> None:
        """Cut the disk, or lengthen it with zeros. Its partitions and file systems are the owner's affair."""
        _check_unsigned(disk_bytes, "the disk's size")
        binding.call(ImageError, "imgvm_image_resize", self.handle, disk_bytes)

    def flush(self) -> None:
        """Everything written before survives a power loss from here on."""
        binding.call(ImageError, "imgvm_image_flush", self.handle)

    def write_out(self) -> None:
        """Have the host begin to write what it holds of the file in memory, for a flush that takes less."""
        binding.lib().imgvm_image_write_out(self.handle)

    def snapshots(self) -> tuple[Snapshot, ...]:
        return tuple(self._snapshot(index) for index in range(self.info.snapshots))

    def _snapshot(self, index: int) -> Snapshot:
        out = binding.ffi().new("imgvm_snapshot_info *")
        binding.call(ImageError, "imgvm_image_snapshot", self.handle, index, out)
        return Snapshot(
            id=binding.text(out.id),
            name=binding.text(out.name),
            disk_bytes=out.disk_bytes,
            vm_state_bytes=out.vm_state_bytes,
            date=out.date_sec + out.date_nsec / 1e9,
            vm_clock_ns=out.vm_clock_ns,
        )

    def create_snapshot(
        self, name: str, *, date: float, state: Buffer = b"", vm_clock_ns: int = 0
    ) -> None:
        """Keep the disk as it is now under a name, with the machine's state if given. `date`: since 1970."""
        ffi = binding.ffi()
        view = ffi.from_buffer(state)
        seconds = int(date)
        _check_unsigned(seconds, "the date", bits=32)
        what = {
            "data": view,
            "bytes": len(view),
            "vm_clock_ns": vm_clock_ns,
            "date_sec": seconds,
            "date_nsec": int((date - seconds) * 1e9),
        }
        state_struct = ffi.new("imgvm_snapshot_state *", what)
        raw = binding.path_bytes(name)
        binding.call(ImageError, "imgvm_image_snapshot_create", self.handle, raw, state_struct)

    def apply_snapshot(self, name: str) -> None:
        """The disk becomes the snapshot's, in content and size; what it held before is gone."""
        binding.call(ImageError, "imgvm_image_snapshot_apply", self.handle, self._snapshot_index(name))

    def delete_snapshot(self, name: str) -> None:
        binding.call(ImageError, "imgvm_image_snapshot_delete", self.handle, self._snapshot_index(name))

    def read_snapshot(self, name: str, offset: int, size: int, *, state: bool = False) -> bytes:
        """A part of a snapshot's disk, or of its machine's state."""
        index = self._snapshot_index(name)
        found = self._snapshot(index)
        if offset + size > (found.vm_state_bytes if state else found.disk_bytes):  # before allocating for it
            raise ImageError(f"{self.path}: {size} bytes at {offset} are beyond the end of snapshot {name}")
        data = bytearray(size)
        view = binding.ffi().from_buffer(data)
        binding.call(ImageError, "imgvm_image_snapshot_read", self.handle, index, state, offset, view, size)
        return bytes(data)

    def _snapshot_index(self, name: str) -> int:
        """By name, or else by id; those of a further disk are in its image's table."""
        found = (self._owner or self).snapshots()
        for key in ("name", "id"):
            for index, snapshot in enumerate(found):
                if getattr(snapshot, key) == name:
                    return index
        names = ", ".join(snapshot.name for snapshot in found)
        hint = f"there are {names}" if names else "it has none"
        raise ImageError(f"{self.path} has no snapshot {name}", hint, errno=errno.ENOENT)

    def repair(self, *, everything: bool = False) -> None:
        """Give leaked clusters back; with `everything`, make the tables agree with what can be followed."""
        binding.call(ImageError, "imgvm_image_repair", self.handle, everything)

    def check(self) -> Check:
        """Recount all references of the file, as `qemu-img check` does."""
        leaks, corruptions = binding.ffi().new("uint64_t *"), binding.ffi().new("uint64_t *")
        binding.call(ImageError, "imgvm_image_check", self.handle, leaks, corruptions)
        return Check(leaks[0], corruptions[0])

    # Further disks in the same file, each with a map of its own.

    def add_disk(self, name: str, disk_bytes: int, *, date: int = 0) -> None:
        """Make an empty disk beside the image's own; `open_disk` opens it. `date`: since 1970."""
        _check_unsigned(disk_bytes, "the disk's size")
        _check_unsigned(date, "the date", bits=32)
        raw = binding.path_bytes(name)
        binding.call(ImageError, "imgvm_image_add_disk", self.handle, raw, disk_bytes, date)

    def open_disk(self, name: str) -> Image:
        """A further disk, to be read and written like an image. It is closed with this one, if not before.

        In an overlay, what is not written there is that of the image below.
        """
        handle = binding.open_handle(
            ImageError, "imgvm_image_open_disk", self.handle, binding.path_bytes(name)
        )
        disk = Image(handle, f"{self.path} (disk {name})", writable=self.writable)
        disk._owner = self
        self._disks.append(disk)
        return disk

    def disk_names(self) -> tuple[str, ...]:
        """The further disks of this image and of what is below it."""
        names: list[str] = []
        name = binding.ffi().new("char[256]")
        while True:
            result = binding.lib().imgvm_image_disk_name(
                self.handle, len(names), name, 256, binding.ffi().NULL
            )
            if result < 0:
                return tuple(names)
            names.append(binding.text(name))

    # The embedded configuration. An overlay without one shows that of its backing file.

    @property
    def has_config(self) -> bool:
        """Whether there is a configuration; a damaged one raises."""
        try:
            self.config_blobs()
        except ImageError as problem:
            if problem.errno != errno.ENOENT:
                raise
            return False
        return True

    def config_blobs(self) -> tuple[Blob, ...]:
        """The blobs in their order; ImageError with errno ENOENT when the image has no configuration."""
        count = binding.ffi().new("uint32_t *")
        binding.call(ImageError, "imgvm_image_config_count", self.handle, count)
        blobs = []
        for index in range(count[0]):
            out = binding.ffi().new("imgvm_blob_info *")
            binding.call(ImageError, "imgvm_image_config_info", self.handle, index, out)
            digest = bytes(binding.ffi().buffer(out.sha256)).hex()
            blobs.append(Blob(binding.text(out.name), out.bytes, digest))
        # Of two of a name one would be checked, and the other one used.
        if len({blob.name for blob in blobs}) != len(blobs):
            message = f"{self.path}: its embedded configuration is damaged: a name is given twice"
            raise ImageError(message, "do not trust this image", errno=errno.EIO)
        return tuple(blobs)

    def read_config(self, name: str, limit_bytes: int = MAX_BLOB_BYTES) -> bytes:
        """One blob, its SHA-256 verified. A limit, because a blob can be far larger than its file."""
        return bytes(self.load_config(name, limit_bytes))

    def load_config(self, name: str, limit_bytes: int = MAX_BLOB_BYTES) -> memoryview:
        """What read_config returns, where it was read to: a kernel is copied once less."""
        for index, blob in enumerate(self.config_blobs()):
            if blob.name == name:
                if blob.bytes > limit_bytes:
                    message = f"{self.path}: its blob {name} has {blob.bytes} bytes, more than {limit_bytes}"
                    raise ImageError(message, "do not trust this image", errno=errno.EFBIG)
                data = binding.uncleared(blob.bytes)
                binding.call(ImageError, "imgvm_image_config_read", self.handle, index, data, blob.bytes)
                return memoryview(binding.ffi().buffer(data, blob.bytes))
        raise ImageError(f"{self.path}: its configuration has no blob {name}", errno=errno.ENOENT)

    def set_config(self, blobs: Mapping[str, Buffer], *, date: int) -> None:
        """Replace the whole configuration in one step that a power loss cannot tear.

        `date` (seconds since 1970) is the snapshot's: the same blobs, order and date give the same bytes.
        """
        _check_unsigned(date, "the date", bits=32)
        ffi = binding.ffi()
        payload = binding.open_handle(ImageError, "imgvm_payload_new")
        try:
            for name, data in blobs.items():
                view = ffi.from_buffer(data)
                binding.call(ImageError, "imgvm_payload_add", payload, name.encode(), view, len(view))
            binding.call(ImageError, "imgvm_image_set_config", self.handle, payload, date)
        finally:
            binding.lib().imgvm_payload_free(payload)


def _check_unsigned(value: int, what: str, bits: int = 64) -> None:
    if not 0 <= value < 1 << bits:
        raise ImageError(f"{what} ({value}) is not a number of {bits} bits", errno=errno.EINVAL)
