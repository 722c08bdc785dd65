# SPDX-License-Identifier: MIT
"""The EROFS writer against erofs-utils and, where it may be asked, the host's kernel."""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from file_trees import (
    ANY_TREE,
    GIB,
    KIB,
    MIB,
    Longer,
    Sparse,
    contents,
    file,
    has,
    read,
    run,
    symlink,
    tree_of,
    write_disk,
)
from hypothesis import given, settings

from imgvm.errors import PackError
from imgvm.pack.erofs import Erofs
from imgvm.pack.erofs_lz4 import Store
from imgvm.pack.tree import FileTree, Node, Text

pytestmark = pytest.mark.skipif(not has("fsck.erofs", "dump.erofs"), reason="erofs-utils is not installed")


def write(path: Path, tree: FileTree, time_sec: int = 0, *, compress: bool = False) -> Erofs:
    """Writes a tree as a raw disk, and has fsck.erofs look at all of it."""
    with ExitStack() as stack:
        store = Store(stack) if compress else None
        fs = Erofs(tree, label="root", seed="test", time_sec=time_sec, read=read, store=store)
        write_disk(path, fs)
    assert "<E>" not in run("fsck.erofs", "--extract", path)
    return fs


def unpacked(image: Path, folder: Path) -> dict[str, bytes]:
    """All files and links of an image, read by fsck.erofs."""
    run("fsck.erofs", f"--extract={folder}", image)
    return contents(folder)


