# SPDX-License-Identifier: MIT
"""Writes cpio archives in the `newc` format, which the kernel unpacks as its first root file system
(Documentation/driver-api/early-userspace/buffer-format.rst). The same entries give the same bytes.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from imgvm.errors import PackError
from imgvm.pack.tree import Content, FileTree, Node, Text, shown

_MAX_FIELD = 0xFFFFFFFF  # every number is eight hexadecimal digits
_TRAILER = "TRAILER!!!"
_FIRST_INO = 1


@dataclass(frozen=True)
class Entry:
    """One file: `path` without a leading slash, `mode` with the type's bits. A link's data is its target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)  # major and minor number


def folder(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, data)


def link(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry], mtime_sec: int = 0) -> bytes:
    """The archive of `entries`, sorted by path, with the folders they lie in. Of two with one path the later
    counts. All belong to root."""
    tree = {entry.path: entry for entry in entries}
    for path in list(tree):
        _check(path)
        parent = path.rpartition("/")[0]
        while parent:
            above = tree.setdefault(parent, folder(parent))
            if not stat.S_ISDIR(above.mode):
                raise PackError(f"/{path} cannot be put into the initrd: /{parent} is no folder")
            parent = parent.rpartition("/")[0]
    out = bytearray()
    for ino, path in enumerate(sorted(tree), _FIRST_INO):
        _append(out, tree[path], ino, mtime_sec)
    _append(out, Entry(_TRAILER, 0), 0, 0)
    return bytes(out)


def add_to(tree: FileTree, entries: Iterable[Entry], mtime_sec: int, *, over: bool) -> None:
    """Puts entries into a tree, where they belong to root; unless `over`, what is there already stays."""
    for entry in entries:
        path = entry.path.encode()
        old = tree.find(path, follow=False)
        if old is not None and (not over or (old.is_folder and stat.S_ISDIR(entry.mode))):
            continue
        is_link = stat.S_ISLNK(entry.mode)
        tree.put(path, Node(
            entry.mode,
            mtime_sec=mtime_sec,
            content=Text(b"" if is_link else entry.data),
            target=entry.data if is_link else b"",
            device=entry.device,
        ))  # fmt: skip


def of_tree(tree: FileTree, read: Callable[[Content], Iterator[bytes]]) -> bytes:
    """The archive of a tree, with its owners, times and hard links."""
    rows = [(path, node) for path, node in tree.walk() if path]
    names = Counter(id(node) for _, node in rows)
    numbers: dict[int, int] = {}
    out = bytearray()
    for path, node in rows:
        if node.is_file and node.content.size_bytes > _MAX_FIELD:
            raise PackError(f"{shown(path)} is too large for an initramfs")
        first = id(node) not in numbers  # the others of its names have no data
        ino = numbers.setdefault(id(node), len(numbers) + _FIRST_INO)
        data = b""
        if node.is_file and first:
            data = _whole(node.content, read)
        elif node.is_link:
            data = node.target
        links = 2 if node.is_folder else names[id(node)]
        _append_row(out, path, ino, node.mode, (node.uid, node.gid), links, node.mtime_sec, data, node.device)
    _append(out, Entry(_TRAILER, 0), 0, 0)
    return bytes(out)


def _whole(content: Content, read: Callable[[Content], Iterator[bytes]]) -> bytes:
    data = bytearray(content.size_bytes)
    pieces = read(content)
    for offset, length in content.extents():
        end = offset + length
        while offset < end:
            piece = next(pieces)
            data[offset : offset + len(piece)] = piece
            offset += len(piece)
    return bytes(data)


def _check(path: str) -> None:
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise PackError(f"/{path} is not a path that an initrd can hold", hint="absolute, without `..`")


def _append(out: bytearray, entry: Entry, ino: int, mtime_sec: int) -> None:
    if len(entry.data) > _MAX_FIELD:
        raise PackError(f"/{entry.path} is too large for an initrd ({len(entry.data)} bytes)")
    links = 0 if entry.path == _TRAILER else 2 if stat.S_ISDIR(entry.mode) else 1
    name = entry.path.encode()
    _append_row(out, name, ino, entry.mode, (0, 0), links, mtime_sec, entry.data, entry.device)


def _append_row(
    out: bytearray, path: bytes, ino: int, mode: int, owner: tuple[int, int], links: int, mtime_sec: int,
    data: bytes, device: tuple[int, int],
) -> None:  # fmt: skip
    fields = (
        ino, mode, *owner, links, mtime_sec & _MAX_FIELD, len(data), 0, 0, *device, len(path) + 1, 0,
    )  # fmt: skip
    out += b"070701" + b"".join(b"%08X" % value for value in fields) + path + b"\0"
    out += bytes(-len(out) % 4)
    out += data
    out += bytes(-len(out) % 4)
