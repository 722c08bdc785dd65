# SPDX-License-Identifier: MIT
from __future__ import annotations

import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from builders import COMPRESSORS, bzimage, elf64, kernel, module, vmlinux
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvm.errors import PackError
from imgvm.pack import elf, modules
from imgvm.pack import kernel as kernels


def image_of(data: bytes) -> dict[int, bytes]:
    """What a loader would put into memory: physical address to bytes, zero-filled."""
    loads = [segment for segment in elf.segments(data) if segment.type == elf.PT_LOAD]
    return {
        load.physical: data[load.offset : load.offset + load.file_bytes].ljust(load.memory_bytes, b"\0")
        for load in loads
    }


def multiboot(flags: int = 0, at: int = 64, size: int = 4096) -> bytes:
    out = bytearray(size)
    struct.pack_into("<3I", out, at, 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    return bytes(out)


@pytest.mark.parametrize("compression", sorted(COMPRESSORS))
def test_bzimage_becomes_the_vmlinux_inside(compression: str) -> None:
    loaded = kernels.load(kernel(compression), "k")
    assert (loaded.protocol, loaded.form) == ("linux", f"bzImage ({compression})")
    assert loaded.version == "6.1.0-test"
    assert image_of(loaded.data) == image_of(vmlinux())


def test_loadable_keeps_entry_and_notes_and_drops_the_rest() -> None:
    source = elf64(
        [(0x1000000, b"\x90" * 5000 + bytes(9000), 20000), (0x1800000, bytes(4096), 8192)],
        notes=[(0, 6000, 64)],
        sections={".symtab": b"x" * 100_000},
    )
    data = elf.loadable(source)
    assert len(data) < 14_000
    assert data[24:32] == source[24:32]
    assert image_of(data) == image_of(source)
    note = next(segment for segment in elf.segments(data) if segment.type == elf.PT_NOTE)
    old = next(segment for segment in elf.segments(source) if segment.type == elf.PT_NOTE)
    assert data[note.offset :][:64] == source[old.offset :][:64]
    for load in elf.segments(data)[:2]:
        assert load.offset % load.align == load.virtual % load.align
    assert elf.loadable(data) == data


def test_uncompressed_payload_and_plain_elf_pass_through() -> None:
    assert kernels.load(bzimage(vmlinux()), "k").form == "bzImage (uncompressed)"
    plain = kernels.load(vmlinux(), "k")
    assert (plain.form, plain.version) == ("ELF", "6.1.0-test")
    assert image_of(plain.data) == image_of(vmlinux())


def test_setup_sects_zero_means_four() -> None:
    data = bytearray(kernel())
    data[0x1F1] = 0
    assert kernels.load(bytes(data), "k").version == "6.1.0-test"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (bytes(4096), "a file of zeroes"),
        (b"version: 1\nname: x\n", "text"),
        (b"QFI\xfb" + bytes(600), "a qcow2 disk image"),
        (b"!<arch>\ndebian-binary   ", "a Debian package"),
        (b"070701" + b"0" * 200, "an initramfs (cpio archive)"),
        (b"\x1f\x8b\x08" + b"x" * 99, "a gzip-compressed file"),
        (b"MZ" + b"\x90" * 600, "an EFI or Windows program"),
        (b"\xc3" * 56 + b"ARM\x64" + b"\xc3" * 99, "a kernel for ARM64"),
        (b"\xeb" * 510 + b"\x55\xaa", "a disk image with a boot sector"),
        (b"\xde\xad\xbe\xef" * 9, "data that begins with de ad be ef de ad be ef"),
        (elf64([], machine=183), "a 64-bit ELF file for ARM64"),
        (b"\x7fELF", "a truncated ELF file"),
    ],
)
def test_what_is_no_kernel_is_called_by_its_name(data: bytes, words: str) -> None:
    with pytest.raises(PackError) as caught:
        kernels.load(data, "boot/thing")
    assert caught.value.message == f"boot/thing is not a Linux kernel: it looks like {words}"
    assert caught.value.hint


