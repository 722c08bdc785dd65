# SPDX-License-Identifier: MIT
"""`rootfs.bootloader`: GRUB's core image against grub-mkimage's, the partitions, and what lies in the root."""

from __future__ import annotations

import json
import lzma
import struct
import subprocess
from pathlib import Path

import pytest
from builders import kernel, module_tree
from file_trees import MIB, has

from imgvm.config import Config
from imgvm.errors import ConfigError, PackError
from imgvm.pack import bios_boot, grub, initramfs, lock, packer
from imgvm.pack.deb import Deb, DebCache
from imgvm.pack.sources import Source
from imgvm.qcow2 import Image

INSTALLED = Path("/usr/lib/grub/i386-pc")
FILTER = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}
HEAD = "version: 1\nname: box\nmachine: {memory: 64MiB}\nboot: {kernel: boot/vmlinuz, cmdline: [console=ttyS0, quiet]}\n"
BUSYBOX = b"busybox"
SHA256 = "5a" * 32


def payload(core: bytes, unpacker_bytes: int) -> tuple[bytes, bytes, list[tuple[int, bytes]]]:
    """The first sector of a core image, its kernel, and the objects behind that: (kind, content)."""
    packed_bytes, unpacked_bytes = struct.unpack_from("<II", core, 512 + 8)
    packed = core[512 + unpacker_bytes :]
    assert len(packed) == packed_bytes
    whole = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[FILTER]).decompress(packed, unpacked_bytes)
    at = whole.rindex(b"mimg")
    offset, length = struct.unpack_from("<II", whole, at + 4)
    assert offset == 12 and at + length == unpacked_bytes
    objects, here = [], at + offset
    while here < len(whole):
        kind, size = struct.unpack_from("<II", whole, here)
        objects.append((kind, whole[here + 8 : here + size]))
        here += size
    return core[:512], whole[:at], objects


@pytest.mark.skipif(not INSTALLED.is_dir() or not has("grub-mkimage"), reason="grub-pc-bin and grub-common are not installed")
def test_the_core_image_is_that_of_grub_mkimage(tmp_path: Path) -> None:
    prefix, modules = "(,gpt1)/boot/grub", ["biosdisk", "part_gpt", "ext2", "normal", "linux"]
    words = ["grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", tmp_path / "core.img", *modules]
    subprocess.run(words, check=True, capture_output=True)
    theirs = (tmp_path / "core.img").read_bytes()
    ours = grub.core_image(INSTALLED, modules, prefix, 1)
    unpacker = (INSTALLED / "lzma_decompress.img").stat().st_size
    first, our_kernel, our_objects = payload(ours, unpacker)
    their_first, their_kernel, their_objects = payload(theirs, unpacker)
    assert our_kernel == their_kernel
    assert sorted(our_objects) == sorted(their_objects) and our_objects[-1] == their_objects[-1] == (3, prefix.encode() + b"\0\0\0")
    assert first[:0x1F4] == their_first[:0x1F4]
    start, sectors, segment = struct.unpack_from("<QHH", first, 0x1F4)
    assert (start, segment) == (2, 0x820) and 512 * sectors >= len(ours) - 512 > 512 * (sectors - 1)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """GRUB's parts, in miniature."""
    folder = tmp_path / f"cache/unpacked/{SHA256}/lib/grub/i386-pc"
    folder.mkdir(parents=True)
    program = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, 0x9000, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    program += struct.pack("<8I", 1, 84, 0x9000, 0x9000, 6, 9, 7, 1) + b"kernel" + b"no more"
    files = {
        "boot.img": b"b" * 512, "diskboot.img": b"d" * 512, "lzma_decompress.img": b"u" * 100, "kernel.img": program,
        "moddep.lst": b"normal: boot extcmd\nboot: \nextcmd: boot circle\ncircle: extcmd\nlinux: boot normal\next2: fshelp\n",
    }  # fmt: skip
    names = ("biosdisk", "ext2", "fshelp", "normal", "boot", "extcmd", "circle", "linux", "serial", "part_msdos", "part_gpt")
    files |= {f"{name}.mod": name.encode() for name in names}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_modules_come_after_what_they_need(parts: Path) -> None:
    order = grub.in_load_order(parts, ["linux", "ext2"])
    assert order == ["boot", "circle", "extcmd", "normal", "linux", "fshelp", "ext2"]
    (parts / "circle.mod").unlink()
    with pytest.raises(PackError, match=r"^rootfs\.bootloader: grub-pc-bin has no circle\.mod"):
        grub.core_image(parts, ["linux"], "(,gpt1)/boot/grub", 34)


def test_a_small_core_image(parts: Path) -> None:
    core = grub.core_image(parts, ["linux"], "(,gpt1)/x", 34)
    first, kernel_part, objects = payload(core, 100)
    assert kernel_part == b"kernel"
    assert [(kind, data.rstrip(b"\0")) for kind, data in objects] == [
        (0, b"boot"), (0, b"circle"), (0, b"extcmd"), (0, b"normal"), (0, b"linux"), (3, b"(,gpt1)/x"),
    ]  # fmt: skip
    assert struct.unpack_from("<QHH", first, 0x1F4) == (35, 1, 0x820)


