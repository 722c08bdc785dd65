# SPDX-License-Identifier: MIT
"""A folder of the packing host as a file tree."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imgvm.errors import PackError
from imgvm.pack.tree import MAX_DEPTH, MAX_NODES, Excluded, FileTree, Node, excluding

_CHUNK_BYTES = 1 << 20
_SECTOR_BYTES = 512  # of st_blocks
# Labels of the host's security modules say nothing in a guest.
_HOST_XATTRS = ("security.selinux", "security.ima", "security.evm", "security.SMACK64")


@dataclass(slots=True)
class HostFile:
    """The content of a file of the host; its holes stay holes."""

    path: bytes
    size_bytes: int
    between: tuple[tuple[int, int], ...] | None = None  # the holes: (offset, length); None without holes

    def extents(self) -> list[tuple[int, int]]:
        if self.between is not None:
            return list(self.between)
        return [(0, self.size_bytes)] if self.size_bytes else []

    def pieces(self) -> Iterator[bytes]:
        number = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for offset, length in self.extents():
                end = offset + length
                while offset < end:
                    data = os.pread(number, min(_CHUNK_BYTES, end - offset), offset)
                    if not data:
                        raise self._changed()
                    yield data
                    offset += len(data)
            if self.between is None and os.fstat(number).st_size != self.size_bytes:
                raise self._changed()
        finally:
            os.close(number)

    def _changed(self) -> PackError:
        return PackError(f"{os.fsdecode(self.path)} changed while it was packed", hint="pack again")


def _host_file(path: bytes, status: os.stat_result) -> HostFile:
    size_bytes = status.st_size
    if status.st_blocks * _SECTOR_BYTES >= size_bytes:
        return HostFile(path, size_bytes)
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return HostFile(path, size_bytes, tuple(_data_of(number, size_bytes)))
    finally:
        os.close(number)


def _data_of(number: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole."""
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(number, at, os.SEEK_DATA)
            end = min(os.lseek(number, start, os.SEEK_HOLE), size_bytes)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            start, end = at, size_bytes  # a file system that knows no holes
        if start < end:
            yield start, end - start
        at = end


def read(folder: Path, *, keep_owner: bool, mtime_sec: int, exclude: Excluded | None = None) -> FileTree:
    """The tree below `folder`. Everything belongs to root unless `keep_owner`, which also keeps extended
    attributes; times are all `mtime_sec`, for a checkout's mean nothing. Sockets are left out, and what is
    excluded is not even looked at."""
    reader = _Reader(keep_owner, mtime_sec, exclude or excluding(()))
    root = reader.node(os.fsencode(folder), folder.stat())
    if not keep_owner:
        root.mode = stat.S_IFDIR | 0o755  # the folder is often one that mktemp made
    reader.fill(root, os.fsencode(folder))
    return FileTree(root)


class _Reader:
    def __init__(self, keep_owner: bool, mtime_sec: int, excluded: Excluded) -> None:
        self._keep_owner = keep_owner
        self._mtime_sec = mtime_sec
        self._excluded = excluded
        self._linked: dict[tuple[int, int], Node] = {}  # files with several names, by device and inode
        self._count = 0

    def fill(self, root: Node, top: bytes) -> None:
        stack, excluded = [(root, top, b"", 0)], self._excluded
        while stack:
            folder, path, inside, depth = stack.pop()
            if depth > MAX_DEPTH:
                raise PackError(f"{os.fsdecode(path)} is more than {MAX_DEPTH} folders deep")
            with os.scandir(path) as rows:
                for row in rows:
                    name = inside + row.name
                    if excluded(name):
                        continue
                    status = row.stat(follow_symlinks=False)
                    if stat.S_ISSOCK(status.st_mode):
                        continue
                    self._count += 1
                    if self._count > MAX_NODES:
                        raise PackError(f"the tree has more than {MAX_NODES} files")
                    node = folder.entries[row.name] = self.node(row.path, status)
                    if node.is_folder:
                        stack.append((node, row.path, name + b"/", depth + 1))

    def node(self, path: bytes, status: os.stat_result) -> Node:
        key = (status.st_dev, status.st_ino)
        several = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        if several and key in self._linked:
            return self._linked[key]
        node = Node(status.st_mode, mtime_sec=self._mtime_sec)
        if self._keep_owner:
            node.uid, node.gid = status.st_uid, status.st_gid
            node.xattrs = _xattrs(path)
        if node.is_file:
            node.content = _host_file(path, status)
        elif node.is_link:
            node.target = os.readlink(path)  # noqa: PTH115
        elif not node.is_folder:
            node.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        if several:
            self._linked[key] = node
        return node


def _xattrs(path: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(OSError):  # a file system without them
        for name in os.listxattr(path, follow_symlinks=False):
            if name not in _HOST_XATTRS:
                found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def check(folder: Path, name: str) -> None:
    """PackError unless `folder` can be packed."""
    if not folder.exists():
        hint = "relative paths start at the config's folder"
        raise PackError(f"rootfs.dir: {name}: no such folder", hint=hint)
    if not folder.is_dir():
        raise PackError(f"rootfs.dir: {name} is no folder", hint="rootfs.tar takes archives")


def unreadable(error: OSError) -> PackError:
    """For a file in the folder that the packer may not read."""
    path = os.fsdecode(error.filename or b"")
    hint = "make it readable for the user who packs, or exclude it" if error.errno == errno.EACCES else None
    return PackError(f"rootfs.dir: {path}: {error.strerror}", hint=hint, errno=error.errno or 0)
