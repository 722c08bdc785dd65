# SPDX-License-Identifier: MIT
"""Contents that are read before they are asked for, digests and disks that are made meanwhile."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from imgvm.errors import ImageError, PackError
from imgvm.pack.digest import Digest
from imgvm.pack.disk import Target, ascending
from imgvm.pack.from_dir import HostFile
from imgvm.pack.read_ahead import ReadAhead
from imgvm.pack.tree import Content, Span, Text
from imgvm.qcow2 import Check, Image

KIB, MIB = 1 << 10, 1 << 20


def host_file(path: Path, data: bytes) -> HostFile:
    path.write_bytes(data)
    return HostFile(os.fsencode(path), len(data))


def contents(folder: Path) -> list[Content]:
    rng = random.Random(1)
    found: list[Content] = [host_file(folder / str(i), rng.randbytes(rng.randrange(20 * KIB))) for i in range(300)]
    found.insert(7, Text(b"at hand"))
    found.insert(8, Text(b""))
    found.insert(9, host_file(folder / "empty", b""))
    found.insert(100, host_file(folder / "large", rng.randbytes(3 * MIB + 5)))
    found.insert(150, host_file(folder / "even", rng.randbytes(2 * MIB)))
    (folder / "sparse").write_bytes(b"a" * 5000 + bytes(2 * MIB) + b"b" * 70)
    found.insert(200, HostFile(os.fsencode(folder / "sparse"), 2 * MIB + 5070, ((0, 5000), (2 * MIB + 5000, 70))))
    archive = (folder / "archive").open("w+b")
    archive.write(rng.randbytes(4 * MIB))
    archive.flush()
    found.insert(30, Span.whole(archive, 512, 700))
    found.insert(60, Span(archive, 3 * MIB, ((0, 1000, 4096), (2 * MIB, 512, 3 * MIB))))
    found.append(Span.whole(archive, MIB, 2 * MIB + 1))
    return found


def whole(content: Content) -> bytes:
    return b"".join(content.pieces())


def test_it_reads_what_is_there(tmp_path: Path) -> None:
    rows = contents(tmp_path)
    with ReadAhead(rows) as ahead:
        for content in rows:
            pieces = list(ahead.pieces(content))
            assert b"".join(pieces) == whole(content)
            ends = [offset + length for offset, length in content.extents()]
            at = [sum(map(len, pieces[: index + 1])) for index in range(len(pieces))]
            kept = [sum(length for _, length in content.extents()[: index + 1]) for index in range(len(ends))]
            assert set(kept) <= set(at), "no piece reaches over a hole"


def test_files_in_their_turn_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [content for content in contents(tmp_path) if content.size_bytes and not isinstance(content, Text)]
    wanted = [whole(content) for content in rows]

    def refuse(content: Content) -> Iterator[bytes]:
        raise AssertionError

    monkeypatch.setattr(HostFile, "pieces", refuse)
    monkeypatch.setattr(Span, "pieces", refuse)
    with ReadAhead(rows) as ahead:
        assert [b"".join(ahead.pieces(content)) for content in rows] == wanted


@pytest.mark.parametrize("seed", range(3))
def test_another_order_reads_the_same(tmp_path: Path, seed: int) -> None:
    rows = contents(tmp_path)
    others = random.Random(seed).sample(rows, len(rows))
    with ReadAhead(rows) as ahead:
        for content in others:
            assert b"".join(ahead.pieces(content)) == whole(content)


def test_nothing_at_all() -> None:
    with ReadAhead([]) as ahead:
        assert b"".join(ahead.pieces(Text(b"more"))) == b"more"


@pytest.mark.parametrize("change", ["shorter", "longer", "gone", "link"])
@pytest.mark.parametrize("size", [3000, 3 * MIB])
def test_a_file_that_changed(tmp_path: Path, change: str, size: int) -> None:
    before, content = host_file(tmp_path / "before", b"1"), host_file(tmp_path / "file", b"2" * size)
    path = tmp_path / "file"
    if change in {"shorter", "longer"}:
        os.truncate(path, size - 1 if change == "shorter" else size + 1)
    else:
        path.unlink()
    if change == "link":
        path.symlink_to("before")
    error = PackError if change in {"shorter", "longer"} else OSError
    with ReadAhead([before, content]) as ahead:
        assert list(ahead.pieces(before)) == [b"1"]
        with pytest.raises(error) as caught:
            list(ahead.pieces(content))
    if isinstance(caught.value, OSError):
        assert caught.value.filename == os.fsencode(path)
    else:
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("sizes", [[], [0], [1, 2, 3], [MIB], [MIB - 1, 2, 5 * MIB], [300 * KIB] * 40])
def test_a_digest_of_pieces(sizes: list[int]) -> None:
    rng, digest, wanted = random.Random(2), Digest(), sha256()
    for size in sizes:
        data = rng.randbytes(size)
        digest.update(data)
        wanted.update(data)
    assert digest.hexdigest() == wanted.hexdigest()


@pytest.mark.parametrize("seed", range(5))
def test_a_disk_from_its_start_to_its_end(tmp_path: Path, seed: int) -> None:
    """Against a plain copy of the same bytes: what is zero has no cluster."""
    rng = random.Random(seed)
    size, cluster = 9 * MIB + 512 * rng.randrange(100), rng.choice([4096, 65536, 2 * MIB])
    model = bytearray(size)
    with Image.create(tmp_path / "img", size, cluster_bytes=cluster) as image:
        with ascending(Target(image, cluster)) as out:
            at = 0
            while at < size:
                data = rng.choice([rng.randbytes, bytes])(min(rng.choice([1, 700, 5000, 80_000, 3 * MIB]), size - at))
                out.write(at, data)
                model[at : at + len(data)] = data
                at += len(data) + rng.choice([0, 0, 100, 70_000, 2 * MIB])
        assert image.read(0, size) == model
        assert image.check() == Check(0, 0)
    with Image.open(tmp_path / "img") as image:
        assert image.read(0, size) == model
        for start, length, zero in image.extents():
            assert zero or any(model[start : start + length])


def test_errors_of_the_image_come_through(tmp_path: Path) -> None:
    with Image.create(tmp_path / "img", 64 * MIB):
        pass
    with Image.open(tmp_path / "img") as image:
        with pytest.raises(ImageError, match="reading only"), ascending(Target(image, 65536)) as out:
            out.write(0, b"x")
        with pytest.raises(ImageError, match="reading only"), ascending(Target(image, 65536)) as out:
            for at in range(0, 32 * MIB, MIB):
                out.write(at, b"y" * MIB)
    with Image.open(tmp_path / "img", writable=True) as image:
        with pytest.raises(ZeroDivisionError), ascending(Target(image, 65536)) as out:
            out.write(0, b"x" * 20 * MIB)
            raise ZeroDivisionError
        assert image.check() == Check(0, 0)
