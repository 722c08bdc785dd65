# SPDX-License-Identifier: MIT
"""`rootfs` of a config, packed into whole images."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import BUSYBOX, kernel, module, module_tree, read_cpio

from imgvm.config import Config
from imgvm.errors import ConfigError, PackError
from imgvm.exchange.folder import assemble, unpack
from imgvm.machine import File, Rootfs
from imgvm.pack import PackResult, initramfs, lock, packer, squashfs
from imgvm.pack.deb import DebCache
from imgvm.pack.progress import Progress
from imgvm.pack.rootfs import Root
from imgvm.pack.tree import FileTree, Node
from imgvm.qcow2 import Image

MIB = 1 << 20
HEAD = "version: 1\nname: box\nmachine: {memory: 64MiB}\n"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def place(folder: Path) -> Path:
    """And a small root."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/issue").write_text("a small system\n")
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/tool").write_bytes(os.urandom(200_000))
    (root / "usr/bin/tool").chmod(0o755)
    (root / "usr/bin/other").hardlink_to(root / "usr/bin/tool")
    (root / "zeroes").write_bytes(bytes(3 * MIB))
    return folder


def pack(
    folder: Path,
    text: str,
    output: str = "box.img",
    boot: str = "boot: {kernel: boot/vmlinuz}\n",
    frozen: Path | None = None,
) -> PackResult:
    config = Config.from_text(HEAD + boot + text, "box.yaml", folder)
    return packer.pack(config, folder / output, force=True, cache=DebCache(folder / "cache"), frozen=frozen)


def blobs(path: Path) -> dict[str, bytes]:
    with Image.open(path) as image:
        return {blob.name: image.read_config(blob.name) for blob in image.config_blobs()}


def raw(path: Path) -> Path:
    out = path.with_suffix(".raw")
    with Image.open(path) as image:
        out.write_bytes(image.read(0, image.info.disk_bytes))
    return out


def listed(disk: Path, folder: str = "/") -> set[str]:
    said = subprocess.run([tool("debugfs"), "-R", f"ls -p {folder}", disk], capture_output=True, check=True, text=True)
    return {row.split("/")[5] for row in said.stdout.splitlines() if row} - {".", ".."}


def content(disk: Path, path: str) -> bytes:
    return subprocess.run([tool("debugfs"), "-R", f"cat {path}", disk], capture_output=True, check=True).stdout


def check(disk: Path) -> None:
    subprocess.run([tool("e2fsck"), "-fn", disk], check=True, capture_output=True)


def test_a_folder_becomes_the_disk(place: Path) -> None:
    result = pack(place, "rootfs: {dir: root}\nexec: {command: [tool]}\n")
    disk = raw(result.path)
    check(disk)
    assert listed(disk) == {"bin", "dev", "etc", "lost+found", "proc", "run", "sys", "tmp", "usr", "zeroes"}
    assert content(disk, "/etc/issue") == b"a small system\n"
    assert content(disk, "/usr/bin/other") == (place / "root/usr/bin/tool").read_bytes()
    assert content(disk, "/zeroes") == bytes(3 * MIB)
    assert result.file_bytes < 3 * MIB < 64 * MIB < result.disk_bytes

    found = blobs(result.path)
    machine = Config.from_resolved(found["machine.json"], "m").machine
    assert machine.rootfs == Rootfs(dir="root")
    assert [(row.name, row.serial, row.read_only) for row in machine.attached] == [("root", "root", False)]
    assert machine.kernel_cmdline == "root=/dev/vda rw"
    rows = {row.name: row.data for row in read_cpio(found["initrd"])}
    assert rows["etc/imgvm/root"] == b"ext4\n"
    assert b"ext4" in rows["etc/imgvm/modules"].split() and b"exec tool" in rows["etc/imgvm/exec"]
    (row,) = [row for row in json.loads(found["lock.json"])["sources"] if row["part"] == "rootfs.dir"]
    assert row["origin"] == "root" and row["size_bytes"] == 3 * MIB + 200_000 + 15


