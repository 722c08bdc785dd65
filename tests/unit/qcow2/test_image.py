# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path

import pytest
from disks import MIB, pattern

from imgvm.errors import STATUS_NOT_FOUND, ImageError
from imgvm.qcow2 import Image
from imgvm.qcow2.reader import IndependentReader


def test_create_write_read(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, 8 * MIB) as image:
        image.write(1000, b"hello")
        assert image.read(998, 9) == b"\0\0hello\0\0"
        assert image.info.format == "qcow2"
        assert (image.info.version, image.info.cluster_bytes, image.info.disk_bytes) == (3, 65536, 8 * MIB)
    with Image.open(path) as image:
        assert image.read(1000, 5) == b"hello"
        assert image.check().clean
        assert image.snapshots() == ()
        with pytest.raises(ImageError, match="reading only"):
            image.write(0, b"x")


def test_create_refuses_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_text("precious")
    with pytest.raises(ImageError, match="exists") as caught:
        Image.create(path, MIB)
    assert caught.value.errno == errno.EEXIST
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("size", "cluster"), [(-1, 65536), (1 << 64, 65536), (MIB, 1 << 32), (MIB + 1, 65536), (MIB, 3)]
)
def test_create_with_bad_sizes(tmp_path: Path, size: int, cluster: int) -> None:
    with pytest.raises(ImageError):
        Image.create(tmp_path / "a.img", size, cluster_bytes=cluster)
    assert not (tmp_path / "a.img").exists()


def test_closed_image(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "a.img", MIB)
    image.close()
    image.close()
    with pytest.raises(ImageError, match="closed"):
        image.read(0, 1)


