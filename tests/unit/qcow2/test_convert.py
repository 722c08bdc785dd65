# SPDX-License-Identifier: MIT
"""Conversion, against qemu-img: every format that it makes, read here; what is made here, read there."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, pattern

from imgvm.errors import ImageError
from imgvm.qcow2 import Image, pieces
from imgvm.qcow2.convert import convert

Tool = Callable[..., str]
DISK = 33 * MIB  # a whole number of cylinders for vpc, more than a chunk for nobody


def contents() -> bytes:
    data = bytearray(DISK)
    data[: 3 * MIB] = pattern(3 * MIB)
    data[9 * MIB + 512 : 10 * MIB] = (b"compressible\n" * 100_000)[: MIB - 512]
    data[-4096:] = pattern(4096, 1)
    return bytes(data)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(contents())
    return path


FOREIGN = [
    ("vmdk", "subformat=monolithicSparse"), ("vmdk", "subformat=streamOptimized"), ("vdi", ""), ("vdi", "static=on"),
    ("vpc", "subformat=dynamic,force_size=on"), ("vpc", "subformat=fixed,force_size=on"), ("vpc", "subformat=dynamic"),
    ("vhdx", "subformat=dynamic"), ("vhdx", "subformat=fixed"), ("vhdx", "block_size=1M"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), FOREIGN)
def test_disks_of_others(tmp_path: Path, qemu_img: Tool, raw: Path, kind: str, options: str) -> None:
    qemu_img("convert", "-f", "raw", "-O", kind, *(["-o", options] if options else []), raw.name, "foreign")
    qemu_img("convert", "-f", kind, "-O", "raw", "foreign", "expected.raw")
    expected = (tmp_path / "expected.raw").read_bytes()
    assert expected[:DISK] == contents()
    convert(tmp_path / "foreign", tmp_path / "a.img")
    convert(tmp_path / "foreign", tmp_path / "b.img", compression="zstd")
    convert(tmp_path / "foreign", tmp_path / "c.raw", format="raw")
    for name in ("a.img", "b.img"):
        with Image.open(tmp_path / name) as image:
            assert image.read(0, image.info.disk_bytes) == expected
            assert image.check().clean
    assert (tmp_path / "c.raw").read_bytes() == expected


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx"])
def test_disks_of_others_that_are_cut_off(tmp_path: Path, qemu_img: Tool, raw: Path, kind: str) -> None:
    qemu_img("convert", "-f", "raw", "-O", kind, raw.name, "foreign")
    data = (tmp_path / "foreign").read_bytes()
    for cut in (512, 600, 5000, len(data) // 3):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(ImageError, match=f"damaged {kind}"):
            convert(tmp_path / "cut", tmp_path / "d.img")
        assert not (tmp_path / "d.img").exists()


def test_disks_of_others_that_cannot_be_read(tmp_path: Path, qemu_img: Tool, raw: Path) -> None:
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", raw.name, "several.vmdk")
    qemu_img("create", "-q", "-f", "vmdk", "base.vmdk", DISK)
    qemu_img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk")
    for name, words in (("several.vmdk", "several files"), ("child.vmdk", "differs from a parent")):
        with pytest.raises(ImageError, match=words) as caught:
            convert(tmp_path / name, tmp_path / "a.img")
        assert caught.value.hint
        assert not (tmp_path / "a.img").exists()


def _vdi(places: list[int], data: bytes = b"") -> bytes:
    """A VDI of blocks of 4 KiB, by the places of its blocks in `data`."""
    head = bytearray(512)
    head[0x40:0x44] = b"\x7f\x10\xda\xbe"
    struct.pack_into("<III", head, 0x44, 0x10001, 0x190, 1)
    struct.pack_into("<II", head, 0x154, 512, 512 + 4 * len(places))
    struct.pack_into("<QII", head, 0x170, 4096 * len(places), 4096, 0)
    return bytes(head) + struct.pack(f"<{len(places)}I", *places) + data


def _vmdk(tables: list[int], grain: bytes) -> bytes:
    """A VMDK of grains of 4 KiB and tables of one entry each, all of which name the same grain."""
    places = [2 + -(-4 * len(tables) // 512) + table for table in tables]
    grain_at = max(places) + 1
    directory = struct.pack(f"<{len(places)}I", *places)
    head = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, 8 * len(tables), 8, 0, 0, 1, 0, 2, 0)
    body = directory.ljust(512 * (places[0] - 2), b"\0") + struct.pack("<I", grain_at).ljust(512, b"\0") * (max(tables) + 1)
    return head.ljust(1024, b"\0") + body + grain


def test_what_is_named_many_times_is_not_copied_as_often(tmp_path: Path) -> None:
    """Else a small file could fill the disk."""
    block = b"x" * 4096
    for good, bad in ((_vdi([0, 1], 2 * block), _vdi([0] * 100, block)), (_vmdk([0], block), _vmdk([0] * 100, block))):
        (tmp_path / "good").write_bytes(good)
        convert(tmp_path / "good", tmp_path / "a.img")
        (tmp_path / "a.img").unlink()
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ImageError, match="in one place"):
            convert(tmp_path / "bad", tmp_path / "a.img")
        assert not (tmp_path / "a.img").exists()


def test_a_large_table_is_not_made_of_objects(tmp_path: Path) -> None:
    table_bytes = 4 * MIB
    (tmp_path / "a.vdi").write_bytes(_vdi([0xFFFFFFFE] * (table_bytes // 4)))
    tracemalloc.start()
    try:
        convert(tmp_path / "a.vdi", tmp_path / "a.img")
        assert tracemalloc.get_traced_memory()[1] < 3 * table_bytes
    finally:
        tracemalloc.stop()


def test_a_snapshot_of_a_disk_of_nothing(tmp_path: Path) -> None:
    """As large as a disk can be said to be: its holes are passed over, or this would not end."""
    with Image.create(tmp_path / "a.img", 1 << 50) as image:
        image.write(5 << 40, b"far away")
        image.create_snapshot("before", date=0)
        image.write(5 << 40, b"changed!")
    convert(tmp_path / "a.img", tmp_path / "b.img", snapshot="before")
    with Image.open(tmp_path / "b.img") as image:
        assert image.info.disk_bytes == 1 << 50
        assert image.read(5 << 40, 8) == b"far away"
        assert sum(size for _, size, zero in image.extents() if not zero) == 65536


@pytest.mark.parametrize("options", [{}, {"extended_l2": True}, {"cluster_bytes": 512}])
@pytest.mark.parametrize("backed", [False, True])
def test_the_extents_of_a_snapshot(tmp_path: Path, options: dict[str, bool], backed: bool) -> None:
    """They are those that the disk had, and what they say of zeros is so."""
    below = {"backing_file": "base.img", "backing_format": "qcow2"} if backed else {}
    with Image.create(tmp_path / "base.img", 3 * MIB) as image:
        image.write(2 * MIB, b"below")
    with Image.create(tmp_path / "a.img", 4 * MIB, **options, **below) as image:  # type: ignore[arg-type]
        image.write(100_000, pattern(300_000))
        image.zero(200_000, 50_000, give_back=False)
        there = list(image.extents())
        disk = image.read(0, 4 * MIB)
        image.create_snapshot("one", date=0)
        image.write(0, b"z" * 4 * MIB)
        found = list(image.snapshot_extents("one"))
        assert [offset for offset, _, _ in found] == [0, *(offset + size for offset, size, _ in found[:-1])]
        assert sum(size for _, size, _ in found) == 4 * MIB
        assert all(not any(disk[offset : offset + size]) for offset, size, zero in found if zero)
        assert sum(size for _, size, zero in found if zero) == sum(size for _, size, zero in there if zero)


@pytest.mark.parametrize("compression", [None, "zlib", "zstd"])
@pytest.mark.parametrize("cluster", [512, 65536, 2 * MIB])
def test_raw_to_qcow2_and_back(tmp_path: Path, qemu_img: Tool, raw: Path, compression: str | None, cluster: int) -> None:
    convert(raw, tmp_path / "a.img", compression=compression, cluster_bytes=cluster)
    qemu_img("check", "a.img")
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", raw.name, "a.img")
    convert(tmp_path / "a.img", tmp_path / "b.raw", format="raw")
    assert (tmp_path / "b.raw").read_bytes() == contents()
    assert (tmp_path / "b.raw").stat().st_blocks * 512 < 6 * MIB
    assert (tmp_path / "a.img").stat().st_size < (20 * MIB if cluster > MIB else 6 * MIB)


def test_the_configuration_comes_along(tmp_path: Path, raw: Path) -> None:
    blobs = {"machine.yaml": b"version: 1\n", "kernel": pattern(200_000)}
    convert(raw, tmp_path / "a.img")
    with Image.open(tmp_path / "a.img", writable=True) as image:
        image.set_config(blobs, date=77)
        image.create_snapshot("before", date=0)
        image.write(0, b"changed")
    with Image.create(tmp_path / "top.img", DISK, backing_file="a.img", backing_format="qcow2") as image:
        image.write(MIB, b"in the overlay")
    convert(tmp_path / "top.img", tmp_path / "flat.img", compression="zlib")
    with Image.open(tmp_path / "flat.img") as image:
        assert {name: image.read_config(name) for name in blobs} == blobs
        assert image.info.backing_file is None
        assert image.read(0, 7) == b"changed"
        assert image.read(MIB, 14) == b"in the overlay"
    convert(tmp_path / "a.img", tmp_path / "before.raw", format="raw", snapshot="before")
    assert (tmp_path / "before.raw").read_bytes() == contents()


def test_refusals(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "there").write_text("precious")
    for kind in ("raw", "qcow2"):
        with pytest.raises(ImageError, match="exists"):
            convert(raw, tmp_path / "there", format=kind)
    assert (tmp_path / "there").read_text() == "precious"
    with pytest.raises(ImageError, match="cannot be compressed"):
        convert(raw, tmp_path / "a", format="raw", compression="zlib")
    with pytest.raises(ImageError, match="No such file"):
        convert(tmp_path / "missing", tmp_path / "a")
    with pytest.raises(ImageError, match="no snapshot gone"):
        convert(_image(tmp_path), tmp_path / "a", snapshot="gone")
    assert not (tmp_path / "a").exists()


def _image(folder: Path) -> Path:
    Image.create(folder / "empty.img", MIB).close()
    return folder / "empty.img"


def test_runs_of_data() -> None:
    def runs(data: bytes, offset: int = 0) -> list[tuple[int, int]]:
        return list(pieces.runs(data, offset, 4))

    assert runs(b"") == runs(bytes(12)) == []
    assert runs(b"aaaa" + bytes(4) + b"bbbbcccc") == [(0, 4), (8, 16)]
    assert runs(b"a\0\0\0" + bytes(4) + b"b") == [(0, 4), (8, 9)]
    assert runs(b"\0\0aaaa", offset=2) == [(2, 6)]