def test_faulty_bzimages_are_refused() -> None:
    whole = kernel()
    faults = {
        "cut short": whole[:5000],
        "cut short in its setup header": whole[:0x240],
        "boot protocol 2.07 is too old": bzimage(b"x" * 99, version=0x0207),
        "is a 32-bit kernel": bzimage(b"x" * 99, xloadflags=0),
        "unknown compression (78 78 78 78)": bzimage(b"x" * 99),
        "lzo compression is not supported": bzimage(b"\x89LZO\x00\r\n\x1a\n" + bytes(99)),
        "the kernel inside is no ELF file": bzimage(COMPRESSORS["gzip"](b"hello" * 99)),
        "the gzip data is cut short": bzimage(COMPRESSORS["gzip"](vmlinux())[:-500]),
        "the zstd data is cut short": bzimage(COMPRESSORS["zstd"](vmlinux())[:-9]),
        "the xz data": bzimage(COMPRESSORS["xz"](vmlinux())[:600] + bytes(600)),
        "the lz4 data": bzimage(COMPRESSORS["lz4"](vmlinux())[:-200]),
    }
    for words, data in faults.items():
        with pytest.raises(PackError) as caught:
            kernels.load(data, "k")
        assert words in caught.value.message


def test_elf_whose_segments_leave_the_file_is_refused() -> None:
    with pytest.raises(PackError, match="outside the file"):
        kernels.load(vmlinux()[:-60_000], "k")
    with pytest.raises(PackError, match="no loadable segment"):
        kernels.load(elf64([]), "k")


def test_segments_that_overlap_are_refused() -> None:
    data = bytearray(vmlinux())
    first, second = 64, 64 + 56
    data[second + 8 : second + 56] = data[first + 8 : first + 56]  # but for its type, the same segment again
    with pytest.raises(PackError, match="overlap"):
        kernels.load(bytes(data), "k")


VMLINUX, BZIMAGE = vmlinux(5000), bzimage(COMPRESSORS["gzip"](vmlinux(5000)))
MODULE = module("a,b", "pre: c")


@settings(max_examples=400, deadline=None)
@given(data=st.data(), source=st.sampled_from([VMLINUX, BZIMAGE, multiboot(1 << 16), MODULE]))
def test_damage_is_refused_or_survived(data: st.DataObject, source: bytes) -> None:
    """Headers are small, so most of the damage goes to where they are."""
    damaged = bytearray(source)
    places = st.integers(0, min(len(source), 700) - 1) | st.integers(len(source) - 400, len(source) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(places)] = data.draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
        )
    cut = bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))])
    with suppress(PackError):
        loaded = kernels.load(cut, "k")
        assert len(loaded.data) < 10 * len(source)
    with suppress(PackError):
        modules.dependencies(cut, "m.ko")


def test_multiboot_header_is_found_where_the_specification_says() -> None:
    assert kernels.has_multiboot_header(multiboot())
    assert kernels.has_multiboot_header(multiboot(at=8180, size=8192))
    assert not kernels.has_multiboot_header(multiboot(at=8184, size=9000))  # not wholly in 8 KiB
    assert not kernels.has_multiboot_header(multiboot(at=66))  # not on a 4-byte boundary
    broken = bytearray(multiboot())
    broken[72] ^= 1
    assert not kernels.has_multiboot_header(bytes(broken))


def test_multiboot_kernels_pass_through() -> None:
    data = b"\x7fELF\x01\x01\x01" + multiboot()[7:]
    assert kernels.load(data, "k") == kernels.Kernel("multiboot", data, "Multiboot ELF", image=data)
    flat = multiboot(flags=1 << 16)
    assert kernels.load(flat, "k").form == "Multiboot image"
    with pytest.raises(PackError, match="without load addresses"):
        kernels.load(multiboot(), "k")
    with pytest.raises(PackError, match="no Multiboot 1 header"):
        kernels.load(vmlinux(), "k", "multiboot")
    with pytest.raises(PackError, match="not a Linux kernel"):
        kernels.load(flat, "k", "linux")


def test_a_program_is_no_kernel() -> None:
    with pytest.raises(PackError, match="is not a Linux kernel: it looks like a program") as caught:
        kernels.load(Path(sys.executable).resolve().read_bytes(), "python")
    assert caught.value.hint


def test_notes_that_many_segments_hold() -> None:
    """Each is kept once: the product would be millions of headers, of which a file has no room to say how many."""
    count = 300
    head = bytearray(elf64([(0x1000000, b"\x90" * 100, 100)]))
    struct.pack_into("<Q", head, 32, len(head))  # the program headers, behind all
    struct.pack_into("<H", head, 56, 2 * count)
    load = struct.pack("<IIQQQQQQ", elf.PT_LOAD, 5, 0x1000, 0x1000000, 0x1000000, 0, 4096, 4096)
    note = struct.pack("<IIQQQQQQ", elf.PT_NOTE, 4, 0x1000, 0x1000000, 0x1000000, 0, 0, 4)
    rows = elf.segments(elf.loadable(bytes(head) + count * load + count * note))
    assert [row.type for row in rows] == [elf.PT_LOAD] * count + [elf.PT_NOTE] * count
