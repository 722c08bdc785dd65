# SPDX-License-Identifier: MIT
"""`rootfs`: a file tree from a folder, archives or a container image, and the disk that it becomes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgvm import units
from imgvm.errors import PackError
from imgvm.machine import File, Machine, Rootfs
from imgvm.pack import from_dir, from_oci, from_tar, partition, sources
from imgvm.pack.digest import Digest
from imgvm.pack.disk import Target, ascending
from imgvm.pack.erofs import Erofs
from imgvm.pack.erofs_lz4 import Store
from imgvm.pack.ext4 import Ext4
from imgvm.pack.grub import NO_LOADER, Loader
from imgvm.pack.progress import Progress
from imgvm.pack.read_ahead import ReadAhead
from imgvm.pack.sources import Source
from imgvm.pack.squashfs import SquashFs
from imgvm.pack.tree import Content, FileTree, Node, Text, excluding
from imgvm.qcow2 import MAX_BLOB_BYTES

PART = "rootfs"
Fetch = Callable[[str], tuple[FileTree, Source]]  # of an image of a registry
# What a system mounts on or writes to before anything else could make it.
_MOUNT_POINTS = ((b"dev", 0o755), (b"proc", 0o555), (b"sys", 0o555), (b"run", 0o755), (b"tmp", 0o1777))


@dataclass(frozen=True)
class RootKernel:
    """A kernel of a root file system, and the initrd that lies beside it."""

    path: str
    data: bytes
    initrd_path: str = ""
    initrd: bytes | None = None


class Root:
    """The files of `rootfs`, which are read when they are written."""

    def __init__(self, tree: FileTree, used: list[Source], progress: Progress) -> None:
        self.tree = tree
        self._used = used
        self.progress = progress
        self._digest = Digest()
        self._done_bytes = 0
        self._ahead: ReadAhead | None = None

    @contextmanager
    def reading_ahead(self) -> Iterator[None]:
        """While all contents are read, in the order of the paths."""
        with ReadAhead(self._contents()) as self._ahead:
            yield
        self._ahead = None

    def read(self, content: Content) -> Iterator[bytes]:
        """A file's content, on its way to the image."""
        for piece in content.pieces() if self._ahead is None else self._ahead.pieces(content):
            self._digest.update(piece)
            self._done_bytes += len(piece)
            yield piece
        self.progress.advance(self._done_bytes)

    @property
    def content_bytes(self) -> int:
        return sum(length for content in self._contents() for _, length in content.extents())

    def _contents(self) -> list[Content]:
        return list({id(node): node.content for _, node in self.tree.walk() if node.is_file}.values())

    def sources(self) -> list[Source]:
        """The lock's rows. That of a folder has the digest of all that was written of it."""
        return [row if row.sha256 else self._of_folder(row) for row in self._used]

    def _of_folder(self, row: Source) -> Source:
        for path, node in self.tree.walk():
            facts = (path, node.mode, node.uid, node.gid, node.mtime_sec, node.target, node.device,
                     sorted(node.xattrs.items()), node.content.size_bytes)  # fmt: skip
            self._digest.update(repr(facts).encode())
        return Source(row.part, row.origin, self._digest.hexdigest(), self._done_bytes)

    def kernel(self) -> RootKernel:
        """The newest kernel in /boot, with the initrd that belongs to it."""
        boot = self.tree.find(b"boot")
        names = [name for name in (boot.entries if boot is not None else {}) if name.startswith(b"vmlinuz")]
        for name in sorted(names, key=_version_key, reverse=True):
            node = self.tree.find(b"boot/" + name)
            if node is not None and node.is_file:
                suffix = name.removeprefix(b"vmlinuz")
                forms = (b"initrd.img%s", b"initrd%s", b"initramfs%s.img", b"initramfs%s")
                paths = (b"boot/" + form % suffix for form in forms)
                initrds = ((path, self.tree.find(path)) for path in paths)
                initrd = next((row for row in initrds if row[1] is not None and row[1].is_file), None)
                return RootKernel(
                    "/boot/" + name.decode(errors="replace"),
                    _bytes(node.content),
                    "" if initrd is None else "/" + initrd[0].decode(errors="replace"),
                    None if initrd is None or initrd[1] is None else _bytes(initrd[1].content),
                )
        hint = "install one in it, or name another"
        raise PackError("boot.kernel: the rootfs has no kernel (/boot/vmlinuz*)", hint=hint)

    def module_files(self, version: str) -> dict[str, Callable[[], bytes]]:
        """The files of its lib/modules/<version>, by their paths."""
        for base in (b"lib/modules/", b"usr/lib/modules/"):
            top = self.tree.find(base + version.encode())
            if top is not None and top.is_folder:
                rows = FileTree(top).walk()
                return {
                    path.decode(errors="replace"): lambda content=node.content: _bytes(content)  # type: ignore[misc]
                    for path, node in rows
                    if node.is_file
                }
        return {}


