# SPDX-License-Identifier: MIT
"""`rootfs.bootloader`: what a BIOS needs on the disk to start the machine as imgvm does."""

from __future__ import annotations

import stat

from imgvm.errors import PackError
from imgvm.machine import Machine
from imgvm.pack import grub, partition
from imgvm.pack.deb import DebCache
from imgvm.pack.kernel import Kernel, is_bzimage
from imgvm.pack.rootfs import RootKernel
from imgvm.pack.sources import Source
from imgvm.pack.tree import FileTree, Node, Text

PART = "rootfs.bootloader"
_CONFIG = f"/{grub.FOLDER}/grub.cfg"
_FOLDER = "boot/imgvm"  # of what is not in the root by itself


def wish(distro: str) -> str:
    return f"{distro} {grub.PACKAGE}"


def fetch(cache: DebCache, distro: str, table: str, pin: Source | None) -> tuple[grub.Loader, Source]:
    """GRUB for a partition table of that kind. `pin` names the very package."""
    deb = cache.pinned(pin) if pin else cache.get(distro, grub.PACKAGE)
    loader = grub.loader(cache.unpacked(deb) / grub.PARTS, table, partition.CORE_SECTORS[table])
    origin = f"{deb.suite} {deb.name} {deb.version}"
    return loader, Source(PART, origin, deb.sha256, deb.size_bytes, deb.uri, wish(distro))


def add_files(
    tree: FileTree, machine: Machine, kernel: Kernel, initrd: bytes | None, found: RootKernel, mtime_sec: int
) -> None:
    """grub.cfg, and the kernel and the initrd that it names, but for those that `found` has in the root."""
    assert machine.rootfs is not None
    if not is_bzimage(kernel.image):
        raise PackError(f"{PART}: GRUB starts a bzImage, but boot.kernel is of the form {kernel.form}")
    kernel_path, initrd_path = found.path, found.initrd_path
    if not kernel_path:
        kernel_path = f"/{_FOLDER}/vmlinuz"
        _add(tree, kernel_path, kernel.image, mtime_sec)
    if initrd is not None and not initrd_path:
        initrd_path = f"/{_FOLDER}/initrd.img"
        _add(tree, initrd_path, initrd, mtime_sec)
    if any(file.path == _CONFIG for file in machine.rootfs.files):
        return
    on_serial = machine.console.device == "serial"
    text = grub.config(machine.name, kernel_path, initrd_path, machine.kernel_cmdline, on_serial=on_serial)
    _add(tree, _CONFIG, text.encode(), mtime_sec)


def _add(tree: FileTree, path: str, data: bytes, mtime_sec: int) -> None:
    tree.put(path.encode(), Node(stat.S_IFREG | 0o644, mtime_sec=mtime_sec, content=Text(data)))
