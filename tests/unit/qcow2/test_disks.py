# SPDX-License-Identifier: MIT
"""Further disks in one file: each keeps its own contents, and qemu-img finds nothing wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from imgvm.errors import ImageError
from imgvm.qcow2 import Image, snapshots
from imgvm.qcow2.convert import convert

Tool = Callable[..., str]
KIB, MIB = 1 << 10, 1 << 20


def test_disks_are_apart(tmp_path: Path, qemu_img: Tool) -> None:
    with Image.create(tmp_path / "a.img", 4 * MIB) as image:
        image.add_disk("data", 8 * MIB)
        image.add_disk("seed", 512)
        assert image.disk_names() == ("data", "seed")
        with image.open_disk("data") as data, image.open_disk("seed") as seed:
            assert (data.info.disk_bytes, seed.info.disk_bytes) == (8 * MIB, 512)
            image.write(0, b"first" * 100)
            data.write(7 * MIB + 5, b"second")
            seed.write(0, b"third".ljust(512, b"."))
            with pytest.raises(ImageError, match="beyond the end"):
                data.write(8 * MIB, b"x")
        image.set_config({"config.yaml": b"text"}, date=0)
    qemu_img("check", "-q", "a.img")
    with Image.open(tmp_path / "a.img") as image:
        assert image.read(0, 5) == b"first"
        assert image.read(7 * KIB, 6) == bytes(6)
        data, seed = image.open_disk("data"), image.open_disk("seed")
        assert data.read(7 * MIB + 5, 6) == b"second"
        assert data.read(0, 8) == bytes(8)
        assert seed.read(0, 6) == b"third."
        assert image.read_config("config.yaml") == b"text"


@pytest.mark.parametrize("cluster_bytes", [512, 64 * KIB])
def test_random_work_on_three_disks(cluster_bytes: int, tmp_path: Path, qemu_img: Tool) -> None:
    """Writes, zeroes, discards, flushes, snapshots of the first and reopenings, against plain memory."""
    seed = random.Random(cluster_bytes)
    size = 3 * MIB
    path = tmp_path / "a.img"
    model = {name: bytearray(size) for name in ("", "one", "two")}
    with Image.create(path, size, cluster_bytes=cluster_bytes) as image:
        image.add_disk("one", size)
        image.add_disk("two", size)
    for round_ in range(4):
        with Image.open(path, writable=True) as image:
            disks = {"": image, "one": image.open_disk("one"), "two": image.open_disk("two")}
            for _ in range(80):
                name = seed.choice(list(disks))
                disk, at = disks[name], seed.randrange(size - 64 * KIB)
                count = seed.randrange(1, 64 * KIB)
                match seed.randrange(6):
                    case 0 | 1 | 2:
                        data = seed.randbytes(count)
                        disk.write(at, data)
                        model[name][at : at + count] = data
                    case 3:
                        disk.zero(at, count)
                        model[name][at : at + count] = bytes(count)
                    case 4:
                        disk.flush()
                    case 5:
                        assert disk.read(at, count) == model[name][at : at + count]
            image.create_snapshot(f"s{round_}", date=0)
            disks["one"].create_snapshot(f"one{round_}", date=0)
            kept = bytes(model["one"])
            disks["one"].write(5, b"gone again")
            disks["one"].apply_snapshot(f"one{round_}")
            assert disks["one"].read(0, size) == kept
            if round_ % 2:
                image.delete_snapshot(f"s{round_ - 1}")
                image.delete_snapshot(f"one{round_ - 1}")
            assert image.check().clean
        qemu_img("check", "-q", path.name)
    with Image.open(path) as image:
        assert image.read(0, size) == model[""]
        for name in ("one", "two"):
            assert image.open_disk(name).read(0, size) == model[name]


def test_disks_at_the_same_time(tmp_path: Path, qemu_img: Tool) -> None:
    """A thread for each half of each of three disks: reads, writes in place and to new clusters, discards, flushes."""
    size, failed = 4 * MIB, []
    with Image.create(tmp_path / "a.img", size, cluster_bytes=4096) as image:
        image.add_disk("one", size)
        image.add_disk("two", size)
        disks = {"": image, "one": image.open_disk("one"), "two": image.open_disk("two")}
        model = {name: bytearray(size) for name in disks}

        def work(name: str, half: int) -> None:
            seed, disk = random.Random(f"{name}{half}"), disks[name]
            for _ in range(400):
                count = seed.randrange(1, 20 * KIB)
                at = half * size // 2 + seed.randrange(size // 2 - count)
                match seed.randrange(8):
                    case 0:
                        disk.zero(at, count)
                        model[name][at : at + count] = bytes(count)
                    case 1:
                        disk.flush()
                    case 2 | 3 | 4:
                        data = seed.randbytes(count)
                        disk.write(at, data)
                        model[name][at : at + count] = data
                    case _:
                        if disk.read(at, count) != model[name][at : at + count]:
                            failed.append((name, at, count))

        threads = [threading.Thread(target=work, args=(name, half)) for name in disks for half in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        for name, disk in disks.items():
            assert disk.read(0, size) == model[name]
        assert image.check().clean
    qemu_img("check", "-q", "a.img")


def test_snapshots_of_all_disks(tmp_path: Path, qemu_img: Tool) -> None:
    with Image.create(tmp_path / "a.img", MIB) as image:
        image.add_disk("data", 8 * MIB)
        with image.open_disk("data") as data:
            image.write(0, b"first")
            data.write(5 * MIB, b"first")
        snapshots.create(image, "s", date=0)
        with image.open_disk("data") as data:
            image.write(0, b"later")
            data.write(5 * MIB, b"later")
            data.write(0, b"more")
        with pytest.raises(ImageError, match="as they were packed"):
            snapshots.reset(image)
        snapshots.apply(image, "2")
    qemu_img("check", "-q", "a.img")
    with Image.open(tmp_path / "a.img", writable=True) as image:
        with image.open_disk("data") as data:
            assert (image.read(0, 5), data.read(5 * MIB, 5), data.read(0, 4)) == (b"first", b"first", bytes(4))
            data.write(5 * MIB, b"third")
        assert [row.name for row in image.snapshots()] == ["imgvm.disk.data", "s", "s@data"]
        assert image.read_snapshot("s@data", 5 * MIB, 5) == b"first"
        snapshots.delete(image, "s")
        assert [row.name for row in image.snapshots()] == ["imgvm.disk.data"]
        assert image.open_disk("data").read(5 * MIB, 5) == b"third"
    qemu_img("check", "-q", "a.img")


def test_an_overlay_has_disks_of_its_own(tmp_path: Path, qemu_img: Tool) -> None:
    with Image.create(tmp_path / "base.img", MIB) as image:
        image.add_disk("data", MIB)
        image.open_disk("data").write(0, b"base" * 1000)
    before = (tmp_path / "base.img").read_bytes()
    with Image.create(tmp_path / "top.img", MIB, backing_file="base.img", backing_format="qcow2") as image:
        assert image.disk_names() == ("data",)
        data = image.open_disk("data")
        assert data.read(0, 4) == b"base"
        data.write(4, b"over")
        assert image.disk_names() == ("data",)
    with Image.open(tmp_path / "top.img") as image:
        assert image.open_disk("data").read(0, 12) == b"baseoverbase"
    assert (tmp_path / "base.img").read_bytes() == before
    qemu_img("check", "-q", "top.img")


def test_a_disk_is_no_snapshot_to_apply_or_delete(tmp_path: Path) -> None:
    with Image.create(tmp_path / "a.img", MIB) as image:
        image.add_disk("data", MIB)
        with pytest.raises(ImageError, match="no snapshot but a disk"):
            image.delete_snapshot("imgvm.disk.data")
        with pytest.raises(ImageError, match="no snapshot but a disk"):
            image.apply_snapshot("imgvm.disk.data")
        with pytest.raises(ImageError, match=r"has a snapshot \S+ already"):
            image.add_disk("data", MIB)
        with pytest.raises(ImageError, match="has no disk other"):
            image.open_disk("other")
        first = image.open_disk("data")
        with pytest.raises(ImageError, match="open already"):
            image.open_disk("data")
        with pytest.raises(ImageError, match="only the image's first disk"):
            first.resize(2 * MIB)
        with pytest.raises(ImageError, match="is a further disk"):
            first.delete_snapshot("imgvm.disk.data")


def test_qemu_keeps_the_disks(tmp_path: Path, qemu_img: Tool, qemu_io: Tool) -> None:
    """Its changes of the file, the disk and the snapshots leave further disks alone."""
    path = tmp_path / "a.img"
    with Image.create(path, MIB) as image:
        image.add_disk("data", 2 * MIB)
        image.open_disk("data").write(MIB, b"kept" * 4096)
    qemu_io("-c", "write -P 7 0 1M", "a.img")
    qemu_img("snapshot", "-c", "s", "a.img")
    qemu_io("-c", "write -P 8 0 1M", "a.img")
    qemu_img("resize", "-q", "a.img", "3M")
    qemu_img("amend", "-o", "lazy_refcounts=on", "a.img")
    qemu_img("snapshot", "-d", "s", "a.img")
    qemu_img("check", "-q", "-r", "all", "a.img")
    with Image.open(path, writable=True) as image:
        data = image.open_disk("data")
        assert data.read(MIB, 16384) == b"kept" * 4096
        data.write(MIB + 3, b"!")
        assert data.read(MIB, 5) == b"kep!k"
    qemu_img("check", "-q", "a.img")


def test_same_steps_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Image.create(tmp_path / name, MIB) as image:
            image.add_disk("data", MIB, date=7)
            with image.open_disk("data") as data:
                data.write(1000, b"x" * 9000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("at", [0, 8, 36])
def test_a_damaged_record_is_refused(at: int, tmp_path: Path) -> None:
    """Where the table is, how long it is, which version."""
    path = tmp_path / "a.img"
    with Image.create(path, MIB) as image:
        image.add_disk("data", MIB)
    raw = bytearray(path.read_bytes())
    record = raw.index(b"imgvmdsk") - 64
    where = record + (72 if at == 36 else at)
    raw[where : where + 4] = b"\xff\xff\xff\xff" if at else b"\x00\xff\xff\xff"
    path.write_bytes(raw)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"corrupt|version"):
        image.open_disk("data")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_convert_takes_them_along(compression: str | None, tmp_path: Path, qemu_img: Tool) -> None:
    with Image.create(tmp_path / "base.img", MIB) as image:
        image.add_disk("data", 2 * MIB)
        image.open_disk("data").write(MIB, b"below" * 9000)
    with Image.create(tmp_path / "top.img", MIB, backing_file="base.img", backing_format="qcow2") as image:
        image.open_disk("data").write(10, b"above")
        image.set_config({"config.yaml": b"text"}, date=0)
    convert(tmp_path / "top.img", tmp_path / "out.img", compression=compression)
    qemu_img("check", "-q", "out.img")
    with Image.open(tmp_path / "out.img") as image:
        data = image.open_disk("data")
        assert data.read(0, 20) == b"\0" * 10 + b"above" + b"\0" * 5
        assert data.read(MIB, 45000) == b"below" * 9000
        assert image.read_config("config.yaml") == b"text"
