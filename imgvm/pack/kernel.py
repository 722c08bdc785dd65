# SPDX-License-Identifier: MIT
"""Recognises kernels and makes them ready to load: a bzImage becomes the vmlinux inside it.

Unpacking here saves every start of the guest the work of unpacking itself. Sources: the Linux boot protocol
(Documentation/arch/x86/boot.rst in the kernel's tree) and the Multiboot 1 specification, section 3.1.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

from imgvm.errors import PackError
from imgvm.pack import elf
from imgvm.pack.decompress import DecompressError, decompress, sniff

LINUX, MULTIBOOT = "linux", "multiboot"

# The real-mode setup header of a bzImage, offsets from the start of the file.
_SETUP_SECTS = 0x1F1
_BOOT_FLAG = 0x1FE
_HEADER_MAGIC = 0x202
_VERSION = 0x206
_KERNEL_VERSION = 0x20E
_LOADFLAGS = 0x211
_XLOADFLAGS = 0x236
_PAYLOAD = 0x248  # payload_offset, payload_length: since protocol 2.08
_HEADER_END = 0x268
_LOADED_HIGH = 1 << 0
_XLF_KERNEL_64 = 1 << 0
_SECTOR_BYTES = 512

_MULTIBOOT_MAGIC = 0x1BADB002
_MULTIBOOT_SEARCH_BYTES = 8192
_MULTIBOOT_KLUDGE = 1 << 16  # load addresses stand in the header: the file need not be an ELF

_LINUX_BANNER = re.compile(rb"Linux version ([0-9][!-~]{0,127}) ")
_LINUX_TAG = re.compile(rb"[0-9][!-~]{0,127}")


@dataclass(frozen=True)
class Kernel:
    """What the image carries. `form` tells what the source was, such as `bzImage (lz4)`."""

    protocol: str
    data: bytes
    form: str
    version: str | None = None
    image: bytes = b""  # the source as it was


def load(data: bytes, name: str, protocol: str = "auto") -> Kernel:
    """Recognises and unpacks a kernel. `name` is what messages call it; `protocol` is the config's wish."""
    return replace(_load(data, name, protocol), image=data)


def _load(data: bytes, name: str, protocol: str) -> Kernel:
    if protocol == MULTIBOOT:
        return _multiboot(data, name)
    if is_bzimage(data):
        return _from_bzimage(data, name)
    if protocol == "auto" and has_multiboot_header(data):
        return _multiboot(data, name)
    if elf.is_x86_64(data):
        return _from_elf(data, name, "ELF")
    raise PackError(
        f"{name} is not a Linux kernel: it looks like {look(data)}", hint=_hint(data)
    )


def is_bzimage(data: bytes) -> bool:
    signature, magic = data[_BOOT_FLAG : _BOOT_FLAG + 2], data[_HEADER_MAGIC : _HEADER_MAGIC + 4]
    return signature == b"\x55\xaa" and magic == b"HdrS"


def has_multiboot_header(data: bytes) -> bool:
    """A Multiboot 1 header lies in the first 8 KiB, on a 4-byte boundary, and its three words sum to 0."""
    return _multiboot_flags(data) is not None


def _multiboot_flags(data: bytes) -> int | None:
    head = data[:_MULTIBOOT_SEARCH_BYTES]
    magic = _MULTIBOOT_MAGIC.to_bytes(4, "little")
    at = head.find(magic)
    while at >= 0:
        if at % 4 == 0 and at + 12 <= len(head):
            words = struct.unpack_from("<3I", head, at)
            if sum(words) & 0xFFFFFFFF == 0:
                return int(words[1])
        at = head.find(magic, at + 1)
    return None


def _multiboot(data: bytes, name: str) -> Kernel:
    flags = _multiboot_flags(data)
    if flags is None:
        raise PackError(
            f"{name} has no Multiboot 1 header in its first 8 KiB: it looks like {look(data)}",
            hint="with `protocol: auto` imgvm looks at the file",
        )
    if not elf.is_elf(data) and not flags & _MULTIBOOT_KLUDGE:
        raise PackError(f"{name} has a Multiboot header without load addresses, and is no ELF file")
    return Kernel(MULTIBOOT, data, "Multiboot ELF" if elf.is_elf(data) else "Multiboot image")


