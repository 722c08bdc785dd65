# SPDX-License-Identifier: MIT
"""Small stand-ins for kernels and modules, laid out by hand from the formats' own descriptions."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import pytest
import zstandard

from imgvm.errors import PackError

BANNER = b"Linux version 6.1.0-test (builder@host) #1\n"


def elf64(
    segments: list[tuple[int, bytes, int]],
    notes: list[tuple[int, int, int]] | None = None,
    sections: dict[str, bytes] | None = None,
    machine: int = 62,
) -> bytes:
    """An ELF file. A segment is (physical address, bytes, size in memory); a note is (segment, start, size)."""
    notes = notes or []
    header_bytes = 64 + 56 * (len(segments) + len(notes))
    body = bytearray()
    rows = []
    starts = []
    for physical, content, memory_bytes in segments:
        body += bytes(-(header_bytes + len(body)) % 0x1000)
        starts.append((header_bytes + len(body), physical))
        rows.append(
            (
                1,
                7,
                starts[-1][0],
                physical + 0xFFFFFFFF80000000,
                physical,
                len(content),
                memory_bytes,
                0x200000,
            )
        )
        body += content
    for index, start, size in notes:
        offset, physical = starts[index]
        rows.append((4, 4, offset + start, physical + start, physical + start, size, size, 4))
    section_rows = []
    if sections is not None:
        names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
        section_rows.append((0,) * 10)
        for name, content in (*sections.items(), (".shstrtab", names)):
            section_rows.append(
                (
                    names.index(name.encode() + b"\0"),
                    1,
                    0,
                    0,
                    header_bytes + len(body),
                    len(content),
                    0,
                    0,
                    1,
                    0,
                )
            )
            body += content
    shoff = header_bytes + len(body) if section_rows else 0
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    out = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, machine, 1, segments[0][0] if segments else 0, 64, shoff, 0,
        64, 56, len(rows), 64, len(section_rows), max(len(section_rows) - 1, 0),
    )  # fmt: skip
    out += b"".join(struct.pack("<IIQQQQQQ", *row) for row in rows) + bytes(body)
    return out + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in section_rows)


BUSYBOX = elf64([(0x400000, b"busybox", 7)])


def vmlinux(size_bytes: int = 300_000) -> bytes:
    """Two segments; the first carries a note, the second ends in zeroes and has memory beyond the file."""
    text = b"\x90" * 64 + BANNER + random.Random(1).randbytes(size_bytes)
    data = b"data" * 1000 + bytes(50_000)
    return elf64([(0x1000000, text, len(text)), (0x2000000, data, len(data) + 8192)], notes=[(0, 16, 32)])


def lz4_legacy(data: bytes) -> bytes:
    blocks = [data[start : start + (8 << 20)] for start in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in packed)


COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4_legacy,
}


def bzimage(
    payload: bytes, version: int = 0x020F, tag: bytes = b"6.1.0-test (builder@host)", xloadflags: int = 1
) -> bytes:
    """A bzImage: boot sector and setup code of five sectors, 0x2cc bytes of `decompressor`, the payload."""
    setup_sectors = 4
    out = bytearray((setup_sectors + 1) * 512)
    out[0x1F1] = setup_sectors
    out[0x1FE:0x200] = b"\x55\xaa"
    out[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", out, 0x206, version)
    struct.pack_into("<H", out, 0x20E, 0x400)  # version text, less 512
    out[0x211] = 1  # LOADED_HIGH
    struct.pack_into("<H", out, 0x236, xloadflags)
    struct.pack_into("<II", out, 0x248, 0x2CC, len(payload))
    out[0x600 : 0x600 + len(tag) + 1] = tag + b"\0"
    return bytes(out) + b"\xcc" * 0x2CC + payload + b"\xcc" * 100


def kernel(compression: str = "lz4", content: bytes | None = None) -> bytes:
    content = vmlinux() if content is None else content
    packed = COMPRESSORS[compression](content)
    # What the kernel's build appends to every format but gzip, whose own trailer has the size.
    size = b"" if compression == "gzip" else struct.pack("<I", len(content))
    return bzimage(packed + size)


def tar(members: Sequence[tuple[str, dict[str, object], bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of members by name, what else TarInfo says of them, and content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, facts, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in facts.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def module(depends: str = "", softdep: str | None = None) -> bytes:
    info = [b"license=GPL", f"depends={depends}".encode()]
    if softdep is not None:
        info.append(f"softdep={softdep}".encode())
    return elf64([], sections={".modinfo": b"\0".join(info) + b"\0"})


def module_tree(root: Path, version: str = "6.1.0-test") -> Path:
    """The virtio family of a Debian kernel, in miniature and in several compressions."""
    folder = root / "lib/modules" / version
    files = {
        "drivers/virtio/virtio_ring.ko": module(),
        "drivers/virtio/virtio.ko.xz": lzma.compress(module("virtio_ring")),
        "drivers/virtio/virtio_pci.ko": module("virtio,virtio_ring"),
        "drivers/block/virtio_blk.ko.zst": zstandard.ZstdCompressor().compress(module("virtio,virtio_ring")),
        "drivers/char/hw_random/virtio-rng.ko.gz": gzip.compress(module("virtio,virtio_ring")),
        "fs/ext4/ext4.ko": module("crc32"),
        "fs/erofs/erofs.ko": module("crc32"),
        "fs/squashfs/squashfs.ko": module(),
        "fs/needy/needy.ko": module("helper", softdep="pre: extra absent post: later"),
        "fs/needy/helper.ko": module("crc32"),
        "fs/needy/extra.ko": module(),
        "fs/needy/later.ko": module(),
        "fs/broken/orphan.ko": module("nowhere"),
        "fs/broken/nothing.ko": b"no ELF",
    }
    for name, data in files.items():
        path = folder / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "modules.builtin").write_text("kernel/lib/crc32.ko\n")
    return folder


@dataclass
class CpioRow:
    name: str
    data: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    rmajor: int
    rminor: int


def read_cpio(data: bytes) -> list[CpioRow]:
    """Reads newc archives as the kernel does: one after the other, headers on 4-byte boundaries."""
    rows = []
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 4
            continue
        assert data[at : at + 6] == b"070701" and at % 4 == 0
        (ino, mode, uid, gid, nlink, mtime, size, _, _, rmajor, rminor, name_bytes, check) = (
            int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)
        )
        assert check == 0
        name = data[at + 110 : at + 110 + name_bytes]
        assert name.endswith(b"\0")
        start = -(-(at + 110 + name_bytes) // 4) * 4
        at = -(-(start + size) // 4) * 4
        if name != b"TRAILER!!!\0":
            content = data[start : start + size]
            rows.append(
                CpioRow(name[:-1].decode(), content, ino, mode, uid, gid, nlink, mtime, rmajor, rminor)
            )
    return rows


@contextmanager
def skip_when_offline() -> Iterator[None]:
    """For tests of the network: without one there is nothing to test."""
    try:
        yield
    except PackError as error:
        if "cannot be reached" in error.message or "apt-get is not here" in error.message:
            pytest.skip(error.message)
        raise