def test_missing_image_is_status_127(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        Image.open(tmp_path / "none.img")
    assert caught.value.status == STATUS_NOT_FOUND
    assert caught.value.hint


def test_reads_past_the_end_allocate_nothing(tmp_path: Path) -> None:
    with Image.create(tmp_path / "a.img", MIB) as image:
        with pytest.raises(ImageError, match="beyond the end"):
            image.read(0, 1 << 62)
        assert image.read(MIB, 0) == b""


def test_config_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    blobs = {"machine.yaml": b"version: 1\n", "kernel": pattern(300_000), "empty": b""}
    with Image.create(path, 8 * MIB) as image:
        assert not image.has_config
        with pytest.raises(ImageError, match="no imgvm configuration") as caught:
            image.config_blobs()
        assert caught.value.status == STATUS_NOT_FOUND
        image.set_config(blobs, date=1_700_000_000)
        assert image.has_config
    with Image.open(path) as image:
        assert [blob.name for blob in image.config_blobs()] == list(blobs)
        assert {name: image.read_config(name) for name in blobs} == blobs
        assert {name: image.load_config(name) for name in blobs} == blobs
        assert image.config_blobs()[1].sha256 == hashlib.sha256(blobs["kernel"]).hexdigest()
        (snapshot,) = image.snapshots()
        assert (snapshot.name, snapshot.vm_state_bytes, snapshot.date) == ("imgvm.config", 0, 1_700_000_000)
        with pytest.raises(ImageError, match="no blob nothing"):
            image.read_config("nothing")


def test_config_is_deterministic(tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        with Image.create(tmp_path / name, 8 * MIB) as image:
            image.write(MIB, pattern(100_000))
            image.set_config({"machine.yaml": b"x", "kernel": pattern(70_000)}, date=0)
    assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes()


def test_replacing_the_config_frees_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, 8 * MIB) as image:
        for turn in range(6):
            image.set_config({"kernel": pattern(MIB, turn)}, date=turn)
    size = path.stat().st_size
    assert size < 3.5 * MIB
    with Image.open(path) as image:
        assert image.read_config("kernel") == pattern(MIB, 5)
        assert image.check().clean


def test_damaged_blob_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    kernel = pattern(200_000)
    with Image.create(path, 8 * MIB) as image:
        image.set_config({"machine.yaml": b"text", "kernel": kernel}, date=0)
    data = bytearray(path.read_bytes())
    data[data.index(kernel[:64]) + 5] ^= 1
    path.write_bytes(data)
    with Image.open(path) as image:
        assert image.read_config("machine.yaml") == b"text"
        with pytest.raises(ImageError, match="checksum of blob kernel"):
            image.read_config("kernel")
    data[data.index(b"IMGVMCFG") + 70] ^= 1
    path.write_bytes(data)
    with Image.open(path) as image, pytest.raises(ImageError, match="checksum of its index"):
        image.has_config  # noqa: B018


def test_bad_blob_names(tmp_path: Path) -> None:
    with Image.create(tmp_path / "a.img", MIB) as image:
        for name in ("", "x" * 64):
            with pytest.raises(ImageError, match="name of a config blob"):
                image.set_config({name: b""}, date=0)
        assert not image.has_config


def test_raw_files(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(pattern(MIB))
    with Image.open(path, writable=True) as image:
        assert image.info.format == "raw"
        image.write(10, b"abc")
        with pytest.raises(ImageError, match="raw image"):
            image.set_config({}, date=0)
        assert image.check().clean
    assert path.read_bytes() == pattern(10) + b"abc" + pattern(MIB)[13:]


def test_independent_reader_sees_the_same_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    for cluster in (512, 65536, 2 * MIB):
        path.unlink(missing_ok=True)
        with Image.create(path, 8 * MIB, cluster_bytes=cluster) as image:
            image.write(12345, pattern(3 * MIB))
            image.set_config({"kernel": pattern(5000)}, date=0)
            disk = image.read(0, 8 * MIB)
        with IndependentReader(path) as reader:
            assert reader.disk_bytes == 8 * MIB
            assert reader.read(0, 9 * MIB) == disk


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MIB])
def test_a_file_ends_with_a_whole_cluster(tmp_path: Path, cluster: int) -> None:
    """A guest's write may end anywhere in a new cluster; every reader is to find all of that."""
    path = tmp_path / "a.img"
    with Image.create(path, 8 * MIB, cluster_bytes=cluster) as image:
        image.write(0, pattern(700))
    for offset in (5 * MIB, 6 * MIB + 3):
        with Image.open(path, writable=True) as image:
            image.write(offset, b"end")
        assert path.stat().st_size % cluster == 0
    with Image.open(path) as image, IndependentReader(path) as reader:
        assert reader.read(0, 8 * MIB) == image.read(0, 8 * MIB)
    whole = path.read_bytes()
    with path.open("r+b") as stream:  # as a writer leaves it that is killed
        stream.truncate(path.stat().st_size - cluster + 10)
    with Image.open(path) as image, IndependentReader(path) as reader:
        assert image.check().clean and image.read(6 * MIB, 6) == b"\0\0\0end"
        assert reader.read(0, 8 * MIB) == image.read(0, 8 * MIB)
    with Image.open(path) as image:
        assert image.read(0, 700) == pattern(700)
    assert path.stat().st_size % cluster == (10 if cluster > 10 else 0) and len(whole) % cluster == 0


def test_independent_reader_refuses(tmp_path: Path) -> None:
    path = tmp_path / "junk.img"
    path.write_bytes(b"QFI\xfb" + b"\xff" * 1000)
    with pytest.raises(ImageError, match="libqcow"):
        IndependentReader(path)


def test_threads_share_a_handle(tmp_path: Path) -> None:
    with Image.create(tmp_path / "a.img", 8 * MIB, cluster_bytes=512) as image:

        def work(slot: int) -> None:
            for turn in range(40):
                image.write(slot * MIB + turn * 5000, pattern(5000, slot * 100 + turn))
                if turn % 10 == 0:
                    image.flush()

        threads = [threading.Thread(target=work, args=(slot,)) for slot in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for slot in range(8):
            for turn in range(40):
                assert image.read(slot * MIB + turn * 5000, 5000) == pattern(5000, slot * 100 + turn)
        assert image.check().clean
