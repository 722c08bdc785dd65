# SPDX-License-Identifier: MIT
"""Root file systems that imgvm made, under a stock Debian kernel on the software processor."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from boot_images import SECONDS, packed

import imgvm
from imgvm.cli import main
from imgvm.config import Config
from imgvm.pack import initramfs
from imgvm.pack.deb import DebCache
from imgvm.qcow2 import Image, overlay

pytestmark = [pytest.mark.boot, pytest.mark.network]

EXAMPLES = Path(__file__).parents[2] / "examples"
DISTRO = "debian:bookworm"


def run(image: Path, accel: str = "jit") -> tuple[int, str]:
    words = [sys.executable, "-m", "imgvm", "-q", "run", str(image), "--accel", accel]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout.replace("\r", "") + done.stderr


def disk_of(image: Path) -> Path:
    raw = image.with_suffix(".raw")
    with Image.open(image) as disk, raw.open("wb") as out:
        out.write(disk.read(0, disk.info.disk_bytes))
    return raw


def checked(disk: Path, path: str) -> bytes:
    """A file that the guest wrote, by e2fsprogs, which find the file system whole."""
    if not (shutil.which("e2fsck") and shutil.which("debugfs")):
        pytest.skip("e2fsprogs is not installed")
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    return subprocess.run(["debugfs", "-R", f"cat {path}", disk], check=True, capture_output=True).stdout


@pytest.mark.parametrize("accel", ["interp", "jit"])
def test_the_example(tmp_path: Path, accel: str) -> None:
    image = packed(Config.load(EXAMPLES / "debian-rootfs.yaml"), tmp_path / "root.img")
    status, output = run(image, accel)
    assert status == 5, output
    assert re.search(r"^/dev/vda / ext4 rw,", output, re.M)
    assert "a root file system of two files" in output
    assert checked(disk_of(image), "/srv/result") == b"the guest was here\n"
    assert image.stat().st_size % 65536 == 0 and main(["verify", str(image)]) == 0


def test_a_root_beside_which_what_is_written_lies(tmp_path: Path) -> None:
    """A journalled file system that lives half in the image and half in its overlay."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/motd").write_text("packed\n")
    text = (
        "version: 1\nname: root\nboot: {kernel: {distro: 'debian:bookworm'}, cmdline: [console=ttyS0, quiet]}\n"
        "rootfs: {dir: root, persist: overlay}\nimage: {compression: zstd}\n"
        "exec: {command: [sh, -ec, 'cat /motd; echo again >> /motd; dd if=/dev/zero of=/big bs=64k count=100 2>/dev/null']}\n"
    )
    image = packed(Config.from_text(text, "root.yaml", tmp_path), tmp_path / "root.img")
    before = image.read_bytes()
    for number in range(3):
        status, output = run(image)
        assert (status, output) == (0, "packed\n" + "again\n" * number), output
    assert image.read_bytes() == before
    kept = overlay.path_of(image)
    assert checked(disk_of(kept), "/motd") == b"packed\n" + b"again\n" * 3
    with Image.open(kept) as opened:
        assert opened.check().clean
    assert main(["-q", "reset", str(image)]) == 0
    assert run(image) == (0, "packed\n")


def archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w:xz") as out:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            out.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            out.addfile(member)


@pytest.fixture
def busybox(tmp_path: Path) -> str:
    """A system of busybox alone, as an archive, with an init that looks around and switches off."""
    data, _ = initramfs.find_busybox(DebCache(platformdirs.user_cache_path("imgvm")), DISTRO)
    init = b"#!/bin/sh\nmount -t proc proc /proc\nuname -r\ngrep ' / ' /proc/mounts\nls /boot\ncat /many/* | wc -l\n" \
        b"echo by init > /left\nsync\nmount -o remount,ro /\npoweroff -f\n"  # fmt: skip
    many = {f"many/file-{index}-{'x' * 50}": b"line\n" for index in range(3000)}
    names = ("sh", "mount", "uname", "grep", "ls", "cat", "wc", "sync", "poweroff", "md5sum", "find")
    archive(
        tmp_path / "busybox.tar.xz", {"bin/busybox": data, "sbin/init": init, **many}, {f"bin/{name}": "busybox" for name in names}
    )
    return "busybox.tar.xz"


