# SPDX-License-Identifier: MIT
"""File trees for the tests of what writes file systems, and a disk that they are written to."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hypothesis import strategies as st

from imgvm.pack.tree import Content, FileTree, Node, Text

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NAMES = st.text(
    st.characters(exclude_characters="/\0\n\r\t\v\f\x1c\x1d\x1e\x85\u2028\u2029 \"", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..", "lost+found"))
ANY_TREE = st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.binary(max_size=9000), max_size=40)


class Sparse:
    """Content of a few pieces, far apart."""

    def __init__(self, size_bytes: int, pieces: dict[int, bytes]) -> None:
        self.size_bytes = size_bytes
        self._pieces = pieces

    def extents(self) -> list[tuple[int, int]]:
        return [(offset, len(data)) for offset, data in self._pieces.items()]

    def pieces(self) -> Iterator[bytes]:
        yield from self._pieces.values()


class Longer(Sparse):
    """A file that grows while it is read."""

    def pieces(self) -> Iterator[bytes]:
        yield from (*super().pieces(), b"more")


class FileSystem(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def write(self, write: object, read: object) -> None: ...


def has(*tools: str) -> bool:
    return all(shutil.which(tool, path=PATH) for tool in tools)


def run(*words: str | Path) -> str:
    tool = shutil.which(str(words[0]), path=PATH)
    assert tool is not None
    done = subprocess.run([tool, *map(str, words[1:])], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.decode("utf-8", "replace")


def read(content: Content) -> Iterator[bytes]:
    return content.pieces()


def file(data: bytes, mode: int = 0o644) -> Node:
    return Node(stat.S_IFREG | mode, content=Text(data))


def symlink(target: bytes) -> Node:
    return Node(stat.S_IFLNK | 0o777, target=target)


def tree_of(rows: dict[str, bytes]) -> tuple[FileTree, dict[str, bytes]]:
    """A tree of these files, without those that others leave no place for, and what it holds."""
    tree, wanted = FileTree(), dict[str, bytes]()
    for name, data in rows.items():
        if not any(f"{other}/".startswith(f"{name}/") or f"{name}/".startswith(f"{other}/") for other in wanted):
            tree.put(name.encode(), file(data))
            wanted[name] = data
    return tree, wanted


def write_disk(path: Path, fs: FileSystem) -> None:
    """Writes a planned file system as a raw disk."""
    end = 0
    with path.open("wb") as stream:

        def put(offset: int, data: bytes | memoryview) -> None:
            nonlocal end
            assert offset >= end, "the disk is written from its start to its end"
            end = offset + len(data)
            stream.seek(offset)
            stream.write(data)

        fs.write(put, read)
        assert end <= fs.size_bytes
        stream.truncate(fs.size_bytes)


def contents(folder: Path) -> dict[str, bytes]:
    """All files and links below a folder of this host."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.fsencode(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found
