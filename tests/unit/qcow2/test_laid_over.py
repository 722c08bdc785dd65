# SPDX-License-Identifier: MIT
"""Overlays that are opened over a handle, whatever they name, and say what they were made of."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from imgvm.errors import ImageError
from imgvm.qcow2 import Image

MIB = 1 << 20
BASE_ID = bytes(range(1, 33))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    with Image.create(path, 4 * MIB) as image:
        image.write(0, b"base" * 1000)
        image.add_disk("data", 2 * MIB)
        image.open_disk("data").write(0, b"data" * 1000)
    return path


def overlay_of(base: Path, **more: int) -> Path:
    path = base.with_name("top.img")
    Image.create(path, 4 * MIB, backing_file=base.name, backing_format="qcow2", base_id=BASE_ID, **more).close()
    return path


@pytest.mark.parametrize("writable", [False, True])
def test_over_a_base_that_is_called_otherwise(base: Path, writable: bool) -> None:
    top = overlay_of(base)
    moved = base.rename(base.with_name("moved.img"))
    before = moved.read_bytes()
    with pytest.raises(ImageError) as caught:
        Image.open(top)
    assert caught.value.errno == errno.ENOENT
    below = Image.open(moved, writable=writable)
    with below.open_over(top, writable=True) as over:
        assert (over.info.base_id, over.info.backing_file) == (BASE_ID, "base.img")
        assert over.read(0, 8) == b"basebase" and over.disk_names() == ("data",)
        over.write(4, b"TOP!")
        with over.open_disk("data") as disk:
            disk.write(0, b"TOP!")
            assert over.read(0, 12) == b"baseTOP!base" and disk.read(0, 8) == b"TOP!data"
        assert below.read(0, 8) == b"basebase" and below.open_disk("data").read(0, 8) == b"datadata"
    with pytest.raises(ImageError):
        below.read(0, 8)  # closed with it
    assert moved.read_bytes() == before
    below = Image.open(moved)
    over = below.open_over(top)
    disk = over.open_disk("data")
    assert over.read(0, 12) == b"baseTOP!base" and disk.read(0, 8) == b"TOP!data"
    with pytest.raises(ImageError):
        over.write(0, b"x")
    below.close()
    with pytest.raises(ImageError):
        over.read(0, 8)


def test_what_is_no_overlay(base: Path) -> None:
    raw = base.with_name("raw")
    raw.write_bytes(bytes(MIB))
    with Image.open(base) as below:
        with pytest.raises(ImageError):
            below.open_over(raw)
        with pytest.raises(ImageError) as caught:
            below.open_over(base.with_name("absent"))
        assert caught.value.errno == errno.ENOENT
        assert below.info.base_id == bytes(32)
        assert below.read(0, 4) == b"base"


@pytest.mark.parametrize("cluster_bytes", [512, 65536])
def test_qemu_keeps_what_it_was_laid_over(base: Path, cluster_bytes: int) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    top = overlay_of(base, cluster_bytes=cluster_bytes)
    for words in (
        ["check", "-q", top], ["snapshot", "-c", "s", top], ["amend", "-o", "lazy_refcounts=on", top],
        ["rebase", "-u", "-F", "qcow2", "-b", base, top], ["resize", "-q", top, "8M"], ["check", "-q", top],
    ):  # fmt: skip
        subprocess.run(["qemu-img", *words], check=True)
        with Image.open(top) as image:
            assert image.info.base_id == BASE_ID, words
            assert image.read(0, 4) == b"base"


def test_a_base_id_of_another_length_is_damage(base: Path) -> None:
    top = overlay_of(base)
    data = bytearray(top.read_bytes())
    at = data.index(b"IMGB") + 4
    data[at : at + 4] = (24).to_bytes(4, "big")
    top.write_bytes(data)
    with pytest.raises(ImageError, match="corrupt"):
        Image.open(top)