def test_with_further_disks_and_a_seed(place: Path) -> None:
    """The root is the first disk, the others of the image follow, the seed is last; the lock has all that was read."""
    (place / "data.raw").write_bytes(b"data" * 1024)
    (place / "host.raw").write_bytes(bytes(MIB))
    text = """
rootfs: {dir: root, read_only: true}
disks:
- {name: host, source: host.raw, format: raw, embed: false}
- {name: data, source: data.raw}
- {name: empty, size: 3MiB, read_only: true}
cloud_init: {user_data: {hostname: box}}
image: {pristine: true, cluster_size: 4KiB}
"""
    result = pack(place, text)
    found = blobs(result.path)
    machine = Config.from_resolved(found["machine.json"], "m").machine
    assert [(row.name, row.read_only) for row in machine.attached] == [
        ("root", True), ("host", False), ("data", False), ("empty", True), ("cidata", True),
    ]  # fmt: skip
    check(raw(result.path))
    assert content(raw(result.path), "/etc/issue") == b"a small system\n"
    with Image.open(result.path) as image:
        assert image.disk_names() == ("data", "empty", "cidata")
        assert image.open_disk("data").read(0, 4096) == b"data" * 1024
        assert image.open_disk("empty").info.disk_bytes == 3 * MIB
        assert image.open_disk("cidata").read(32769, 5) == b"CD001"
    rows = [row["part"] for row in json.loads(found["lock.json"])["sources"]]
    assert rows == ["boot.kernel", "boot.initrd", "rootfs.dir", "disks[1]"]

    lock.write(place / "box.lock", result.sources)
    first = result.path.read_bytes()
    assert pack(place, text, frozen=place / "box.lock").path.read_bytes() == first
    unpack(result.path, place / "unpacked")
    assert assemble(place / "unpacked", place / "again.img").read_bytes() == first
    (place / "root/etc/issue").write_text("another system\n")
    with pytest.raises(PackError, match=r"^--frozen: rootfs\.dir: root has SHA-256"):
        pack(place, text, frozen=place / "box.lock")
    assert result.path.read_bytes() == first


@pytest.mark.parametrize("embed", ["", ", format: raw, embed: false"])
def test_a_root_in_memory_leaves_the_first_place(place: Path, embed: str) -> None:
    (place / "data.raw").write_bytes(b"data" * 1024)
    text = f"rootfs: {{dir: root, format: initramfs}}\ndisks: [{{name: root, size: 2MiB}}, {{name: data, source: data.raw{embed}}}]\n"
    result = pack(place, text)
    assert result.disk_bytes == 2 * MIB
    machine = Config.from_resolved(blobs(result.path)["machine.json"], "m").machine
    assert machine.own_disk == machine.disks[0] and machine.further_disks == machine.disks[1:]
    with Image.open(result.path) as image:
        assert image.disk_names() == (() if embed else ("data",))


def test_every_key(place: Path) -> None:
    text = """
rootfs:
  tar: [a.tar, b.tar.gz]
  size: 80MiB
  free: 1GiB
  partition_table: gpt
  label: system
  owner: keep
  exclude: ["*.tmp", /var/log]
  files: [{path: /etc/motd, content: hi}, {path: /l, link: etc/motd}]
  read_only: true
"""
    machine = Config.from_text(HEAD + "boot: {kernel: {from_rootfs: true}, cmdline: quiet}\n" + text, "f").machine
    assert machine.rootfs == Rootfs(
        tar=("a.tar", "b.tar.gz"), size_bytes=80 * MIB, free_bytes=1024 * MIB, partition_table="gpt", label="system",
        owner="keep", exclude=("*.tmp", "/var/log"), read_only=True,
        files=(File("/etc/motd", content="hi"), File("/l", link="etc/motd")),
    )  # fmt: skip
    assert machine.boot is not None and machine.boot.kernel.from_rootfs
    assert machine.kernel_cmdline == "quiet root=/dev/vda1 ro"
    assert [disk.read_only for disk in machine.attached] == [True]
    for more in ("rootfs: {oci: image}\n", "rootfs: {oci: {registry: localhost/a:1}}\n", "rootfs: {dir: d, format: initramfs}\n", text):
        config = Config.from_text(HEAD + "boot: {kernel: k}\n" + more, "f")
        assert Config.from_resolved(config.resolved(), "g").machine == config.machine


