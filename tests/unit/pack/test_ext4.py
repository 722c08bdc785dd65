# SPDX-License-Identifier: MIT
"""The ext4 writer against e2fsprogs: e2fsck finds nothing to say, and debugfs reads back what was put in."""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
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
from imgvm.pack.ext4 import Ext4
from imgvm.pack.ext4_folder import NameHash
from imgvm.pack.tree import FileTree, Node, Text, folder

pytestmark = pytest.mark.skipif(not has("e2fsck", "debugfs", "dumpe2fs"), reason="e2fsprogs is not installed")


def debugfs(image: Path, command: str) -> str:
    return run("debugfs", "-R", command, image)


def write(path: Path, tree: FileTree, **options: int) -> Ext4:
    """Writes a tree as a raw disk, and has e2fsck look at it."""
    fs = Ext4(tree, label="root", seed="test", **options)
    write_disk(path, fs)
    said = run("e2fsck", "-fn", path)
    assert "Pass 5" in said and "Fix" not in said, said
    return fs


def unpacked(image: Path, folder: Path) -> dict[str, bytes]:
    """All files and links of an image, read by debugfs."""
    folder.mkdir()
    subprocess.run([shutil.which("debugfs") or "/usr/sbin/debugfs", "-R", f"rdump / {folder}", image], capture_output=True, check=True)
    return contents(folder)