def load(
    rootfs: Rootfs, folder: Path, fetch: Fetch, progress: Progress, stack: ExitStack, epoch_sec: int | None
) -> Root:
    """The tree with `files` in it and without `exclude`. `epoch_sec`: SOURCE_DATE_EPOCH, if it is set."""
    tree, used = _source(rootfs, folder, fetch, progress, stack, epoch_sec)
    tree.exclude(excluding(rootfs.exclude))
    used += _add_files(tree, rootfs.files, folder, epoch_sec or 0)
    for path, mode in _MOUNT_POINTS:
        if tree.find(path, follow=False) is None:
            tree.put(path, Node(stat.S_IFDIR | mode, mtime_sec=epoch_sec or 0))
    return Root(tree, used, progress)


def _source(
    rootfs: Rootfs, folder: Path, fetch: Fetch, progress: Progress, stack: ExitStack, epoch_sec: int | None
) -> tuple[FileTree, list[Source]]:
    if rootfs.dir is not None:
        progress.step(f"reading {rootfs.dir}")
        path = sources.resolve(folder, rootfs.dir)
        from_dir.check(path, rootfs.dir)
        keep, exclude = rootfs.owner == "keep", excluding(rootfs.exclude)
        try:
            tree = from_dir.read(path, keep_owner=keep, mtime_sec=epoch_sec or 0, exclude=exclude)
        except OSError as error:
            raise from_dir.unreadable(error) from error
        return tree, [Source(f"{PART}.dir", rootfs.dir, "", 0)]
    if rootfs.oci is not None:
        progress.step(f"reading {rootfs.oci}")
        tree, source = from_oci.read(sources.resolve(folder, rootfs.oci), rootfs.oci, stack, epoch_sec)
        return tree, [source]
    if rootfs.registry is not None:
        tree, source = fetch(rootfs.registry)
        return tree, [source]
    tree, used = FileTree(), []
    for name in rootfs.tar:
        progress.step(f"reading {name}")
        part = f"{PART}.tar: {name}"
        try:
            file = stack.enter_context(sources.resolve(folder, name).open("rb"))
            size_bytes = file.seek(0, os.SEEK_END)
            used.append(Source(f"{PART}.tar", name, from_tar.digest(file), size_bytes))
        except OSError as error:
            raise sources.failed(f"{PART}.tar", name, folder, error) from error
        from_tar.add(tree, from_tar.unpacked(file, part, stack), part, latest_sec=epoch_sec)
    return tree, used


