# SPDX-License-Identifier: MIT
"""Root file systems with a boot loader, started by the built-in BIOS, by SeaBIOS on QEMU, and without either."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from boot_images import SECONDS

from imgvm.cli import main
from imgvm.pack.deb import DebCache

pytestmark = [
    pytest.mark.boot,
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
]

DISTRO = "debian:bookworm"
Pack = Callable[[str], Path]


def run(*words: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, env=os.environ | {"QEMU_ACCEL": "tcg"}
    )
    return done.returncode, done.stdout.replace("\r", "") + done.stderr


@pytest.mark.parametrize("table", ["mbr", "gpt"])
def test_the_same_machine_by_its_bios(pack_config: Pack, tmp_path: Path, table: str) -> None:
    """The exported script without kernel and initrd, and imgvm with them: the same command, the same status."""
    (tmp_path / "root/etc").mkdir(parents=True)
    text = (
        "version: 1\nname: both\n"
        f"boot: {{kernel: {{distro: '{DISTRO}'}}, cmdline: [console=ttyS0, quiet, 'a.word=\"with spaces\"']}}\n"
        f"rootfs: {{dir: root, partition_table: {table}, bootloader: grub}}\n"
        "exec: {command: [sh, -c, 'cat /proc/cmdline; grep \" / \" /proc/mounts; echo in userland; exit 7']}\n"
    )
    image = pack_config(text)
    packed = image.read_bytes()
    image.unlink()
    assert pack_config(text).read_bytes() == packed
    assert main(["export", str(image), "--to", "qemu", "-o", str(tmp_path / "out")]) == 0
    status, output = run(tmp_path / "out/run-bios.sh")
    assert status == 7, output
    assert 'BOOT_IMAGE=/boot/imgvm/vmlinuz console=ttyS0 quiet "a.word=with spaces" root=/dev/vda1 rw' in output
    assert "/dev/vda1 / ext4 rw" in output and "in userland" in output
    status, output = run(sys.executable, "-m", "imgvm", "-q", "run", image, "--accel", "jit")
    assert status == 7 and "in userland" in output and "BOOT_IMAGE" not in output
    by_bios = ("run", image, "--accel", "jit", "--set", "machine.firmware=bios")
    status, output = run(sys.executable, "-m", "imgvm", "-q", *by_bios)
    assert status == 7, output
    assert 'BOOT_IMAGE=/boot/imgvm/vmlinuz console=ttyS0 quiet "a.word=with spaces" root=/dev/vda1 rw' in output


def test_the_kernel_of_the_root(pack_config: Pack, tmp_path: Path) -> None:
    """Debian's kernel where its package puts it, with the initrd that a command needs."""
    deb = DebCache(platformdirs.user_cache_path("imgvm")).kernel(DISTRO, "linux-image-cloud-amd64")
    with (tmp_path / "kernel.tar").open("wb") as out:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", deb.path], stdout=out, check=True)
    image = pack_config(
        "version: 1\nname: own\nboot: {kernel: {from_rootfs: true}, cmdline: [console=ttyS0, quiet]}\n"
        "rootfs: {tar: kernel.tar, partition_table: gpt, bootloader: grub, exclude: ['/usr/share/doc/*']}\n"
        "exec: {command: [sh, -c, 'ls -1 /boot /boot/imgvm; exit 3']}\n"
    )
    assert main(["export", str(image), "--to", "qemu", "-o", str(tmp_path / "out")]) == 0
    status, output = run(tmp_path / "out/run-bios.sh")
    assert status == 3, output
    assert re.search(r"^vmlinuz-6\.\S+$", output, re.M) and re.search(r"/boot/imgvm:\ninitrd.img\n", output)
