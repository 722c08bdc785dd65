# SPDX-License-Identifier: MIT
"""Headers that imgvm must refuse, or read with care, and what it says then."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from disks import MIB, pattern

from imgvm.errors import ImageError
from imgvm.qcow2 import Image


@pytest.fixture
def image_bytes(tmp_path: Path) -> bytearray:
    path = tmp_path / "good.img"
    with Image.create(path, 8 * MIB) as image:
        image.write(0, pattern(MIB))
        image.set_config({"machine.yaml": b"text"}, date=0)
    return bytearray(path.read_bytes())


def refusal(folder: Path, data: bytes, *, writable: bool = False) -> ImageError:
    path = folder / "bad.img"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        Image.open(path, writable=writable)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == data
    return caught.value


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (4, ">I", 1, "version 1"),
        (4, ">I", 4, "version 4"),
        (20, ">I", 8, r"cluster size is 2\^8"),
        (20, ">I", 22, r"cluster size is 2\^22"),
        (24, ">Q", 1 << 62, "too large for its clusters"),
        (24, ">Q", 1 << 40, "L1 table has 1 entries"),
        (32, ">I", 1, "AES encryption"),
        (32, ">I", 2, "LUKS encryption"),
        (32, ">I", 3, "encryption method is 3"),
        (36, ">I", 0xFFFFFFFF, "L1 table has 4294967295 entries"),
        (40, ">Q", 0, "L1 table"),
        (40, ">Q", 12345, "L1 table"),
        (40, ">Q", 1 << 60, "not inside the file"),
        (40, ">Q", 65536, "lies over its"),
        (48, ">Q", 1 << 60, "refcount table"),
        (56, ">I", 0, "refcount table has 0 clusters"),
        (56, ">I", 1 << 20, "refcount table has 1048576 clusters"),
        (60, ">I", 65537, "65537 snapshots"),
        (60, ">I", 60000, "record of its snapshot"),
        (64, ">Q", 7, "snapshot table"),
        (72, ">Q", 1 << 2, "does not name its external data file"),
        (72, ">Q", 1 << 17, r"unknown feature \(incompatible bit 17\)"),
        (72, ">Q", 1 << 3, "compression type 0 contradicts"),
        (96, ">I", 7, r"refcounts have 2\^7 bits"),
        (100, ">I", 100, "header has 100 bytes"),
        (100, ">I", 1 << 30, "header has 1073741824 bytes"),
        (104, ">B", 9, "unknown compression"),
        (112, ">II", (0x12345678, 1 << 31), "header extension 0x12345678"),
    ],
)
def test_a_header_field_that_cannot_be(
    tmp_path: Path, image_bytes: bytearray, offset: int, form: str, value: int | tuple[int, ...], words: str
) -> None:
    struct.pack_into(form, image_bytes, offset, *(value if isinstance(value, tuple) else (value,)))
    with pytest.raises(ImageError, match=words):
        raise refusal(tmp_path, image_bytes)
    refusal(tmp_path, image_bytes, writable=True)


def test_an_unknown_feature_has_the_name_that_the_image_gives(tmp_path: Path, image_bytes: bytearray) -> None:
    struct.pack_into(">Q", image_bytes, 72, 1 << 40)
    record = struct.pack(">BB46s", 0, 40, b"time travel")
    image_bytes[112 : 112 + 8 + 48] = struct.pack(">II", 0x6803F857, 48) + record
    assert 'feature "time travel" (incompatible bit 40)' in refusal(tmp_path, image_bytes).message


@pytest.mark.parametrize("length", [4, 30, 71, 72, 103])
def test_an_image_cut_off_in_its_header(tmp_path: Path, image_bytes: bytearray, length: int) -> None:
    assert "cut off inside the header" in refusal(tmp_path, image_bytes[:length]).message


def test_an_image_cut_off_later(tmp_path: Path, image_bytes: bytearray) -> None:
    assert "not inside the file" in refusal(tmp_path, image_bytes[: 3 * 65536]).message


def test_a_corrupt_image_can_only_be_read(tmp_path: Path, image_bytes: bytearray) -> None:
    struct.pack_into(">Q", image_bytes, 72, 2)
    assert "marked corrupt" in refusal(tmp_path, image_bytes, writable=True).message
    with Image.open(tmp_path / "bad.img") as image:
        assert image.read(0, MIB) == pattern(MIB)
        assert image.check().corruptions


def test_a_config_of_a_later_version(tmp_path: Path, image_bytes: bytearray) -> None:
    struct.pack_into(">I", image_bytes, image_bytes.index(b"imgvmcfg") + 8, 2)
    path = tmp_path / "later.img"
    path.write_bytes(image_bytes)
    with Image.open(path) as image, pytest.raises(ImageError, match="version 2; this imgvm knows version 1"):
        image.config_blobs()


def test_a_cluster_that_is_metadata_is_not_written(tmp_path: Path, image_bytes: bytearray) -> None:
    (l1,) = struct.unpack_from(">Q", image_bytes, 40)
    l2 = struct.unpack_from(">Q", image_bytes, l1)[0] & ~(1 << 63)
    struct.pack_into(">Q", image_bytes, l2, 1 << 63 | l1)  # the disk's first cluster: the L1 table
    path = tmp_path / "alias.img"
    path.write_bytes(image_bytes)
    with Image.open(path, writable=True) as image:
        with pytest.raises(ImageError, match="counted as something else"):
            image.write(0, b"gotcha")
        assert image.check().corruptions
    with Image.open(path) as image:
        assert image.read(65536, 10) == pattern(MIB)[65536 : 65536 + 10]
