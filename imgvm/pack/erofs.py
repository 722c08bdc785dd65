# SPDX-License-Identifier: MIT
"""Writes a file tree as an EROFS, the kernel's read-only file system: in one pass, in the order of the disk.

The same tree gives the same bytes, whoever packs. The disk is a row of batches: the contents of some files in
whole blocks, then the inodes of these files, with the last bytes of each content behind its inode. So every
content is read once, and no more of it is held than the ends of one batch. The root's inode is in the first
block, where its 16-bit number can reach it.

With compression, where things go depends on the contents: they are read first, into a temporary file.
"""

from __future__ import annotations

import stat
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from imgvm import units
from imgvm.errors import PackError
from imgvm.pack import erofs_format as fmt
from imgvm.pack import erofs_lz4
from imgvm.pack.erofs_format import BLOCK_BYTES, SLOT_BYTES, ErofsError, InodeRow
from imgvm.pack.erofs_lz4 import Store, Stored
from imgvm.pack.tree import MAX_TIME_SEC, Content, FileTree, Node, placed, shown

_BATCH_BYTES = units.MIB  # of inodes, about
_MAX_CHUNK_SHIFT = 31  # a chunk has 1 << so many blocks

Write = Callable[[int, bytes | memoryview], None]  # offset in the file system, bytes; offsets only grow
Read = Callable[[Content], Iterator[bytes]]


