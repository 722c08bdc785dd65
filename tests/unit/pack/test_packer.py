# SPDX-License-Identifier: MIT
"""Whole images, read back through imgvm.qcow2 and, where it is installed, qemu-img."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import read_cpio, vmlinux
from file_trees import has, run

from imgvm.config import Config
from imgvm.errors import ImageError, PackError
from imgvm.exchange.folder import assemble, unpack
from imgvm.pack import PackResult, initramfs, packer
from imgvm.pack.deb import Deb, DebCache
from imgvm.qcow2 import Image

KIB, MIB = 1 << 10, 1 << 20
BASE = "version: 1\nname: box\nmachine: {memory: 64MiB}\n"


def pack(folder: Path, text: str, output: Path | None = None, *, force: bool = False) -> PackResult:
    config = Config.from_text(BASE + text, "box.yaml", folder)
    return packer.pack(config, output or folder / "box.img", force=force, cache=DebCache(folder / "cache"))


def blobs(path: Path) -> dict[str, bytes]:
    with Image.open(path) as image:
        return {blob.name: image.read_config(blob.name) for blob in image.config_blobs()}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_everything_is_in_the_image(folder: Path) -> None:
    text = "# as written\nboot: {kernel: boot/vmlinuz, cmdline: [quiet]}\nexec: {command: [ls], cwd: /tmp}\n"
    result = pack(folder, text)
    found = blobs(result.path)
    assert list(found) == ["config.yaml", "machine.json", "kernel", "initrd", "lock.json"]
    assert found["config.yaml"].decode() == BASE + text
    machine = Config.from_resolved(found["machine.json"], "machine.json").machine
    assert machine.name == "box" and machine.disks == ()
    assert machine.boot is not None and machine.boot.protocol == "linux" and machine.boot.cmdline == "quiet"
    assert found["kernel"].startswith(b"\x7fELF") and len(found["kernel"]) < len(vmlinux())
    rows = {row.name: row for row in read_cpio(found["initrd"])}
    assert rows["etc/imgvm/modules"].data.split() == [
        b"virtio_ring",
        b"virtio",
        b"virtio_pci",
        b"virtio_blk",
        b"virtio_rng",
    ]
    assert b"cd /tmp" in rows["etc/imgvm/exec"].data
    lock = json.loads(found["lock.json"])
    assert [(row["part"], row["origin"]) for row in lock["sources"]] == [
        ("boot.kernel", "boot/vmlinuz"),
        ("boot.initrd", "busybox of the test"),
    ]
    assert str(folder).encode() not in b"".join(found.values())
    assert (result.protocol, result.form, result.kernel_version) == ("linux", "bzImage (lz4)", "6.1.0-test")
    assert result.file_bytes == result.path.stat().st_size
    assert dict(result.blobs) == {name: len(data) for name, data in found.items()}
    assert leftovers(folder) == []


def test_same_input_gives_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "disk.raw").write_bytes(random.Random(1).randbytes(300 * KIB))
    text = "boot: {kernel: boot/vmlinuz}\ndisks: [{name: data, source: disk.raw, size: 8MiB}]\n"
    first = pack(folder, text, folder / "1.img").path.read_bytes()
    (folder / "boot/vmlinuz").touch()
    assert pack(folder, text, folder / "2.img").path.read_bytes() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = pack(folder, text, folder / "3.img").path
    assert dated.read_bytes() != first
    with Image.open(dated) as image:
        assert image.snapshots()[0].date == 1_700_000_000
    assert {row.mtime for row in read_cpio(blobs(dated)["initrd"])} == {1_700_000_000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PackError, match="SOURCE_DATE_EPOCH"):
        pack(folder, text, folder / "4.img")


def test_entropy_and_modules_of_the_config(folder: Path) -> None:
    result = pack(folder, "boot: {kernel: boot/vmlinuz, modules: [needy]}\n")
    rows = {row.name: row.data for row in read_cpio(blobs(result.path)["initrd"])}
    assert rows["etc/imgvm/modules"].split()[:3] == [b"helper", b"extra", b"needy"]
    with pytest.raises(PackError, match="no module nosuch"):
        pack(folder, "boot: {kernel: boot/vmlinuz, modules: [nosuch]}\n", folder / "2.img")
    shutil.rmtree(folder / "lib")
    with pytest.raises(PackError, match=r"modules of the kernel 6\.1\.0-test are not here"):
        pack(folder, "boot: {kernel: boot/vmlinuz, modules: [needy]}\n", folder / "2.img")
    assert not (folder / "2.img").exists()


def test_initrds_of_the_config_and_none(folder: Path) -> None:
    (folder / "a.cpio").write_bytes(initramfs.cpio.archive([initramfs.cpio.file("a", b"1")]))
    result = pack(folder, "boot: {kernel: boot/vmlinuz, initrd: [a.cpio, a.cpio]}\n")
    assert [row.name for row in read_cpio(blobs(result.path)["initrd"])] == ["a", "a"]
    none = pack(folder, "boot: {kernel: boot/vmlinuz, initrd: none}\n", folder / "2.img")
    assert "initrd" not in blobs(none.path)


def multiboot() -> bytes:
    header = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    return b"\x7fELF\x01\x01\x01".ljust(64, b"\0") + header + bytes(500)


def test_multiboot_kernel_and_modules(folder: Path) -> None:
    (folder / "k.elf").write_bytes(multiboot())
    (folder / "m").write_bytes(b"module one")
    result = pack(folder, "boot: {kernel: k.elf, modules: [m first, m second]}\n")
    found = blobs(result.path)
    assert found["kernel"] == multiboot()
    assert found["module-0"] == found["module-1"] == b"module one" and "initrd" not in found
    assert json.loads(found["machine.json"])["boot"]["protocol"] == "multiboot"
    assert result.protocol == "multiboot"


def test_bundled_guest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "_bundled", multiboot)
    assert blobs(pack(folder, "boot: {kernel: {bundled: true}}\n").path)["kernel"] == multiboot()


def test_kernel_of_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deb = Deb(
        "trixie", "linux-image-6.1.0-test", "1.0", "http://example.org/k.deb", "ab" * 32, 99, folder / "k.deb"
    )
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        DebCache, "kernel", lambda self, distro, package: asked.append((distro, package)) or deb
    )
    monkeypatch.setattr(DebCache, "unpacked", lambda self, found: folder)
    text = 'boot: {kernel: {distro: "debian:trixie", package: linux-image-test}}\n'
    (folder / "boot/vmlinuz").rename(folder / "boot/vmlinuz-6.1.0-test")
    found = blobs(pack(folder, text).path)
    assert asked == [("debian:trixie", "linux-image-test")]
    assert json.loads(found["lock.json"])["sources"][0] == {
        "part": "boot.kernel",
        "origin": "trixie linux-image-6.1.0-test 1.0",
        "sha256": "ab" * 32,
        "size_bytes": 99,
        "uri": "http://example.org/k.deb",
        "asked": "debian:trixie linux-image-test",
    }
    assert "lib/imgvm/virtio_blk.ko" in {row.name for row in read_cpio(found["initrd"])}
    (folder / "boot/vmlinuz-6.1.0-test").unlink()
    with pytest.raises(PackError, match="holds no kernel"):
        pack(folder, text, folder / "2.img")


# Disks


def guest_view(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.read(0, image.info.disk_bytes)


def test_no_disk_and_an_empty_one(folder: Path) -> None:
    assert pack(folder, "boot: {kernel: boot/vmlinuz}\n").disk_bytes == MIB
    text = "boot: {kernel: boot/vmlinuz}\ndisks: [{name: d, size: 1GiB}]\n"
    empty = pack(folder, text, folder / "2.img")
    assert empty.disk_bytes == 1 << 30 and empty.file_bytes < 4 * MIB
    larger = pack(folder, f"{text}image: {{size: 2GiB}}\n", folder / "3.img")
    assert larger.disk_bytes == 2 << 30


def sparse_source(path: Path) -> bytes:
    """8 MiB and 100 bytes: data at the start, in the middle across clusters, and at the very end."""
    content = bytearray(8 * MIB + 100)
    content[0:5] = b"first"
    content[3 * MIB + 65000 : 3 * MIB + 66000] = b"m" * 1000
    content[5 * MIB : 5 * MIB + 70000] = bytes(70000)
    content[-4:] = b"last"
    with path.open("wb") as file:
        for start in (0, 3 * MIB, 5 * MIB, 8 * MIB):
            file.seek(start)
            file.write(content[start : start + 128 * KIB])
    return bytes(content)


@pytest.mark.parametrize(("cluster", "most_bytes"), [("4KiB", MIB), ("64KiB", 2 * MIB), ("2MiB", 24 * MIB)])
def test_raw_source_is_copied_without_its_zeroes(folder: Path, cluster: str, most_bytes: int) -> None:
    content = sparse_source(folder / "disk.raw")
    text = (
        "boot: {kernel: boot/vmlinuz}\ndisks: [{name: d, source: disk.raw}]\n"
        + f"image: {{cluster_size: {cluster}}}\n"
    )
    result = pack(folder, text)
    assert guest_view(result.path) == content.ljust(8 * MIB + 512, b"\0")
    with Image.open(result.path) as image:
        assert image.check().clean
    assert result.file_bytes <= most_bytes
    row = json.loads(blobs(result.path)["lock.json"])["sources"][-1]
    assert (row["part"], row["origin"], row["size_bytes"]) == ("disks[0]", "disk.raw", 8 * MIB + 512)


def test_further_disks_lie_in_the_same_file(folder: Path) -> None:
    content = sparse_source(folder / "disk.raw").ljust(8 * MIB + 512, b"\0")
    (folder / "cd.iso").write_bytes(b"iso" * 1000)
    text = (
        "boot: {kernel: boot/vmlinuz}\ndisks:\n- {name: root, size: 2MiB}\n- {name: data, source: disk.raw, size: 9MiB}\n"
        "- {name: cd, source: cd.iso, read_only: true, serial: CD-1}\n- {name: out, source: there.raw, format: raw, embed: false}\n"
    )
    result = pack(folder, text)
    again = pack(folder, text, folder / "again.img")
    assert again.path.read_bytes() == result.path.read_bytes()
    with Image.open(result.path) as image:
        assert image.check().clean and image.disk_names() == ("data", "cd")
        data, cd = image.open_disk("data"), image.open_disk("cd")
        assert (image.info.disk_bytes, data.info.disk_bytes, cd.info.disk_bytes) == (2 * MIB, 9 * MIB, 3072)
        assert data.read(0, 9 * MIB) == content.ljust(9 * MIB, b"\0")
        assert cd.read(0, 3072) == (b"iso" * 1000).ljust(3072, b"\0")
        assert image.read(0, MIB) == bytes(MIB)
    rows = json.loads(blobs(result.path)["lock.json"])["sources"]
    assert [row["part"] for row in rows if row["part"].startswith("disks")] == ["disks[1]", "disks[2]"]
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", result.path], check=True)


@pytest.mark.parametrize(("kind", "cluster"), [("zlib", "64KiB"), ("zstd", "64KiB"), ("zstd", "2MiB"), ("zlib", "512B")])
def test_compressed_disks(folder: Path, kind: str, cluster: str) -> None:
    """All disks of the image; what compresses and what does not, in clusters of any size."""
    data = b"a line of text\n" * 200_000 + random.Random(1).randbytes(MIB) + bytes(3 * MIB) + b"end"
    for name in ("first", "more"):
        (folder / f"{name}.raw").write_bytes(name.encode() + data)
    text = (
        "boot: {kernel: boot/vmlinuz}\ndisks: [{name: first, source: first.raw, size: 9MiB}, {name: more, source: more.raw}]\n"
        f"image: {{cluster_size: {cluster}, compression: %s, pristine: true}}\n"
    )
    plain = pack(folder, text % "none", folder / "plain.img")
    result = pack(folder, text % kind)
    assert result.file_bytes < plain.file_bytes - 4 * MIB
    assert [row.sha256 for row in result.sources] == [row.sha256 for row in plain.sources]
    with Image.open(result.path) as image, Image.open(plain.path) as other:
        assert image.check().clean
        for disk_name in (None, "more"):
            ours, theirs = (opened.open_disk(disk_name) if disk_name else opened for opened in (image, other))
            size = theirs.info.disk_bytes
            assert ours.read(0, size) == theirs.read(0, size)
    assert pack(folder, text % kind, folder / "again.img").path.read_bytes() == result.path.read_bytes()
    unpack(result.path, folder / "unpacked")
    assert assemble(folder / "unpacked", folder / "assembled.img").read_bytes() == result.path.read_bytes()
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", result.path], check=True)
        subprocess.run(["qemu-img", "compare", "-q", result.path, plain.path], check=True)
    with Image.open(result.path, writable=True) as image:
        opened = image.open_disk("more")
        whole = opened.read(0, MIB)
        opened.write(100, b"changed")
        assert opened.read(0, MIB) == whole[:100] + b"changed" + whole[107:]
    with Image.open(result.path) as image:
        assert image.check().clean and image.read(0, 5) == b"first"


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize(("kind", "options"), [("vmdk", ""), ("vmdk", "subformat=streamOptimized"), ("vdi", ""), ("vhdx", "")])
def test_disks_of_other_programs(folder: Path, kind: str, options: str) -> None:
    content = b"".join(bytes([index]) * 70_000 + bytes(200_000) for index in range(1, 40)) + b"end".ljust(9 * MIB - 39 * 270_000, b"\0")
    (folder / "disk.raw").write_bytes(content)
    words = ["qemu-img", "convert", "-O", kind, *(["-o", options] if options else []), "disk.raw", f"disk.{kind}"]
    subprocess.run(words, check=True, cwd=folder)
    text = "boot: {kernel: boot/vmlinuz}\ndisks: [{name: d, source: disk.%s, format: %s}]\n"
    raw = pack(folder, text % ("raw", "raw"), folder / "raw.img")
    for wish in ("auto", kind):
        result = pack(folder, text % (kind, wish), folder / f"{wish}.img")
        assert guest_view(result.path)[: len(content)] == content
        if result.disk_bytes == raw.disk_bytes:  # VHDX rounds up
            assert result.sources[-1].sha256 == raw.sources[-1].sha256


def test_digests_that_the_config_names(folder: Path) -> None:
    (folder / "disk.raw").write_bytes(b"x" * 1024)
    right = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("disk.raw", "boot/vmlinuz")}

    def text(kernel_digest: str, disk_digest: str) -> str:
        return (
            f"boot: {{kernel: {{path: boot/vmlinuz, sha256: {kernel_digest}}}}}\n"
            f"disks: [{{name: d, source: disk.raw, sha256: {disk_digest}}}]\n"
        )

    pack(folder, text(right["boot/vmlinuz"], right["disk.raw"]), folder / "right.img")
    for wrong, words in (
        (text("f" * 64, right["disk.raw"]), f"boot.kernel.sha256: boot/vmlinuz has SHA-256 {right['boot/vmlinuz']}"),
        (text(right["boot/vmlinuz"], "f" * 64), f"disks[0].sha256: disk.raw has SHA-256 {right['disk.raw']}"),
    ):
        with pytest.raises(PackError) as caught:
            pack(folder, wrong)
        assert caught.value.message == words
    assert not (folder / "box.img").exists() and leftovers(folder) == []


@pytest.mark.skipif(not has("e2fsck", "dumpe2fs", "blkid"), reason="e2fsprogs and blkid are not installed")
def test_disks_with_a_file_system(folder: Path) -> None:
    text = (
        "boot: {kernel: boot/vmlinuz}\n"
        "disks: [{name: data, size: 40MiB, filesystem: ext4}, {name: swap, size: 3MiB, filesystem: swap}]\n"
    )
    result = pack(folder, text)
    with Image.open(result.path) as image:
        (folder / "data").write_bytes(image.read(0, 40 * MIB))
        (folder / "swap").write_bytes(image.open_disk("swap").read(0, 3 * MIB))
    run("e2fsck", "-fn", folder / "data")
    assert {"LABEL=data", "TYPE=ext4"} <= set(run("blkid", "-p", "-o", "export", folder / "data").split())
    assert "Block count:              10240" in run("dumpe2fs", "-h", folder / "data")
    facts = run("blkid", "-p", "-o", "export", folder / "swap").split()
    assert {"LABEL=swap", "TYPE=swap", "VERSION=1"} <= set(facts)
    names = {row.name: row.data for row in read_cpio(blobs(result.path)["initrd"])}["etc/imgvm/modules"].split()
    assert b"ext4" in names
    assert pack(folder, text, folder / "again.img").path.read_bytes() == result.path.read_bytes()
    for wrong, words in (("size: 512KiB, filesystem: ext4", "disks[0].size: 512KiB is too small"), ("size: 8KiB, filesystem: swap", "at least 40KiB")):
        with pytest.raises(PackError) as caught:
            pack(folder, f"boot: {{kernel: boot/vmlinuz}}\ndisks: [{{name: d, {wrong}}}]\n", force=True)
        assert words in caught.value.message


def test_the_time_of_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "boot: {kernel: boot/vmlinuz}\nimage: {source_date_epoch: %d}\n"
    own = pack(folder, text % 86400, folder / "own.img")
    with Image.open(own.path) as image:
        assert [row.date for row in image.snapshots()] == [86400]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "172800")
    given = pack(folder, text % 86400, folder / "given.img")
    with Image.open(given.path) as image:
        assert [row.date for row in image.snapshots()] == [172800]


def test_disks_outside_are_found_from_the_images_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (folder / "out").mkdir()
    disks = "".join(
        f"- {{name: d{index}, source: {source}, format: raw, embed: false}}\n"
        for index, source in enumerate(("there.raw", "/srv/x.raw", "~/y.raw", "../z.raw"))
    )
    text = f"boot: {{kernel: boot/vmlinuz}}\ndisks:\n- {{name: root, size: 1MiB}}\n{disks}"
    found = blobs(pack(folder, text, folder / "out/box.img").path)
    machine = Config.from_resolved(found["machine.json"], "machine.json").machine
    assert [disk.source for disk in machine.disks[1:]] == ["../there.raw", "/srv/x.raw", "/home/somebody/y.raw", "../../z.raw"]


def test_qcow2_source_gives_the_same_digest_as_the_raw_one(folder: Path) -> None:
    content = sparse_source(folder / "disk.raw").ljust(8 * MIB + 512, b"\0")
    with Image.create(folder / "disk.qcow2", len(content)) as image:
        image.write(0, content)
    rows = []
    for name in ("disk.raw", "disk.qcow2"):
        text = f"boot: {{kernel: boot/vmlinuz}}\ndisks: [{{name: d, source: {name}}}]\n"
        result = pack(folder, text, folder / f"{name}.img")
        assert guest_view(result.path) == content
        rows.append(json.loads(blobs(result.path)["lock.json"])["sources"][-1])
    assert rows[0]["sha256"] == rows[1]["sha256"]
    raw = pack(folder, "boot: {kernel: boot/vmlinuz}\ndisks: [{name: d, source: disk.qcow2, format: raw}]\n")
    assert guest_view(raw.path).startswith(b"QFI\xfb")


def test_sources_that_do_not_fit_or_are_foreign(folder: Path) -> None:
    (folder / "disk.raw").write_bytes(b"x" * 2 * MIB)
    (folder / "disk.vmdk").write_bytes(b"KDMV" + bytes(1020))
    (folder / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(1020))
    disks = {
        "source: disk.raw, size: 1MiB": "1MiB is less than its source has",
        "source: gone.raw": "gone.raw: No such file",
        "source: boot": "boot: Is a directory",
        "source: disk.vmdk": "disks[0].source: " + str(folder / "disk.vmdk") + ": damaged vmdk",
        "source: disk.raw, format: vdi": "disks[0].format: disk.raw is no vdi disk",
        "source: disk.vmdk, format: vhdx": "disks[0].source: ",
        "source: disk.qcow2": "disk.qcow2",
    }
    for keys, words in disks.items():
        with pytest.raises((PackError, ImageError)) as caught:
            pack(folder, f"boot: {{kernel: boot/vmlinuz}}\ndisks: [{{name: d, {keys}}}]\n")
        assert words in caught.value.message
    assert not (folder / "box.img").exists() and leftovers(folder) == []


# Faults


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("boot: {kernel: gone}\n", "boot.kernel: gone: No such file or directory"),
        ("boot: {kernel: boot}\n", "boot.kernel: boot: Is a directory"),
        ("boot: {kernel: text}\n", "text is not a Linux kernel: it looks like text"),
        ("boot: {kernel: boot/vmlinuz, initrd: gone}\n", "boot.initrd: gone: No such file"),
        ("boot: {kernel: boot/vmlinuz, initrd: text}\n", "boot.initrd: text is not an initramfs"),
        (
            "boot: {kernel: boot/vmlinuz, files: [{path: /x, source: gone}]}\n",
            "boot.files[0]: gone: No such file",
        ),
        ("boot: {kernel: k.elf, modules: [gone arg]}\n", "boot.modules[0]: gone: No such file"),
        ("boot: {kernel: k.elf, initrd: text}\n", "Multiboot kernels take boot.modules"),
    ],
)
def test_what_cannot_be_had_is_said_and_nothing_written(folder: Path, text: str, words: str) -> None:
    (folder / "text").write_text("hello\n")
    (folder / "k.elf").write_bytes(multiboot())
    with pytest.raises(PackError) as caught:
        pack(folder, text)
    assert words in caught.value.message
    assert not (folder / "box.img").exists() and leftovers(folder) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_kernel(folder: Path) -> None:
    (folder / "boot/vmlinuz").chmod(0)
    with pytest.raises(PackError, match="Permission denied") as caught:
        pack(folder, "boot: {kernel: boot/vmlinuz}\n")
    assert "readable" in (caught.value.hint or "")


def test_memory_must_hold_the_kernel(folder: Path) -> None:
    (folder / "big").write_bytes(initramfs.cpio.archive([initramfs.cpio.file("big", bytes(40 * MIB))]))
    with pytest.raises(PackError, match="64MiB cannot hold the kernel") as caught:
        pack(folder, "boot: {kernel: boot/vmlinuz, initrd: big}\n")
    assert caught.value.hint == "give at least 128MiB"


def test_output_is_replaced_only_when_asked(folder: Path) -> None:
    output = folder / "box.img"
    output.write_text("mine")
    with pytest.raises(PackError, match=r"box\.img exists") as caught:
        pack(folder, "boot: {kernel: boot/vmlinuz}\n")
    assert "--force" in (caught.value.hint or "")
    with pytest.raises(PackError, match="gone"):
        pack(folder, "boot: {kernel: gone}\n", force=True)
    assert output.read_text() == "mine"
    pack(folder, "boot: {kernel: boot/vmlinuz}\n", force=True)
    assert "kernel" in blobs(output)
    assert stat.S_IMODE(output.stat().st_mode) & 0o444 == 0o444 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_odd_outputs(folder: Path) -> None:
    outputs: Sequence[tuple[Path, str]] = [
        (folder, "is a folder"),
        (folder / "no/such/box.img", "does not exist"),
        (Path("/dev/null"), "no ordinary file"),
    ]
    for output, words in outputs:
        with pytest.raises(PackError, match=words):
            pack(folder, "boot: {kernel: boot/vmlinuz}\n", output, force=True)


def test_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image, blobs: object, *, date: int) -> None:
        raise ImageError("cannot write", errno=errno.ENOSPC)

    monkeypatch.setattr(Image, "set_config", full)
    with pytest.raises(PackError, match="no space left") as caught:
        pack(folder, "boot: {kernel: boot/vmlinuz}\n")
    assert "nothing was written" in caught.value.message and caught.value.errno == errno.ENOSPC
    assert not (folder / "box.img").exists() and leftovers(folder) == []


def test_a_disk_that_is_really_full(folder: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from imgvm.config import Config
from imgvm.errors import PackError
from imgvm.pack import pack
text = "version: 1\\nboot: {{kernel: {folder}/boot/vmlinuz, initrd: none}}\\n"
try:
    pack(Config.from_text(text), "/mnt/x.img")
except PackError as error:
    print(error.message, sorted(Path("/mnt").iterdir()))
"""
    command = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=200k t /mnt && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespaces here")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "/mnt/x.img: no space left in /mnt; nothing was written []\n", done.stderr


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_qemu_img_agrees(folder: Path) -> None:
    content = sparse_source(folder / "disk.raw").ljust(8 * MIB + 512, b"\0")
    image = pack(folder, "boot: {kernel: boot/vmlinuz}\ndisks: [{name: d, source: disk.raw}]\n").path

    def qemu_img(*arguments: str) -> str:
        return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=True).stdout

    assert "No errors were found" in qemu_img("check", str(image))
    assert "imgvm.config" in qemu_img("snapshot", "-l", str(image))
    qemu_img("convert", "-O", "raw", str(image), str(folder / "back.raw"))
    assert (folder / "back.raw").read_bytes() == content
