# SPDX-License-Identifier: MIT
"""Round trips with QEMU's own tools: what one writes, the other reads, and both call it clean."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import MIB, pattern, scribble

from imgvm.errors import ImageError
from imgvm.qcow2 import Image
from imgvm.qcow2.reader import IndependentReader

Tool = Callable[..., str]
DISK = 4 * MIB
CONFIG = {"machine.yaml": b"version: 1\n", "kernel": pattern(150_000)}


def raw_disk(qemu_img: Tool, folder: Path, name: str) -> bytes:
    qemu_img("convert", "-O", "raw", name, "out.raw")
    return (folder / "out.raw").read_bytes()


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MIB])
def test_qemu_reads_ours(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, cluster: int) -> None:
    path = tmp_path / "a.img"
    model = bytearray(DISK)
    with Image.create(path, DISK, cluster_bytes=cluster) as image:
        scribble(image, model, random.Random(cluster))
        image.set_config(CONFIG, date=86400)
    qemu_img("check", path.name)
    assert raw_disk(qemu_img, tmp_path, path.name) == model
    info = json.loads(qemu_img("info", "--output=json", path.name))
    assert info["virtual-size"] == DISK
    assert info["cluster-size"] == cluster
    assert [s["name"] for s in info["snapshots"]] == ["imgvm.config"]
    assert "imgvm.config" in qemu_img("snapshot", "-l", path.name)
    qemu_io("-c", "write -P 0x33 1M 100k", path.name)
    model[MIB : MIB + 102400] = b"\x33" * 102400
    qemu_img("check", path.name)
    with Image.open(path, writable=True) as image:
        assert image.read(0, DISK) == model
        assert {name: image.read_config(name) for name in CONFIG} == CONFIG
        scribble(image, model, random.Random(cluster + 1))
    qemu_img("check", path.name)
    assert raw_disk(qemu_img, tmp_path, path.name) == model


OPTIONS = [
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "compat=1.1,cluster_size=1024,refcount_bits=1",
    "refcount_bits=2",
    "cluster_size=512,refcount_bits=4",
    "refcount_bits=8",
    "cluster_size=4096,refcount_bits=32",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=2M",
    "lazy_refcounts=on",
    "preallocation=metadata",
    "preallocation=falloc,cluster_size=8192",
    "compression_type=zstd",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_we_write_qemus(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, options: str) -> None:
    path = tmp_path / "a.img"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path.name, DISK)
    qemu_io("-c", "write -P 0x11 64k 200k", "-c", "write -z 1M 256k", "-c", "write -P 0x22 2M 64k", path.name)
    model = bytearray(raw_disk(qemu_img, tmp_path, path.name))
    with Image.open(path, writable=True) as image:
        assert image.check().clean
        assert image.read(0, DISK) == model
        scribble(image, model, random.Random(options))
        image.set_config(CONFIG, date=1)
        scribble(image, model, random.Random(options + "again"))
        image.set_config(CONFIG, date=2)
        assert image.check().clean
    qemu_img("check", path.name)
    assert raw_disk(qemu_img, tmp_path, path.name) == model
    with Image.open(path) as image:
        assert image.read(0, DISK) == model
        assert image.read_config("kernel") == CONFIG["kernel"]


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", [512, 65536, 2 * MIB])
def test_compressed_clusters(tmp_path: Path, qemu_img: Tool, kind: str, cluster: int) -> None:
    path = tmp_path / "a.img"
    source = bytearray(DISK)
    source[: 2 * MIB] = (b"compressible text\n" * 120_000)[: 2 * MIB]
    source[2 * MIB : 3 * MIB] = pattern(MIB)
    (tmp_path / "source.raw").write_bytes(source)
    options = f"cluster_size={cluster},compression_type={kind}"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", options, "source.raw", path.name)
    with Image.open(path, writable=True) as image:
        assert image.check().clean
        assert image.read(0, DISK) == source
        scribble(image, source, random.Random(cluster))
        assert image.read(0, DISK) == source
        image.flush()
        assert image.check().clean
    qemu_img("check", path.name)
    assert raw_disk(qemu_img, tmp_path, path.name) == source


def test_overlay_reads_its_backing_file(tmp_path: Path, qemu_img: Tool, qemu_io: Tool) -> None:
    (tmp_path / "sub").mkdir()
    with Image.create(tmp_path / "base.img", 3 * MIB, cluster_bytes=4096) as base:
        base.write(0, pattern(3 * MIB))
        base.set_config(CONFIG, date=0)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../base.img", "-F", "qcow2", "sub/mid.img", DISK)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.img", "-F", "qcow2", "sub/top.img")
    qemu_io("-c", "write -P 0x44 100k 33k", "-c", "write -z 1M 128k", "sub/mid.img")
    model = bytearray(raw_disk(qemu_img, tmp_path, "sub/top.img"))
    before = (tmp_path / "base.img").read_bytes(), (tmp_path / "sub/mid.img").read_bytes()
    with Image.open(tmp_path / "sub/top.img", writable=True) as image:
        assert image.info.backing_file == "mid.img"
        assert image.read(0, DISK) == model
        assert image.read_config("kernel") == CONFIG["kernel"]  # the nearest one of the chain
        scribble(image, model, random.Random(5))
        assert image.check().clean
        image.set_config({"machine.yaml": b"own"}, date=0)
        assert image.read_config("machine.yaml") == b"own"
    qemu_img("check", "sub/top.img")
    assert raw_disk(qemu_img, tmp_path, "sub/top.img") == model
    assert before == ((tmp_path / "base.img").read_bytes(), (tmp_path / "sub/mid.img").read_bytes())


def test_raw_backing_file_is_never_probed(tmp_path: Path, qemu_img: Tool) -> None:
    Image.create(tmp_path / "inner.img", DISK).close()
    qemu_img("create", "-q", "-f", "qcow2", "-b", "inner.img", "-F", "raw", "top.img")
    with Image.open(tmp_path / "top.img") as image:
        assert image.read(0, 4) == b"QFI\xfb"


def test_bad_backing_files(tmp_path: Path, qemu_img: Tool) -> None:
    def overlay(name: str, backing: str, fmt: str = "qcow2") -> Path:
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", fmt, name, DISK)
        return tmp_path / name

    for path, words in [
        (overlay("self.img", "./self.img"), "own backing file"),
        (overlay("lost.img", "nothing.img"), "backing file of .*cannot open"),
        (overlay("net.img", "nbd://host/x"), "not a local file"),
        (overlay("vmdk.img", "self.img", "vmdk"), "format vmdk"),
    ]:
        for writable in (False, True):
            with pytest.raises(ImageError, match=words):
                Image.open(path, writable=writable)
    overlay("a.img", "b.img")
    overlay("b.img", "a.img")
    with pytest.raises(ImageError, match="own backing file"):
        Image.open(tmp_path / "a.img")
    for n in range(70):
        overlay(f"deep{n}.img", f"deep{n + 1}.img")
    with pytest.raises(ImageError, match="more than 64"):
        Image.open(tmp_path / "deep0.img")


@pytest.mark.parametrize("cluster", [512, 65536])
def test_snapshots_keep_their_data(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, cluster: int) -> None:
    path = tmp_path / "a.img"
    model = bytearray(DISK)
    rng = random.Random(cluster)
    with Image.create(path, DISK, cluster_bytes=cluster) as image:
        scribble(image, model, rng)
        image.set_config(CONFIG, date=0)
    qemu_img("snapshot", "-c", "first", path.name)
    first = bytes(model)
    with Image.open(path, writable=True) as image:
        assert [s.name for s in image.snapshots()] == ["imgvm.config", "first"]
        scribble(image, model, rng)
        image.set_config(CONFIG, date=9)
        assert image.check().clean
    qemu_img("check", path.name)
    qemu_img("snapshot", "-c", "second", path.name)
    second = bytes(model)
    with Image.open(path, writable=True) as image:
        scribble(image, model, rng)
    assert raw_disk(qemu_img, tmp_path, path.name) == model
    qemu_img("convert", "-l", "snapshot.name=first", "-O", "raw", path.name, "first.raw")
    assert (tmp_path / "first.raw").read_bytes() == first
    qemu_img("snapshot", "-a", "second", path.name)
    with Image.open(path, writable=True) as image:
        assert image.read(0, DISK) == second
        scribble(image, bytearray(second), rng)
    qemu_img("snapshot", "-d", "first", path.name)
    qemu_img("snapshot", "-d", "second", path.name)
    qemu_img("check", path.name)
    with Image.open(path, writable=True) as image:
        assert image.check().clean
        assert image.read_config("kernel") == CONFIG["kernel"]
        assert [(s.id, s.date) for s in image.snapshots()] == [("1", 9)]


KEEPS: dict[str, list[tuple[object, ...]]] = {
    "resize": [
        ("resize", "-q", "a.img", 64 * MIB),
        ("resize", "-q", "--shrink", "a.img", 2 * MIB),
        ("resize", "-q", "a.img", 3 << 30),  # the live L1 table moves
    ],
    "amend": [
        ("amend", "-o", "lazy_refcounts=on", "a.img"),
        ("amend", "-o", "refcount_bits=64", "a.img"),
        ("amend", "-o", "refcount_bits=1", "a.img"),  # nothing is shared: one reference is enough
        ("amend", "-o", "refcount_bits=8", "a.img"),
        ("amend", "-o", "size=16M", "a.img"),
    ],
    "snapshots": [
        ("snapshot", "-c", "more", "a.img"),
        ("snapshot", "-a", "more", "a.img"),
        ("snapshot", "-d", "more", "a.img"),
    ],
    "check": [("check", "-r", "leaks", "a.img"), ("check", "-r", "all", "a.img")],
    "rebase": [
        ("rebase", "-u", "-b", "other.img", "-F", "qcow2", "a.img"),
        ("rebase", "-b", "third.img", "-F", "qcow2", "a.img"),  # copies what differs
        ("rebase", "-b", "", "a.img"),
    ],
    "convert into it": [("convert", "-n", "-O", "qcow2", "other.img", "a.img")],
    "bitmaps": [("bitmap", "--add", "a.img", "b0"), ("bitmap", "--remove", "a.img", "b0")],
}
FORMS: dict[str, dict[str, Any]] = {
    "v3": {}, "v2": {"version": 2}, "extended-l2": {"extended_l2": True}, "zstd, 512": {"compression": "zstd", "cluster_bytes": 512},
}  # fmt: skip
NOT_IN_V2 = {"resize", "amend", "bitmaps"}


@pytest.mark.parametrize("action", KEEPS)
@pytest.mark.parametrize("form", FORMS)
def test_qemu_keeps_the_config(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, action: str, form: str) -> None:
    if form == "v2" and action in NOT_IN_V2:
        pytest.skip("QEMU does not do that to version 2 with a snapshot")
    path = tmp_path / "a.img"
    with Image.create(path, DISK, **FORMS[form]) as image:
        image.write(0, pattern(MIB))
        image.set_config(CONFIG, date=0)
    for name in ("other.img", "third.img"):
        with Image.create(tmp_path / name, DISK) as image:
            image.write(MIB, name.encode() * 1000)
    for step in KEEPS[action]:
        qemu_img(*step)
        with Image.open(path) as image:
            assert {name: image.read_config(name) for name in CONFIG} == CONFIG, step
            assert image.check().clean, step
    # It stays when the whole disk is written anew, and can be replaced after that.
    with Image.open(path) as image:
        size = image.info.disk_bytes
    qemu_io("-c", f"write -P 0x55 0 {min(size, 64 * MIB)}", path.name)
    with Image.open(path, writable=True) as image:
        assert image.read_config("kernel") == CONFIG["kernel"]
        image.set_config({"machine.yaml": b"edited"}, date=0)
        assert image.read(MIB, 3) == b"\x55" * 3
    qemu_img("check", path.name)
    qemu_io("-c", f"discard 0 {min(size, 64 * MIB)}", path.name)
    with Image.open(path) as image:
        assert image.read_config("machine.yaml") == b"edited"
        assert image.check().clean


@pytest.mark.parametrize(
    ("form", "step"),
    [
        ("extended-l2", ("amend", "-o", "compat=0.10", "a.img")),
        ("v3", ("amend", "-o", "data_file=a.data", "a.img")),
        ("v2", ("resize", "-q", "a.img", 64 * MIB)),
    ],
)
def test_qemu_refuses_what_such_an_image_cannot(tmp_path: Path, qemu_img: Tool, form: str, step: tuple[object, ...]) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, DISK, **FORMS[form]) as image:
        image.set_config(CONFIG, date=0)
    qemu_img(*step, ok=False)
    with Image.open(path, writable=True) as image:
        assert image.read_config("kernel") == CONFIG["kernel"]
        assert image.check().clean
        image.resize(64 * MIB)  # we do
        assert image.read_config("kernel") == CONFIG["kernel"]
    qemu_img("check", path.name)


def test_version_2_keeps_the_config_where_qemu_makes_it(tmp_path: Path, qemu_img: Tool) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, DISK) as image:
        image.set_config(CONFIG, date=0)
    for compat, version in (("0.10", 2), ("1.1", 3)):
        qemu_img("amend", "-o", f"compat={compat}", path.name)
        with Image.open(path) as image:
            assert image.info.version == version
            assert image.read_config("kernel") == CONFIG["kernel"]
            assert image.check().clean
    qemu_img("resize", "-q", path.name, 2 * DISK)
    qemu_img("amend", "-o", "compat=0.10", path.name, ok=False)
    with Image.open(path) as image:
        assert image.read_config("kernel") == CONFIG["kernel"]


def test_qemu_loses_the_config(tmp_path: Path, qemu_img: Tool) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, DISK) as image:
        image.set_config(CONFIG, date=0)
    qemu_img("convert", "-O", "qcow2", path.name, "copy.img")
    qemu_img("snapshot", "-d", "imgvm.config", path.name)
    qemu_img("check", path.name)
    for name in ("copy.img", path.name):
        with Image.open(tmp_path / name) as image:
            assert not image.has_config


def test_commit_into_it_keeps_the_config(tmp_path: Path, qemu_img: Tool, qemu_io: Tool) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, DISK) as image:
        image.set_config(CONFIG, date=0)
    qemu_img("create", "-q", "-f", "qcow2", "-b", path.name, "-F", "qcow2", "top.img")
    qemu_io("-c", "write -P 0x77 1M 1M", "top.img")
    qemu_img("commit", "-q", "top.img")
    with Image.open(path) as image:
        assert image.read(MIB, MIB) == b"\x77" * MIB
        assert image.read_config("kernel") == CONFIG["kernel"]
        assert image.check().clean


def test_applying_the_config_snapshot_empties_the_disk(tmp_path: Path, qemu_img: Tool) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, DISK) as image:
        image.write(0, b"x" * MIB)
        image.set_config(CONFIG, date=0)
    qemu_img("snapshot", "-a", "imgvm.config", path.name)
    qemu_img("check", path.name)
    with Image.open(path, writable=True) as image:
        assert image.read(0, DISK) == bytes(DISK)
        assert image.read_config("kernel") == CONFIG["kernel"]
        image.write(0, b"y" * MIB)
        image.set_config({"machine.yaml": b"new"}, date=0)
        assert image.check().clean
    qemu_img("check", path.name)


def test_foreign_snapshot_of_that_name_is_kept(tmp_path: Path, qemu_img: Tool) -> None:
    path = tmp_path / "a.img"
    Image.create(path, DISK).close()
    qemu_img("snapshot", "-c", "imgvm.config", path.name)
    with Image.open(path, writable=True) as image:
        assert not image.has_config
        with pytest.raises(ImageError, match="did not write"):
            image.set_config(CONFIG, date=0)


def test_lazy_refcounts_are_repaired(tmp_path: Path, qemu_img: Tool, qemu_io: Tool) -> None:
    path = tmp_path / "a.img"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path.name, DISK)
    qemu_io("-c", "write -P 0x66 0 300k", "-c", "flush", "-c", "sigraise 9", path.name, ok=False)
    with Image.open(path) as image:
        assert image.info.incompatible & 1
        assert image.check().corruptions
        assert image.read(0, 3) == b"\x66" * 3
    with Image.open(path, writable=True) as image:
        assert image.info.incompatible == 0
        assert image.check().clean
        image.write(MIB, b"x" * MIB)
    qemu_img("check", path.name)


def test_bitmaps_are_invalidated_by_a_writer_only(tmp_path: Path, qemu_img: Tool) -> None:
    path = tmp_path / "a.img"
    Image.create(path, DISK).close()
    qemu_img("bitmap", "--add", path.name, "b0")
    before = path.read_bytes()
    with Image.open(path, writable=True) as image:
        assert image.info.autoclear & 1
        assert image.check().clean
    assert path.read_bytes() == before  # nothing was written
    with Image.open(path, writable=True) as image:
        image.write(0, b"x")
        assert not image.info.autoclear & 1


def test_qemu_and_we_lock_each_other_out(tmp_path: Path, qemu_img: Tool, qemu_io: Tool) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, DISK):
        assert "lock" in qemu_io("-c", "write 0 1k", path.name, ok=False)
    holder = subprocess.Popen(
        ["qemu-io", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    try:
        holder.stdin.write("write 0 1k\n")
        holder.stdin.flush()
        while "wrote" not in holder.stdout.readline():
            pass
        for writable in (False, True):
            with pytest.raises(ImageError, match="in use"):
                Image.open(path, writable=writable)
    finally:
        holder.communicate("quit\n", timeout=30)
    Image.open(path, writable=True).close()


def test_libqcow_reads_what_we_changed(tmp_path: Path, qemu_img: Tool) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "a.img", DISK)
    model = bytearray(DISK)
    with Image.open(tmp_path / "a.img", writable=True) as image:
        scribble(image, model, random.Random(3))
    with IndependentReader(tmp_path / "a.img") as reader:
        assert reader.read(0, DISK) == model


def test_small_clusters_outgrow_the_refcount_table(tmp_path: Path, qemu_img: Tool) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, 64 * MIB, cluster_bytes=512) as image:  # its table covers 8 MiB of file
        for part in range(20):
            image.write(part * 2 * MIB, pattern(MIB, part))
        image.set_config({"kernel": pattern(MIB)}, date=0)
        assert image.check().clean
    qemu_img("check", path.name)
    with Image.open(path) as image:
        assert all(image.read(part * 2 * MIB, MIB) == pattern(MIB, part) for part in range(20))
        assert image.read_config("kernel") == pattern(MIB)
