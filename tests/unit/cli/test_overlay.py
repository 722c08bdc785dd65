# SPDX-License-Identifier: MIT
"""Overlays, runs that leave nothing behind, and factory resets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import leave, say

from imgvm.cli import main
from imgvm.launch import open_image
from imgvm.qcow2 import Image

Images = Callable[..., Path]
MIB = 1 << 20
DISKS = "disks: [{name: a, size: 1MiB}, {name: b, source: b.raw}]"


@pytest.fixture
def image(image_of: Images, tmp_path: Path) -> Path:
    (tmp_path / "b.raw").write_bytes(b"packed" * 1000 + bytes(MIB - 6000))
    return image_of(say("up\n") + leave(4), f"{DISKS}\nimage: {{pristine: true}}")


def change(path: Path) -> None:
    with Image.open(path, writable=True) as opened:
        opened.write(0, b"changed")
        opened.open_disk("b").write(0, b"changed")


def heads(path: Path) -> tuple[bytes, bytes]:
    with Image.open(path) as opened:
        return opened.read(0, 7), opened.open_disk("b").read(0, 7)


def clean(path: Path) -> None:
    with Image.open(path) as opened:
        assert opened.check().clean
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


PACKED, CHANGED = (bytes(7), b"packedp"), (b"changed", b"changed")


def test_an_overlay_keeps_the_base(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "top.img"
    before = image.read_bytes()
    assert main(["overlay", "create", str(image), str(top)]) == 0
    assert capfd.readouterr().out == f"{top}\n"
    assert main(["-q", "run", str(top)]) == 4
    change(top)
    assert (heads(top), heads(image)) == (CHANGED, PACKED)
    assert image.read_bytes() == before
    clean(top)
    assert main(["overlay", "create", str(image), str(top)]) == 125
    assert "exists already" in capfd.readouterr().err
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (image, top):
        path.rename(moved / path.name)
    assert main(["-q", "run", str(moved / "top.img")]) == 4
    assert heads(moved / "top.img") == CHANGED


def test_config_of_an_overlay(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    top, above = tmp_path / "top.img", tmp_path / "above.img"
    assert main(["overlay", "create", str(image), str(top)]) == 0
    assert main(["overlay", "create", str(top), str(above)]) == 0
    capfd.readouterr()
    assert main(["config", "get", str(above), "machine.memory"]) == 0
    assert capfd.readouterr().out == "16MiB\n"
    assert main(["config", "set", str(top), "machine.memory=32MiB"]) == 0
    for path, memory in ((image, "16MiB"), (top, "32MiB"), (above, "32MiB")):
        capfd.readouterr()
        assert main(["config", "get", str(path), "machine.memory"]) == 0
        assert capfd.readouterr().out == f"{memory}\n"
    assert main(["-q", "run", str(above)]) == 4


def test_a_base_elsewhere_needs_consent(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "away").mkdir()
    top = tmp_path / "away" / "top.img"
    assert main(["overlay", "create", str(image), str(top)]) == 0
    assert "running it needs --allow backing" in capfd.readouterr().err
    assert main(["-q", "run", str(top)]) == 126
    assert main(["-q", "run", str(top), "--allow", "backing"]) == 4
    assert main(["-q", "run", str(top), "--ephemeral"]) == 126
    assert main(["-q", "run", str(top), "--ephemeral", "--allow", "backing"]) == 4


def test_ephemeral_disks(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to any disk, a host's too, is gone."""
    (tmp_path / "b.raw").write_bytes(b"packed" * 1000 + bytes(MIB - 6000))
    shutil.copy(tmp_path / "b.raw", tmp_path / "host.raw")
    image = image_of(leave(4), DISKS[:-1] + ", {name: h, source: host.raw, format: raw, embed: false}]")
    files = (image, tmp_path / "host.raw")
    before = [path.read_bytes() for path in files]
    from imgvm.launch import drives

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = open_image(image, allow=("disks",), ephemeral=True)
    with opened.image:
        found = [drive.owner for drive in drives(opened)]
        assert [disk.read(0, 6) for disk in found] == [bytes(6), b"packed", b"packed"]
        for disk in found:
            disk.write(0, b"changed")
        assert [disk.read(0, 8) for disk in found] == [b"changed\0", b"changeda", b"changeda"]
        for disk in reversed(found):
            disk.close()
    assert [path.read_bytes() for path in files] == before
    assert main(["-q", "run", str(image), "--ephemeral", "--allow", "disks"]) == 4
    assert [path.read_bytes() for path in files] == before
    assert list((tmp_path / "cache/imgvm/run").iterdir()) == []


def test_reset(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert heads(image) == PACKED
    for _ in range(2):
        change(image)
        assert heads(image) == CHANGED
        assert main(["config", "set", str(image), "labels.x=y"]) == 0
        assert main(["reset", str(image)]) == 0
        assert heads(image) == PACKED
        clean(image)
    assert main(["-q", "run", str(image)]) == 4
    change(image)
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "snapshot", "-a", "imgvm.pristine", image], check=True)
        assert heads(image) == (bytes(7), b"changed")
    with Image.open(image, writable=True) as opened:
        opened.delete_snapshot("imgvm.pristine")
    capfd.readouterr()
    assert main(["reset", str(image)]) == 125
    assert "has no copy of its disks as they were packed" in capfd.readouterr().err


def test_pristine_images_go_through_a_folder(image: Path, tmp_path: Path) -> None:
    assert main(["unpack", str(image), str(tmp_path / "folder")]) == 0
    assert json.loads((tmp_path / "folder/image.json").read_text())["pristine"] is True
    assert main(["pack", str(tmp_path / "folder"), "-o", str(tmp_path / "again.img")]) == 0
    assert (tmp_path / "again.img").read_bytes() == image.read_bytes()


def test_snapshots_are_of_all_disks(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "create", str(image), "s"]) == 0
    change(image)
    assert main(["snapshot", "apply", str(image), "s"]) == 0
    assert heads(image) == PACKED
    assert main(["snapshot", "delete", str(image), "s"]) == 0
    capfd.readouterr()
    assert main(["snapshot", "list", str(image)]) == 0
    names = [line.split("\t")[-1] for line in capfd.readouterr().out.splitlines()]
    assert names == ["imgvm.disk.b", "imgvm.pristine", "imgvm.pristine@b", "imgvm.config"]
