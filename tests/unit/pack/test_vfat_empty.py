# SPDX-License-Identifier: MIT
"""Empty FAT file systems of all sizes, held against dosfstools, blkid and mtools."""

from __future__ import annotations

from pathlib import Path

import pytest
from file_trees import has, run

from imgvm.config import Config
from imgvm.errors import PackError
from imgvm.pack import pack, vfat_empty
from imgvm.qcow2 import Image

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TEXT = "version: 1\nname: box\nboot: {kernel: {bundled: true}}\ndisks: [{name: my-data_and_more, size: %s, filesystem: vfat}]\n"

pytestmark = pytest.mark.skipif(not has("fsck.vfat", "blkid"), reason="dosfstools or blkid is not installed")


def made(path: Path, size: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
        for offset, data in vfat_empty.pieces("my-data_and_more", size, "seed", 1_700_000_000):
            stream.seek(offset)
            stream.write(data)
    return path


@pytest.mark.parametrize(
    ("size", "version"),
    [
        (MIB, 12), (MIB + 3584, 12), (8 * MIB - 512, 12), (8 * MIB, 16), (100 * MIB, 16), (512 * MIB - 512, 16),
        (512 * MIB, 32), (8 * GIB, 32), (8 * GIB + 512, 32), (40 * GIB, 32), (2 * GIB * KIB - 512, 32),
    ],
)  # fmt: skip
def test_every_size(size: int, version: int, tmp_path: Path) -> None:
    path = made(tmp_path / "fat.img", size)
    run("fsck.vfat", "-n", path)
    facts = set(run("blkid", "-p", "-o", "export", path).split())
    assert {"LABEL=MY-DATA_AND", "TYPE=vfat", f"VERSION=FAT{version}"} <= facts
    assert path.stat().st_blocks < 200


@pytest.mark.skipif(not has("mcopy", "mtype"), reason="mtools is not installed")
@pytest.mark.parametrize("size", [MIB, 8 * MIB, 40 * MIB, 600 * MIB])
def test_others_write_to_it(size: int, tmp_path: Path) -> None:
    path = made(tmp_path / "fat.img", size)
    text = "a line of text\n" * 20000
    (tmp_path / "text").write_text(text)
    run("mcopy", "-i", path, tmp_path / "text", "::a long name.txt")
    assert run("mtype", "-i", path, "::a long name.txt") == text
    run("fsck.vfat", "-n", path)


def test_packed(tmp_path: Path) -> None:
    config = Config.from_text(TEXT % "600MiB", "box.yaml", tmp_path)
    pack(config, tmp_path / "box.img")
    with Image.open(tmp_path / "box.img") as image:
        assert image.check().clean
        head = image.read(0, MIB)
    assert head[82:87] == b"FAT32" and head[:512] == head[6 * 512 : 7 * 512]
    pack(config, tmp_path / "again.img")
    assert (tmp_path / "box.img").read_bytes() == (tmp_path / "again.img").read_bytes()
    for size in ("512KiB", "2TiB"):
        with pytest.raises(PackError, match=r"disks\[0\].size: a FAT file system has at least 1MiB, and less than 2TiB"):
            pack(Config.from_text(TEXT % size, "box.yaml", tmp_path), tmp_path / "no.img")