@pytest.mark.parametrize(
    ("cmdline", "whole"),
    [
        ("root=/dev/vdb quiet", "root=/dev/vdb quiet rw"),
        ("ro console=ttyS0", "ro console=ttyS0 root=/dev/vda"),
        ("root=LABEL=x rw", "root=LABEL=x rw"),
    ],
)
def test_what_the_command_line_says_counts(cmdline: str, whole: str) -> None:
    text = f"{HEAD}boot: {{kernel: k, cmdline: '{cmdline}'}}\nrootfs: {{dir: d}}\n"
    assert Config.from_text(text, "f").machine.kernel_cmdline == whole


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rootfs: {}", "rootfs: give one of dir, tar and oci"),
        ("rootfs: {dir: a, tar: b}", "rootfs: give one of dir, tar and oci"),
        ("rootfs: {dir: a, size: 10}", "rootfs.size: must be auto or a size"),
        ("rootfs: {dir: a, compression: lz4}", "rootfs.compression: only an erofs is compressed so"),
        ("rootfs: {dir: a, format: zfs}", "rootfs.format: must be one of ext4"),
        ("rootfs: {dir: a}\ndisks: [{name: root, size: 1MiB}]", "disks[0].name: root is the name of the disk that rootfs makes"),
        ("rootfs: {dir: a, format: initramfs}\ndisks: [{name: d, source: d, format: raw, embed: false}]", "the first disk is the image's own"),
        ("rootfs: {dir: a, files: [{path: /a/../b, content: c}]}", "rootfs.files[0].path: /a/../b must not contain"),
        ("rootfs: {dir: a, format: initramfs, size: 1GiB}", "rootfs.size: an initramfs is not on a disk"),
        ("rootfs: {dir: a, label: a very long label indeed}", "rootfs.label: "),
    ],
)
def test_faults(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_text(f"{HEAD}boot: {{kernel: k}}\n{text}\n", "f")
    assert any(words in str(problem) for problem in caught.value.problems), caught.value.problems


def test_a_kernel_from_no_rootfs() -> None:
    with pytest.raises(ConfigError, match="there is no rootfs"):
        Config.from_text(HEAD + "boot: {kernel: {from_rootfs: true}}\n", "f")


def test_the_same_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "rootfs: {dir: root}\n"
    first = pack(place, text, "a.img").path.read_bytes()
    for path in (place / "root").rglob("*"):
        os.utime(path, (5, 5), follow_symlinks=False)
    moved = place / "elsewhere"
    shutil.copytree(place / "root", moved / "root", symlinks=True)
    (moved / "root/usr/bin/other").unlink()
    (moved / "root/usr/bin/other").hardlink_to(moved / "root/usr/bin/tool")
    shutil.copytree(place / "boot", moved / "boot")
    module_tree(moved)
    assert pack(place, text, "b.img").path.read_bytes() == first
    assert pack(moved, text, "c.img").path.read_bytes() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    dated = pack(place, text, "d.img")
    assert dated.path.read_bytes() != first
    said = subprocess.run([tool("debugfs"), "-R", "stat /etc/issue", raw(dated.path)], capture_output=True, check=True, text=True)
    assert "mtime: 0x00015180" in said.stdout


@pytest.mark.parametrize(("cluster", "table"), [("64KiB", "none"), ("4KiB", "gpt"), ("2MiB", "mbr")])
def test_unpacked_and_packed_again_it_is_the_same(place: Path, cluster: str, table: str) -> None:
    """What is streamed into the image lies there as a copy of the whole disk would."""
    (place / "root/far").write_bytes(os.urandom(MIB) * 140)  # over a copy of the superblock
    result = pack(place, f"rootfs: {{dir: root, partition_table: {table}, free: 300MiB}}\nimage: {{cluster_size: {cluster}}}\n")
    unpack(result.path, place / "unpacked")
    assemble(place / "unpacked", place / "again.img")
    assert (place / "again.img").read_bytes() == result.path.read_bytes()
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", result.path], check=True)


def test_what_is_left_out_and_put_in(place: Path) -> None:
    (place / "motd").write_text("welcome\n")
    (place / "motd").chmod(0o600)
    text = """
rootfs:
  dir: root
  exclude: [zeroes, "/usr/bin/oth*"]
  files:
    - {path: /etc/motd, source: motd}
    - {path: /etc/issue, content: "another\\n", mode: "0640"}
    - {path: /bin/run, link: tool}
"""
    disk = raw(pack(place, text).path)
    check(disk)
    assert "zeroes" not in listed(disk)
    assert listed(disk, "/usr/bin") == {"tool", "run"}
    assert (content(disk, "/etc/motd"), content(disk, "/etc/issue")) == (b"welcome\n", b"another\n")
    with pytest.raises(PackError, match=r"rootfs\.files\[0\]: /etc is a folder"):
        pack(place, "rootfs: {dir: root, files: [{path: /etc, content: x}]}\n")
    with pytest.raises(PackError, match=r"rootfs\.dir: gone: no such folder"):
        pack(place, "rootfs: {dir: gone}\n")
    with pytest.raises(PackError, match=r"rootfs\.dir: motd is no folder"):
        pack(place, "rootfs: {dir: motd}\n")
    with pytest.raises(PackError, match=r"rootfs\.tar: gone: No such file"):
        pack(place, "rootfs: {tar: gone}\n")


def archive(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode, encoding="utf-8", errors="surrogateescape") as out:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.mtime = len(data), 1000, 77
            out.addfile(member, io.BytesIO(data))
    return path


def test_archives_over_each_other(place: Path) -> None:
    archive(place / "a.tar.xz", {"./etc/a": b"1", "./etc/b": b"1"}, "w:xz")
    archive(place / "b.tar.gz", {"etc/b": b"2"}, "w:gz")
    result = pack(place, "rootfs: {tar: [a.tar.xz, b.tar.gz]}\n")
    disk = raw(result.path)
    check(disk)
    assert (content(disk, "/etc/a"), content(disk, "/etc/b")) == (b"1", b"2")
    said = subprocess.run([tool("debugfs"), "-R", "stat /etc/a", disk], capture_output=True, check=True, text=True).stdout
    assert re.search(r"User: +1000", said) and "mtime: 0x0000004d" in said
    parts = [(row.part, row.origin) for row in result.sources if row.part == "rootfs.tar"]
    assert parts == [("rootfs.tar", "a.tar.xz"), ("rootfs.tar", "b.tar.gz")]


@pytest.mark.parametrize("table", ["gpt", "mbr"])
@pytest.mark.parametrize("size", ["auto", "100MiB"])
def test_partition_tables(place: Path, table: str, size: str) -> None:
    result = pack(place, f"rootfs: {{dir: root, partition_table: {table}, size: {size}}}\nimage: {{size: 90MiB}}\n")
    disk = raw(result.path)
    assert result.disk_bytes >= 90 * MIB and (size == "auto" or result.disk_bytes == 100 * MIB)
    said = json.loads(subprocess.run([tool("sfdisk"), "-J", disk], capture_output=True, check=True).stdout)["partitiontable"]
    assert said["label"] == {"gpt": "gpt", "mbr": "dos"}[table]
    (part,) = said["partitions"]
    assert part["start"] == 2048
    assert subprocess.run([tool("sfdisk"), "--verify", disk], capture_output=True, check=True).stderr == b""
    if table == "gpt":
        assert part["type"] == "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" and part["name"] == "root"
        verified = subprocess.run([tool("sgdisk"), "-v", disk], capture_output=True, check=True, text=True).stdout
        assert "No problems found" in verified
    inside = place / "partition"
    with disk.open("rb") as stream:
        stream.seek(part["start"] * 512)
        inside.write_bytes(stream.read(part["size"] * 512))
    check(inside)
    assert content(inside, "/etc/issue") == b"a small system\n"


def test_sizes(place: Path) -> None:
    assert pack(place, "rootfs: {dir: root, size: 32MiB}\n").disk_bytes == 32 * MIB
    assert pack(place, "rootfs: {dir: root}\nimage: {size: 1GiB}\n").disk_bytes == 1024 * MIB
    with pytest.raises(PackError, match=r"rootfs\.size: 2MiB is too small"):
        pack(place, "rootfs: {dir: root, size: 2MiB}\n")
    with pytest.raises(PackError, match="no room for a gpt table"):
        pack(place, "rootfs: {dir: root, size: 1MiB, partition_table: gpt}\n")


class TestSquashfs:
    @pytest.mark.skipif(not shutil.which("mksquashfs") or not shutil.which("unsquashfs"), reason="squashfs-tools is not installed")
    def test_it_holds_the_tree(self, place: Path) -> None:
        with (place / "root/holes").open("wb") as stream:
            stream.truncate(5 * MIB)
            stream.seek(3 * MIB)
            stream.write(b"data")
        archive(place / "more.tar", {"owned/by-1000": b"x" * 5000, "é/\udcff": b"1"})
        with tarfile.open(place / "more.tar", "a") as out:
            out.add(place / "root", ".", filter=lambda row: row.replace(uid=0, gid=0, mtime=9, deep=False))
            for name, kind in (("null", tarfile.CHRTYPE), ("fifo", tarfile.FIFOTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.devmajor, member.devminor = kind, 1, 3
                out.addfile(member)
        result = pack(place, "rootfs: {tar: more.tar, format: squashfs, partition_table: gpt}\n")
        assert [disk.read_only for disk in Config.from_resolved(blobs(result.path)["machine.json"], "m").machine.attached] == [True]
        disk = raw(result.path)
        inside = place / "squashfs"
        inside.write_bytes(disk.read_bytes()[MIB:-MIB])
        said = subprocess.run(["unsquashfs", "-lln", inside], capture_output=True, check=True).stdout.decode(errors="replace")
        assert re.search(r"-rw-r--r-- 1000/0 +5000 1970-01-01 .* squashfs-root/owned/by-1000$", said, re.M)
        assert re.search(r"^crw-r--r-- 0/0 +1, +3 .* squashfs-root/null$", said, re.M) and "squashfs-root/fifo" in said
        subprocess.run(["unsquashfs", "-q", "-n", "-d", place / "out", inside], capture_output=True, check=False)
        for name in ("etc/issue", "usr/bin/tool", "usr/bin/other", "zeroes", "holes"):
            assert (place / "out" / name).read_bytes() == (place / "root" / name).read_bytes(), name
        assert (place / "out/usr/bin/tool").stat().st_ino == (place / "out/usr/bin/other").stat().st_ino
        again = pack(place, "rootfs: {tar: more.tar, format: squashfs, partition_table: gpt}\n", "again.img")
        assert again.path.read_bytes() == result.path.read_bytes()
        with pytest.raises(PackError, match=r"rootfs\.size: 1MiB is too small"):
            (place / "root/noise").write_bytes(os.urandom(2 * MIB))
            pack(place, "rootfs: {dir: root, format: squashfs, size: 1MiB}\n")

    def test_the_tool_is_missing(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(squashfs, "TOOL", "mksquashfs-that-is-not-there")
        with pytest.raises(PackError, match="is not here") as caught:
            pack(place, "rootfs: {dir: root, format: squashfs}\n")
        assert "apt install squashfs-tools" in (caught.value.hint or "")

    def test_the_tool_fails(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (place / "failing").write_text("#!/bin/sh\necho no luck >&2\nexit 3\n")
        (place / "failing").chmod(0o755)
        monkeypatch.setattr(squashfs, "TOOL", str(place / "failing"))
        with pytest.raises(PackError, match="ended with 3: no luck"):
            pack(place, "rootfs: {dir: root, format: squashfs}\n")


@pytest.mark.parametrize(("size", "table", "kind"), [("auto", "none", "lz4"), ("20MiB", "gpt", "none")])
def test_erofs(place: Path, size: str, table: str, kind: str) -> None:
    text = f"rootfs: {{dir: root, format: erofs, compression: {kind}, size: {size}, partition_table: {table}, label: sealed}}\nexec: {{command: [tool]}}\n"
    result = pack(place, text)
    found = blobs(result.path)
    machine = Config.from_resolved(found["machine.json"], "m").machine
    assert [disk.read_only for disk in machine.attached] == [True] and machine.kernel_cmdline.endswith(" ro")
    rows = {row.name: row.data for row in read_cpio(found["initrd"])}
    assert rows["etc/imgvm/root"] == b"erofs\n" and b"erofs" in rows["etc/imgvm/modules"].split()
    disk = raw(result.path)
    inside = place / "inside"
    inside.write_bytes(disk.read_bytes()[MIB:-MIB] if table == "gpt" else disk.read_bytes())
    subprocess.run([tool("fsck.erofs"), f"--extract={place / 'out'}", inside], check=True, capture_output=True)
    for name in ("etc/issue", "usr/bin/tool", "usr/bin/other", "zeroes"):
        assert (place / "out" / name).read_bytes() == (place / "root" / name).read_bytes(), name
    assert (place / "out/tmp").is_dir() and (place / "out/bin").readlink() == Path("usr/bin")
    assert pack(place, text, "again.img").path.read_bytes() == result.path.read_bytes()
    (place / "root/noise").write_bytes(os.urandom(2 * MIB))
    with pytest.raises(PackError, match=r"rootfs\.size: 1MiB is too small") as caught:
        pack(place, "rootfs: {dir: root, format: erofs, size: 1MiB}\n")
    assert "it needs 6MiB" in (caught.value.hint or "")


class TestKernelOfTheRoot:
    @pytest.fixture
    def system(self, place: Path) -> Path:
        """A root with two kernels, the newer one with an initrd and modules."""
        boot = place / "root/boot"
        boot.mkdir()
        (boot / "vmlinuz-6.9.0").write_bytes(b"older")
        (boot / "vmlinuz-6.10.0").write_bytes(kernel())
        (boot / "initrd.img-6.10.0").write_bytes(initramfs.cpio.archive([initramfs.cpio.file("theirs", b"")]))
        module_tree(place / "root")
        (place / "root/lib/modules/6.1.0-test/kernel/fs/mine.ko").write_bytes(module())
        return place

    def test_its_own_initrd_comes_along(self, system: Path) -> None:
        result = pack(system, "rootfs: {dir: root}\n", boot="boot: {kernel: {from_rootfs: true}}\n")
        assert [row.name for row in read_cpio(blobs(result.path)["initrd"])] == ["theirs"]
        assert ("boot.kernel", "rootfs /boot/vmlinuz-6.10.0") in [(row.part, row.origin) for row in result.sources]

    @pytest.mark.parametrize("more", ["exec: {command: [tool]}\n", ""])
    def test_a_command_needs_ours_with_its_modules(self, system: Path, more: str) -> None:
        if not more:
            (system / "root/boot/initrd.img-6.10.0").unlink()
        boot = "boot: {kernel: {from_rootfs: true}, modules: [mine]}\n" if more else "boot: {kernel: {from_rootfs: true}}\n"
        result = pack(system, f"rootfs: {{dir: root}}\n{more}", boot=boot)
        rows = {row.name: row.data for row in read_cpio(blobs(result.path)["initrd"])}
        assert rows["etc/imgvm/root"] == b"ext4\n"
        assert {b"ext4", b"virtio_blk"} <= set(rows["etc/imgvm/modules"].split())
        assert bool(more) == ("lib/imgvm/mine.ko" in rows)

    def test_there_is_none(self, place: Path) -> None:
        with pytest.raises(PackError, match="the rootfs has no kernel"):
            pack(place, "rootfs: {dir: root}\n", boot="boot: {kernel: {from_rootfs: true}}\n")


class TestInitramfs:
    def packed(self, place: Path, more: str = "") -> dict[str, Callable[[], None]]:
        result = pack(place, f"rootfs: {{dir: root, format: initramfs}}\n{more}")
        assert Config.from_resolved(blobs(result.path)["machine.json"], "m").machine.attached == ()
        rows = read_cpio(blobs(result.path)["initrd"])
        assert len({row.name for row in rows}) == len(rows)
        return {row.name: row for row in rows}  # type: ignore[return-value]

    def test_a_command_runs_in_it(self, place: Path) -> None:
        rows = self.packed(place, "exec: {command: [tool]}\n")
        assert rows["usr/bin/busybox"].data == BUSYBOX and rows["usr/bin/sh"].data == b"busybox"
        assert rows["bin"].data == b"usr/bin" and rows["etc/issue"].data == b"a small system\n"
        assert b"exec tool" in rows["etc/imgvm/exec"].data and "etc/imgvm/root" not in rows
        first, second = (rows[name] for name in ("usr/bin/other", "usr/bin/tool"))
        assert first.ino == second.ino and (first.nlink, second.nlink) == (2, 2)
        assert sorted([len(first.data), len(second.data)]) == [0, 200_000]
        (place / "root/usr/bin/sh").write_bytes(b"its own")
        assert self.packed(place, "exec: {command: [tool]}\n")["usr/bin/sh"].data == b"its own"

    def test_its_own_first_process_is_left_to_it(self, place: Path) -> None:
        (place / "root/sbin").mkdir()
        (place / "root/sbin/init").write_bytes(b"init")
        rows = self.packed(place)
        assert rows["init"].data == b"/sbin/init" and "usr/bin/busybox" not in rows
        assert stat.S_ISCHR(rows["dev/console"].mode)
        (place / "root/init").write_bytes(b"mine")
        assert self.packed(place)["init"].data == b"mine"


class Large:
    """A file of an archive that nobody reads into memory."""

    size_bytes = 5 << 30

    def __init__(self, held_bytes: int) -> None:
        self._held_bytes = held_bytes

    def extents(self) -> list[tuple[int, int]]:
        return [(0, self._held_bytes)]

    def pieces(self) -> Iterator[bytes]:
        raise AssertionError("it was read")


@pytest.mark.parametrize(("held_bytes", "words"), [(5 << 30, "has 5120 MiB"), (4096, "has holes")])
def test_a_kernel_that_is_none_is_not_read(held_bytes: int, words: str) -> None:
    tree = FileTree()
    tree.put(b"boot/vmlinuz-1", Node(stat.S_IFREG | 0o644, content=Large(held_bytes)))
    with pytest.raises(PackError, match=words):
        Root(tree, [], Progress()).kernel()
