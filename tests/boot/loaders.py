# SPDX-License-Identifier: MIT
"""Boot loaders of Debian's packages, on disks and ISO images that are made here. What is missing skips a test by name."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs
import pytest

from imgvm import units
from imgvm.errors import PackError
from imgvm.machine import Exec
from imgvm.pack import initramfs
from imgvm.pack.deb import Deb, DebCache

DISTRO = "debian:bookworm"
SECTOR_BYTES = 512
PARTITION_SECTOR = 2048  # what lies before it is the loader's
PARTITION_BYTES = 64 * units.MIB
GRUB_PREFIX = "/boot/grub"
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "iso9660", "linux", "normal", "echo", "halt", "configfile", "test", "sleep")
STATUS = 5
SCRIPT = f"echo userland says hello; cat /proc/cmdline; echo processors $(grep -c ^processor /proc/cpuinfo); dmesg | grep -E 'ACPI: RSDP|BIOS-e820|DMI:'; exit {STATUS}"


def _cached(name: str, *, kernel: bool = False) -> tuple[DebCache, Deb]:
    cache = DebCache(platformdirs.user_cache_path("imgvm"))
    try:
        return cache, cache.kernel(DISTRO, name) if kernel else cache.get(DISTRO, name)
    except PackError as error:
        if "cannot be reached" in error.message or "apt-get is not here" in error.message:
            pytest.skip(error.message)
        raise


def file_of(package: str, path: str) -> bytes:
    """A file of a Debian package."""
    with TemporaryDirectory() as scratch:
        subprocess.run(["dpkg-deb", "-x", str(_cached(package)[1].path), scratch], check=True)
        return (Path(scratch) / path).read_bytes()


@cache
def debian() -> Mapping[str, bytes]:
    """Debian's kernel as it comes, and an initrd whose command says hello and ends with STATUS."""
    cache, deb = _cached("linux-image-cloud-amd64", kernel=True)
    image = next(iter(sorted(cache.unpacked(deb).glob("boot/vmlinuz-*"))))
    busybox, _ = initramfs.find_busybox(cache, DISTRO)
    command = Exec(("/bin/sh", "-c", SCRIPT))
    return {"vmlinuz": image.read_bytes(), "initrd": initramfs.build(busybox, command=command, hostname="loaded")}


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _grub_core(folder: Path, form: str, prefix: str) -> bytes:
    """grub-mkimage's output; the package of the tools is used where it lies, with the modules of grub-pc-bin."""
    root = folder / "grub-packages"
    for package in ("grub-common", "grub-pc-bin"):
        subprocess.run(["dpkg-deb", "-x", str(_cached(package)[1].path), str(root)], check=True)
    tool, modules, out = root / "usr/bin/grub-mkimage", root / "usr/lib/grub/i386-pc", folder / f"core-{form}"
    command = [str(tool), "-d", str(modules), "-O", form, "-p", prefix, "-o", str(out), *GRUB_MODULES]
    done = subprocess.run(command, capture_output=True, text=True)
    if "error while loading shared libraries" in done.stderr:
        pytest.skip(f"grub-mkimage does not run here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


def grub_disk(folder: Path, config: str, files: Mapping[str, bytes]) -> Path:
    """A disk with an MBR: GRUB's boot sector, its core behind it, and a partition of ext4 with its config and files."""
    if shutil.which("mke2fs") is None:
        pytest.skip("mke2fs is not installed (e2fsprogs)")
    core = _grub_core(folder, "i386-pc", f"(hd0,msdos1){GRUB_PREFIX}")
    sector = bytearray((folder / "grub-packages/usr/lib/grub/i386-pc/boot.img").read_bytes())
    tree = _write(folder / "grub-root", {**files, f"{GRUB_PREFIX[1:]}/grub.cfg": config.encode()})
    partition, disk = folder / "partition.raw", folder / "grub.raw"
    command = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(partition), str(PARTITION_BYTES // 1024)]
    subprocess.run(command, check=True, capture_output=True)
    far = b"\xfe\xff\xff"  # beyond what cylinder, head and sector can say
    entry = struct.pack("<B3sB3sII", 0x80, far, 0x83, far, PARTITION_SECTOR, PARTITION_BYTES // SECTOR_BYTES)
    sector[446:512] = entry + bytes(48) + b"\x55\xaa"
    before = bytes(sector) + core
    assert len(before) <= PARTITION_SECTOR * SECTOR_BYTES
    disk.write_bytes(before.ljust(PARTITION_SECTOR * SECTOR_BYTES, b"\0") + partition.read_bytes())
    partition.unlink()
    return disk


def _iso(folder: Path, tree: Path, loader: str) -> Path:
    if shutil.which("genisoimage") is None:
        pytest.skip("genisoimage is not installed")
    out = folder / "cd.iso"
    words = ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-c", "boot.catalog", "-quiet", "-R"]
    subprocess.run(["genisoimage", *words, "-b", loader, "-o", str(out), str(tree)], check=True, capture_output=True)
    return out


def grub_iso(folder: Path, config: str, files: Mapping[str, bytes]) -> Path:
    loader = "boot/grub/eltorito.img"
    core = _grub_core(folder, "i386-pc-eltorito", GRUB_PREFIX)
    named = {loader: core, f"{GRUB_PREFIX[1:]}/grub.cfg": config.encode()}
    return _iso(folder, _write(folder / "grub-tree", {**files, **named}), loader)


def isolinux_iso(folder: Path, config: str, files: Mapping[str, bytes]) -> Path:
    loader = "isolinux/isolinux.bin"
    named = {
        loader: file_of("isolinux", "usr/lib/ISOLINUX/isolinux.bin"),
        "isolinux/ldlinux.c32": file_of("syslinux-common", "usr/lib/syslinux/modules/bios/ldlinux.c32"),
        "isolinux/isolinux.cfg": config.encode(),
    }
    return _iso(folder, _write(folder / "isolinux-tree", {**files, **named}), loader)


def fat_disk(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A disk that is one FAT16 file system, as diskettes are: its first sector is DOS's boot sector."""
    for tool in ("mkfs.fat", "mcopy"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (dosfstools, mtools)")
    disk = folder / "fat.raw"
    with disk.open("wb") as stream:
        stream.truncate(PARTITION_BYTES)
    subprocess.run(["mkfs.fat", "-F", "16", str(disk)], check=True, capture_output=True)
    tree = _write(folder / "fat-tree", files)
    for name in files:
        subprocess.run(["mcopy", "-i", str(disk), str(tree / name), f"::{name}"], check=True)
    return disk


def syslinux_disk(folder: Path, config: str, files: Mapping[str, bytes]) -> Path:
    """The same with SYSLINUX installed, which finds its files through FAT."""
    core = file_of("syslinux-common", "usr/lib/syslinux/modules/bios/ldlinux.c32")
    disk = fat_disk(folder, {**files, "ldlinux.c32": core, "syslinux.cfg": config.encode()})
    tool = folder / "syslinux"
    tool.write_bytes(file_of("syslinux", "usr/bin/syslinux"))
    tool.chmod(0o755)
    subprocess.run([str(tool), "--install", str(disk)], check=True, capture_output=True)
    return disk
