# SPDX-License-Identifier: MIT
"""Every feature of the format with every cluster size, against QEMU's tools, both ways: an image that one of them made,
read and written by the other in turns, with `qemu-img check` and a comparison of the whole disk after each turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import MIB, pattern

from imgvm.errors import ImageError
from imgvm.qcow2 import Image

Tool = Callable[..., str]
DISK = 6 * MIB + 512 * 7
CLUSTERS = [512 << n for n in range(13)]

# name: our options, QEMU's options, clusters that allow it.
FEATURES: dict[str, tuple[dict[str, Any], str, Callable[[int], bool]]] = {
    "v3": ({}, "", lambda size: True),
    "v2": ({"version": 2}, "compat=0.10", lambda size: True),
    "extended-l2": ({"extended_l2": True}, "extended_l2=on", lambda size: size >= 16384),
    "zstd": ({"compression": "zstd"}, "compression_type=zstd", lambda size: True),
    "lazy": ({"lazy_refcounts": True}, "lazy_refcounts=on", lambda size: True),
    "data-file": ({"data_file": "a.data"}, "data_file=a.data", lambda size: True),
    "raw-data-file": (
        {"data_file": "a.data", "data_file_raw": True}, "data_file=a.data,data_file_raw=on", lambda size: True,
    ),
    **{
        f"refcounts-{bits}": ({"refcount_bits": bits}, f"refcount_bits={bits}", lambda size: True)
        for bits in (1, 2, 4, 8, 16, 32, 64)
    },
    "extended-l2-zstd": (
        {"extended_l2": True, "compression": "zstd"}, "extended_l2=on,compression_type=zstd", lambda size: size >= 16384,
    ),
    "extended-l2-data-file": (
        {"extended_l2": True, "data_file": "a.data"}, "extended_l2=on,data_file=a.data", lambda size: size >= 16384,
    ),
}  # fmt: skip
CASES = [(name, size) for name, (_, _, fits) in FEATURES.items() for size in CLUSTERS if fits(size)]
QUICK = {512, 16384, 65536, 2 * MIB}
BY_CLUSTER = [
    pytest.param(size, marks=[] if size in (512, 65536) else pytest.mark.nightly) for size in CLUSTERS
]
PARAMETERS = [
    pytest.param(name, size, id=f"{name}-{size}", marks=[] if size in QUICK else pytest.mark.nightly)
    for name, size in CASES
]


class Disk:
    """An image, what its disk should hold, and the two that change it."""

    def __init__(self, folder: Path, qemu_img: Tool, qemu_io: Tool, seed: str, cluster: int) -> None:
        self.folder, self.path, self.cluster = folder, folder / "a.img", cluster
        self.qemu_img, self.qemu_io = qemu_img, qemu_io
        self.rng = random.Random(seed)
        self.model = bytearray(DISK)
        self.can_compress, self.has_zeros = "data-file" not in seed, "v2" not in seed

    def span(self) -> tuple[int, int]:
        size = self.rng.choice([512, 1024, 4096, 65536, 70_144, 1 << 20])
        return self.rng.randrange((DISK - size) // 512 + 1) * 512, size

    def ours(self, steps: int = 12) -> None:
        with Image.open(self.path, writable=True) as image:
            assert image.read(0, DISK) == self.model
            for _ in range(steps):
                at, size = self.span()
                match self.rng.randrange(6):
                    case 0:
                        image.zero(at, size, give_back=self.rng.random() < 0.5)
                        self.model[at : at + size] = bytes(size)
                    case 1:
                        image.discard(at, size)
                        after = image.read(at, size)
                        assert all(new in (0, old) for new, old in zip(after, self.model[at : at + size], strict=True))
                        self.model[at : at + size] = after
                    case 2 if self.can_compress:
                        cluster = image.info.cluster_bytes
                        at -= at % cluster
                        size = min(-(-size // cluster) * cluster, DISK - at)
                        data = (self.rng.randbytes(64) * (size // 64 + 1))[:size]
                        image.write_compressed(at, data)
                        self.model[at : at + size] = data
                    case _:
                        self.model[at : at + size] = self.rng.randbytes(size)
                        image.write(at, self.model[at : at + size])
            assert image.read(0, DISK) == self.model
            assert image.check().clean
        self.compare()

    def theirs(self, steps: int = 8) -> None:
        commands: list[str] = []
        for _ in range(steps):
            at, size = self.span()
            value = self.rng.randrange(1, 256)
            match self.rng.randrange(4):
                case 0:
                    commands += ["-c", f"write -z {at} {size}"]
                    value = 0
                case 1:
                    commands += ["-c", f"write -z -u {at} {size}"]
                    value = 0
                case _:
                    commands += ["-c", f"write -P {value} {at} {size}"]
            self.model[at : at + size] = bytes([value]) * size
        self.qemu_io(*commands, self.path.name)
        if self.can_compress and self.has_zeros:
            self.theirs_compressed()
        self.compare()

    def theirs_compressed(self) -> None:
        """QEMU compresses a cluster at a time, where nothing is allocated; making room is a run of its own."""
        spans = [(at, min(self.cluster, DISK - at)) for at in self.rng.sample(range(0, DISK, self.cluster), 2)]
        values = [self.rng.randrange(1, 256) for _ in spans]
        self.qemu_io(*(word for at, size in spans for word in ("-c", f"write -z -u {at} {size}")), self.path.name)
        writes = [f"write -c -P {value} {at} {size}" for value, (at, size) in zip(values, spans, strict=True)]
        self.qemu_io(*(word for write in writes for word in ("-c", write)), self.path.name)
        for value, (at, size) in zip(values, spans, strict=True):
            self.model[at : at + size] = bytes([value]) * size

    def compare(self) -> None:
        self.qemu_img("check", self.path.name)
        assert self.raw() == self.model

    def raw(self, *options: object) -> bytes:
        self.qemu_img("convert", *options, "-O", "raw", self.path.name, "out.raw")
        return (self.folder / "out.raw").read_bytes()


@pytest.mark.parametrize(("feature", "cluster"), PARAMETERS)
def test_made_here(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, feature: str, cluster: int) -> None:
    disk = Disk(tmp_path, qemu_img, qemu_io, f"ours-{feature}-{cluster}", cluster)
    Image.create(disk.path, DISK, cluster_bytes=cluster, **FEATURES[feature][0]).close()
    for _ in range(2):
        disk.ours()
        disk.theirs()
    disk.ours(0)
    if feature == "raw-data-file":
        assert (tmp_path / "a.data").read_bytes() == disk.model


@pytest.mark.parametrize(("feature", "cluster"), PARAMETERS)
def test_made_there(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, feature: str, cluster: int) -> None:
    disk = Disk(tmp_path, qemu_img, qemu_io, f"theirs-{feature}-{cluster}", cluster)
    options = ",".join(filter(None, [f"cluster_size={cluster}", FEATURES[feature][1]]))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, disk.path.name, DISK)
    for _ in range(2):
        disk.theirs()
        disk.ours()
    if feature == "raw-data-file":
        data = (tmp_path / "a.data").read_bytes()
        assert data == disk.model.ljust(len(data), b"\0")  # QEMU rounds its size up


@pytest.mark.parametrize("cluster", BY_CLUSTER)
@pytest.mark.parametrize("backing", ["qcow2", "raw"])
@pytest.mark.parametrize("extended", [False, True])
def test_overlays(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, cluster: int, backing: str, extended: bool) -> None:
    if extended and cluster < 16384:
        pytest.skip("subclusters need larger clusters")
    disk = Disk(tmp_path, qemu_img, qemu_io, f"overlay-{cluster}-{backing}-{extended}", cluster)
    base = pattern(3 * MIB)
    if backing == "raw":
        (tmp_path / "base").write_bytes(base)
    else:
        with Image.create(tmp_path / "base", 3 * MIB) as image:
            image.write(0, base)
    Image.create(
        disk.path, DISK, cluster_bytes=cluster, extended_l2=extended, backing_file="base", backing_format=backing
    ).close()
    disk.model[: 3 * MIB] = base
    for _ in range(3):
        disk.ours()
        disk.theirs()
    disk.ours(0)


@pytest.mark.parametrize("cluster", BY_CLUSTER)
@pytest.mark.parametrize("made_by", ["us", "qemu"])
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_overlays_of_compressed_images(
    tmp_path: Path, qemu_img: Tool, qemu_io: Tool, cluster: int, made_by: str, kind: str
) -> None:
    """Three deep, of several cluster sizes, each link made by the other one."""
    disk = Disk(tmp_path, qemu_img, qemu_io, f"deep-{cluster}-{made_by}-{kind}", cluster)
    base = (b"to be compressed\n" * 200_000)[: 3 * MIB]
    (tmp_path / "raw").write_bytes(base)
    options = f"cluster_size={cluster},compression_type={kind}"
    if made_by == "qemu":
        qemu_img("convert", "-c", "-O", "qcow2", "-o", options, "raw", "base")
        Image.create(tmp_path / "middle", 4 * MIB, backing_file="base", backing_format="qcow2").close()
        backing = ("-b", "middle", "-F", "qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, *backing, disk.path.name, DISK)
    else:
        with Image.create(tmp_path / "base", len(base), cluster_bytes=cluster, compression=kind) as image:
            image.write_compressed(0, base)
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle", 4 * MIB)
        Image.create(
            disk.path, DISK, cluster_bytes=cluster, compression=kind, backing_file="middle", backing_format="qcow2"
        ).close()
    disk.model[: len(base)] = base
    disk.ours()
    disk.theirs()
    disk.ours(0)


def made(folder: Path, qemu_img: Tool, qemu_io: Tool, what: str, features: str, cluster: int) -> Disk:
    """An empty image of ours."""
    if features == "extended-l2":
        cluster = max(cluster, 16384)
    disk = Disk(folder, qemu_img, qemu_io, f"{what}-{features}-{cluster}", cluster)
    Image.create(disk.path, DISK, cluster_bytes=cluster, **FEATURES[features][0]).close()
    return disk


@pytest.mark.parametrize("features", ["v3", "v2", "extended-l2", "zstd", "refcounts-8", "refcounts-64"])
@pytest.mark.parametrize("cluster", BY_CLUSTER)
def test_snapshots(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, features: str, cluster: int) -> None:
    disk = made(tmp_path, qemu_img, qemu_io, "snapshots", features, cluster)
    kept: dict[str, bytes] = {}
    for turn in range(4):
        disk.ours()
        if turn % 2:
            qemu_img("snapshot", "-c", f"s{turn}", disk.path.name)
        else:
            with Image.open(disk.path, writable=True) as image:
                image.create_snapshot(f"s{turn}", date=turn, state=pattern(100_000 * turn, turn))
                assert image.check().clean
        kept[f"s{turn}"] = bytes(disk.model)
        disk.compare()
        disk.theirs()
        for name, content in kept.items():
            assert disk.raw("-l", f"snapshot.name={name}") == content
    with Image.open(disk.path, writable=True) as image:
        for name, content in kept.items():
            assert image.read_snapshot(name, 0, DISK) == content
        assert image.read_snapshot("s2", 0, 200_000, state=True) == pattern(200_000, 2)
        image.apply_snapshot("s1")
        disk.model[:] = kept["s1"]
        assert image.read(0, DISK) == disk.model
        assert image.check().clean
        image.delete_snapshot("s2")
        assert image.check().clean
        with pytest.raises(ImageError, match="no snapshot s2"):
            image.delete_snapshot("s2")
        with pytest.raises(ImageError, match="already"):
            image.create_snapshot("s1", date=0)
    disk.compare()
    qemu_img("snapshot", "-a", "s0", disk.path.name)
    disk.model[:] = kept["s0"]
    disk.ours()
    qemu_img("snapshot", "-d", "s0", disk.path.name)
    with Image.open(disk.path, writable=True) as image:
        image.delete_snapshot("s1")
        image.delete_snapshot("s3")
        assert image.snapshots() == ()
        assert image.check().clean
    disk.compare()


def test_no_snapshot_where_refcounts_or_data_forbid_it(tmp_path: Path) -> None:
    with Image.create(tmp_path / "a.img", DISK, refcount_bits=1) as image:
        image.write(0, b"x" * 100_000)
        with pytest.raises(ImageError, match="refcounts of 1 bits"):
            image.create_snapshot("s", date=0)
        assert image.check().clean
    with Image.create(tmp_path / "b.img", DISK, data_file="b.data") as image:
        for action in (lambda: image.create_snapshot("s", date=0), lambda: image.set_config({"a": b""}, date=0)):
            with pytest.raises(ImageError, match="data in another file"):
                action()
        with pytest.raises(ImageError, match="cannot be compressed"):
            image.write_compressed(0, bytes(65536))
        assert image.check().clean


@pytest.mark.parametrize("features", ["v3", "v2", "extended-l2", "raw-data-file"])
@pytest.mark.parametrize("cluster", BY_CLUSTER)
def test_resize(tmp_path: Path, qemu_img: Tool, qemu_io: Tool, features: str, cluster: int) -> None:
    disk = made(tmp_path, qemu_img, qemu_io, "resize", features, cluster)
    disk.ours()
    model = disk.model
    for size in (DISK + 512, 40 * MIB, 5 * MIB + 1536, MIB, 9 * MIB):
        with Image.open(disk.path, writable=True) as image:
            image.resize(size)
            model = model[:size] + bytes(max(size - len(model), 0))
            assert image.info.disk_bytes == size
            assert image.read(0, size) == model
            image.write(size - 3000, b"\xaa" * 3000)
            model[-3000:] = b"\xaa" * 3000
            assert image.check().clean
        disk.model = model
        disk.compare()
        if features == "raw-data-file":
            assert (tmp_path / "a.data").stat().st_size == size
    with Image.open(disk.path, writable=True) as image, pytest.raises(ImageError, match="whole sectors"):
        image.resize(1000)


def test_growing_over_a_longer_backing_file_shows_nothing_of_it(tmp_path: Path, qemu_img: Tool) -> None:
    with Image.create(tmp_path / "base", 4 * MIB) as image:
        image.write(0, pattern(4 * MIB))
    with Image.create(tmp_path / "a.img", MIB + 512, backing_file="base", backing_format="qcow2") as image:
        image.write(MIB, b"x")  # copies the rest of that cluster
        image.resize(6 * MIB)
        expected = pattern(4 * MIB)[:MIB] + b"x" + pattern(4 * MIB)[MIB + 1 : MIB + 512] + bytes(5 * MIB - 512)
        assert image.read(0, 6 * MIB) == expected
        assert image.check().clean
    qemu_img("convert", "-O", "raw", "a.img", "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == expected


def test_discard_and_shrink_give_space_back(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    with Image.create(path, 64 * MIB) as image:
        image.write(0, pattern(32 * MIB))
        image.flush()
        full = path.stat().st_blocks * 512
        image.discard(0, 16 * MIB)
        image.flush()
        assert path.stat().st_blocks * 512 < full - 15 * MIB
        image.write(0, pattern(8 * MIB))  # into what was given back
        image.flush()
        assert path.stat().st_size < 33 * MIB
        image.resize(4 * MIB)
        assert path.stat().st_blocks * 512 < 6 * MIB
        assert image.read(0, 4 * MIB) == pattern(8 * MIB)[: 4 * MIB]
        assert image.check().clean


@pytest.mark.parametrize("threads", [1, 3])
def test_compressed_bytes_do_not_depend_on_threads(tmp_path: Path, qemu_img: Tool, threads: int) -> None:
    data = (b"some text that repeats itself\n" * 400_000)[: 9 * MIB] + pattern(MIB) + bytes(2 * MIB)
    for name, count in (("one", 1), ("some", threads)):
        with Image.create(tmp_path / name, len(data)) as image:
            image.write_compressed(0, data, threads=count)
            assert image.read(0, len(data)) == data
            assert image.check().clean
    assert (tmp_path / "one").read_bytes() == (tmp_path / "some").read_bytes()
    assert (tmp_path / "one").stat().st_size < 2 * MIB
    qemu_img("check", "one")
    qemu_img("convert", "-O", "raw", "one", "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == data
