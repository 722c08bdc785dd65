# SPDX-License-Identifier: MIT
"""Tar archives as file trees, compressed or not. An archive is untrusted: its paths stay inside the tree
(tree.py), what it claims is checked against what is there, and what it unpacks to is bounded.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import tempfile
import zlib
from contextlib import ExitStack
from typing import IO, Any, BinaryIO, cast

from imgvm.errors import PackError
from imgvm.pack.decompress import sniff
from imgvm.pack.tree import MAX_FILE_BYTES, MAX_TIME_SEC, FileTree, Node, Span, shown

# A bomb is told by what it becomes: file systems do not compress a hundredfold.
MIN_UNPACKED_LIMIT_BYTES = 4 << 30
MAX_RATIO = 100
_MAX_HEADER_BYTES = 1 << 20  # of names and attributes that do not fit into a plain header
_CHUNK_BYTES = 1 << 20
# What tarfile raises over an archive that is damaged.
FAULTS = (tarfile.TarError, ValueError, OverflowError, EOFError, OSError, IndexError, KeyError)
_MAX_ID = 0xFFFFFFFE
_XATTR = "SCHILY.xattr."
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"


class Member(tarfile.TarInfo):
    """A member whose header is looked at before tarfile acts on it."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.size < 0:
            raise tarfile.HeaderError("a negative size")
        headers = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
                   tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # fmt: skip
        if self.type in headers and self.size > _MAX_HEADER_BYTES:
            raise tarfile.HeaderError("a header of more than 1 MiB")
        return super()._proc_member(archive)  # type: ignore[misc]


def limit(packed_bytes: int) -> int:
    """What so much may unpack to."""
    return max(MIN_UNPACKED_LIMIT_BYTES, MAX_RATIO * packed_bytes)


def unpacked(file: BinaryIO, name: str, stack: ExitStack, limit_bytes: int | None = None) -> BinaryIO:
    """The archive itself, or what it unpacks to, in a file that is gone with the stack."""
    file.seek(0)
    kind = sniff(file.read(16))
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if kind is None:
        return file
    source = _decompressor(kind, file)
    if source is None:
        raise PackError(f"{name}: {kind} compression is not supported", hint="use gzip, xz or zstd")
    limit_bytes = limit(size_bytes) if limit_bytes is None else limit_bytes
    out = temporary(stack)
    total = 0
    while data := _read(source, name, kind):
        total += len(data)
        if total > limit_bytes:
            raise PackError(f"{name} unpacks to more than {limit_bytes >> 20} MiB", hint="is it a bomb?")
        keep(out, data)
    flush(out)
    return out


def temporary(stack: ExitStack) -> BinaryIO:
    """A file without a name."""
    return cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(prefix="imgvm-")))


def _read(source: IO[bytes], name: str, kind: str) -> bytes:
    try:
        return source.read(_CHUNK_BYTES)
    except MemoryError:
        raise PackError(f"{name}: the {kind} data wants more memory than there is") from None
    except Exception as error:  # each library has errors of its own
        if not isinstance(error, (OSError, EOFError, zlib.error, lzma.LZMAError)) and kind != "zstd":
            raise
        raise PackError(f"{name}: the {kind} data is damaged ({error})") from error


def keep(out: BinaryIO, data: bytes) -> None:
    """Writes to a temporary file."""
    try:
        out.write(data)
    except OSError as error:
        raise _no_room(error) from error


def flush(out: BinaryIO) -> None:
    try:
        out.flush()
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> PackError:
    where = tempfile.gettempdir()
    hint = "TMPDIR can name another folder"
    return PackError(f"{where}: {error.strerror} (for unpacked archives)", hint=hint, errno=error.errno or 0)


def _decompressor(kind: str, file: BinaryIO) -> IO[bytes] | None:
    if kind == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if kind in ("xz", "lzma"):
        return cast(IO[bytes], lzma.LZMAFile(file))
    if kind == "bzip2":
        return cast(IO[bytes], bz2.BZ2File(file))
    if kind == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return cast(IO[bytes], reader)
    return None


