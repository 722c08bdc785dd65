# SPDX-License-Identifier: MIT
"""GRUB for machines that start with a BIOS: its boot sector and core image, linked from the parts in Debian's
grub-pc-bin, so that no tool of the packing host has a say.

The core image is `diskboot.img`, which reads the rest; `lzma_decompress.img`; and, compressed, `kernel.img`
with the modules behind it, which GRUB's kernel links as it starts. (GRUB's include/grub/kernel.h, offsets.h
and i386/pc/boot.h.)
"""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imgvm.errors import PackError

PACKAGE = "grub-pc-bin"
PARTS = "lib/grub/i386-pc"  # in the package, below /usr
FOLDER = "boot/grub"  # of the root file system, with grub.cfg
_SECTOR_BYTES = 512
_BOOT_CODE_BYTES = 440  # the rest of a first sector is the partition table's
_MODULES = ("biosdisk", "ext2", "normal", "linux", "serial")
_PARTITION_MODULES = {"mbr": ("part_msdos", "msdos"), "gpt": ("part_gpt", "gpt")}

_CORE_SECTOR = 0x5C  # in boot.img: where the core image is
_DRIVE_CHECK = 0x66  # a jump over what old BIOSes need
_NO_OPERATIONS = b"\x90\x90"
_BLOCK_LIST = _SECTOR_BYTES - 12  # in diskboot.img: the rest of the core image
_FIRST_SEGMENT = 0x820  # which it loads to
_COMPRESSED_SIZE = 8  # in lzma_decompress.img, and behind it the size without compression
_MODULES_MAGIC = 0x676D696D
_LOAD = 1  # PT_LOAD
_ELF, _PREFIX = 0, 3  # kinds of objects behind the kernel
_LZMA = {
    "id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2,  # what the decompressor expects
    "mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": 128, "depth": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """What is written before the file systems of a disk."""

    boot_code: bytes
    core: bytes


NO_LOADER = Loader(b"", b"")


def loader(folder: Path, table: str, core_sector: int) -> Loader:
    """`folder` has GRUB's parts. The core image is to begin at that sector, and finds grub.cfg in the first
    partition of such a table."""
    module, kind = _PARTITION_MODULES[table]
    prefix = f"(,{kind}1)/{FOLDER}"
    core = core_image(folder, [module, *_MODULES], prefix, core_sector)
    return Loader(_boot_code(folder, core_sector), core)


def _boot_code(folder: Path, core_sector: int) -> bytes:
    out = bytearray(_part(folder, "boot.img")[:_BOOT_CODE_BYTES])
    struct.pack_into("<Q", out, _CORE_SECTOR, core_sector)
    out[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NO_OPERATIONS
    return bytes(out)


def core_image(folder: Path, modules: Iterable[str], prefix: str, sector: int) -> bytes:
    kernel = _loaded(_part(folder, "kernel.img"))
    objects = [(_ELF, _part(folder, f"{name}.mod")) for name in in_load_order(folder, modules)]
    objects.append((_PREFIX, prefix.encode() + b"\0"))
    area = b"".join(_object(kind, data) for kind, data in objects)
    payload = kernel + struct.pack("<III", _MODULES_MAGIC, 12, 12 + len(area)) + area
    packed = lzma.compress(payload, lzma.FORMAT_RAW, filters=[_LZMA])
    unpacker = bytearray(_part(folder, "lzma_decompress.img"))
    struct.pack_into("<II", unpacker, _COMPRESSED_SIZE, len(packed), len(payload))
    first = bytearray(_part(folder, "diskboot.img"))
    rest = bytes(unpacker) + packed
    struct.pack_into("<QHH", first, _BLOCK_LIST, sector + 1, -(-len(rest) // _SECTOR_BYTES), _FIRST_SEGMENT)
    return bytes(first) + rest


def _loaded(program: bytes) -> bytes:
    """What the one segment of a 32-bit ELF file has of it."""
    (at,) = struct.unpack_from("<I", program, 28)
    kind, offset, _, _, size = struct.unpack_from("<5I", program, at)
    if kind != _LOAD:
        raise PackError(f"rootfs.bootloader: the kernel.img of {PACKAGE} is of no known form")
    return program[offset : offset + size]


def _object(kind: int, data: bytes) -> bytes:
    padded = data + bytes(-len(data) % 4)
    return struct.pack("<II", kind, 8 + len(padded)) + padded


def in_load_order(folder: Path, wanted: Iterable[str]) -> list[str]:
    """The modules and all they need, each after what it needs."""
    needs: dict[str, list[str]] = {}
    for line in _part(folder, "moddep.lst").decode("ascii", "replace").splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    order: dict[str, None] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in order or name in above:
            return
        for other in needs.get(name, ()):
            visit(other, (*above, name))
        order[name] = None

    for name in wanted:
        visit(name, ())
    return list(order)


def _part(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError:
        message = f"rootfs.bootloader: {PACKAGE} has no {name}"
        raise PackError(message, hint="boot.kernel names the Debian suite that it is from") from None


def config(name: str, kernel: str, initrd: str, cmdline: str, *, on_serial: bool) -> str:
    """grub.cfg: starts Linux at once; a key in that moment shows a menu. Paths are those in the root."""
    lines = ["# Made by imgvm: what a BIOS starts from this disk."]
    if on_serial:
        lines.append("serial --unit=0 --speed=115200")
        lines += [f"terminal_{way} console serial" for way in ("input", "output")]
    lines += ["set timeout=0", f"menuentry {name} {{"]
    lines.append("    linux " + " ".join(map(_quoted, [kernel, *words(cmdline)])))
    if initrd:
        lines.append(f"    initrd {_quoted(initrd)}")
    return "\n".join([*lines, "}", ""])


def words(cmdline: str) -> list[str]:
    """The parameters of a kernel's command line. GRUB puts those with spaces into quotes itself."""
    found, word, inside = [], "", False
    for letter in cmdline:
        if letter == '"':
            inside = not inside
        elif letter.isspace() and not inside:
            found += [word] if word else []
            word = ""
        else:
            word += letter
    if inside or any(letter in cmdline for letter in "'\\"):
        raise PackError(
            "boot.cmdline: GRUB passes no backslash, no apostrophe and no lone quotation mark to a kernel",
            hint="take it out, or leave out rootfs.bootloader",
        )
    return [*found, word] if word else found


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[A-Za-z0-9/=._,:+-]+", word) else f"'{word}'"