@pytest.mark.parametrize(
    ("cmdline", "line"),
    [
        ("console=ttyS0,115200 root=/dev/vda1 rw", "linux /k console=ttyS0,115200 root=/dev/vda1 rw"),
        ('a="b c"  "d=e f" g;h $i {j}', "linux /k 'a=b c' 'd=e f' 'g;h' '$i' '{j}'"),
        ("", "linux /k"),
    ],
)
def test_the_command_line_reaches_the_kernel(cmdline: str, line: str) -> None:
    text = grub.config("box", "/k", "/i", cmdline, on_serial=False)
    assert text.splitlines()[1:] == ["set timeout=0", "menuentry box {", f"    {line}", "    initrd /i", "}"]
    assert "initrd" not in grub.config("box", "/k", "", cmdline, on_serial=True)


@pytest.mark.parametrize("cmdline", ["it's", "a\\b", 'a="b'])
def test_what_grub_would_change_is_refused(cmdline: str) -> None:
    with pytest.raises(PackError, match=r"^boot\.cmdline: GRUB passes no"):
        grub.words(cmdline)


class Cache(DebCache):
    """One that has GRUB's package, and knows what was asked for."""

    def get(self, distro: str, package: str, *, follow_kernel: bool = False) -> Deb:
        assert (distro, package) == ("debian:bookworm", "grub-pc-bin")
        return Deb("bookworm", package, "2.06", "http://deb/grub.deb", SHA256, 7, self.folder / "deb")

    def pinned(self, row: Source) -> Deb:
        assert row.sha256 == SHA256
        return self.get("debian:bookworm", "grub-pc-bin")


