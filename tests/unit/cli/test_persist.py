# SPDX-License-Identifier: MIT
"""`disks[].persist`: what a guest writes to a disk stays or is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import leave

from imgvm import launch
from imgvm.cli import main
from imgvm.config import Config
from imgvm.machine import Machine
from imgvm.qcow2 import Image

Images = Callable[..., Path]
MIB = 1 << 20
DISKS = """
disks:
- {name: root, source: root.raw, persist: %s}
- {name: kept, size: 3MiB}
- {name: gone, source: gone.raw, persist: discard}
- {name: host, source: host.raw, format: raw, embed: false, persist: discard}
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("root", "gone", "host"):
        (tmp_path / f"{name}.raw").write_bytes(name.encode() * 4096 + bytes(2 * MIB))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def written(image: Path, *, ephemeral: bool = False) -> None:
    """Writes to every disk as a machine would, and reads it back; what is behind it is still to be seen."""
    opened = launch.open_image(image, allow=("disks",), ephemeral=ephemeral)
    drives = launch.drives(opened)
    for drive in drives:
        before = drive.owner.read(0, 4096)
        drive.owner.write(4096, b"new " * 1024)
        drive.owner.write(1 * MIB + 5, b"far")
        assert drive.owner.read(0, 8192) == before + b"new " * 1024
        assert drive.owner.read(1 * MIB, 9) == bytes(5) + b"far\0"
    for drive in reversed(drives):
        drive.owner.close()
    opened.image.close()


def contents(image: Path) -> dict[str, bytes]:
    with Image.open(image) as opened:
        assert opened.check().clean
        found = {name: opened.open_disk(name).read(4096, 3 * MIB // 2) for name in opened.disk_names()}
        return {"root": opened.read(4096, 3 * MIB // 2), **found}


@pytest.mark.parametrize("root", ["image", "discard"])
def test_some_stay_and_some_are_gone(image_of: Images, sources: Path, root: str) -> None:
    image = image_of(leave(0), DISKS % root)
    before, host = contents(image), (sources / "host.raw").read_bytes()
    written(image)
    after = contents(image)
    assert {name for name in after if after[name] != before[name]} == {"kept"} | ({"root"} if root == "image" else set())
    assert after["kept"][:4] == b"new "
    assert (sources / "host.raw").read_bytes() == host
    assert list((sources / "cache/imgvm/run").iterdir()) == []


def test_nothing_that_stays_needs_no_writable_image(image_of: Images, sources: Path) -> None:
    image = image_of(leave(4), "disks: [{name: root, source: root.raw, persist: discard}]")
    packed = image.read_bytes()
    image.chmod(0o400)
    with Image.open(image):  # somebody else reads it meanwhile
        written(image)
        assert main(["-q", "run", str(image)]) == 4
    assert image.read_bytes() == packed


def test_without_persistence_at_all(image_of: Images, sources: Path) -> None:
    image = image_of(leave(0), DISKS % "image")
    packed = image.read_bytes()
    written(image, ephemeral=True)
    assert image.read_bytes() == packed


def test_a_cache_that_cannot_be_used(image_of: Images, sources: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(leave(0), "disks: [{name: root, source: root.raw, persist: discard}]")
    (sources / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(sources / "file"))
    assert main(["run", str(image)]) == 126
    assert "XDG_CACHE_HOME" in capfd.readouterr().err


@pytest.mark.parametrize(("target", "words"), [("qemu", ",snapshot=on"), ("libvirt", "<transient"), ("firecracker", "")])
def test_exports(image_of: Images, sources: Path, capfd: pytest.CaptureFixture[str], target: str, words: str) -> None:
    image = image_of(leave(0), "disks: [{name: kept, size: 1MiB, discard: false}, {name: gone, size: 1MiB, persist: discard}]")
    with Image.open(image, writable=True) as opened:
        elf = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0\1\0\0\0" + bytes(200)
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        opened.set_config(blobs | {"kernel": elf}, date=0)
    assert main(["export", str(image), "--to", target, "-o", str(sources / "out")]) == 0
    said = capfd.readouterr().err
    text = "".join(path.read_text() for path in (sources / "out").iterdir() if path.suffix in (".sh", ".xml"))
    assert text.count(words) == 1 if words else "what is written to the disk gone stays there" in said
    assert ("stays there" in said) == (not words)
    assert text.count("discard=unmap") + text.count('discard="unmap"') == (target != "firecracker")


def test_the_machine_knows() -> None:
    text = "version: 1\nboot: {kernel: k}\ndisks: [{name: a, size: 1MiB, persist: discard, read_only: true}, {name: b, size: 1MiB}]\n"
    machine: Machine = Config.from_text(text, "f").machine
    assert [(disk.persist, disk.is_kept) for disk in machine.disks] == [("discard", False), ("image", True)]
    assert Config.from_resolved(Config.from_text(text, "f").resolved(), "g").machine == machine
