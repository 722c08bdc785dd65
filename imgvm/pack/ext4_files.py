# SPDX-License-Identifier: MIT
"""The files of an ext4 file system: their inodes, what blocks each needs, and its extent tree."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgvm.errors import PackError
from imgvm.pack import ext4_format as fmt
from imgvm.pack.ext4_blocks import Blocks
from imgvm.pack.ext4_format import BLOCK_BYTES, Extent, InodeRow
from imgvm.pack.ext4_xattr import XattrError, pack_xattrs
from imgvm.pack.tree import MAX_TIME_SEC, FileTree, Node, shown

LOST_AND_FOUND = b"lost+found"


@dataclass(slots=True)
class File:
    """A file and its place."""

    number: int
    node: Node
    path: bytes
    links: int = 1
    parent: int = fmt.ROOT_INODE  # of a folder
    blocks: bytes | None = None  # of a folder or a long link: what its blocks hold
    flags: int = 0
    xattrs: tuple[bytes, bytes] = (b"", b"")  # in the inode, in a block
    xattr_block: int = 0
    extents: list[Extent] = field(default_factory=list)
    nodes: list[tuple[int, bytes]] = field(default_factory=list)  # (block, content) of the extent tree
    root: bytes = b""  # of the extent tree


def number(tree: FileTree) -> list[File]:
    """Every file with its inode, in the order of the paths."""
    files: list[File] = []
    known: dict[int, File] = {}
    folders: dict[bytes, File] = {}
    last = fmt.FIRST_INODE
    for path, node in tree.walk():
        file = known.get(id(node))
        if file is not None:
            file.links += 1
            if file.links > fmt.MAX_LINKS:
                raise PackError(f"{shown(path)} has more than {fmt.MAX_LINKS} names")
            continue
        if not path:
            inode = fmt.ROOT_INODE
        elif path == LOST_AND_FOUND:
            inode = fmt.FIRST_INODE
        else:
            last += 1
            inode = last
        file = known[id(node)] = File(inode, node, path)
        files.append(file)
        if node.xattrs:
            try:
                file.xattrs = pack_xattrs(node.xattrs)
            except XattrError as error:
                raise PackError(f"{shown(path)}: {error}") from None
        if node.is_folder:
            file.links = 2
            folders[path] = file
            if path:
                above = folders[path.rpartition(b"/")[0]]
                above.links += 1
                file.parent = above.number
    return sorted(files, key=lambda file: file.number)


def ranges(file: File) -> list[tuple[int, int]]:
    """(first, count) of the blocks of a file that hold something."""
    if file.blocks is not None:
        return [(0, len(file.blocks) // BLOCK_BYTES)]
    if not file.node.is_file:
        return []
    found: list[tuple[int, int]] = []
    extents = file.node.content.extents()
    if len(extents) == 1 and not extents[0][0]:
        return [(0, -(-extents[0][1] // BLOCK_BYTES))]
    for offset, length in extents:
        first, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        if found and first <= sum(found[-1]):
            found[-1] = (found[-1][0], max(end, sum(found[-1])) - found[-1][0])
        else:
            found.append((first, end - first))
    return found


def block_count(file: File) -> int:
    """The blocks that a file needs, at most."""
    rows = ranges(file)
    count = rows[0][1] if len(rows) == 1 else sum(count for _, count in rows)
    extents = len(rows) + count // (fmt.MAX_EXTENT_BLOCKS // 2)  # copies of the superblock cut longer runs
    while extents > fmt.EXTENTS_IN_INODE:
        extents = -(-extents // fmt.EXTENTS_IN_BLOCK)
        count += extents
    return count + bool(file.xattrs[1])


def grow_extent_tree(file: File, blocks: Blocks) -> None:
    """Gives the extents a root in the inode, over as many levels of blocks as it takes."""
    if len(file.extents) <= fmt.EXTENTS_IN_INODE:
        file.root = fmt.extent_leaf(file.extents)
        return
    room, depth = fmt.EXTENTS_IN_BLOCK, 1
    rows: list[tuple[int, int]] = []
    for at in range(0, len(file.extents), room):
        ((block, _),) = blocks.take(1)
        file.nodes.append((block, fmt.extent_leaf(file.extents[at : at + room], room)))
        rows.append((file.extents[at].logical, block))
    while len(rows) > fmt.EXTENTS_IN_INODE:
        above: list[tuple[int, int]] = []
        for at in range(0, len(rows), room):
            ((block, _),) = blocks.take(1)
            file.nodes.append((block, fmt.extent_index(rows[at : at + room], depth, room)))
            above.append((rows[at][0], block))
        rows, depth = above, depth + 1
    file.root = fmt.extent_index(rows, depth)


def row_of(file: File) -> InodeRow:
    node, is_file = file.node, file.node.is_file
    blocks = sum([extent.count for extent in file.extents]) + len(file.nodes) + bool(file.xattr_block)
    row = InodeRow(
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_sec=min(max(node.mtime_sec, 0), MAX_TIME_SEC),
        links=file.links if file.links <= fmt.MAX_LINKS or not node.is_folder else 1,
        sectors=blocks * BLOCK_BYTES // 512,
        flags=file.flags,
        xattr_block=file.xattr_block,
        xattrs=file.xattrs[0],
    )
    if is_file or file.blocks is not None:
        row.flags |= fmt.FLAG_EXTENTS
        row.block = file.root
    elif node.is_link:
        row.block = node.target
    else:
        row.block = fmt.device_block(*node.device)
    if is_file:
        row.size_bytes = node.content.size_bytes
    elif node.is_link:
        row.size_bytes = len(node.target)
    elif file.blocks is not None:
        row.size_bytes = len(file.blocks)
    return row
