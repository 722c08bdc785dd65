# SPDX-License-Identifier: MIT
"""A second, independent reader of qcow2 disks, to verify what the core wrote. The only importer of pyqcow.

libqcow reads versions 2 and 3, zlib compression, all cluster sizes and overlays. It knows no snapshots, zstd,
extended L2 or external data files, and gives backing data where an overlay has a zero cluster.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pyqcow

from imgvm.errors import ImageError

_READ_BYTES = 1 << 20
_DEPTH_MAX = 64


class IndependentReader:
    """The guest's disk of a qcow2 file as libqcow sees it, backing files included."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files: list[pyqcow.file] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            self._open_chain(self.path)
            undo.pop_all()

    def _open_chain(self, path: Path) -> None:
        if len(self._files) >= _DEPTH_MAX:
            raise ImageError(f"{self.path}: too many backing files in a chain")
        file = pyqcow.file()
        try:
            file.open(str(path))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
