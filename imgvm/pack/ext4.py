# SPDX-License-Identifier: MIT
"""Writes a file tree as an ext4 file system, in one pass and in the order of the disk.

The same tree gives the same bytes: no clock, no random numbers, and owners, devices and attributes are those
of the tree, whoever packs. Metadata come first, then every file in one piece as far as the copies of the
superblock allow. What nothing is in is not written.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from imgvm import units
from imgvm.errors import PackError
from imgvm.pack import ext4_format as fmt
from imgvm.pack.ext4_blocks import Blocks, FullError, bits, extents_of
from imgvm.pack.ext4_files import LOST_AND_FOUND, File, block_count, grow_extent_tree, number, ranges, row_of
from imgvm.pack.ext4_folder import FolderError, folder_blocks
from imgvm.pack.ext4_format import BLOCK_BYTES, BLOCKS_PER_GROUP, InodeRow
from imgvm.pack.tree import Content, FileTree, folder, placed, shown

MAX_BYTES = 16 * units.TIB - BLOCK_BYTES
_BYTES_PER_INODE = 16384  # of the disk, as mke2fs has it; besides those that are used from the start
_MIN_BLOCKS = 256
# Below so many blocks of disk, so many of journal.
_JOURNAL_BLOCKS = ((2048, 0), (32768, 1024), (262144, 4096), (1 << 40, 16384))

Write = Callable[[int, bytes | memoryview], None]  # offset in the file system, bytes; offsets only grow
Read = Callable[[Content], Iterator[bytes]]


class Ext4:
    """A tree, planned as a file system of `size_bytes`; `write` writes it."""

    def __init__(
        self,
        tree: FileTree,
        *,
        label: str,
        seed: str,
        size_bytes: int | None = None,
        free_bytes: int = 0,
        least_bytes: int = 0,
        time_sec: int = 0,
    ) -> None:
        """Without a size, it is as large as its contents and `free_bytes`, and at least `least_bytes`. `seed`
        makes its UUID."""
        self._time_sec = time_sec
        self._label = label.encode()
        self._uuid = uuid.uuid5(uuid.NAMESPACE_URL, f"imgvm:ext4:{seed}:{label}").bytes
        self._hash_seed = uuid.uuid5(uuid.UUID(bytes=self._uuid), "hash").bytes
        found = tree.find(LOST_AND_FOUND, follow=False)
        if found is None:
            tree.put(LOST_AND_FOUND, folder(0o700))
        elif not found.is_folder:
            raise PackError("/lost+found must be a folder on ext4", hint="exclude it")
        self._files = number(tree)
        self._fill_folders()
        self._place(size_bytes, free_bytes, least_bytes)

    @property
    def size_bytes(self) -> int:
        return self._blocks.total * BLOCK_BYTES

    def _fill_folders(self) -> None:
        numbers = {id(file.node): file.number for file in self._files}
        for file in self._files:
            if file.node.is_folder:
                entries = sorted(file.node.entries.items())
                rows = [(name, numbers[id(node)], node.mode) for name, node in entries]
                try:
                    file.blocks, indexed = folder_blocks(file.number, file.parent, rows, self._hash_seed)
                except FolderError as error:
                    raise PackError(f"{shown(file.path)}: {error}") from None
                file.flags |= fmt.FLAG_INDEX if indexed else 0
            elif file.node.is_link and len(file.node.target) > fmt.FAST_LINK_BYTES:
                file.blocks = file.node.target.ljust(BLOCK_BYTES, b"\0")

    def _place(self, size_bytes: int | None, free_bytes: int, least_bytes: int) -> None:
        """Chooses the size and gives every block its place."""
        needed = sum(map(block_count, self._files))
        total = (size_bytes or 0) // BLOCK_BYTES
        if size_bytes is None:
            total = max(self._total(needed + -(-free_bytes // BLOCK_BYTES)), least_bytes // BLOCK_BYTES)
        if total * BLOCK_BYTES > MAX_BYTES:
            raise PackError(f"rootfs.size: an ext4 of imgvm's has at most {units.format_size(MAX_BYTES)}")
        try:
            self._lay_out(total)
        except FullError:
            least = self._total(needed) * BLOCK_BYTES // units.MIB
            raise PackError(
                f"rootfs.size: {units.format_size(total * BLOCK_BYTES)} is too small for what is in it",
                hint=f"it needs about {least}MiB; or leave size out",
            ) from None

    def _total(self, wanted: int) -> int:
        """Blocks of a file system with room for so many, in whole MiB."""
        groups = -(-(len(self._files) + fmt.FIRST_INODE) // BLOCKS_PER_GROUP)  # a group has no more inodes
        total = _MIN_BLOCKS
        for _ in range(8):  # what the metadata need depends on the size
            total = max(wanted + self._overhead(total), (groups - 1) * BLOCKS_PER_GROUP + _MIN_BLOCKS)
            total += -total % (units.MIB // BLOCK_BYTES)
        return total

    def _overhead(self, total: int) -> int:
        """Blocks of metadata of a file system of `total` blocks."""
        groups, per_group, descriptors = self._geometry(total)
        backups = sum(map(fmt.has_backup, range(groups)))
        table = per_group * fmt.INODE_BYTES // BLOCK_BYTES
        gaps = table * min(backups, 3)  # a table that a superblock's copy would cut in two begins behind it
        return groups * (2 + table) + backups * (1 + descriptors) + gaps + _journal_blocks(total)

    def _geometry(self, total: int) -> tuple[int, int, int]:
        """Groups, inodes in each, blocks of group descriptors."""
        groups = -(-total // BLOCKS_PER_GROUP)
        wanted = len(self._files) + fmt.FIRST_INODE + total * BLOCK_BYTES // _BYTES_PER_INODE
        per_block = BLOCK_BYTES // fmt.INODE_BYTES
        per_group = min(-(-wanted // groups // per_block) * per_block, BLOCKS_PER_GROUP)
        return groups, per_group, -(-groups * fmt.DESCRIPTOR_BYTES // BLOCK_BYTES)

    def _lay_out(self, total: int) -> None:
        descriptors = self._geometry(max(total, 1))[2]
        if 0 < total % BLOCKS_PER_GROUP <= descriptors + 1:
            total -= total % BLOCKS_PER_GROUP  # a last group without room for a copy of the superblock
        if total < _MIN_BLOCKS:
            raise FullError
        self._groups, self._per_group, descriptors = self._geometry(total)
        if self._groups * self._per_group < len(self._files) + fmt.FIRST_INODE:
            raise FullError
        blocks = self._blocks = Blocks(total, descriptors)
        self._block_bitmaps = [start for _ in range(self._groups) for start, _ in blocks.take(1)]
        self._inode_bitmaps = [start for _ in range(self._groups) for start, _ in blocks.take(1)]
        table = self._per_group * fmt.INODE_BYTES // BLOCK_BYTES
        self._tables = [start for _ in range(self._groups) for start, _ in blocks.take(table, whole=True)]
        length = _journal_blocks(total)
        self._journal_extents = extents_of(blocks, [(0, length)]) if length else []
        if len(self._journal_extents) > fmt.EXTENTS_IN_INODE:
            raise FullError
        for file in self._files:
            if file.xattrs[1]:
                ((file.xattr_block, _),) = blocks.take(1)
            file.extents = extents_of(blocks, ranges(file))
            grow_extent_tree(file, blocks)

    def write(self, write: Write, read: Read) -> None:
        """Writes everything, in ascending order. `read` reads contents."""
        ordered = _Ordered(write, self._copies())
        for offset, data in self._metadata():
            ordered.write(offset, data)
        for file in self._files:
            if file.xattr_block:
                ordered.write(file.xattr_block * BLOCK_BYTES, file.xattrs[1])
            if file.blocks is not None:
                for extent in file.extents:
                    start, end = extent.logical * BLOCK_BYTES, (extent.logical + extent.count) * BLOCK_BYTES
                    ordered.write(extent.start * BLOCK_BYTES, file.blocks[start:end])
            elif file.node.is_file:
                _write_content(file, ordered.write, read)
            for block, data in file.nodes:
                ordered.write(block * BLOCK_BYTES, data)
        ordered.close()

    def _copies(self) -> list[tuple[int, bytes]]:
        """The superblock and the group descriptors, at all their places."""
        free = [BLOCKS_PER_GROUP - self._blocks.bitmap(group).bit_count() for group in range(self._groups)]
        folders = [0] * self._groups
        for file in self._files:
            if file.node.is_folder:
                folders[(file.number - 1) // self._per_group] += 1
        used = [self._used_inodes(group) for group in range(self._groups)]
        descriptors = b"".join(
            fmt.GroupRow(
                block_bitmap=self._block_bitmaps[group],
                inode_bitmap=self._inode_bitmaps[group],
                inode_table=self._tables[group],
                free_blocks=free[group],
                free_inodes=self._per_group - used[group],
                folders=folders[group],
                unused_inodes=self._per_group - used[group],
                flags=fmt.TABLE_ZEROED
                | (0 if used[group] else fmt.INODES_UNUSED)
                | (fmt.BLOCKS_UNUSED if self._is_unused(group) else 0),
            ).pack(group, self._uuid)
            for group in range(self._groups)
        )
        head = fmt.SuperBlock(
            inodes=self._groups * self._per_group,
            blocks=self._blocks.total,
            free_blocks=sum(free),
            free_inodes=self._groups * self._per_group - sum(used),
            inodes_per_group=self._per_group,
            time_sec=self._time_sec,
            uuid=self._uuid,
            label=self._label,
            hash_seed=self._hash_seed,
            journal=self._journalrow_of(),
        )
        found = []
        for start, _ in self._blocks.reserved:
            packed = head.pack(start // BLOCKS_PER_GROUP)
            block = packed.ljust(BLOCK_BYTES, b"\0") if start else bytes(1024) + packed.ljust(3072, b"\0")
            found.append((start * BLOCK_BYTES, block + descriptors))
        return found

    def _is_unused(self, group: int) -> bool:
        """Whether Linux is to work out a group's block bitmap itself. The last group's is always there."""
        return group * BLOCKS_PER_GROUP >= self._blocks.next and group != self._groups - 1

    def _used_inodes(self, group: int) -> int:
        used = self._files[-1].number
        return max(0, min(self._per_group, used - group * self._per_group))

    def _metadata(self) -> Iterator[tuple[int, bytes]]:
        """Bitmaps, tables of inodes and the journal's head: (offset, bytes) in their order."""
        for group, at in enumerate(self._block_bitmaps):
            if not self._is_unused(group):
                yield at * BLOCK_BYTES, self._blocks.bitmap(group).to_bytes(BLOCK_BYTES, "little")
        for group, at in enumerate(self._inode_bitmaps):
            if used := self._used_inodes(group):
                bitmap = bits(0, 0, used) | bits(0, self._per_group, 8 * BLOCK_BYTES)
                yield at * BLOCK_BYTES, bitmap.to_bytes(BLOCK_BYTES, "little")
        yield from self._inode_tables()
        if self._journal_extents:
            length = sum(extent.count for extent in self._journal_extents)
            yield self._journal_extents[0].start * BLOCK_BYTES, fmt.journal_superblock(length, self._uuid)

    def _inode_tables(self) -> Iterator[tuple[int, bytes]]:
        rows = self._inode_rows()
        for at in self._tables:
            yield at * BLOCK_BYTES, b"".join(islice(rows, self._per_group))

    def _inode_rows(self) -> Iterator[bytes]:
        root, *others = self._files
        first = [bytes(fmt.INODE_BYTES)] * (fmt.FIRST_INODE - 1)
        first[fmt.ROOT_INODE - 1] = row_of(root).pack()
        journal = self._journalrow_of()
        if journal is not None:
            first[fmt.JOURNAL_INODE - 1] = journal.pack()
        yield from first
        for file in others:
            yield row_of(file).pack()

    def _journalrow_of(self) -> InodeRow | None:
        if not self._journal_extents:
            return None
        blocks = sum(extent.count for extent in self._journal_extents)
        return InodeRow(
            mode=0o100600,
            size_bytes=blocks * BLOCK_BYTES,
            mtime_sec=self._time_sec,
            sectors=blocks * BLOCK_BYTES // 512,
            flags=fmt.FLAG_EXTENTS,
            block=fmt.extent_leaf(self._journal_extents),
        )