def facts(image: Path, path: str) -> str:
    return run("dump.erofs", f"--path={path}", image)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """The image as the host's kernel sees it."""
    folder.mkdir()
    words = ["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True) if has("mount") else None
    if done is None or done.returncode:
        pytest.skip("this host cannot mount an erofs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_files_of_every_kind(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    rows = {
        "empty": b"", "small": b"text\n", "block": b"b" * 4096, "more": b"m" * 4097, "large": os.urandom(3 * MIB + 1),
        "last inline": b"i" * (4096 - 32), "not inline": b"n" * (4096 - 31), "!before the dots": b"!",
        "a/b/c/deep": b"deep", "a/" + "n" * 255: b"a long name", "é/ü": "ß".encode(),
    }  # fmt: skip
    for name, data in rows.items():
        tree.put(name.encode(), file(data))
    links = {"short": b"small", "far": b"z/" * 1999 + b"z"}
    for name, target in links.items():
        tree.put(name.encode(), symlink(target))
    write(image, tree)
    assert unpacked(image, tmp_path / "out") == rows | links
    assert "Layout: 2" in facts(image, "/last inline") and "Layout: 0" in facts(image, "/not inline")
    with mounted(image, tmp_path / "mnt") as folder:
        assert contents(folder) == rows | links


def test_what_an_inode_says(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    one = Node(stat.S_IFREG | 0o4751, uid=70000, gid=80000, mtime_sec=1 << 33, content=Text(b"1"))
    tree.put(b"one", one)
    tree.put(b"sub/two", one)
    tree.put(b"dated", Node(stat.S_IFREG | 0o600, mtime_sec=86400, content=Text(b"")))
    tree.put(b"null", Node(stat.S_IFCHR | 0o666, device=(1, 3)))
    tree.put(b"disk", Node(stat.S_IFBLK | 0o660, device=(259, 300)))
    tree.put(b"fifo", Node(stat.S_IFIFO | 0o600))
    tree.put(b"socket", Node(stat.S_IFSOCK | 0o600))
    write(image, tree, time_sec=86400)
    said = facts(image, "/one")
    assert re.search(r"Uid: 70000 +Gid: 80000 +Access: 0751", said) and "Links: 2" in said
    assert "Inode size: 64" in said and facts(image, "/sub/two").splitlines()[1:] == said.splitlines()[1:]
    assert "Inode size: 32" in facts(image, "/dated") and "1970-01-02" in facts(image, "/dated")
    summary = run("dump.erofs", "-s", image)
    assert re.search(r"inode count: +8\b", summary) and "sb_csum" in summary and "chunked" not in summary
    assert has("blkid") and {"LABEL=root", "TYPE=erofs"} <= set(run("blkid", "-p", "-o", "export", image).split())
    with mounted(image, tmp_path / "mnt") as folder:
        first, second = (folder / "one").stat(), (folder / "sub/two").stat()
        assert (first.st_ino, first.st_nlink, first.st_mtime) == (second.st_ino, 2, 1 << 33)
        assert (first.st_mode, first.st_uid, first.st_gid) == (stat.S_IFREG | 0o4751, 70000, 80000)
        assert (folder.stat().st_nlink, (folder / "sub").stat().st_nlink) == (3, 2)
        for name, kind, device in (("null", stat.S_ISCHR, (1, 3)), ("disk", stat.S_ISBLK, (259, 300))):
            found = (folder / name).stat()
            assert kind(found.st_mode) and (os.major(found.st_rdev), os.minor(found.st_rdev)) == device
        assert (folder / "fifo").is_fifo() and (folder / "socket").is_socket()


def test_extended_attributes(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, who)
        for tag, bits, who in [(1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1)]
    )
    rows = {
        "few": {"security.capability": capability, "user.a": b"1"},
        "many": {f"user.number-{index}": bytes([index]) * index * 9 for index in range(60)},  # more than a block
        "acl": {"system.posix_acl_access": acl, "trusted.empty": b""},
    }
    for name, xattrs in rows.items():
        tree.put(name.encode(), Node(stat.S_IFREG | 0o644, content=Text(b"x" * 100), xattrs=xattrs))
    tree.root.xattrs = {"user.of-the-root": b"v" * 3000}
    tree.put(b"long-" + b"n" * 200, file(b""))
    write(image, tree)
    assert "Layout: 2" in facts(image, "/few") and "Layout: 0" in facts(image, "/many")
    with mounted(image, tmp_path / "mnt") as folder:
        for name, xattrs in rows.items():
            path = folder / name
            assert {key: os.getxattr(path, key) for key in os.listxattr(path)} == xattrs
            assert path.read_bytes() == b"x" * 100
        assert os.getxattr(folder, "user.of-the-root") == b"v" * 3000 and len(list(folder.iterdir())) == 4
    for wrong, words in (
        ({"other.x": b""}, "of no kind"), ({"user.": b""}, "of no kind"), ({"user.x": b"v" * 65536}, "65535"),
        ({f"user.{index}": b"v" * 60000 for index in range(5)}, "256 KiB"),
    ):  # fmt: skip
        tree = FileTree()
        tree.put(b"bad", Node(stat.S_IFREG | 0o644, xattrs=wrong))
        with pytest.raises(PackError, match=f"^/bad: its extended attribute.*{words}"):
            Erofs(tree, label="", seed="")


@pytest.mark.parametrize("count", [20, 300, 5000])
def test_folders_of_many_names(tmp_path: Path, count: int) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    rows = {f"{index:x}-{'é' * (index % 50)}".ljust(index % 150, "x"): b"%d" % index for index in range(count)}
    for name, data in rows.items():
        tree.put(b"many/" + name.encode(), file(data))
    write(image, tree)
    assert unpacked(image, tmp_path / "out") == {f"many/{name}": data for name, data in rows.items()}
    with mounted(image, tmp_path / "mnt") as folder:
        assert {path.name: path.read_bytes() for path in (folder / "many").iterdir()} == rows
        assert not (folder / "many/none").exists() and (folder / "many/..").samefile(folder)


def test_holes_and_sizes(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    holes = {index * 64 * KIB + index % 5: bytes([index % 255 + 1]) * 100 for index in range(3000)}
    inside = {100: b"a" * 50, 4000: b"b" * 200, 8500: b"c"}
    end = {0: b"x" * 5000, 10 * MIB: b"y" * 4097}
    rows = {"holes": Sparse(GIB, holes), "nothing": Sparse(5 * GIB, {}), "inside": Sparse(9000, inside), "end": Sparse(10 * MIB + 4097, end)}
    for name, content in rows.items():
        tree.put(name.encode(), Node(stat.S_IFREG | 0o644, content=content))
    tree.put(b"next", file(b"n" * 5000))
    fs = write(image, tree)
    assert fs.size_bytes < 3100 * 4 * KIB + MIB  # the blocks that hold something, and the lists of chunks
    assert "chunked_file" in run("dump.erofs", "-s", image)
    with mounted(image, tmp_path / "mnt") as folder:
        for name, pieces in (("holes", holes), ("end", end), ("inside", inside)):
            with (folder / name).open("rb") as stream:
                assert stream.seek(0, os.SEEK_END) == rows[name].size_bytes
                after = 0
                for offset, data in pieces.items():
                    stream.seek(after)
                    assert stream.read(min(offset - after, 64 * KIB)).strip(b"\0") == b""
                    stream.seek(offset)
                    assert stream.read(len(data)) == data
                    after = offset + len(data)
                assert stream.read(64 * KIB).strip(b"\0") == b""
        assert (folder / "nothing").stat().st_size == 5 * GIB and (folder / "next").read_bytes() == b"n" * 5000


def test_more_than_one_batch(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    rows = {f"{index % 7}/{index}": bytes([index % 256]) * (index * 37 % 9000) for index in range(2000)}
    for name, data in rows.items():
        tree.put(name.encode(), file(data))
    fs = write(image, tree)
    assert len(fs._batches) > 2
    assert unpacked(image, tmp_path / "out") == rows


SIZES = (4096, 4097, 8191, 8192, 8193, 12288, 20000, 65535, 65536, 65537, 2 * 65536 + 4095, 300_000, MIB, MIB + 1, 3 * MIB + 777)


def test_compressed(tmp_path: Path) -> None:
    """Contents of many lengths that compress, do not, and do in parts; holes; what begins and ends anywhere is read."""
    chance = random.Random(3)
    text = b"".join(b"%d is a line of text\n" % number for number in range(200_000))
    rows: dict[str, bytes] = {"small": b"small", "empty": b""}
    for size in SIZES:
        rows[f"text-{size}"], rows[f"noise-{size}"], rows[f"zeros-{size}"] = text[:size], chance.randbytes(size), bytes(size)
        rows[f"mixed-{size}"] = (chance.randbytes(size // 2) + text)[:size]
        rows[f"turns-{size}"] = b"".join(chance.randbytes(30_000) + text[:70_000] for _ in range(size // 100_000 + 1))[:size]

    def tree() -> FileTree:
        made, _ = tree_of(rows)
        made.put(b"holes", Node(stat.S_IFREG | 0o644, content=Sparse(10 * MIB, {index * 65536 + 7: b"data" * 99 for index in range(50)})))
        made.put(b"inside", Node(stat.S_IFREG | 0o644, content=Sparse(9000, {100: b"a" * 50, 4000: b"b" * 200, 8500: b"c"})))
        made.put(b"named", Node(stat.S_IFREG | 0o644, content=Text(text[:30_001]), xattrs={"user.a": b"1"}))
        return made

    image = tmp_path / "fs"
    fs = write(image, tree(), compress=True)
    plain = write(tmp_path / "plain", tree())
    assert fs.size_bytes < plain.size_bytes * 6 // 10
    assert "Layout: 1" in facts(image, f"/text-{MIB}") and "Layout: 0" in facts(image, f"/noise-{MIB}")
    assert "0padding big_pcluster" in run("dump.erofs", "-s", image)
    found = unpacked(image, tmp_path / "out")
    assert found.pop("named") == text[:30_001] and {name: found[name] for name in rows} == rows
    with mounted(image, tmp_path / "mnt") as folder:
        assert {name: (folder / name).read_bytes() for name in rows} == rows
        for name in ("holes", "inside", "named"):
            with mounted(tmp_path / "plain", tmp_path / f"plain-{name}") as other:
                assert (folder / name).read_bytes() == (other / name).read_bytes()
        for name, data in rows.items():
            with (folder / name).open("rb") as stream:
                for _ in range(5):
                    offset, count = chance.randrange(len(data) + 1), chance.randrange(1, 100_000)
                    stream.seek(offset)
                    assert stream.read(count) == data[offset : offset + count], (name, offset, count)
    write(tmp_path / "again", tree(), compress=True)
    assert (tmp_path / "again").read_bytes() == image.read_bytes()


def test_a_compressed_file_that_grows_meanwhile_is_seen(tmp_path: Path) -> None:
    tree = FileTree()
    tree.put(b"f", Node(stat.S_IFREG | 0o644, content=Longer(9000, {0: b"x" * 9000})))
    with pytest.raises(PackError, match="/f became longer"):
        write(tmp_path / "fs", tree, compress=True)


@pytest.mark.parametrize("compress", [False, True])
@settings(max_examples=25, deadline=None)
@given(rows=ANY_TREE)
def test_any_tree_comes_back(tmp_path_factory: pytest.TempPathFactory, compress: bool, rows: dict[str, bytes]) -> None:
    place = tmp_path_factory.mktemp("any")
    tree, wanted = tree_of(rows)
    write(place / "fs", tree, compress=compress)
    assert unpacked(place / "fs", place / "out") == wanted
    again = FileTree()
    for name in reversed(wanted):  # the order in which a tree was made leaves no trace
        again.put(name.encode(), file(wanted[name]))
    write(place / "again", again, compress=compress)
    assert (place / "again").read_bytes() == (place / "fs").read_bytes()
    shutil.rmtree(place)


def test_a_file_that_grows_meanwhile_is_seen() -> None:
    tree = FileTree()
    tree.put(b"f", Node(stat.S_IFREG | 0o644, content=Longer(10, {0: b"x" * 10})))
    with pytest.raises(PackError, match="/f became longer"):
        Erofs(tree, label="", seed="").write(lambda offset, data: None, read)
