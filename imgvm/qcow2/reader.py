# SPDX-License-Identifier: MIT
"""A second, independent reader of qcow2 disks, to verify what the core wrote. The only importer of pyqcow.

libqcow reads versions 2 and 3, zlib compression, all cluster sizes and overlays. It knows no snapshots, zstd,
extended L2 or external data files, and gives backing data where an overlay has a zero cluster. In a file that
ends inside a cluster, as a killed writer leaves it, it finds nothing of that cluster: it is shown zeros.
"""

from __future__ import annotations

import io
import os
import struct
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pyqcow

from imgvm.errors import ImageError

_READ_BYTES = 1 << 20
_DEPTH_MAX = 64
_CLUSTER_BITS_AT, _CLUSTER_BITS = 20, range(9, 22)


class _WholeClusters(io.RawIOBase):
    """A file that goes on with zeros to the end of its last cluster."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        head = self._file.read(_CLUSTER_BITS_AT + 4)
        (bits,) = struct.unpack_from(">I", head, _CLUSTER_BITS_AT) if len(head) > _CLUSTER_BITS_AT else (0,)
        size = self._file.seek(0, os.SEEK_END)
        self._size = size + (-size % (1 << bits) if bits in _CLUSTER_BITS else 0)
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        count = left if size < 0 else min(size, left)
        self._file.seek(self._at)
        self._at += count
        return self._file.read(count).ljust(count, b"\0")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def get_size(self) -> int:
        return self._size

    def close(self) -> None:
        self._file.close()
        super().close()


class IndependentReader:
    """The guest's disk of a qcow2 file as libqcow sees it, backing files included."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files: list[pyqcow.file] = []
        self._streams: list[_WholeClusters] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            self._open_chain(self.path)
            undo.pop_all()

    def _open_chain(self, path: Path) -> None:
        if len(self._files) >= _DEPTH_MAX:
            raise ImageError(f"{self.path}: too many backing files in a chain")
        file = pyqcow.file()
        try:
            self._streams.append(_WholeClusters(path))
            file.open_file_object(self._streams[-1])
        except OSError as problem:
            raise ImageError(
                f"{path}: libqcow cannot read it: {str(problem).splitlines()[0]}",
                hint="it knows no zstd, extended L2 entries, external data or raw backing files",
            ) from problem
        self._files.append(file)
        if file.is_locked():
            raise ImageError(f"{path} is encrypted")
        backing = file.get_backing_filename()
        if backing:
            self._open_chain(path.parent / backing)
            file.set_parent(self._files[-1])

    @property
    def disk_bytes(self) -> int:
        size: int = self._files[0].get_media_size()
        return size

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the guest's disk, fewer at its end."""
        out = bytearray()
        try:
            while len(out) < size:
                part_bytes = min(size - len(out), _READ_BYTES)
                part = self._files[0].read_buffer_at_offset(part_bytes, offset + len(out))
                if not part:
                    break
                out += part
        except OSError as problem:
            raise ImageError(f"{self.path}: libqcow cannot read it at {offset}: {problem}") from problem
        return bytes(out)

    def close(self) -> None:
        # From the top down: libqcow's overlay refers to its parent.
        while self._files:
            self._files.pop(0).close()
        while self._streams:
            self._streams.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