def test_files_of_every_kind(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    rows = {
        "empty": b"", "small": b"text\n", "block": b"b" * 4096, "more": b"m" * 4097, "large": os.urandom(3 * MIB + 1),
        "a/b/c/deep": b"deep", "a/" + "n" * 255: b"a long name", "é/ü": "ß".encode(),
    }  # fmt: skip
    for name, data in rows.items():
        tree.put(name.encode(), file(data))
    links = {"short": b"small", "edge59": b"x" * 59, "edge60": b"y" * 60, "far": b"z/" * 1999 + b"z"}
    for name, target in links.items():
        tree.put(name.encode(), symlink(target))
    write(image, tree)
    assert unpacked(image, tmp_path / "out") == rows | links


def test_what_an_inode_says(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    one = Node(stat.S_IFREG | 0o4751, uid=70000, gid=80000, mtime_sec=1 << 32, content=Text(b"1"))
    tree.put(b"one", one)
    tree.put(b"sub/two", one)
    tree.put(b"late", Node(stat.S_IFREG | 0o600, mtime_sec=0x9000_0000, content=Text(b"")))
    tree.put(b"null", Node(stat.S_IFCHR | 0o666, device=(1, 3)))
    tree.put(b"disk", Node(stat.S_IFBLK | 0o660, device=(259, 300)))
    tree.put(b"fifo", Node(stat.S_IFIFO | 0o600))
    write(image, tree)
    said = debugfs(image, "stat /one")
    assert re.search(r"Type: regular +Mode: +04751", said) and "User: 70000   Group: 80000" in said
    assert "Links: 2" in said and "mtime: 0x00000000:00000001" in said
    assert "mtime: 0x90000000:00000001" in debugfs(image, "stat /late")
    assert debugfs(image, "stat /sub/two") == said
    assert "Device major/minor number: 01:03" in debugfs(image, "stat /null")
    assert "Device major/minor number: 259:300" in debugfs(image, "stat /disk")
    assert "Type: FIFO" in debugfs(image, "stat /fifo")
    assert re.search(r"Mode: +0700", debugfs(image, "stat /lost+found"))


def test_extended_attributes(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    few = {"security.capability": capability, "user.a": b"1"}
    many = {f"user.number-{index}": bytes([index]) * index for index in range(60)}
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, who)
        for tag, bits, who in [(1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1)]
    )
    for name, xattrs in {b"few": few, b"many": many, b"acl": {"system.posix_acl_access": acl}}.items():
        tree.put(name, Node(stat.S_IFREG | 0o644, content=Text(b"x"), xattrs=xattrs))
    write(image, tree)
    for name, xattrs in {"few": few, "many": many}.items():
        for key, value in xattrs.items():
            if value:
                debugfs(image, f"ea_get -f {tmp_path}/value /{name} {key}")
                assert (tmp_path / "value").read_bytes() == value, key
    assert "system.posix_acl_access" in debugfs(image, "ea_list /acl")
    for wrong in ({"other.x": b""}, {"user.x": b"v" * 5000}, {"system.posix_acl_access": b"x"}):
        tree = FileTree()
        tree.put(b"bad", Node(stat.S_IFREG | 0o644, xattrs=wrong))
        with pytest.raises(PackError, match=r"/bad: its (extended|access)"):
            Ext4(tree, label="", seed="")


@pytest.mark.parametrize("count", [20, 300, 5000, 9000])
def test_folders_of_many_names_have_an_index(tmp_path: Path, count: int) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    width = 230 if count == 9000 else 90  # 9000 long ones need an index of two levels
    names = [f"{index:x}-{'é' * (index % width if count < 9000 else 0)}".ljust(width, "x") for index in range(count)]
    for name in names:
        tree.put(b"many/" + name.encode(), file(b""))
    write(image, tree)
    found = debugfs(image, "ls -p /many").splitlines()
    assert {row.split("/")[5] for row in found if row and not row.startswith("/0/")} == {*names, ".", ".."}
    flags = re.search(r"Flags: 0x(\w+)", debugfs(image, "stat /many"))
    assert flags is not None and bool(int(flags[1], 16) & 0x1000) == (count > 20)
    if count > 20:
        levels = re.search(r"Indirect levels: (\d)", debugfs(image, "htree /many"))
        assert levels is not None and int(levels[1]) == (count == 9000)


@pytest.mark.parametrize("name", [b"a", b"hello world", b"x" * 31, b"y" * 32, b"z" * 33, b"n" * 255, bytes(range(128, 160)), "größer als né".encode(), b"ab\xff", b"ab\x80\xffc\xfe"])
def test_the_hash_of_a_name(tmp_path: Path, name: bytes) -> None:
    seed = bytes(range(16))
    (tmp_path / "none").write_bytes(b"")
    command = f'dx_hash -h half_md4 -s 00010203-0405-0607-0809-0a0b0c0d0e0f "{os.fsdecode(name)}"'
    said = run("debugfs", "-R", command, tmp_path / "none")
    major, minor = re.findall(r"0x([0-9a-f]+)", said)
    assert NameHash(seed)(name) == (int(major, 16), int(minor, 16))


def test_holes_and_sizes(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    holes = {index * 64 * KIB: bytes([index % 255 + 1]) * 100 for index in range(3000)}  # an extent tree of three levels
    tree.put(b"holes", Node(stat.S_IFREG | 0o644, content=Sparse(8 << 40, holes)))
    tree.put(b"nothing", Node(stat.S_IFREG | 0o644, content=Sparse(5 * GIB, {})))
    tree.put(b"inside", Node(stat.S_IFREG | 0o644, content=Sparse(9000, {100: b"a" * 50, 4000: b"b" * 200, 8500: b"c"})))
    write(image, tree)
    assert "Size: 8796093022208" in debugfs(image, "stat /holes")
    said = debugfs(image, "stat /nothing")
    assert "Size: 5368709120" in said and "Blockcount: 0" in said
    wanted = bytearray(9000)
    wanted[100:150], wanted[4000:4200], wanted[8500] = b"a" * 50, b"b" * 200, ord("c")
    debugfs(image, f"dump /inside {tmp_path}/inside")
    assert (tmp_path / "inside").read_bytes() == bytes(wanted)
    rows = debugfs(image, "ex /holes")
    assert len(re.findall(r"^ *2/ *2 ", rows, re.M)) == 3000
    last = int(re.findall(r"^ *2/ *2 +\d+/ *\d+ +47984 - +47984 +(\d+)", rows, re.M)[0])
    with image.open("rb") as stream:
        stream.seek(last * 4096)
        assert stream.read(101) == holes[2999 * 64 * KIB] + b"\0"


@pytest.mark.parametrize("size", [1 * MIB, 7 * MIB + 512, 128 * MIB, 128 * MIB + 4096, 129 * MIB, 1 * GIB, 300 * GIB, 2 << 40])
def test_sizes_that_are_given(tmp_path: Path, size: int) -> None:
    """Groups of every kind: with copies of the superblock, without, whole, cut short."""
    tree, image = FileTree(), tmp_path / "fs"
    tree.put(b"f", file(b"x" * 300 * KIB))
    fs = write(image, tree, size_bytes=size)
    assert size - 9 * KIB <= fs.size_bytes <= size
    assert unpacked(image, tmp_path / "out") == {"f": b"x" * 300 * KIB}
    assert image.stat().st_blocks * 512 < 70 * MIB


def test_a_large_file_goes_around_the_copies_of_the_superblock(tmp_path: Path) -> None:
    tree, image = FileTree(), tmp_path / "fs"
    data = os.urandom(MIB) * 300
    tree.put(b"large", file(data))
    tree.put(b"next", file(b"next"))
    write(image, tree)
    assert unpacked(image, tmp_path / "out") == {"large": data, "next": b"next"}
    said = run("dumpe2fs", image)
    assert "Backup superblock at 32768" in said


def test_the_size_that_it_chooses(tmp_path: Path) -> None:
    def free(free_bytes: int) -> int:
        tree = FileTree()
        for index in range(50):
            tree.put(b"f%d" % index, file(b"x" * 100 * KIB))
        fs = write(tmp_path / "fs", tree, free_bytes=free_bytes)
        assert fs.size_bytes % MIB == 0
        found = re.search(r"Free blocks: +(\d+)", run("dumpe2fs", "-h", tmp_path / "fs"))
        assert found is not None
        return int(found[1]) * 4096

    for wanted in (0, 10 * MIB, 500 * MIB, 20 * GIB):
        assert wanted <= free(wanted) < wanted + wanted // 50 + 4 * MIB


def test_what_does_not_fit(tmp_path: Path) -> None:
    def tree() -> FileTree:
        made = FileTree()
        made.put(b"f", file(b"x" * 5 * MIB))
        return made

    with pytest.raises(PackError, match=r"rootfs.size: 4MiB is too small") as caught:
        Ext4(tree(), label="", seed="", size_bytes=4 * MIB)
    least = int(re.findall(r"about (\d+)MiB", caught.value.hint or "")[0])
    write(tmp_path / "fs", tree(), size_bytes=least * MIB)
    with pytest.raises(PackError, match="at most"):
        Ext4(tree(), label="", seed="", size_bytes=17 << 40)
    wrong = FileTree()
    wrong.put(b"lost+found", file(b""))
    with pytest.raises(PackError, match="must be a folder"):
        Ext4(wrong, label="", seed="")


@settings(max_examples=25, deadline=None)
@given(rows=ANY_TREE)
def test_any_tree_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, bytes]) -> None:
    place = tmp_path_factory.mktemp("any")
    tree, wanted = tree_of(rows)
    write(place / "fs", tree)
    assert unpacked(place / "fs", place / "out") == wanted
    again = FileTree()
    for name in reversed(wanted):  # the order in which a tree was made leaves no trace
        again.put(name.encode(), file(wanted[name]))
    write(place / "again", again)
    assert (place / "again").read_bytes() == (place / "fs").read_bytes()
    shutil.rmtree(place)


def test_a_file_that_grows_or_shrinks_meanwhile_is_seen(tmp_path: Path) -> None:
    tree = FileTree()
    tree.put(b"f", Node(stat.S_IFREG | 0o644, content=Longer(10, {0: b"x" * 10})))
    fs = Ext4(tree, label="", seed="")
    with pytest.raises(PackError, match="/f became longer"):
        fs.write(lambda offset, data: None, read)


def test_a_folder_tree_is_not_changed_by_its_walk() -> None:
    tree = FileTree()
    tree.put(b"b/c", file(b""))
    tree.put(b"a", folder())
    assert [path for path, _ in tree.walk()] == [b"", b"a", b"b", b"b/c"]
