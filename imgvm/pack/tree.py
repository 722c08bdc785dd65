# SPDX-License-Identifier: MIT
"""A guest's file tree in memory: names, owners, modes; the contents of files stay where they are until they
are written. Nothing of it touches the packing host's file system, so no path or link in it can lead there.

Names are bytes, and everything is walked in the order of their bytes: no locale has a say.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from imgvm.errors import PackError

MAX_NODES = 4_000_000
MAX_DEPTH = 256
MAX_NAME_BYTES = 255  # of ext4, squashfs and erofs alike
MAX_FILE_BYTES = 1 << 43  # an ext4 file of 4 KiB blocks may have twice that
MAX_TIME_SEC = (1 << 34) - (1 << 31) - 1  # that ext4 can say
MAX_LINK_BYTES = 4095
_MAX_LINKS_FOLLOWED = 40
_CHUNK_BYTES = 1 << 20

Excluded = Callable[[bytes], bool]  # whether a path, without a leading slash, is to be left out


class Content(Protocol):
    """What a regular file holds."""

    @property
    def size_bytes(self) -> int: ...

    def extents(self) -> list[tuple[int, int]]:
        """(offset, length) of what is not a hole, in order."""

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the extents, one after the other. PackError when there are fewer than promised."""


@dataclass(frozen=True)
class Text:
    """Content that is at hand."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def extents(self) -> list[tuple[int, int]]:
        return [(0, len(self.data))] if self.data else []

    def pieces(self) -> Iterator[bytes]:
        if self.data:
            yield self.data


@dataclass(frozen=True)
class Span:
    """A part of an open file; of a sparse file, several parts."""

    file: BinaryIO
    size_bytes: int
    parts: tuple[tuple[int, int, int], ...]  # (offset in the content, length, offset in the file)

    @classmethod
    def whole(cls, file: BinaryIO, start: int, size_bytes: int) -> Span:
        return cls(file, size_bytes, ((0, size_bytes, start),) if size_bytes else ())

    def extents(self) -> list[tuple[int, int]]:
        return [(offset, length) for offset, length, _ in self.parts]

    def pieces(self) -> Iterator[bytes]:
        number = self.file.fileno()
        for _, length, start in self.parts:
            end = start + length
            while start < end:
                data = os.pread(number, min(_CHUNK_BYTES, end - start), start)
                if not data:
                    raise PackError("a file became shorter while it was packed", hint="pack again")
                yield data
                start += len(data)


def placed(content: Content, pieces: Iterator[bytes], name: str) -> Iterator[tuple[int, memoryview]]:
    """The pieces of a content with their offsets in it; none reaches over a hole. Messages call it `name`."""
    for offset, length in content.extents():
        end = offset + length
        while offset < end:
            piece = memoryview(next(pieces))
            yield offset, piece
            offset += len(piece)
    for _ in pieces:
        raise PackError(f"{name} became longer while it was packed", hint="pack again")


@dataclass(slots=True, eq=False)
class Node:
    """One file of the tree. Hard links are the same node in several places."""

    mode: int  # with the type's bits
    uid: int = 0
    gid: int = 0
    mtime_sec: int = 0
    content: Content = Text(b"")
    target: bytes = b""  # of a symbolic link
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    entries: dict[bytes, Node] = field(default_factory=dict)  # of a folder
    layer: int = 0  # which of several sources it is from

    @property
    def is_folder(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_link(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFLNK


def folder(mode: int = 0o755) -> Node:
    return Node(stat.S_IFDIR | mode)


@dataclass
class FileTree:
    """A root folder and what lies below it."""

    root: Node = field(default_factory=folder)
    layer: int = 0  # given to what is added
    _count: int = 0

    def put(self, path: bytes, node: Node) -> None:
        """Adds a file; parents that are missing are made, symbolic links on the way are followed inside the
        tree. A folder over a folder keeps what is in it."""
        self._count += 1
        if self._count > MAX_NODES:
            raise PackError(f"the tree has more than {MAX_NODES} files")
        if len(node.target) > MAX_LINK_BYTES:
            raise PackError(f"{shown(path)}: the target of the link has {len(node.target)} bytes")
        parts = split(path)
        if not parts:
            if not node.is_folder:
                raise PackError("the root of the tree is no folder")
            node.entries, self.root = self.root.entries, node
            node.layer = self.layer
            return
        above = self._folder(parts[:-1], path)
        old = above.entries.get(parts[-1])
        if old is not None and old.is_folder and node.is_folder and old is not node:
            node.entries = old.entries
        node.layer = self.layer
        above.entries[parts[-1]] = node

    def _folder(self, parts: Sequence[bytes], path: bytes) -> Node:
        """The folder of that path, made as far as it is missing."""
        found = self._follow(parts, path, make=True)
        assert found is not None
        return found

    def find(self, path: bytes, *, follow: bool = True) -> Node | None:
        """The file of that path; with `follow`, what a last link leads to."""
        parts = split(path)
        if not parts:
            return self.root
        above = self._follow(parts[:-1], path, make=False)
        node = above.entries.get(parts[-1]) if above is not None and above.is_folder else None
        if node is not None and node.is_link and follow:
            return self._follow(parts, path, make=False)
        return node

    def _follow(self, parts: Sequence[bytes], path: bytes, *, make: bool) -> Node | None:
        above = [self.root]  # from the root to where we are: `..` of a link goes up, never out
        todo = list(reversed(parts))
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del above[max(len(above) - 1, 1) :]
                continue
            here = above[-1]
            node = here.entries.get(name)
            if node is None:
                if not make:
                    return None
                self._count += 1
                node = folder()
                node.layer = self.layer
                here.entries[name] = node
            if node.is_link:
                links += 1
                if links > _MAX_LINKS_FOLLOWED:
                    raise PackError(f"{shown(path)}: symbolic links lead in a circle")
                if node.target.startswith(b"/"):
                    del above[1:]
                todo += reversed(node.target.split(b"/"))
                continue
            if not node.is_folder and (make or todo):
                if make:
                    raise PackError(f"{shown(path)}: a part of its path is a file, not a folder")
                return None
            above.append(node)
            if len(above) > MAX_DEPTH + 1:
                raise PackError(f"{shown(path)} is more than {MAX_DEPTH} folders deep")
        return above[-1]

    def remove(self, path: bytes) -> None:
        parts = split(path)
        above = self._follow(parts[:-1], path, make=False) if parts else None
        if above is not None:
            above.entries.pop(parts[-1], None)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every file with its path (without a leading slash), each folder before what is in it."""
        stack: list[tuple[bytes, Node]] = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if node.is_folder:
                prefix = path + b"/" if path else b""
                stack += ((prefix + name, node.entries[name]) for name in sorted(node.entries, reverse=True))

    def exclude(self, excluded: Excluded) -> None:
        """Drops what is excluded, folders with all that is in them."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            for name, child in list(node.entries.items()):
                if excluded(path + name):
                    del node.entries[name]
                elif child.is_folder:
                    stack.append((path + name + b"/", child))


def split(path: bytes) -> list[bytes]:
    """The parts of a path from the root. `..` is refused: it would mean something else to every tool."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise PackError(f"{shown(path)} leads out of the tree", hint="paths must not contain `..`")
    if len(parts) > MAX_DEPTH:
        raise PackError(f"{shown(path)} is more than {MAX_DEPTH} folders deep")
    for part in parts:
        if len(part) > MAX_NAME_BYTES:
            raise PackError(f"{shown(path)}: a name of it has more than {MAX_NAME_BYTES} bytes")
        if b"\0" in part:
            raise PackError(f"{shown(path)}: a name of it holds a NUL")
    return parts


def shown(path: bytes) -> str:
    """A path for a message."""
    text = path.decode("utf-8", "backslashreplace")
    return "/" + (text if len(text) <= 120 else text[:117] + "...").lstrip("/")


def excluding(patterns: Sequence[str]) -> Excluded:
    """What the patterns name."""
    if not patterns:
        return lambda path: False
    wanted = re.compile(b"|".join(_pattern(text) for text in patterns), re.DOTALL)
    return lambda path: wanted.fullmatch(path) is not None


def _pattern(text: str) -> bytes:
    """A glob as a regular expression over paths without a leading slash. Without a slash inside, it is for
    names at any depth; `*` and `?` stay inside a name, `**` does not."""
    body = text.strip("/")
    out = b"" if "/" in text.rstrip("/") else b"(?:.*/)?"
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])", body):
        if piece == "**/":
            out += b"(?:.*/)?"
        elif piece == "**":
            out += b".*"
        elif piece == "*":
            out += b"[^/]*"
        elif piece == "?":
            out += b"[^/]"
        elif piece.startswith("[") and piece.endswith("]"):
            inside = piece[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            out += f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]".encode()
        else:
            out += re.escape(piece.encode())
    return out