def test_the_kernel_of_the_root(tmp_path: Path, busybox: str, pack_config: Callable[[str], Path]) -> None:
    """Debian's kernel package as it is, with the system's own init, in a partition."""
    cache = DebCache(platformdirs.user_cache_path("imgvm"))
    deb = cache.kernel(DISTRO, "linux-image-cloud-amd64")
    with (tmp_path / "kernel.tar").open("wb") as out:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", deb.path], stdout=out, check=True)
    image = pack_config(
        "version: 1\nname: own\nboot: {kernel: {from_rootfs: true}, cmdline: [console=ttyS0, quiet]}\n"
        f"rootfs: {{tar: [kernel.tar, {busybox}], partition_table: gpt, exclude: ['/usr/share/doc/*']}}\n"
    )
    status, output = run(image)
    assert status == 0, output
    assert re.search(r"^6\.\S+-cloud-amd64$", output, re.M)
    assert re.search(r"^/dev/vda1 / ext4 rw,", output, re.M) and "vmlinuz-6." in output
    assert re.search(r"^3000$", output, re.M)
    disk = disk_of(image)
    with disk.open("r+b") as stream:
        whole = stream.read()
        stream.seek(0)
        stream.write(whole[1 << 20 : -(1 << 20)])
        stream.truncate()
    assert checked(disk, "/left") == b"by init\n"


LOOK = """
grep '^/dev/vda / ext4 ' /proc/mounts
for d in vda vdb vdc; do echo $d $(cat /sys/block/$d/serial) $(cat /sys/block/$d/ro); done
mount -r /dev/vdc /mnt && cat /mnt/user-data && ls -1 /mnt && umount /mnt
grep -o ds=nocloud /proc/cmdline
echo on the root > /left && echo on data | dd of=/dev/vdb conv=fsync,notrunc 2>/dev/null
"""


@pytest.mark.parametrize("seed", ["iso", "vfat"])
def test_a_root_a_disk_and_a_seed(tmp_path: Path, busybox: str, pack_config: Callable[[str], Path], seed: str) -> None:
    image = pack_config(
        "version: 1\nname: three\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet]}}\n"
        f"rootfs: {{tar: {busybox}, files: [{{path: /mnt/none, content: ''}}]}}\n"
        "disks: [{name: data, size: 2MiB}]\ncloud_init: {user_data: \"#cloud-config\\nhostname: three\\n\", "
        f"vendor_data: {{a: 1}}, attach: {seed}}}\n"
        f"exec: {{command: [sh, -ec, {json.dumps(LOOK)}]}}\n"
    )
    status, output = run(image)
    assert status == 0, output
    assert re.search(r"^/dev/vda / ext4 rw,", output, re.M)
    for line in ("vda root 0", "vdb data 0", "vdc cidata 1", "hostname: three", "meta-data", "vendor-data", "ds=nocloud"):
        assert re.search(f"^{line}$", output, re.M), output
    assert checked(disk_of(image), "/left") == b"on the root\n"
    with Image.open(image) as opened:
        assert opened.check().clean
        assert opened.open_disk("data").read(0, 8) == b"on data\n"


def test_a_root_that_is_memory(busybox: str, pack_config: Callable[[str], Path]) -> None:
    image = pack_config(
        "version: 1\nname: memory\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet]}}\n"
        f"rootfs: {{tar: {busybox}, format: initramfs}}\n"
        "exec: {command: [sh, -c, 'find /many -type f | wc -l; ls -l /bin/busybox >/dev/null && exit 9']}\n"
    )
    status, output = run(image)
    assert status == 9, output
    assert re.search(r"^3000$", output, re.M)


@pytest.mark.parametrize("has_root", [True, False])
def test_the_power_button(busybox: str, pack_config: Callable[[str], Path], has_root: bool) -> None:
    """Pressed while a command runs: what the command wrote to the root is there, and the root is whole."""
    image = pack_config(
        "version: 1\nname: pressed\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet]}}\n"
        + (f"rootfs: {{tar: {busybox}}}\n" if has_root else "")
        + "exec: {command: [sh, -c, 'echo kept > /kept; echo ready; cat > /held']}\n"
    )
    with imgvm.run(image, "jit") as vm:
        vm.console.expect("ready", SECONDS)
        for _ in range(60):  # until the guest listens to it
            vm.power_button()
            if (result := vm.wait(2)) is not None:
                break
    assert result is not None
    assert (result.reason, result.status) == ("poweroff", 0)
    if has_root:
        assert checked(disk_of(image), "/kept") == b"kept\n"


def test_a_root_that_cannot_be_mounted(busybox: str, pack_config: Callable[[str], Path]) -> None:
    image = pack_config(
        "version: 1\nname: none\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet, root=/dev/vdz]}}\n"
        f"rootfs: {{tar: {busybox}}}\n"
    )
    status, output = run(image)
    assert status == 125, output
    assert "imgvm: the root file system /dev/vdz cannot be mounted" in output


