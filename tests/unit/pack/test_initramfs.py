# SPDX-License-Identifier: MIT
from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from builders import BUSYBOX, COMPRESSORS, read_cpio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvm.errors import PackError
from imgvm.machine import Exec, File
from imgvm.pack import cpio, initramfs
from imgvm.pack.deb import Deb, DebCache
from imgvm.pack.modules import Module

ARCHIVE = cpio.archive([cpio.file("a", b"1")])


def test_automatic_initrd_has_what_init_looks_for() -> None:
    modules = [Module("virtio", b"V"), Module("virtio_pci", b"P")]
    data = initramfs.build(BUSYBOX, modules, hostname="box", command=Exec(("true",)))
    rows = {row.name: row for row in read_cpio(data)}
    assert rows["etc/imgvm/modules"].data == b"virtio\nvirtio_pci\n"
    assert rows["lib/imgvm/virtio_pci.ko"].data == b"P"
    assert rows["etc/hostname"].data == b"box\n"
    assert rows["bin/sh"].data == b"busybox"
    assert rows["init"].mode & 0o111 and rows["bin/imgvm-exit"].mode & 0o111
    assert (rows["dev/console"].rmajor, rows["dev/console"].rminor) == (5, 1)
    assert b"exec true\n" in rows["etc/imgvm/exec"].data
    assert "etc/imgvm/exec" not in {row.name for row in read_cpio(initramfs.build(BUSYBOX))}
    assert initramfs.build(BUSYBOX, modules) == initramfs.build(BUSYBOX, modules)


@pytest.mark.parametrize("shell", ["busybox", "dash", "bash"])
def test_init_is_a_shell_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (init,) = [row.data for row in read_cpio(initramfs.build(BUSYBOX)) if row.name == "init"]
    command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    assert subprocess.run(command, input=init, capture_output=True, check=False).stderr == b""


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50, deadline=None)
@given(arguments=st.lists(WORDS, max_size=4), value=WORDS)
def test_no_word_of_a_command_is_read_by_the_shell(arguments: list[str], value: str) -> None:
    show = 'printf "%s\\0" "$V" "$(pwd)" "$@"'
    script = initramfs.exec_script(Exec(("sh", "-c", show, "sh", *arguments), {"V": value}, "/usr"))
    done = subprocess.run(["sh"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"{word}\0" for word in (value, "/usr", *arguments))


def test_exec_script_statuses() -> None:
    def status(command: Exec) -> int:
        return subprocess.run(
            ["sh", "-c", initramfs.exec_script(command)],
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        ).returncode

    assert status(Exec(("sh", "-c", "exit 7"))) == 7
    assert status(Exec(("no-such-command",))) == 127
    assert status(Exec(("true",), cwd="/no/such/folder")) == 125
    with pytest.raises(PackError, match="NUL"):
        status(Exec(("a\0b",)))


def test_files_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o750)
    files = (
        File("/usr/bin/tool", source="tool"),
        File("/usr/bin/other", source="tool", mode=0o700),
        File("/etc/motd", content="hé\n"),
        File("/etc/link", link="motd"),
    )
    entries, used = initramfs.config_files(files, tmp_path)
    rows = {row.name: row for row in read_cpio(initramfs.build(BUSYBOX, files=entries))}
    assert rows["usr/bin/tool"].mode == 0o100750 and rows["usr/bin/other"].mode == 0o100700
    assert rows["etc/motd"].data == "hé\n".encode() and rows["etc/motd"].mode == 0o100644
    assert rows["etc/link"].data == b"motd"
    assert [(row.part, row.origin) for row in used] == [("boot.files[0]", "tool"), ("boot.files[1]", "tool")]
    with pytest.raises(PackError, match=r"boot.files\[0\]: gone: No such file or directory") as caught:
        initramfs.config_files((File("/x", source="gone"),), tmp_path)
    assert str(tmp_path) in (caught.value.hint or "")


def test_init_can_be_replaced() -> None:
    data = initramfs.build(BUSYBOX, files=[cpio.file("init", b"mine", 0o755)])
    assert [row.data for row in read_cpio(data) if row.name == "init"] == [b"mine"]


@pytest.mark.parametrize("compression", [None, *sorted(COMPRESSORS)])
def test_archives_are_unpacked_and_joined(tmp_path: Path, compression: str | None) -> None:
    first = COMPRESSORS[compression](ARCHIVE) if compression else ARCHIVE
    (tmp_path / "a").write_bytes(first)
    (tmp_path / "b").write_bytes(cpio.archive([cpio.file("b", b"22")]) + b"\0")
    data, used = initramfs.join(["a", "b"], tmp_path)
    assert [(row.name, row.data) for row in read_cpio(data)] == [("a", b"1"), ("b", b"22")]
    assert [row.size_bytes for row in used] == [len(first), len(data) - len(ARCHIVE) - 3]


def test_archives_of_several_parts_stay_as_they_are() -> None:
    two = gzip.compress(ARCHIVE) + gzip.compress(ARCHIVE)
    assert initramfs.unpacked(two, "i") == two
    early = ARCHIVE + gzip.compress(ARCHIVE)
    assert initramfs.unpacked(early, "i") == early
    padded = gzip.compress(ARCHIVE) + bytes(512)
    assert initramfs.unpacked(padded, "i") == ARCHIVE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", "i is not an initramfs"),
        (gzip.compress(b"hello"), "i holds no cpio archive"),
        (gzip.compress(ARCHIVE)[:-9], "cut short"),
    ],
    ids=["text", "other", "cut"],
)
def test_what_is_no_archive_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PackError, match=words):
        initramfs.unpacked(data, "i")


def test_busybox_is_of_the_kernels_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's is taken for kernels from files only, so that hosts agree on an image."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"of the package")
    asked: list[tuple[str, str]] = []
    deb = Deb("trixie", "busybox-static", "1.0", "http://x/b.deb", "ab" * 32, 5, tmp_path / "b.deb")
    monkeypatch.setattr(initramfs.shutil, "which", lambda name, path: str(tmp_path / "host"))
    (tmp_path / "host").write_bytes(BUSYBOX)
    monkeypatch.setattr(DebCache, "get", lambda self, distro, package: asked.append((distro, package)) or deb)
    monkeypatch.setattr(DebCache, "unpacked", lambda self, found: tmp_path)
    cache = DebCache(tmp_path / "cache")
    assert initramfs.find_busybox(cache, None)[0] == BUSYBOX and asked == []
    data, source = initramfs.find_busybox(cache, "debian:trixie")
    assert data == b"of the package" and asked == [("debian:trixie", "busybox-static")]
    assert (source.origin, source.asked) == ("trixie busybox-static 1.0", "debian:trixie busybox-static")
