# SPDX-License-Identifier: MIT
"""Writes cpio archives in the `newc` format, which the kernel unpacks as its first root file system
(Documentation/driver-api/early-userspace/buffer-format.rst). The same entries give the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from imgvm.errors import PackError

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


def _check(path: str) -> None:
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise PackError(f"/{path} is not a path that an initrd can hold", hint="absolute, without `..`")


def _append(out: bytearray, entry: Entry, ino: int, mtime_sec: int) -> None:
    if len(entry.data) > _MAX_FIELD:
        raise PackError(f"/{entry.path} is too large for an initrd ({len(entry.data)} bytes)")
    name = entry.path.encode() + b"\0"
    links = 0 if entry.path == _TRAILER else 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        ino, entry.mode, 0, 0, links, mtime_sec & _MAX_FIELD,
        len(entry.data), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    out += b"070701" + b"".join(b"%08X" % value for value in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