class _Ordered:
    """Puts the copies of the superblock between all else, so that the disk is written from start to end."""

    def __init__(self, write: Write, copies: Sequence[tuple[int, bytes]]) -> None:
        self._write = write
        self._copies = list(reversed(copies))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        while self._copies and self._copies[-1][0] < offset:
            self._write(*self._copies.pop())
        self._write(offset, data)

    def close(self) -> None:
        while self._copies:
            self._write(*self._copies.pop())


def _journal_blocks(total: int) -> int:
    return next(length for below, length in _JOURNAL_BLOCKS if total < below)


def _write_content(file: File, write: Write, read: Read) -> None:
    """A file's bytes to its blocks: pieces go where the extents say; rests of blocks stay zero."""
    content = file.node.content
    if len(file.extents) == 1 and content.extents() == [(0, content.size_bytes)]:
        start = file.extents[0].start * BLOCK_BYTES
        for offset, piece in placed(content, read(content), shown(file.path)):
            write(start + offset, piece)
        return
    extents = iter(file.extents)
    extent = next(extents, None)
    for offset, piece in placed(content, read(content), shown(file.path)):
        while len(piece):
            while extent is not None and offset >= (extent.logical + extent.count) * BLOCK_BYTES:
                extent = next(extents, None)
            assert extent is not None
            inside = offset - extent.logical * BLOCK_BYTES
            part = piece[: extent.count * BLOCK_BYTES - inside]
            write(extent.start * BLOCK_BYTES + inside, part)
            piece, offset = piece[len(part) :], offset + len(part)