@pytest.fixture
def place(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    source = Source.of("boot.initrd", "busybox of the test", BUSYBOX)
    monkeypatch.setattr(initramfs, "find_busybox", lambda cache, distro, pin: (BUSYBOX, source))
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz").write_bytes(kernel())
    module_tree(tmp_path)
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path


def pack(place: Path, text: str, output: str = "box.img", frozen: Path | None = None, head: str = HEAD) -> packer.PackResult:
    config = Config.from_text(head + text, "box.yaml", place)
    return packer.pack(config, place / output, force=True, cache=Cache(place / "cache"), frozen=frozen)


def raw(path: Path) -> Path:
    with Image.open(path) as image:
        path.with_suffix(".raw").write_bytes(image.read(0, image.info.disk_bytes))
    return path.with_suffix(".raw")


def in_root(disk: Path, path: str) -> bytes:
    """A file of the first partition."""
    if not has("debugfs"):
        pytest.skip("e2fsprogs is not installed")
    inside = disk.with_suffix(".part")
    inside.write_bytes(disk.read_bytes()[MIB:])
    return subprocess.run(["debugfs", "-R", f"cat {path}", inside], capture_output=True, check=True).stdout


@pytest.mark.parametrize(("table", "sector"), [("mbr", 1), ("gpt", 34)])
def test_a_disk_with_a_boot_loader(place: Path, table: str, sector: int) -> None:
    text = f"rootfs: {{dir: root, partition_table: {table}, bootloader: grub}}\nexec: {{command: [sh]}}\n"
    result = pack(place, text)
    disk = raw(result.path)
    data = disk.read_bytes()
    assert data[:0x5C] == b"b" * 0x5C and data[510:512] == b"\x55\xaa"
    assert struct.unpack_from("<Q", data, 0x5C) == (sector,) and data[0x66:0x68] == b"\x90\x90"
    core = data[sector * 512 : MIB]
    core = core[: 512 + 100 + struct.unpack_from("<I", core, 512 + 8)[0]]
    first, _, objects = payload(core, 100)
    assert struct.unpack_from("<Q", first, 0x1F4) == (sector + 1,)
    kind = {"mbr": b"msdos", "gpt": b"gpt"}[table]
    assert (0, f"part_{kind.decode()}".encode()) in [(row, content.rstrip(b"\0")) for row, content in objects]
    assert objects[-1][1].rstrip(b"\0") == b"(,%s1)/boot/grub" % kind
    if has("sfdisk", "sgdisk"):
        said = json.loads(subprocess.run(["sfdisk", "-J", disk], capture_output=True, check=True).stdout)["partitiontable"]["partitions"]
        assert [row["start"] for row in said] == ([2048] if table == "mbr" else [2048, 34])
        assert said[0].get("bootable", False) == (table == "mbr")
        assert table == "mbr" or (said[1]["type"], said[1]["size"]) == ("21686148-6449-6E6F-744E-656564454649", 2014)
        assert table == "mbr" or "No problems found" in subprocess.run(["sgdisk", "-v", disk], capture_output=True, text=True).stdout
    assert in_root(disk, "/boot/imgvm/vmlinuz") == kernel()
    with Image.open(result.path) as image:
        assert in_root(disk, "/boot/imgvm/initrd.img") == image.read_config("initrd")
    lines = in_root(disk, "/boot/grub/grub.cfg").decode().splitlines()
    assert "    linux /boot/imgvm/vmlinuz console=ttyS0 quiet root=/dev/vda1 rw" in lines
    assert "    initrd /boot/imgvm/initrd.img" in lines and "serial --unit=0 --speed=115200" in lines
    (row,) = [row for row in result.sources if row.part == "rootfs.bootloader"]
    assert (row.origin, row.sha256, row.asked) == ("bookworm grub-pc-bin 2.06", SHA256, "debian:bookworm grub-pc-bin")

    lock.write(place / "box.lock", result.sources)
    assert pack(place, text, "again.img", place / "box.lock").path.read_bytes() == result.path.read_bytes()
    without = [row for row in result.sources if row.part != "rootfs.bootloader"]
    lock.write(place / "other.lock", without)
    with pytest.raises(PackError, match=r"--frozen: rootfs\.bootloader: debian:bookworm grub-pc-bin is not in"):
        pack(place, text, "again.img", place / "other.lock")


def test_the_kernel_and_the_initrd_of_the_root(place: Path) -> None:
    boot = place / "root/boot"
    boot.mkdir()
    (boot / "vmlinuz-6.1.0").write_bytes(kernel())
    (boot / "initrd.img-6.1.0").write_bytes(initramfs.cpio.archive([initramfs.cpio.file("theirs", b"")]))
    module_tree(place / "root")
    head = HEAD.replace("kernel: boot/vmlinuz", "kernel: {from_rootfs: true}")
    text = "rootfs: {dir: root, partition_table: mbr, bootloader: grub}\n"
    lines = in_root(raw(pack(place, text, head=head).path), "/boot/grub/grub.cfg").decode()
    assert "linux /boot/vmlinuz-6.1.0 " in lines and "initrd /boot/initrd.img-6.1.0\n" in lines
    lines = in_root(raw(pack(place, text + "exec: {command: [sh]}\n", head=head).path), "/boot/grub/grub.cfg").decode()
    assert "linux /boot/vmlinuz-6.1.0 " in lines and "initrd /boot/imgvm/initrd.img\n" in lines
    none = head.replace("cmdline", "initrd: none, cmdline")
    assert "initrd" not in in_root(raw(pack(place, text, head=none).path), "/boot/grub/grub.cfg").decode()


def test_a_configuration_of_ones_own(place: Path) -> None:
    text = "rootfs:\n  {dir: root, partition_table: gpt, bootloader: grub, files: [{path: /boot/grub/grub.cfg, content: mine}]}\n"
    assert in_root(raw(pack(place, text).path), "/boot/grub/grub.cfg") == b"mine"


def test_what_grub_cannot_start(place: Path) -> None:
    (place / "boot/vmlinuz").write_bytes(packer.kernels.load(kernel(), "k").data)
    with pytest.raises(PackError, match=r"^rootfs\.bootloader: GRUB starts a bzImage, but boot\.kernel is of the form ELF"):
        pack(place, "rootfs: {dir: root, partition_table: gpt, bootloader: grub}\n")
    (place / "boot/vmlinuz").write_bytes(kernel())
    (place / f"cache/unpacked/{SHA256}/{grub.PARTS}/diskboot.img").write_bytes(b"d" * 2 * MIB)
    with pytest.raises(PackError, match=r"^rootfs\.bootloader: it does not fit before the partition"):
        pack(place, "rootfs: {dir: root, partition_table: gpt, bootloader: grub}\n")
    assert bios_boot.PART == "rootfs.bootloader"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rootfs: {dir: a, bootloader: grub}", "rootfs.bootloader: a boot loader needs the room before a partition"),
        ("rootfs: {dir: a, bootloader: lilo}", "rootfs.bootloader: must be one of none, grub"),
        ("rootfs: {dir: a, bootloader: grub, partition_table: gpt, format: erofs}", "rootfs.bootloader: GRUB does not read erofs"),
        ("rootfs: {dir: a, bootloader: grub, format: initramfs}", "rootfs.bootloader: an initramfs is not on a disk"),
    ],
)
def test_faults(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_text(HEAD + text + "\n", "f")
    assert any(words in str(problem) for problem in caught.value.problems), caught.value.problems


def test_it_needs_a_kernel() -> None:
    with pytest.raises(ConfigError, match="there is no kernel for it to start"):
        Config.from_text("version: 1\nrootfs: {dir: a, bootloader: grub, partition_table: gpt}\ndisks: [{name: d, size: 1MiB}]\n", "f")


def test_multiboot_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="GRUB is made to start Linux"):
        Config.from_text("version: 1\nboot: {kernel: {bundled: true}}\nrootfs: {dir: a, bootloader: grub, partition_table: gpt}\n", "f")