def _add_files(tree: FileTree, files: tuple[File, ...], folder: Path, mtime_sec: int) -> list[Source]:
    used: list[Source] = []
    for index, file in enumerate(files):
        part = f"{PART}.files[{index}]"
        node = Node(stat.S_IFREG | (0o644 if file.mode is None else file.mode), mtime_sec=mtime_sec)
        if file.link is not None:
            node.mode, node.target = stat.S_IFLNK | 0o777, file.link.encode()
        elif file.source is not None:
            data = sources.read(part, file.source, folder)
            if file.mode is None:
                own = sources.resolve(folder, file.source).stat().st_mode
                node.mode = stat.S_IFREG | stat.S_IMODE(own)
            node.content = Text(data)
            used.append(Source.of(part, file.source, data))
        else:
            node.content = Text((file.content or "").encode())
        path = file.path.encode()
        old = tree.find(path, follow=False)
        if old is not None and old.is_folder:
            raise PackError(f"{part}: {file.path} is a folder in the tree", hint="exclude it, or name a file")
        tree.put(path, node)
    return used


class RootDisk:
    """The disk of a root file system, planned; `write` writes it from its start to its end."""

    def __init__(
        self, machine: Machine, root: Root, time_sec: int, stack: ExitStack, loader: Loader = NO_LOADER
    ) -> None:
        rootfs = machine.rootfs
        assert rootfs is not None
        self._root = root
        kind = rootfs.partition_table
        around = partition.around_bytes(kind)
        given, least = rootfs.size_bytes, machine.image.size_bytes or 0
        if given is not None and given <= around:
            message = f"rootfs.size: {units.format_size(given)} has no room for a {kind} table and files"
            raise PackError(message)
        root.progress.step("writing the root file system", root.content_bytes)
        self._fs: Ext4 | Erofs | SquashFs
        if rootfs.format == "squashfs":
            self._fs = SquashFs(root.tree, root.read, stack)
        elif rootfs.format == "erofs":
            self._fs = Erofs(
                root.tree,
                label=rootfs.label,
                seed=machine.name,
                time_sec=time_sec,
                read=root.read,
                store=Store(stack) if rootfs.compression == "lz4" else None,
            )
        else:
            self._fs = Ext4(
                root.tree,
                label=rootfs.label,
                seed=machine.name,
                size_bytes=None if given is None else given - around,
                free_bytes=rootfs.free_bytes,
                least_bytes=max(least - around, 0),
                time_sec=time_sec,
            )
        if given is not None and self._fs.size_bytes + around > given:
            needed = -(-(self._fs.size_bytes + around) // units.MIB)
            message = f"rootfs.size: {units.format_size(given)} is too small for what is in it"
            raise PackError(message, hint=f"it needs {needed}MiB; or leave size out")
        disk_bytes = max(self._fs.size_bytes + around, given or 0, least)
        disk_bytes += -disk_bytes % partition.SECTOR_BYTES
        self._layout = partition.layout(
            kind, self._fs.size_bytes, disk_bytes, machine.name, rootfs.label, loader.boot_code, loader.core
        )

    @property
    def size_bytes(self) -> int:
        return self._layout.disk_bytes

    def write(self, target: Target, progress: Progress) -> list[Source]:
        layout = self._layout
        with ascending(target) as out:
            out.write(0, layout.head)
            try:
                with self._root.reading_ahead():
                    self._fs.write(lambda at, data: out.write(layout.start_bytes + at, data), self._root.read)
            except OSError as error:
                raise from_dir.unreadable(error) from error
            out.write(layout.disk_bytes - len(layout.tail), layout.tail)
        return self._root.sources()


def _version_key(name: bytes) -> list[tuple[int, bytes]]:
    """6.10 after 6.9: runs of digits count as numbers."""
    words: list[tuple[int, bytes]] = []
    for part in name.replace(b"-", b".").split(b"."):
        words.append((int(part), b"") if part.isdigit() and len(part) < 20 else (-1, part))
    return words


def _bytes(content: Content) -> bytes:
    what = "a kernel, an initrd or a module of the rootfs"
    if sum(length for _, length in content.extents()) != content.size_bytes:
        raise PackError(f"{what} has holes", hint="copy the files again")
    if content.size_bytes > MAX_BLOB_BYTES:
        raise PackError(f"{what} has {content.size_bytes >> 20} MiB", hint="is it one?")
    return b"".join(content.pieces())