@pytest.mark.parametrize("root", ["read_only: true", "format: squashfs", "format: erofs", "format: erofs, compression: lz4"])
def test_a_root_that_nobody_writes_to(busybox: str, pack_config: Callable[[str], Path], root: str) -> None:
    if "squashfs" in root and not shutil.which("mksquashfs"):
        pytest.skip("squashfs-tools is not installed")
    image = pack_config(
        "version: 1\nname: sealed\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet]}}\n"
        f"rootfs: {{tar: {busybox}, {root}}}\n"
        "exec: {command: [sh, -c, 'cat /many/* | md5sum; echo x > /new || exit 4']}\n"
    )
    before = image.read_bytes()
    status, output = run(image)
    assert status == 4, output
    assert "Read-only file system" in output
    many = hashlib.md5(b"line\n" * 3000).hexdigest()
    assert many in output and image.read_bytes() == before


KINDS = """
cd /kinds
ls -ln one two null fifo link | sed 's/  */ /g'
md5sum < holes; find /many -type f | wc -l
stat -c '%h %i' one two; readlink far | wc -c
mount -t tmpfs none /tmp && touch /tmp/mine
for tool in plain capable; do
start-stop-daemon -S -c 65534:65534 -x /kinds/$tool -a chown -- 7 /tmp/mine && ls -ln /tmp/mine
done
"""


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_an_erofs_of_every_kind(tmp_path: Path, busybox: str, pack_config: Callable[[str], Path], compression: str) -> None:
    """As Debian's kernel reads it: hard links, a device, holes, a capability, many names."""
    tool, _ = initramfs.find_busybox(DebCache(platformdirs.user_cache_path("imgvm")), DISTRO)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 0, 0, 0, 0)  # CAP_CHOWN, in effect
    with tarfile.open(tmp_path / "kinds.tar", "w", format=tarfile.PAX_FORMAT) as out:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(f"kinds/{name}")
            member.size, member.mtime = len(data), 86400
            for field, value in fields.items():
                setattr(member, field, value)
            out.addfile(member, io.BytesIO(data))

        add("one", b"1", uid=70000, gid=80000, mode=0o4751)
        add("two", type=tarfile.LNKTYPE, linkname="kinds/one")
        add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("fifo", type=tarfile.FIFOTYPE)
        add("link", type=tarfile.SYMTYPE, linkname="one")
        add("far", type=tarfile.SYMTYPE, linkname="x/" * 1500)
        add("plain", tool, mode=0o755)
        add("capable", tool, mode=0o755, pax_headers={"SCHILY.xattr.security.capability": capability.decode("latin-1")})
    holes = tmp_path / "root/kinds/holes"
    holes.parent.mkdir(parents=True)
    with holes.open("wb") as stream:
        for offset in (0, 5 << 20, (9 << 20) + 5):
            stream.seek(offset)
            stream.write(b"data" * 5000)
        stream.truncate(12 << 20)
    subprocess.run(["tar", "-cSf", tmp_path / "holes.tar", "-C", tmp_path / "root", "kinds"], check=True)
    image = pack_config(
        "version: 1\nname: kinds\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet]}}\n"
        f"rootfs:\n  tar: [{busybox}, kinds.tar, holes.tar]\n  format: erofs\n  compression: {compression}\n"
        "  files: [{path: /etc/passwd, content: 'nobody:x:65534:65534::/:/bin/sh'}]\n"
        f"exec: {{command: [sh, -c, {json.dumps(KINDS)}]}}\n"
    )
    status, output = run(image)
    assert status == 0, output
    for line in (
        r"-rws?r-x--x 2 70000 80000 1 Jan 2 1970 one", r"crw-rw-rw- 1 0 0 1, 3 Jan 2 1970 null", r"prw-r--r-- 1 0 0 0 Jan 2 1970 fifo",
        r"lrwxrwxrwx 1 0 0 3 Jan 2 1970 link -> one", hashlib.md5(holes.read_bytes()).hexdigest() + "  -", "3000", "3000",
        "chown: /tmp/mine: Operation not permitted", r"-rw-r--r-- +1 7 +0 +0 .*/tmp/mine", "3001",
    ):  # fmt: skip
        assert re.search(f"^{line}$", output, re.M), (line, output)
    first, second = re.findall(r"^2 (\d+)$", output, re.M)
    assert first == second
