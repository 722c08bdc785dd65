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


@pytest.mark.parametrize("options", [{}, {"extended_l2": True}, {"cluster_bytes": 512}, {"version": 2}])
def test_a_digest_of_the_map(tmp_path: Path, options: dict[str, int]) -> None:
    """Other clusters, another digest; what only changes in its place, or is shared with a snapshot, leaves it."""
    path = tmp_path / "a.img"
    with Image.create(path, 4 * MIB, **options) as image:  # type: ignore[arg-type]
        image.write(0, b"a" * 65536)
        image.write(MIB, b"b" * 65536)
        image.add_disk("data", MIB)
        with image.open_disk("data") as disk:
            empty = disk.map_digest()
    digests = [empty]
    with Image.open(path) as image:
        digests.append(image.map_digest())
    with Image.open(path, writable=True) as image:
        image.write(5, b"in its place")
        image.create_snapshot("s", date=0)
        image.set_config({"a": b"x" * 100_000}, date=0)
    with Image.open(path) as image:
        assert image.map_digest() == digests[-1]
    for offset in (5, 2 * MIB):  # a copy of what the snapshot has; a new one
        with Image.open(path, writable=True) as image:
            image.write(offset, b"elsewhere")
        with Image.open(path) as image, image.open_disk("data") as disk:
            digests.append(image.map_digest())
            assert disk.map_digest() == empty
    with Image.open(path, writable=True) as image:
        image.open_disk("data").write(0, b"data")
    with Image.open(path) as image, image.open_disk("data") as disk:
        assert image.map_digest() == digests[-1] and disk.map_digest() != empty
    assert len(set(digests)) == len(digests)
    (tmp_path / "raw").write_bytes(bytes(MIB))
    with Image.open(tmp_path / "raw") as image, pytest.raises(ImageError, match="cannot have a map"):
        image.map_digest()


def test_a_damaged_map_has_no_digest(base: Path) -> None:
    data = bytearray(base.read_bytes())
    at = int.from_bytes(data[40:48], "big")  # the L1 table
    data[at + 1 : at + 7] = b"\0\1\1\1\1\0"
    base.write_bytes(data)
    with Image.open(base) as image, pytest.raises(ImageError, match="an L2 table's offset is"):
        image.map_digest()
