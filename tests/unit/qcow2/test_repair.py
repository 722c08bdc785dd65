# SPDX-License-Identifier: MIT
"""Images damaged in one place at a time, repaired, and called clean by QEMU too; nothing is lost that could be followed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, pattern

from imgvm.cli import main
from imgvm.errors import ImageError
from imgvm.qcow2 import Image

Tool = Callable[..., str]
CLUSTER = 4096
COPIED = 1 << 63


class Tables:
    """Where things are in an image's bytes."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.l1 = self.number(40)
        self.l2 = self.number(self.l1) & ~COPIED
        self.refcount_table = self.number(48)
        self.block = self.number(self.refcount_table)

    def number(self, at: int) -> int:
        value: int = struct.unpack_from(">Q", self.data, at)[0]
        return value

    def put(self, at: int, value: int) -> None:
        struct.pack_into(">Q", self.data, at, value)


def leak(tables: Tables) -> None:
    struct.pack_into(">H", tables.data, tables.block + 2 * (len(tables.data) // CLUSTER), 1)
    tables.data += bytes(CLUSTER)


def count_too_low(tables: Tables) -> None:
    struct.pack_into(">H", tables.data, tables.block + 2 * (tables.l2 // CLUSTER), 0)


def copied_bit(tables: Tables) -> None:
    tables.put(tables.l2, tables.number(tables.l2) & ~COPIED)


def cluster_outside(tables: Tables) -> None:
    tables.put(tables.l2 + 8 * 7, COPIED | 1 << 40)


def cluster_misaligned(tables: Tables) -> None:
    tables.put(tables.l2 + 8 * 7, tables.number(tables.l2 + 8 * 7) + 512)


def cluster_over_l1(tables: Tables) -> None:
    tables.put(tables.l2 + 8 * 7, COPIED | tables.l1)


def l2_outside(tables: Tables) -> None:
    tables.put(tables.l1 + 8, COPIED | 1 << 40)


def l2_twice(tables: Tables) -> None:
    tables.put(tables.l1 + 8, tables.number(tables.l1))


def block_outside(tables: Tables) -> None:
    tables.put(tables.refcount_table, 1 << 40)


def block_missing(tables: Tables) -> None:
    tables.put(tables.refcount_table, 0)


def block_misaligned(tables: Tables) -> None:
    tables.put(tables.refcount_table, tables.block + 512)


def corrupt_flag(tables: Tables) -> None:
    tables.put(72, 2)


DAMAGES = [
    leak, count_too_low, copied_bit, cluster_outside, cluster_misaligned, cluster_over_l1, l2_outside, l2_twice, block_outside,
    block_missing, block_misaligned, corrupt_flag,
]  # fmt: skip
LOST = {"cluster_outside": (7, 8), "cluster_misaligned": (7, 8), "cluster_over_l1": (7, 8), "l2_outside": (512, 1024), "l2_twice": (512, 1024)}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_repair(tmp_path: Path, qemu_img: Tool, damage: Callable[[Tables], None], capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.img"
    disk = pattern(4 * MIB)
    with Image.create(path, 8 * MIB, cluster_bytes=CLUSTER) as image:
        image.write(0, disk)
        image.set_config({"machine.yaml": b"text"}, date=0)
    data = bytearray(path.read_bytes())
    damage(Tables(data))
    path.write_bytes(data)
    with Image.open(path) as image:
        assert not image.check().clean
    assert main(["check", str(path)]) == 1
    assert path.read_bytes() == data
    assert main(["check", "--repair", "leaks", str(path)]) == (0 if damage is leak else 1)
    assert main(["check", "--repair", "all", str(path)]) == 0
    assert capfd.readouterr().out.endswith("clean\n")
    qemu_img("check", path.name)
    with Image.open(path, writable=True) as image:
        expected = bytearray(disk)
        first, last = LOST.get(damage.__name__, (0, 0))
        expected[first * CLUSTER : last * CLUSTER] = bytes((last - first) * CLUSTER)
        assert image.read(0, 4 * MIB) == expected
        assert image.read_config("machine.yaml") == b"text"
        image.write(5 * MIB, b"goes on")
        assert image.check().clean


def test_the_verbs_on_an_image(tmp_path: Path, qemu_img: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.img")
    with Image.create(path, 8 * MIB) as image:
        image.write(0, b"first")
    assert main(["snapshot", "create", path, "one"]) == 0
    with Image.open(path, writable=True) as image:
        image.write(0, b"other")
    assert main(["snapshot", "list", path]) == 0
    assert capfd.readouterr().out.split("\t")[2:] == ["8MiB", "-", "one\n"]
    assert main(["snapshot", "apply", path, "one"]) == 0
    assert main(["resize", path, "16MiB"]) == 0
    assert main(["resize", path, "4MiB"]) == 125
    assert "--shrink" in capfd.readouterr().err
    assert main(["resize", "--shrink", path, "4MiB"]) == 0
    assert main(["snapshot", "delete", path, "one"]) == 0
    assert main(["snapshot", "delete", path, "one"]) != 0
    assert main(["snapshot", "create", path]) == 125
    assert main(["convert", path, str(tmp_path / "b.raw"), "-O", "raw"]) == 0
    assert main(["convert", str(tmp_path / "b.raw"), str(tmp_path / "c.img"), "--compress", "zstd"]) == 0
    assert (tmp_path / "b.raw").read_bytes() == b"first".ljust(4 * MIB, b"\0")
    qemu_img("check", "a.img")
    assert "identical" in qemu_img("compare", "a.img", "c.img")


def test_a_data_file_elsewhere_wants_a_grant(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    Image.create(tmp_path / "sub" / "a.img", MIB, data_file=str(tmp_path / "a.data")).close()
    with pytest.raises(ImageError, match=r"its data file .* is not inside its folder"):
        Image.open(tmp_path / "sub" / "a.img", keep_to_folder=True)
    assert main(["check", str(tmp_path / "sub" / "a.img")]) == 126
    assert main(["check", "--allow", "backing", str(tmp_path / "sub" / "a.img")]) == 0
