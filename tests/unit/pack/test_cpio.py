# SPDX-License-Identifier: MIT
from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from builders import read_cpio

from imgvm.errors import PackError
from imgvm.pack import cpio

ENTRIES = [
    cpio.file("init", b"#!/bin/sh\n", 0o755),
    cpio.file("etc/deep/er/odd", b"12345"),
    cpio.link("bin/sh", "busybox"),
    cpio.character_device("dev/console", 5, 1),
    cpio.folder("root", 0o700),
    cpio.file("empty", b""),
    cpio.file("name with spaces & ü", b"x" * 4097),
]


def test_reads_back_as_written() -> None:
    rows = read_cpio(cpio.archive(ENTRIES, 1_700_000_000))
    assert [row.name for row in rows] == sorted(row.name for row in rows)
    by_name = {row.name: row for row in rows}
    for entry in ENTRIES:
        row = by_name[entry.path]
        assert (row.mode, row.data, (row.rmajor, row.rminor)) == (entry.mode, entry.data, entry.device)
    assert {name for name, row in by_name.items() if stat.S_ISDIR(row.mode)} == {
        "bin", "dev", "etc", "etc/deep", "etc/deep/er", "root",
    }  # fmt: skip
    assert {row.mtime for row in rows} == {1_700_000_000}
    assert {(row.uid, row.gid) for row in rows} == {(0, 0)}
    assert [row.ino for row in rows] == list(range(1, len(rows) + 1))


def test_same_entries_in_any_order_give_the_same_bytes() -> None:
    assert cpio.archive(ENTRIES) == cpio.archive(reversed(ENTRIES))
    assert len(cpio.archive(ENTRIES)) % 4 == 0


def test_the_later_of_two_with_one_path_counts() -> None:
    rows = read_cpio(cpio.archive([cpio.file("a", b"1"), cpio.file("a", b"2")]))
    assert [row.data for row in rows] == [b"2"]


def test_cpio_agrees(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    entries = [entry for entry in ENTRIES if not stat.S_ISCHR(entry.mode)]
    subprocess.run(
        ["cpio", "-idm", "--quiet", "--no-absolute-filenames"],
        input=cpio.archive(entries),
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "etc/deep/er/odd").read_bytes() == b"12345"
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")
    assert (tmp_path / "name with spaces & ü").stat().st_size == 4097
    assert (tmp_path / "init").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "root").stat().st_mode & 0o7777 == 0o700
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet"], input=cpio.archive(ENTRIES), capture_output=True, check=True
    )
    assert b"crw-------   1 root     root       5,   1" in listing.stdout


@pytest.mark.parametrize("path", ["", "/etc", "a//b", "../a", "a/./b", "a\0b", "a/"])
def test_paths_that_leave_the_tree_are_refused(path: str) -> None:
    with pytest.raises(PackError, match="not a path"):
        cpio.archive([cpio.file(path, b"")])


def test_a_file_is_no_folder() -> None:
    with pytest.raises(PackError, match="/etc is no folder"):
        cpio.archive([cpio.file("etc", b""), cpio.file("etc/passwd", b"")])