@dataclass(slots=True)
class _File:
    """A file and its place. `blocks` are those of its content, one after the other on the disk."""

    node: Node
    path: bytes
    row: InodeRow
    xattrs: bytes
    parent: _File | None = None  # of a folder; of the root itself
    chunks: list[int] = field(default_factory=list)  # which of the chunks are there
    chunk_shift: int = 0
    blocks: int = 0
    start: int = 0
    offset: int = 0  # of the inode, from the start of the disk
    stored: Stored | None = None  # where its content was read to

    @property
    def inode(self) -> int:
        return self.offset // SLOT_BYTES

    @property
    def tail_bytes(self) -> int:
        return self.row.size_bytes - self.blocks * BLOCK_BYTES if self.row.layout == fmt.INLINE else 0

    @property
    def map_bytes(self) -> int:
        """What follows the inode and its attributes: the chunks, or the index of what is compressed."""
        if self.is_chunked:
            return 4 * -(-self.row.size_bytes // (BLOCK_BYTES << self.chunk_shift))
        if self.is_compressed:
            return -len(self.xattrs) % 8 + erofs_lz4.index_bytes(self.row.size_bytes)
        return 0

    @property
    def is_chunked(self) -> bool:
        return self.row.layout == fmt.CHUNKS

    @property
    def is_compressed(self) -> bool:
        return self.row.layout == fmt.COMPRESSED


@dataclass
class _Batch:
    """Files whose contents come first, and their inodes `start` bytes from the start of the disk."""

    files: list[_File] = field(default_factory=list)
    start: int = 0
    length: int = 0


class Erofs:
    """A tree, planned as a file system of `size_bytes`; `write` writes it."""

    def __init__(
        self,
        tree: FileTree,
        *,
        label: str,
        seed: str,
        time_sec: int = 0,
        read: Read | None = None,
        store: Store | None = None,
    ) -> None:
        """`seed` makes its UUID. With a `store`, contents are compressed into that, and read at once."""
        self._store, self._read = store, read
        self._time_sec = time_sec
        self._label = label.encode()
        self._uuid = uuid.uuid5(uuid.NAMESPACE_URL, f"imgvm:erofs:{seed}:{label}").bytes
        self._files: dict[int, _File] = {}  # by the node
        self._number(tree)
        for file in self._files.values():
            self._shape(file)
        self._root, *others = self._files.values()
        self._blocks = 0
        self._place_root()
        self._batches = self._place(others)

    @property
    def size_bytes(self) -> int:
        return self._blocks * BLOCK_BYTES

    def _number(self, tree: FileTree) -> None:
        """Every file, in the order of the paths."""
        folders: dict[bytes, _File] = {}
        for path, node in tree.walk():
            file = self._files.get(id(node))
            if file is not None:
                file.row.links += 1
                continue
            row = InodeRow(
                mode=node.mode, number=len(self._files) + 1, uid=node.uid, gid=node.gid,
                mtime_sec=min(max(node.mtime_sec, 0), MAX_TIME_SEC),
            )  # fmt: skip
            try:
                file = self._files[id(node)] = _File(node, path, row, fmt.xattr_area(node.xattrs))
            except ErofsError as error:
                raise PackError(f"{shown(path)}: {error}") from None
            row.xattr_bytes = len(file.xattrs)
            if node.is_folder:
                row.links = 2
                file.parent = folders[path.rpartition(b"/")[0]] if path else file
                file.parent.row.links += bool(path)
                folders[path] = file

    def _shape(self, file: _File) -> None:
        """The size of a file's content, and where that is to be."""
        node, row = file.node, file.row
        if node.is_folder:
            row.size_bytes = fmt.folder_bytes(sorted([*node.entries, b".", b".."]))
        elif node.is_link:
            row.size_bytes = len(node.target)
        elif node.is_file:
            row.size_bytes = node.content.size_bytes
            file.chunk_shift, file.chunks = _chunks(node.content)
            if file.chunks or _is_hole(node.content):
                row.layout, row.where = fmt.CHUNKS, file.chunk_shift
                file.blocks = sum(self._chunk_blocks(file, chunk) for chunk in file.chunks)
            self._read_into_store(file)
            if file.is_chunked or file.is_compressed:
                return
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            row.where = fmt.device_number(*node.device)
        file.blocks, tail_bytes = divmod(row.size_bytes, BLOCK_BYTES)
        if tail_bytes and self._head_bytes(file) + tail_bytes <= self._room(file):
            row.layout = fmt.INLINE
        else:
            file.blocks += tail_bytes > 0

    def _read_into_store(self, file: _File) -> None:
        if self._store is None or self._read is None:
            return
        content, name = file.node.content, shown(file.path)
        if file.is_chunked or content.size_bytes <= BLOCK_BYTES or _has_holes(content):
            file.stored = self._store.keep(content, self._read(content), name)
            return
        file.stored = self._store.compress(content, self._read(content), name)
        if file.stored.blocks < -(-content.size_bytes // BLOCK_BYTES):
            file.row.layout, file.row.where = fmt.COMPRESSED, file.stored.blocks
            file.blocks = file.stored.blocks

    def _chunk_blocks(self, file: _File, chunk: int) -> int:
        """The blocks of a chunk; the last one of a file ends with it."""
        whole = -(-file.row.size_bytes // BLOCK_BYTES)
        return min(1 << file.chunk_shift, whole - (chunk << file.chunk_shift))

    def _room(self, file: _File) -> int:
        """What an inode and what is behind it may have of a block, if the content's end is to lie there."""
        return BLOCK_BYTES - (0 if file.path else fmt.ROOT_OFFSET)

    def _head_bytes(self, file: _File) -> int:
        """The inode and what stands behind it, without the content's end."""
        return file.row.length(self._time_sec) + len(file.xattrs) + file.map_bytes

    def _place_root(self) -> None:
        root = self._root
        root.offset = fmt.ROOT_OFFSET
        root.start = -(-(root.offset + self._head_bytes(root) + root.tail_bytes) // BLOCK_BYTES)
        self._blocks = root.start + root.blocks

    def _place(self, files: list[_File]) -> list[_Batch]:
        batches: list[_Batch] = []
        batch = _Batch()
        for file in files:
            if batch.length > _BATCH_BYTES:
                self._close(batch)
                batches.append(batch)
                batch = _Batch()
            at = batch.length + -batch.length % SLOT_BYTES
            length = self._head_bytes(file) + file.tail_bytes
            if file.tail_bytes and at % BLOCK_BYTES + length > BLOCK_BYTES:  # what is inline is in one block
                at += -at % BLOCK_BYTES
            file.offset, batch.length = at, at + length
            batch.files.append(file)
        self._close(batch)
        return [*batches, batch]

    def _close(self, batch: _Batch) -> None:
        """Gives a batch its blocks, and so its inodes their numbers."""
        for file in batch.files:
            file.start = self._blocks
            self._blocks += file.blocks
        batch.start = self._blocks * BLOCK_BYTES
        self._blocks += -(-batch.length // BLOCK_BYTES)
        if self._blocks > fmt.MAX_BLOCKS:
            raise PackError("rootfs.format: an erofs has at most 16TiB", hint="leave something out")
        for file in batch.files:
            file.offset += batch.start

    def write(self, write: Write, read: Read) -> None:
        """Writes everything, in ascending order. `read` reads contents."""
        content = self._folder(self._root)
        body = self._root.blocks * BLOCK_BYTES
        head = self._inode(self._root) + content[body:]
        first = fmt.super_block(
            root=self._root.inode, inodes=len(self._files), blocks=self._blocks, time_sec=self._time_sec,
            uuid=self._uuid, label=self._label,
            chunked=any(file.is_chunked for file in self._files.values()),
            cluster_blocks=erofs_lz4.PIECE_BLOCKS if self._store is not None else 0,
            rest=head[: BLOCK_BYTES - fmt.ROOT_OFFSET],
        )  # fmt: skip
        write(0, first + head[BLOCK_BYTES - fmt.ROOT_OFFSET :])
        write(self._root.start * BLOCK_BYTES, content[:body])
        for batch in self._batches:
            area = bytearray(batch.length)
            for file in batch.files:
                head = self._inode(file)
                at = file.offset - batch.start
                area[at : at + len(head)] = head
                self._write_content(file, write, read, memoryview(area)[at + len(head) :])
            write(batch.start, memoryview(area))

    def _write_content(self, file: _File, write: Write, read: Read, tail: memoryview) -> None:
        """A file's blocks to the disk, and its end into `tail`."""
        body = file.blocks * BLOCK_BYTES
        if file.is_compressed and self._store is not None and file.stored is not None:
            at = file.start * BLOCK_BYTES
            for piece in self._store.pieces(file.stored):
                write(at, piece)
                at += len(piece)
            return
        for offset, data in self._pieces(file, read):
            if file.is_chunked:
                _write_chunks(file, write, offset, data)
                continue
            if inside := data[: max(body - offset, 0)]:
                write(file.start * BLOCK_BYTES + offset, inside)
            if rest := data[len(inside) :]:
                at = offset + len(inside) - body
                tail[at : at + len(rest)] = rest

    def _pieces(self, file: _File, read: Read) -> Iterator[tuple[int, memoryview]]:
        node = file.node
        if node.is_folder:
            yield 0, memoryview(self._folder(file))
        elif node.is_link:
            yield 0, memoryview(node.target)
        elif node.is_file:
            if self._store is not None and file.stored is not None:
                read = self._stored(file.stored)
            yield from placed(node.content, read(node.content), shown(file.path))

    def _stored(self, stored: Stored) -> Read:
        """Reads what was stored as it is: one extent after the other, with zeros behind the last, perhaps."""

        def pieces(content: Content) -> Iterator[bytes]:
            assert self._store is not None
            stream, data = self._store.pieces(stored), b""
            for _, length in content.extents():
                while length:
                    data = data or next(stream)
                    yield data[:length]
                    length, data = length - len(data[:length]), data[length:]

        return pieces

    def _inode(self, file: _File) -> bytes:
        """The inode, and what stands behind it but for the content's end."""
        if file.row.layout in (fmt.PLAIN, fmt.INLINE) and file.blocks:
            file.row.where = file.start
        head = file.row.pack(self._time_sec) + file.xattrs
        if file.is_compressed and file.stored is not None:
            return head + bytes(-len(head) % 8) + erofs_lz4.index(file.stored, file.start)
        if not file.is_chunked:
            return head
        starts = [fmt.NO_BLOCK] * (file.map_bytes // 4)
        start = file.start
        for chunk in file.chunks:
            starts[chunk] = start
            start += self._chunk_blocks(file, chunk)
        return head + b"".join(block.to_bytes(4, "little") for block in starts)

    def _folder(self, file: _File) -> bytes:
        assert file.parent is not None
        dots = ((b".", file), (b"..", file.parent))
        named = ((name, self._files[id(node)]) for name, node in file.node.entries.items())
        rows = sorted((name, other.inode, other.node.mode) for name, other in (*dots, *named))
        return fmt.folder_content(rows)


def _write_chunks(file: _File, write: Write, offset: int, data: memoryview) -> None:
    size = BLOCK_BYTES << file.chunk_shift
    while len(data):
        # All chunks before one that is there are whole: only the very last may be shorter.
        before = bisect_left(file.chunks, offset // size)
        inside = offset % size
        part = data[: size - inside]
        write(file.start * BLOCK_BYTES + before * size + inside, part)
        data, offset = data[len(part) :], offset + len(part)


def _has_holes(content: Content) -> bool:
    return sum(length for _, length in content.extents()) != content.size_bytes


def _is_hole(content: Content) -> bool:
    return content.size_bytes >= BLOCK_BYTES and not content.extents()


def _chunks(content: Content) -> tuple[int, list[int]]:
    """For a file with holes, the size of its chunks (as a shift of blocks), so that their list and the blocks
    take the least room, and those that are there. None for one without a whole block of hole."""
    whole = -(-content.size_bytes // BLOCK_BYTES)
    extents = content.extents()
    best = (whole * BLOCK_BYTES, 0, list[int]())
    if sum(length for _, length in extents) > content.size_bytes - BLOCK_BYTES:
        return 0, []
    for shift in range(_MAX_CHUNK_SHIFT + 1):
        size = BLOCK_BYTES << shift
        there = _touched(extents, size)
        cost = 4 * -(-content.size_bytes // size) + min(len(there) << shift, whole) * BLOCK_BYTES
        if cost < best[0]:
            best = (cost, shift, there)
        if size >= content.size_bytes:
            break
    return best[1], best[2]


def _touched(extents: list[tuple[int, int]], size: int) -> list[int]:
    """The chunks of that size with something in them."""
    found: list[int] = []
    for offset, length in extents:
        first = max(offset // size, found[-1] + 1 if found else 0)
        found += range(first, -(-(offset + length) // size))
    return found
