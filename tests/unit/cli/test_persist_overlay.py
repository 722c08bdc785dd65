# SPDX-License-Identifier: MIT
"""`persist: overlay`: the image stays as it was packed; what a guest writes lies beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import SPIN, leave, say

from imgvm import launch
from imgvm.cli import main
from imgvm.config import Config
from imgvm.errors import ConfigError, ImageError
from imgvm.qcow2 import Image, overlay

Images = Callable[..., Path]
MIB = 1 << 20
PURE = "disks:\n- {name: root, source: root.raw, persist: overlay}\n- {name: data, source: data.raw, persist: overlay}\n"
MIXED = "disks:\n- {name: root, source: root.raw}\n- {name: data, source: data.raw, persist: overlay}\n"
OTHER = "disks:\n- {name: root, source: root.raw, persist: overlay}\n- {name: data, source: data.raw}\n"
THROWN = "disks:\n- {name: root, source: root.raw, persist: discard}\n- {name: data, source: data.raw, persist: overlay}\n"


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("root", "data"):
        (tmp_path / f"{name}.raw").write_bytes(name.encode() * 1024 + bytes(2 * MIB))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def beside(image: Path) -> Path:
    return image.with_name(f"{image.name}.overlay")


def run(image: Path, write: bytes = b"", *, ephemeral: bool = False) -> list[bytes]:
    """What the disks hold when a machine has them; with `write` it writes that to all of them."""
    opened = launch.open_image(image, ephemeral=ephemeral)
    drives = launch.drives(opened)
    if write:
        for drive in drives:
            drive.owner.write(1, write)
    found = [drive.owner.read(0, 4) for drive in drives]
    for drive in reversed(drives):
        drive.owner.close()
    return found


def clean(path: Path) -> None:
    with Image.open(path) as image:
        assert image.check().clean
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


def test_the_image_stays_as_it_is(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    packed = image.read_bytes()
    image.chmod(0o444)
    assert main(["run", str(image)]) == 4
    assert f"{image} stays as it is: what its machine writes is kept in small.img.overlay, beside it" in capfd.readouterr().err
    assert run(image, b"NEW") == [b"rNEW", b"dNEW"]
    assert run(image) == [b"rNEW", b"dNEW"]
    assert main(["run", str(image)]) == 4
    assert "stays as it is" not in capfd.readouterr().err
    assert image.read_bytes() == packed
    clean(image)
    clean(beside(image))
    assert sorted(path.name for path in image.parent.glob("*small*")) == ["small.img", "small.img.overlay"]
    if shutil.which("qemu-img"):
        facts = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", beside(image)]))
        assert (facts["backing-filename"], facts["backing-filename-format"]) == ("small.img", "qcow2")


def test_the_overlay_is_an_image_itself(image_of: Images) -> None:
    image = image_of(leave(4), PURE)
    assert run(image, b"NEW") == [b"rNEW", b"dNEW"]
    assert main(["-q", "run", str(beside(image))]) == 4
    assert run(beside(image), b"TOO") == [b"rTOO", b"dTOO"]
    assert not beside(beside(image)).exists()
    assert run(image) == [b"rTOO", b"dTOO"]
    whole = image.with_name("whole.img")
    assert main(["-q", "convert", str(beside(image)), str(whole)]) == 0
    assert run(whole) == [b"rTOO", b"dTOO"]


def test_an_overlay_that_was_made_by_hand_keeps_what_is_written(image_of: Images, tmp_path: Path) -> None:
    image = image_of(leave(4), PURE)
    top = tmp_path / "top.img"
    assert main(["-q", "overlay", "create", str(image), str(top)]) == 0
    assert run(top, b"TOP") == [b"rTOP", b"dTOP"]
    assert not beside(top).exists() and not beside(image).exists()


@pytest.mark.parametrize(
    ("text", "kept"),
    [(MIXED, [b"rNEW", b"dNEW"]), (OTHER, [b"rNEW", b"dNEW"]), (THROWN, [b"root", b"dNEW"])],
)
def test_disks_of_every_kind_in_one_image(image_of: Images, text: str, kept: list[bytes]) -> None:
    image = image_of(leave(4), text)
    assert run(image, b"NEW") == [b"rNEW", b"dNEW"]
    assert run(image) == kept
    assert main(["-q", "run", str(image)]) == 4
    with Image.open(image) as opened, opened.open_disk("data") as data:
        own = {MIXED: (b"rNEW", b"data"), OTHER: (b"root", b"dNEW"), THROWN: (b"root", b"data")}[text]
        assert (opened.read(0, 4), data.read(0, 4)) == own
    clean(image)
    clean(beside(image))


@pytest.mark.parametrize("text", [PURE, MIXED, OTHER, THROWN])
def test_ephemeral_runs_begin_with_what_is_kept(image_of: Images, text: str) -> None:
    image = image_of(leave(4), text)
    assert run(image, b"EPH", ephemeral=True) == [b"rEPH", b"dEPH"]
    assert not beside(image).exists()
    run(image, b"NEW")
    before, files = run(image), [path.read_bytes() for path in (image, beside(image))]
    assert run(image, ephemeral=True) == before
    assert run(image, b"EPH", ephemeral=True) == [b"rEPH", b"dEPH"]
    assert main(["-q", "run", str(image), "--ephemeral"]) == 4
    assert [path.read_bytes() for path in (image, beside(image))] == files
    assert run(image) == before


def test_renamed_and_moved_together(image_of: Images, tmp_path: Path) -> None:
    image = image_of(leave(4), PURE)
    run(image, b"NEW")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    moved = folder / "web.img"
    beside(image).rename(beside(moved))
    image.rename(moved)
    assert run(moved) == [b"rNEW", b"dNEW"]
    assert main(["-q", "run", str(moved)]) == 4
    link = tmp_path / "link.img"
    link.symlink_to(moved)
    assert run(link) == [b"rNEW", b"dNEW"] and not beside(link).exists()
    beside(moved).rename(beside(image))
    assert run(moved) == [b"root", b"data"]  # a new one


def test_an_overlay_of_another_image(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    run(image, b"NEW")
    kept = beside(image).read_bytes()
    old = image.rename(tmp_path / "old.img")
    (tmp_path / "root.raw").write_bytes(b"ROOT" * 1024 + bytes(2 * MIB))
    assert image_of(leave(4), PURE) == image
    capfd.readouterr()
    for words in ([], ["--ephemeral"]):
        assert main(["run", str(image), *words]) == 126
        said = capfd.readouterr().err
        assert f"{beside(image)} is an overlay of another image than this small.img" in said
        assert f"throw the overlay away with `imgvm reset {image}`" in said
    assert main(["inspect", str(image)]) == 0
    assert "small.img.overlay, of another image\n" in capfd.readouterr().out
    assert beside(image).read_bytes() == kept
    new = image.rename(tmp_path / "new.img")
    old.rename(image)
    assert run(image) == [b"rNEW", b"dNEW"]
    beside(image).rename(beside(new))
    assert main(["-q", "reset", str(new)]) == 0
    assert run(new) == [b"ROOT", b"data"]


@pytest.mark.parametrize("disk", ["root", "data"])
def test_an_image_that_somebody_wrote_to(image_of: Images, disk: str, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    run(image, b"NEW")
    shutil.copy(image, image.with_name("packed.img"))
    with Image.open(image, writable=True) as opened:
        target = opened if disk == "root" else opened.open_disk(disk)
        target.write(MIB, b"by somebody else")
    assert main(["run", str(image)]) == 126
    assert "is an overlay of another image than this" in capfd.readouterr().err
    image.with_name("packed.img").replace(image)
    with Image.open(image, writable=True) as opened:
        opened.create_snapshot("of-the-packed-disk", date=0)
    assert run(image) == [b"rNEW", b"dNEW"]


def test_the_other_disks_of_the_image_may_change(image_of: Images) -> None:
    image = image_of(leave(4), MIXED)
    run(image, b"NEW")
    assert main(["-q", "resize", str(image), "8MiB"]) == 0
    opened = launch.open_image(image)
    with opened.image:
        opened.image.write(7 * MIB, b"far")
    assert run(image) == [b"rNEW", b"dNEW"]


def test_the_same_image_packed_again_is_no_other(image_of: Images) -> None:
    image = image_of(leave(4), PURE)
    run(image, b"NEW")
    image.unlink()
    image_of(leave(4), PURE)
    assert run(image) == [b"rNEW", b"dNEW"]


def test_its_config_may_change(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    run(image, b"NEW")
    assert main(["-q", "config", "set", str(image), "machine.memory=32MiB"]) == 0
    assert main(["config", "diff", str(image)]) == 1
    assert "+ machine.memory: 32MiB" in capfd.readouterr().out
    assert run(image) == [b"rNEW", b"dNEW"]
    assert launch.open_image(beside(image), writable=False).machine.hardware.memory_bytes == 32 * MIB


def test_what_it_needs_is_not_replaced(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    (tmp_path / "c.yaml").write_text(f"version: 1\nboot: {{kernel: kernel}}\nmachine: {{memory: 16MiB}}\n{PURE}")
    assert main(["-q", "pack", str(tmp_path / "c.yaml"), "-o", str(image), "--force"]) == 0
    run(image, b"NEW")
    packed = image.read_bytes()
    assert main(["-q", "pack", str(tmp_path / "c.yaml"), "-o", str(image), "--force"]) == 125
    said = capfd.readouterr().err
    assert "is not replaced: small.img.overlay has what its machine wrote, and needs it" in said and f"`imgvm reset {image}`" in said
    assert image.read_bytes() == packed and run(image) == [b"rNEW", b"dNEW"]
    assert main(["-q", "reset", str(image)]) == 0
    assert main(["-q", "pack", str(tmp_path / "c.yaml"), "-o", str(image), "--force"]) == 0


def test_reset(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    packed = image.read_bytes()
    assert main(["-q", "reset", str(image)]) == 0
    run(image, b"NEW")
    assert main(["-q", "reset", str(image)]) == 0
    assert not beside(image).exists() and run(image) == [b"root", b"data"]
    assert image.read_bytes() == packed
    beside(image).write_bytes(b"not an overlay")
    assert main(["reset", str(image)]) == 125
    assert "is no overlay" in capfd.readouterr().err
    assert main(["-q", "run", str(image)]) != 4
    beside(image).write_bytes(b"QFI\xfb\0\0\0\3damaged")
    assert main(["-q", "run", str(image)]) != 4
    assert main(["inspect", str(image)]) == 0
    assert "small.img.overlay, damaged\n" in capfd.readouterr().out
    assert main(["-q", "reset", str(image)]) == 0
    assert run(image) == [b"root", b"data"]


def test_reset_of_both_kinds(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), MIXED)
    run(image, b"NEW")
    assert main(["-q", "reset", str(image)]) == 125
    assert "has no copy of its disks as they were packed" in capfd.readouterr().err
    assert run(image) == [b"rNEW", b"dNEW"]
    beside(image).unlink()
    image.unlink()
    image = image_of(leave(4), MIXED + "image: {pristine: true}\n")
    run(image, b"NEW")
    assert main(["-q", "reset", str(image)]) == 0
    assert run(image) == [b"root", b"data"]


@pytest.mark.parametrize("text", [PURE, MIXED])
def test_snapshots(image_of: Images, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), text)
    packed = image.read_bytes()
    run(image, b"ONE")
    assert main(["-q", "snapshot", "create", str(image), "one"]) == 0
    run(image, b"TWO")
    capfd.readouterr()
    assert main(["snapshot", "list", str(image)]) == 0
    names = [line.split("\t")[-1] for line in capfd.readouterr().out.splitlines()]
    own = ["one", "one@data"] if text == MIXED else []
    assert names == ["imgvm.disk.data", "imgvm.config", *own, "imgvm.disk.data", "one", "one@data"]
    assert main(["-q", "snapshot", "apply", str(image), "one"]) == 0
    assert run(image) == [b"rONE", b"dONE"]
    assert main(["-q", "snapshot", "delete", str(image), "one"]) == 0
    assert main(["-q", "snapshot", "apply", str(image), "one"]) == 125
    assert (image.read_bytes() == packed) == (text == PURE)
    clean(image)
    clean(beside(image))


def test_resize(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    packed = image.read_bytes()
    assert main(["-q", "resize", str(image), "8MiB"]) == 0
    assert image.read_bytes() == packed
    opened = launch.open_image(image)
    with opened.image:
        assert opened.overlay is not None and opened.overlay.info.disk_bytes == 8 * MIB
        assert opened.overlay.read(0, 4) == b"root" and opened.overlay.read(7 * MIB, 4) == bytes(4)
    assert main(["resize", str(image), "1MiB"]) == 125
    assert "has a disk of 8MiB" in capfd.readouterr().err


def test_inspect(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    assert main(["inspect", str(image), "--json"]) == 0
    assert "overlay" not in json.loads(capfd.readouterr().out)
    run(image, b"NEW")
    assert main(["inspect", str(image)]) == 0
    assert "small.img.overlay, of this image\n" in capfd.readouterr().out
    assert main(["inspect", str(image), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)["overlay"]
    assert facts == {"file": "small.img.overlay", "file_bytes": beside(image).stat().st_size, "state": "of this image"}


def test_two_runs_at_once(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(say("up\n") + SPIN, PURE)
    first = subprocess.Popen([sys.executable, "-m", "imgvm", "run", image], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout is not None and first.stderr is not None
    try:
        assert first.stdout.readline() == b"up\n"
        assert main(["run", str(image)]) == 125
        assert "small.img.overlay is in use by another process" in capfd.readouterr().err
        assert main(["reset", str(image)]) == 125
        assert "small.img.overlay is in use by another process" in capfd.readouterr().err
        assert main(["inspect", str(image)]) == 0
        assert "small.img.overlay, in use\n" in capfd.readouterr().out
        assert main(["config", "set", str(image), "machine.memory=32MiB"]) == 125
        assert "in use by another process" in capfd.readouterr().err
    finally:
        first.kill()
        first.communicate()
    assert beside(image).exists() and run(image) == [b"root", b"data"]


def test_runs_that_begin_at_once_make_one_overlay(image_of: Images) -> None:
    image = image_of(leave(4), PURE)
    opened = launch.open_image(image, writable=False)
    with opened.image:
        name = launch.base_id(opened.image, opened.machine)
    threads = [threading.Thread(target=overlay.create_beside, args=(image, name)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in image.parent.glob("*small*")) == ["small.img", "small.img.overlay"]
    assert run(image, b"NEW") == [b"rNEW", b"dNEW"]


def test_a_folder_that_cannot_be_written(image_of: Images, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import errno

    image = image_of(leave(4), PURE)

    def refuse(*_: object, **__: object) -> None:
        raise ImageError("cannot open it: Read-only file system", errno=errno.EROFS)

    monkeypatch.setattr(overlay, "create", refuse)
    assert main(["run", str(image)]) == 126
    said = capfd.readouterr().err
    assert f"{beside(image)}, where what the machine writes is to be kept, cannot be made" in said and "--ephemeral runs it" in said
    assert main(["-q", "run", str(image), "--ephemeral"]) == 4
    monkeypatch.undo()
    monkeypatch.setattr(Image, "open_over", refuse)
    assert main(["run", str(image)]) == 126
    assert f"{beside(image)} cannot be written" in capfd.readouterr().err


def test_an_image_on_a_device(image_of: Images, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert main(["run", str(image)]) == 126
    assert f"{image} is a device: there is no place beside it" in capfd.readouterr().err


def test_a_hostile_overlay_opens_no_other_file(image_of: Images, tmp_path: Path) -> None:
    """What an overlay that came with an image names as its base is not looked at."""
    image = image_of(leave(4), PURE)
    (tmp_path / "away").mkdir()
    secret = tmp_path / "away" / "secret.img"
    with Image.create(secret, 4 * MIB) as opened:
        opened.write(0, b"secret")
    found = launch.open_image(image, writable=False)
    with found.image:
        name, size = launch.base_id(found.image, found.machine), found.image.info.disk_bytes
    Image.create(beside(image), size, backing_file=str(secret), backing_format="qcow2", base_id=name).close()
    assert run(image) == [b"root", b"data"]


def test_what_takes_the_image_alone_says_so(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), PURE)
    run(image, b"NEW")
    assert main(["unpack", str(image), str(tmp_path / "folder")]) == 0
    words = f"what its machine wrote is in {beside(image)}, and is not taken along"
    assert words in capfd.readouterr().err
    assert (tmp_path / "folder/disk.raw").read_bytes()[:4] == b"root"
    assert main(["export", str(image), "--to", "qemu", "-o", str(tmp_path / "out")]) == 0
    assert words in capfd.readouterr().err
    assert ",snapshot=on" not in (tmp_path / "out/run.sh").read_text()


def test_a_config_that_is_run(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image_of(leave(4), PURE)
    text = f"version: 1\nname: a\nmachine: {{memory: 16MiB, accel: interp}}\nboot: {{kernel: kernel}}\ndevices: {{debug_exit: true}}\n{PURE}"
    (tmp_path / "a.yaml").write_text(text)
    assert main(["run", str(tmp_path / "a.yaml")]) == 4
    assert "kept in" not in capfd.readouterr().err
    assert not list(tmp_path.glob("a*overlay"))


def test_the_root_file_system(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "k").write_bytes(b"")
    head = "version: 1\nboot: {kernel: k}\n"
    text = head + "rootfs: {dir: root, persist: overlay}\n"
    machine = Config.from_text(text, "f", tmp_path).machine
    assert machine.own_disk is not None and machine.own_disk.is_overlaid and machine.own_disk.is_kept
    assert Config.from_resolved(Config.from_text(text, "f").resolved(), "g").machine == machine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rootfs: {dir: r, format: initramfs, persist: overlay}", "rootfs.persist: an initramfs is memory of the guest's own"),
        ("disks: [{name: a, size: 1MiB}, {name: b, source: b, format: raw, embed: false, persist: overlay}]",
         "disks[1].persist: an overlay is for disks that lie in the image"),
    ],
)  # fmt: skip
def test_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_text(f"version: 1\nboot: {{kernel: k}}\n{text}\n", "f")
    assert any(message in str(problem) for problem in caught.value.problems), caught.value.problems
