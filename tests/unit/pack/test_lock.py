# SPDX-License-Identifier: MIT
"""The lock beside a config: what it says, and that --frozen takes nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from builders import kernel, module_tree

from imgvm.cli import main
from imgvm.errors import PackError
from imgvm.pack import lock
from imgvm.pack.output import Replacement
from imgvm.pack.sources import Source
from imgvm.qcow2 import Image

TEXT = (
    "version: 1\nname: box\ninclude: [more.yaml]\nmachine: {memory: 64MiB}\n"
    "boot: {kernel: vmlinuz, files: [{path: /motd, source: motd}]}\ndisks: [{name: a, size: 1MiB}, {name: b, source: b.raw}]\n"
)


@pytest.fixture
def folder(tmp_path: Path, same_busybox: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(kernel())
    module_tree(tmp_path.parent)
    (tmp_path / "motd").write_text("hello\n")
    (tmp_path / "b.raw").write_bytes(b"b" * 4096)
    (tmp_path / "more.yaml").write_text("labels: {a: b}\n")
    (tmp_path / "ci.yaml").write_text(TEXT)
    return tmp_path


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_the_lock_names_every_input(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "ci.yaml"]) == 0
    assert capfd.readouterr().out == "box.img\n"
    text = (folder / "ci.yaml.lock").read_bytes()
    rows = {row["part"]: row for row in json.loads(text)["sources"]}
    assert list(rows) == ["include", "boot.kernel", "boot.initrd", "boot.files[0]", "disks[1]"]
    assert rows["include"]["sha256"] == digest(b"labels: {a: b}\n")
    assert rows["boot.kernel"]["sha256"] == digest(kernel())
    assert rows["boot.files[0]"] == {"part": "boot.files[0]", "origin": "motd", "sha256": digest(b"hello\n"), "size_bytes": 6}
    assert rows["disks[1]"]["sha256"] == digest(b"b" * 4096)
    with Image.open("box.img") as image:
        assert image.read_config("lock.json") == text
    first = Path("box.img").read_bytes()
    assert main(["pack", "ci.yaml", "--frozen", "--offline", "--force"]) == 0
    assert Path("box.img").read_bytes() == first


@pytest.mark.parametrize(
    ("name", "part"),
    [("vmlinuz", "boot.kernel"), ("motd", "boot.files[0]"), ("b.raw", "disks[1]"), ("more.yaml", "include")],
)
def test_frozen_refuses_another_content(name: str, part: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "ci.yaml"]) == 0
    old = (folder / name).read_bytes()
    new = old + b"\n# more\n" if name != "b.raw" else old[::-1] + b"x" * 512
    (folder / name).write_bytes(new)
    before, locked = Path("box.img").read_bytes(), (folder / "ci.yaml.lock").read_bytes()
    assert main(["pack", "ci.yaml", "--frozen", "--force"]) == 125
    message = capfd.readouterr().err
    assert f"--frozen: {part}: {name} has SHA-256 {digest(new)}, the lock says {digest(old)}" in message
    assert Path("box.img").read_bytes() == before and (folder / "ci.yaml.lock").read_bytes() == locked
    assert main(["pack", "ci.yaml", "--force"]) == 0
    assert (folder / "ci.yaml.lock").read_bytes() != locked
    assert main(["pack", "ci.yaml", "--frozen", "--force"]) == 0


def test_frozen_refuses_what_is_new_and_what_is_gone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "ci.yaml", "--frozen"]) == 127
    assert "ci.yaml.lock: there is no lock" in capfd.readouterr().err
    assert main(["pack", "ci.yaml", "--lock", "other.lock"]) == 0
    assert not (folder / "ci.yaml.lock").exists()
    (folder / "ci.yaml").write_text(TEXT.replace("files: [{path: /motd, source: motd}]", "files: []"))
    assert main(["pack", "ci.yaml", "--frozen", "--lock", "other.lock", "--force"]) == 125
    assert f"boot.files[0]: motd is in the lock (SHA-256 {digest(b'hello' + bytes([10]))}) and was not used" in capfd.readouterr().err
    (folder / "ci.yaml").write_text(TEXT.replace("source: motd}", "source: motd}, {path: /x, source: vmlinuz}"))
    assert main(["pack", "ci.yaml", "--frozen", "--lock", "other.lock", "--force"]) == 125
    assert f"boot.files[1]: vmlinuz (SHA-256 {digest(kernel())}) is not in the lock" in capfd.readouterr().err


def test_a_package_that_was_not_asked_for_before(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "ci.yaml"]) == 0
    (folder / "ci.yaml").write_text(TEXT.replace("kernel: vmlinuz", "kernel: {package: linux-image-amd64}"))
    assert main(["pack", "ci.yaml", "--frozen", "--force"]) == 125
    assert "--frozen: boot.kernel: debian:bookworm linux-image-amd64 is not in ci.yaml.lock" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"), ("[]", "is damaged"), ('{"lock": 2}', "version 2 is not known"),
        ('{"lock": 1, "sources": [{"part": "a", "origin": "b", "sha256": "../../x"}]}', "is no SHA-256"),
        ('{"lock": 1, "sources": [{"part": "a", "origin": "b", "sha256": 7}]}', "is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_lock(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text(text)
    with pytest.raises(PackError, match=words):
        lock.read(tmp_path / "x.lock")


def test_written_and_read_again(tmp_path: Path) -> None:
    rows = (Source("a", "b c d", "0" * 64, 5, "http://x/y", "debian:x c"), Source("a", "ü", "1" * 64, 0))
    assert lock.write(tmp_path / "x.lock", rows)
    assert not lock.write(tmp_path / "x.lock", rows)
    assert lock.read(tmp_path / "x.lock") == rows


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """As /dev/null is not, for one who wants no lock and is root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert lock.write(pipe, [])
        assert os.read(reader, 4096) == lock.text_of([]).encode()
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(PackError, match="no ordinary file"), Replacement(pipe):
        pass
    assert list(tmp_path.iterdir()) == [pipe]


def test_where_no_lock_belongs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-m", "imgvm", "-q", "pack", "/dev/stdin", "-o", "piped.img"]
    text = "version: 1\nboot: {kernel: {bundled: true}}\n"
    (folder / "plain.yaml").write_text(text)
    with (folder / "plain.yaml").open() as stream:
        done = subprocess.run(words, stdin=stream, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not Path("/dev/stdin.lock").exists() and not list(folder.glob("*.lock"))
    assert main(["unpack", "piped.img", "unpacked"]) == 0
    assert main(["pack", "unpacked", "--frozen", "-o", "x.img"]) == 125
    assert "was unpacked from an image" in capfd.readouterr().err
