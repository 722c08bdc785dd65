# SPDX-License-Identifier: MIT
"""Conversion, against qemu-img: every format that it makes, read here; what is made here, read there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, pattern

from imgvm.errors import ImageError
from imgvm.qcow2 import Image
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
