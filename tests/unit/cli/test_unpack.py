# SPDX-License-Identifier: MIT
"""`imgvm unpack` and `imgvm pack` of what it made: the same bytes, or what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import kernel, leave, say

from imgvm.cli import main
from imgvm.qcow2 import Image

Images = Callable[..., Path]
MIB = 1 << 20


@pytest.fixture
def image(image_of: Images, tmp_path: Path) -> Path:
    """An image with data here and there on its disk."""
    with (tmp_path / "source.raw").open("wb") as stream:
        stream.truncate(300 * MIB)
        for offset, size in ((0, 512), (3 * MIB - 700, 90_000), (130 * MIB, 2 * MIB + 5), (300 * MIB - 512, 512)):
            stream.seek(offset)
            stream.write(bytes(range(1, 256)) * (size // 255 + 1))
        stream.truncate(300 * MIB)
    return image_of(say("first") + leave(3), "disks: [{name: data, source: source.raw}]  # kept\nlabels: {a: b}")


def test_unpacked_and_packed_again_it_is_the_same(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again.img"
    assert main(["unpack", str(image), str(folder)]) == 0
    names = ["config.yaml", "machine.json", "kernel", "lock.json", "disk.raw", "image.json"]
    assert capfd.readouterr().out.splitlines() == [str(folder / name) for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert (folder / "kernel").read_bytes() == (tmp_path / "kernel").read_bytes()
    disk = (folder / "disk.raw").stat()
    assert disk.st_size == 300 * MIB and disk.st_blocks * 512 < 4 * MIB
    assert (folder / "disk.raw").read_bytes() == (tmp_path / "source.raw").read_bytes()
    assert main(["pack", str(folder), "-o", str(again)]) == 0
    assert capfd.readouterr().out == f"{again}\n"
    assert again.read_bytes() == image.read_bytes()
    assert main(["pack", str(folder), "-o", str(again)]) == 125
    assert "--force replaces it" in capfd.readouterr().err


def test_what_is_changed_in_the_folder_changes_the_image(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["unpack", str(image), "f"]) == 0
    config, disk = tmp_path / "f" / "config.yaml", tmp_path / "f" / "disk.raw"
    config.write_text(config.read_text().replace("16MiB", "32MiB"))
    (tmp_path / "f" / "kernel").write_bytes(kernel(say("second") + leave(4)))
    with disk.open("r+b") as stream:
        stream.write(b"other")
    capfd.readouterr()
    assert main(["-q", "pack", "f", "--set", "name=other", "-o", "other.img"]) == 0
    assert main(["-q", "run", "other.img"]) == 4
    assert capfd.readouterr().out == "other.img\nsecond"
    with Image.open("other.img") as opened:
        assert opened.read(0, 8) == b"other\6\7\x08"
        machine = json.loads(opened.read_config("machine.json"))
        assert (machine["machine"]["memory"], machine["name"]) == ("32MiB", "other")
    (tmp_path / "f" / "kernel").write_text("no kernel")
    assert main(["pack", "f", "-o", "no.img"]) == 125
    config.write_text(config.read_text() + "rootfs: {}\n")
    assert main(["pack", "f", "-o", "no.img"]) == 125
    assert not (tmp_path / "no.img").exists()


def test_what_cannot_be_unpacked_leaves_nothing(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.iterdir())
    assert main(["unpack", str(image), str(tmp_path / "full")]) == 125
    assert "is not empty" in capfd.readouterr().err
    for name in ("../escape", "a/b", ".hidden", "disk.raw", "image.json", "a b"):
        with Image.open(image, writable=True) as opened:
            blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs() if blob.name in ("config.yaml", "machine.json", "kernel")}
            opened.set_config(blobs | {name: b"x"}, date=0)
        assert main(["unpack", str(image), str(tmp_path / "new")]) == 125
        assert f"a blob of the name {name!r} makes no file" in capfd.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "blobs": 5, "config": "", "date": 0, "cluster_bytes": 65536}',
     '{"format": 1, "blobs": {"../x": ""}, "config": "", "date": 0, "cluster_bytes": 65536}', "[" * 5000,
     '{"format": 1, "blobs": {}, "config": 5, "date": 0, "cluster_bytes": 65536}',
     '{"format": 1, "blobs": {}, "config": "", "date": "0", "cluster_bytes": 65536}',
     '{"format": 1, "blobs": {}, "config": "", "date": 0, "cluster_bytes": true}',
     '{"format": 1, "blobs": {}, "config": "", "date": 0, "cluster_bytes": 65536, "further_disks": [[]]}'],
)  # fmt: skip
def test_damaged_manifests(manifest: str, image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["unpack", str(image), str(tmp_path / "f")]) == 0
    (tmp_path / "f" / "image.json").write_text(manifest)
    assert main(["pack", str(tmp_path / "f"), "-o", str(tmp_path / "out.img")]) == 125
    said = capfd.readouterr().err
    assert "image.json" in said and "Traceback" not in said and "fault of imgvm" not in said
    assert not (tmp_path / "out.img").exists()


def test_further_disks_go_through_a_folder(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.raw").write_bytes(bytes(MIB) + b"further" * 1000 + bytes(MIB - 6488))
    image = image_of(leave(3), "disks: [{name: a, size: 1MiB}, {name: b, source: data.raw}, {name: c, size: 512KiB}]")
    folder, again = tmp_path / "folder", tmp_path / "again.img"
    assert main(["unpack", str(image), str(folder)]) == 0
    assert (folder / "disk-b.raw").read_bytes() == (tmp_path / "data.raw").read_bytes()
    assert main(["pack", str(folder), "-o", str(again)]) == 0
    assert again.read_bytes() == image.read_bytes()
    manifest = json.loads((folder / "image.json").read_text())
    (folder / "image.json").write_text(json.dumps(manifest | {"further_disks": ["../b"]}))
    assert main(["pack", str(folder), "-o", str(tmp_path / "no.img")]) == 125
    assert "is no name of a disk" in capfd.readouterr().err


def composed_config(folder: Path) -> Path:
    (folder / "common").mkdir()
    (folder / "team" / "parts").mkdir(parents=True)
    (folder / "kernel").write_bytes(kernel(say("composed") + leave(3)))
    (folder / "common/base.yaml").write_text("# the base\nboot: {kernel: ../kernel}\nmachine: {memory: 16MiB, accel: interp}\n")
    (folder / "team/parts/exit.yaml").write_text("devices: {debug_exit: true}\nlabels: {tag: '${TAG}', who: '${WHO}'}\n")
    config = folder / "team/ci.yaml"
    config.write_text(
        "version: 1\nname: small\ninclude: [../common/base.yaml, parts/exit.yaml]\n"
        "vars: {TAG: none, WHO: {env: IMGVM_TEST_WHO}}\nprofiles:\n  big: {machine: {memory: 32MiB}}\n"
    )
    return config


def test_what_a_config_was_put_together_from_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    config, folder = composed_config(tmp_path), tmp_path / "folder"
    monkeypatch.setenv("IMGVM_TEST_WHO", "me")
    monkeypatch.chdir(tmp_path)
    words = ["--var", "TAG=7", "--profile", "big", "--set", "exit.timeout=10s"]
    assert main(["-q", "pack", str(config), "-o", "a.img", *words]) == 0
    capfd.readouterr()
    assert main(["unpack", "a.img", "folder"]) == 0
    written = ["composed/config/ci.yaml", "composed/common/base.yaml", "composed/config/parts/exit.yaml"]
    assert capfd.readouterr().out.splitlines()[-4:-1] == [f"folder/{name}" for name in written]
    document = json.loads((folder / "composed.json").read_text())
    assert document["variables"] == {"TAG": "7", "WHO": "me"}
    assert (document["config"], document["profiles"], document["set"]) == ("ci.yaml", ["big"], ["exit.timeout=10s"])
    for name, source in zip(written, ("team/ci.yaml", "common/base.yaml", "team/parts/exit.yaml"), strict=True):
        assert (folder / name).read_text() == (tmp_path / source).read_text()
    assert main(["pack", "folder", "-o", "again.img"]) == 0
    assert Path("again.img").read_bytes() == Path("a.img").read_bytes()
    # As a config it packs again, once what lies beside it does.
    (folder / "composed/kernel").write_bytes((tmp_path / "kernel").read_bytes())
    assert main(["-q", "pack", f"folder/{written[0]}", "-o", "third.img", *words]) == 0
    assert Path("third.img").read_bytes() == Path("a.img").read_bytes()
    assert main(["-q", "run", "third.img"]) == 3


def test_a_plain_config_has_no_such_blob(image: Path) -> None:
    with Image.open(image) as opened:
        assert "composed.json" not in {blob.name for blob in opened.config_blobs()}


@pytest.mark.parametrize(
    "includes",
    [
        [{"path": "a/../../../../x", "text": ""}], [{"path": "x/../../..", "text": ""}], [{"path": "a\nb", "text": ""}],
        [{"path": "..", "text": ""}], [{"path": "x" * 300, "text": ""}], [{"path": f"{n}", "text": ""} for n in range(65)],
        [{"name": "x"}], "text", [{"path": "../" * 9 + "x", "text": ""}],
    ],
)  # fmt: skip
def test_composed_texts_stay_in_the_folder(includes: object, image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        document = {"composed": 1, "config": "ci.yaml", "includes": includes, "variables": {}, "profiles": [], "set": []}
        opened.set_config(blobs | {"composed.json": json.dumps(document).encode()}, date=0)
    before = sorted(tmp_path.iterdir())
    assert main(["unpack", str(image), str(tmp_path / "new")]) in (0, 125)
    err = capfd.readouterr().err
    new = [path for path in sorted(tmp_path.iterdir()) if path not in before]
    assert (new == [] and "composed.json" in err) or all(path.name == "new" for path in new)
    assert not (tmp_path / "x").exists() and not (tmp_path.parent / "x").exists()
