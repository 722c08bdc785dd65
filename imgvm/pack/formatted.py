# SPDX-License-Identifier: MIT
"""`disks[].filesystem`: an empty disk that a guest can mount, or swap to, at once."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

from imgvm.errors import PackError
from imgvm.machine import Disk
from imgvm.pack import vfat_empty
from imgvm.pack.disk import Target, ascending
from imgvm.pack.ext4 import Ext4
from imgvm.pack.progress import Progress
from imgvm.pack.sources import Source
from imgvm.pack.tree import Content, FileTree

_PAGE_BYTES = 4096
_SWAP_MAGIC = b"SWAPSPACE2"
_LEAST_SWAP_PAGES = 10  # of mkswap


class FormattedDisk:
    """A disk that is labelled with its name. `machine` makes its UUID."""

    def __init__(self, disk: Disk, part: str, machine: str, time_sec: int) -> None:
        assert disk.size_bytes is not None
        self.size_bytes = disk.size_bytes
        self._fs: Ext4 | None = None
        self._vfat: list[tuple[int, bytes]] = []
        self._label, self._seed = disk.name[:16], f"{machine}:{disk.name}"
        if disk.filesystem == "swap":
            if self.size_bytes < _LEAST_SWAP_PAGES * _PAGE_BYTES:
                raise PackError(f"{part}.size: a disk to swap to has at least 40KiB")
            return
        if disk.filesystem == "vfat":
            if not vfat_empty.MIN_BYTES <= self.size_bytes < vfat_empty.MAX_BYTES:
                raise PackError(f"{part}.size: a FAT file system has at least 1MiB, and less than 2TiB")
            self._vfat = list(vfat_empty.pieces(self._label, self.size_bytes, self._seed, time_sec))
            return
        try:
            self._fs = Ext4(
                FileTree(), label=self._label, seed=self._seed, size_bytes=self.size_bytes, time_sec=time_sec
            )
        except PackError as error:
            raise PackError(error.message.replace("rootfs.size", f"{part}.size"), "give it more") from None

    def write(self, target: Target, progress: Progress) -> list[Source]:
        with ascending(target) as out:
            if self._fs is not None:
                self._fs.write(out.write, _nothing)
            for offset, data in self._vfat or ([] if self._fs else [(0, self._swap())]):
                out.write(offset, data)
        return []

    def _swap(self) -> bytes:
        """The first page of a swap area of version 1 (the kernel's include/linux/swap.h)."""
        own = uuid.uuid5(uuid.NAMESPACE_URL, f"imgvm:swap:{self._seed}").bytes
        page = bytearray(_PAGE_BYTES)
        last_page = min(self.size_bytes // _PAGE_BYTES, 1 << 32) - 1
        struct.pack_into("<III16s16s", page, 1024, 1, last_page, 0, own, self._label.encode())
        page[-len(_SWAP_MAGIC) :] = _SWAP_MAGIC
        return bytes(page)


def _nothing(content: Content) -> Iterator[bytes]:
    return content.pieces()