def _from_bzimage(data: bytes, name: str) -> Kernel:
    if len(data) < _HEADER_END:
        raise PackError(f"{name}: the bzImage is cut short in its setup header")
    (version,) = struct.unpack_from("<H", data, _VERSION)
    if version < 0x0208 or not data[_LOADFLAGS] & _LOADED_HIGH:
        raise PackError(
            f"{name}: boot protocol {version >> 8}.{version & 0xFF:02} is too old",
            hint="imgvm boots Linux 2.6.24 and later (boot protocol 2.08)",
        )
    if version >= 0x020C and not struct.unpack_from("<H", data, _XLOADFLAGS)[0] & _XLF_KERNEL_64:
        raise PackError(f"{name} is a 32-bit kernel", hint="this version of imgvm boots 64-bit Linux kernels")

    setup_sectors = data[_SETUP_SECTS] or 4  # 0 means 4, for history's sake
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (setup_sectors + 1) * _SECTOR_BYTES + offset
    if length == 0 or start + length > len(data):
        raise PackError(
            f"{name}: the bzImage is cut short ({len(data)} bytes, its payload ends at {start + length})",
            hint="fetch or copy the file again",
        )
    payload = data[start : start + length]
    compression = sniff(payload)
    if elf.is_elf(payload):
        return _from_elf(payload, name, "bzImage (uncompressed)", _tag(data))
    if compression is None:
        raise PackError(f"{name}: the bzImage's payload has an unknown compression ({payload[:4].hex(' ')})")
    try:
        vmlinux, _ = decompress(payload)
    except DecompressError as error:
        raise PackError(f"{name}: {error}", hint="fetch or copy the file again") from error
    return _from_elf(vmlinux, name, f"bzImage ({compression})", _tag(data))


def _from_elf(data: bytes, name: str, form: str, version: str | None = None) -> Kernel:
    if not elf.is_x86_64(data):
        what = elf.describe(data) if elf.is_elf(data) else "no ELF file"
        raise PackError(f"{name}: the kernel inside is {what}", hint="imgvm boots x86-64 kernels")
    if version is None:
        banner = _LINUX_BANNER.search(data)
        version = banner[1].decode() if banner else None
    try:
        if not elf.is_static(data):
            raise PackError(f"{name} is not a Linux kernel: it looks like a program", hint=_hint(data))
        return Kernel(LINUX, elf.loadable(data), form, version)
    except elf.ElfError as error:
        raise PackError(f"{name} is not a Linux kernel: {error}") from error


def _tag(data: bytes) -> str | None:
    """The version text of a bzImage: its first word is the release, as uname -r says it."""
    (pointer,) = struct.unpack_from("<H", data, _KERNEL_VERSION)
    match = _LINUX_TAG.match(data, pointer + _SECTOR_BYTES) if pointer else None
    return match[0].decode() if match else None


def look(data: bytes) -> str:
    """What a file that is no kernel of ours looks like, for a message."""
    if not data:
        return "an empty file"
    if elf.is_elf(data):
        return elf.describe(data)
    for offset, magic, what in _LOOKS:
        if data[offset : offset + len(magic)] == magic:
            return what
    compression = sniff(data)
    if compression:
        return f"a {compression}-compressed file"
    if not data.strip(b"\0"):
        return "a file of zeroes"
    head = data[:512]
    if all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 for byte in head):
        return "text"
    return f"data that begins with {head[:8].hex(' ')}"


_LOOKS = (
    (56, b"ARM\x64", "a kernel for ARM64"),
    (0, b"MZ", "an EFI or Windows program"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"!<arch>\ndebian", "a Debian package"),
    (0, b"070701", "an initramfs (cpio archive)"),
    (0, b"KDMV", "a VMDK disk image"),
    (257, b"ustar", "a tar archive"),
    (0x8001, b"CD001", "an ISO image"),
    (510, b"\x55\xaa", "a disk image with a boot sector"),
)


def _hint(data: bytes) -> str:
    if sniff(data):
        return "unpack it first"
    if data[:14] == b"!<arch>\ndebian":
        return "name the package instead: kernel: {distro: \"debian:bookworm\", package: ...}"
    return "a kernel is a bzImage (such as /boot/vmlinuz-*), a vmlinux or a Multiboot 1 ELF file"