def digest(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def add(
    tree: FileTree, file: BinaryIO, name: str, *, latest_sec: int | None, whiteouts: bool = False
) -> None:
    """Lays an uncompressed archive over the tree. Times later than `latest_sec` become that. With
    `whiteouts`, `.wh.NAME` and `.wh..wh..opq` take away what earlier layers have."""
    tree.layer += 1
    file.seek(0, 2)
    end = file.tell()
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Member, errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]
                _add(tree, member, file, end, latest_sec, whiteouts)
    except PackError as error:
        raise PackError(f"{name}: {error.message}", error.hint) from error
    except FAULTS as error:
        raise PackError(f"{name} is not a readable tar archive ({error})") from error


def _add(
    tree: FileTree, member: tarfile.TarInfo, file: BinaryIO, end: int, latest_sec: int | None, whiteouts: bool
) -> None:
    path = member.name.encode("utf-8", "surrogateescape")
    above, _, last = path.rstrip(b"/").rpartition(b"/")
    if whiteouts and last == _OPAQUE:
        _prune(tree.find(above), tree.layer)
        return
    if whiteouts and last.startswith(_WHITEOUT):
        hidden = above + b"/" + last.removeprefix(_WHITEOUT)
        node = tree.find(hidden, follow=False)
        if node is not None and node.layer != tree.layer:
            _prune(node, tree.layer)
            if not node.entries:
                tree.remove(hidden)
        return
    if member.islnk():
        target = member.linkname.encode("utf-8", "surrogateescape")
        node = tree.find(target, follow=False)
        if node is None or node.is_folder:
            raise PackError(f"{shown(path)} is a hard link to {shown(target)}, which is no file before it")
        tree.put(path, node)
        return
    made = _node(member, path, file, end, latest_sec)
    if made is not None:
        tree.put(path, made)


def _prune(node: Node | None, layer: int) -> None:
    """Takes away what a folder has of earlier layers than this one."""
    if node is None:
        return
    for name, child in list(node.entries.items()):
        _prune(child, layer)
        if child.layer != layer and not child.entries:
            del node.entries[name]


def _node(
    member: tarfile.TarInfo, path: bytes, file: BinaryIO, end: int, latest_sec: int | None
) -> Node | None:
    if not 0 <= member.uid <= _MAX_ID or not 0 <= member.gid <= _MAX_ID:
        raise PackError(f"{shown(path)}: its owner {member.uid}:{member.gid} is no user and group")
    mtime_sec = min(max(int(member.mtime), 0), MAX_TIME_SEC)
    node = Node(
        stat.S_IMODE(member.mode), member.uid, member.gid,
        mtime_sec if latest_sec is None else min(mtime_sec, latest_sec),
    )  # fmt: skip
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            node.xattrs[key.removeprefix(_XATTR)] = value.encode("utf-8", "surrogateescape")
    if member.isdir():
        node.mode |= stat.S_IFDIR
    elif member.issym():
        node.mode = stat.S_IFLNK | 0o777
        node.target = member.linkname.encode("utf-8", "surrogateescape")
    elif member.ischr() or member.isblk():
        node.mode |= stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        node.device = (member.devmajor, member.devminor)
        if not 0 <= member.devmajor < 1 << 12 or not 0 <= member.devminor < 1 << 20:
            raise PackError(f"{shown(path)}: {member.devmajor}:{member.devminor} is no device number")
    elif member.isfifo():
        node.mode |= stat.S_IFIFO
    elif member.isfile():
        node.mode |= stat.S_IFREG
        node.content = _content(member, path, file, end)
    else:
        return None  # a kind that only one tar program knows
    return node


def _content(member: tarfile.TarInfo, path: bytes, file: BinaryIO, end: int) -> Span:
    size = member.size
    if not 0 <= size <= MAX_FILE_BYTES:
        raise PackError(f"{shown(path)}: a file of {size} bytes is too large")
    sparse = cast("list[tuple[int, int]] | None", member.sparse)
    pieces = sparse if sparse is not None else [(0, size)]
    start, at = member.offset_data, 0
    parts = []
    for offset, length in pieces:
        if length == 0:
            continue
        if length < 0 or offset < at or offset + length > size or start + length > end:
            raise PackError(f"{shown(path)}: the archive is cut short or damaged there")
        parts.append((offset, length, start))
        at, start = offset + length, start + length
    return Span(file, size, tuple(parts))
