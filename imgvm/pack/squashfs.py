# SPDX-License-Identifier: MIT
"""A file tree as a squashfs, which mksquashfs makes of a tar archive that never is a file."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from imgvm.errors import PackError
from imgvm.pack.tree import Content, FileTree, Node, placed

TOOL = "mksquashfs"
_PACKAGE_HINT = "install it: apt install squashfs-tools (4.5 or later); ext4 needs no tool"
_BLOCK_BYTES = 4096  # what the file system is rounded up to
_TAR_BYTES = 512
_CHUNK_BYTES = 1 << 20
_ZEROES = bytes(_CHUNK_BYTES)

Write = Callable[[int, bytes | memoryview], None]
Read = Callable[[Content], Iterator[bytes]]


class SquashFs:
    """A tree, compressed into a temporary file that is gone with the stack."""

    def __init__(self, tree: FileTree, read: Read, stack: ExitStack) -> None:
        tool = shutil.which(TOOL, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if tool is None:
            raise PackError(f"rootfs.format: {TOOL}, which makes a squashfs, is not here", hint=_PACKAGE_HINT)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgvm-")))
        self._file = folder / "squashfs"
        latest_sec = max(node.mtime_sec for _, node in tree.walk())
        # The time of the root folder would be the clock's: this holds all times back.
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(latest_sec)}
        words = [tool, "-", str(self._file), "-tar", "-noappend", "-no-progress", "-quiet", "-comp", "zstd",
                 "-Xcompression-level", "6", "-root-mode", f"{stat.S_IMODE(tree.root.mode):o}"]  # fmt: skip
        with (folder / "said").open("w+b") as said:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, cwd=folder
            )
            assert process.stdin is not None
            try:
                with suppress(BrokenPipeError), process.stdin as pipe:
                    _write_tar(tree, read, pipe)
            except BaseException:
                process.kill()
                raise
            finally:
                status = process.wait()
            if status:
                said.seek(0)
                last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise PackError(f"rootfs.format: {TOOL} ended with {status}: {last}", hint=_PACKAGE_HINT)
        self.size_bytes = -(-self._file.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES

    def write(self, write: Write, read: Read) -> None:
        with self._file.open("rb") as stream:
            offset = 0
            while data := stream.read(_CHUNK_BYTES):
                write(offset, data)
                offset += len(data)


def _write_tar(tree: FileTree, read: Read, pipe: IO[bytes]) -> None:
    first: dict[int, str] = {}
    for path, node in tree.walk():
        if not path:
            continue
        name = path.decode("utf-8", "surrogateescape")
        member = _member(name, node)
        other = first.setdefault(id(node), name)
        if other != name:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, other, 0
        pipe.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if member.isreg():
            _write_content(node.content, read, pipe)
            pipe.write(bytes(-member.size % _TAR_BYTES))
    pipe.write(bytes(2 * _TAR_BYTES))


def _member(name: str, node: Node) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = stat.S_IMODE(node.mode), node.uid, node.gid
    member.mtime = node.mtime_sec
    member.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in sorted(node.xattrs.items())
    }
    if node.is_folder:
        member.type = tarfile.DIRTYPE
    elif node.is_link:
        member.type, member.linkname = tarfile.SYMTYPE, node.target.decode("utf-8", "surrogateescape")
    elif node.is_file:
        member.size = node.content.size_bytes
    elif stat.S_ISFIFO(node.mode):
        member.type = tarfile.FIFOTYPE
    else:
        member.type = tarfile.CHRTYPE if stat.S_ISCHR(node.mode) else tarfile.BLKTYPE
        member.devmajor, member.devminor = node.device
    return member


def _write_content(content: Content, read: Read, pipe: IO[bytes]) -> None:
    at = 0
    for offset, data in placed(content, read(content), "a file"):
        _write_zeroes(offset - at, pipe)
        pipe.write(data)
        at = offset + len(data)
    _write_zeroes(content.size_bytes - at, pipe)


def _write_zeroes(count: int, pipe: IO[bytes]) -> None:
    while count > 0:
        pipe.write(_ZEROES[: min(count, _CHUNK_BYTES)])
        count -= _CHUNK_BYTES
