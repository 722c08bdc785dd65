# SPDX-License-Identifier: MIT
"""The whole path: a stock Debian kernel, packed from YAML, on the software processor, with its translator and without."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_images import SECONDS

import imgvm
from imgvm.qcow2 import Image
from imgvm.qcow2.reader import IndependentReader as Reader
from imgvm.vmm.vm import Watch

pytestmark = [pytest.mark.boot, pytest.mark.network]

EXAMPLES = Path(__file__).parents[2] / "examples"
SOFTWARE = pytest.mark.parametrize("accel", ["interp", "jit"])
PROMPT = r"/ # (\x1b\[6n)?$"
FAR = 0x2345 * 512  # somewhere inside the disk, not at a cluster's edge
WRITTEN = b"written by the guest\n"


def tell(vm: imgvm.Vm, line: str) -> str:
    """Types a line at the shell's prompt and returns what it printed."""
    vm.console.expect(PROMPT, SECONDS)
    seen = len(vm.console.text())
    vm.console.send(f"echo be''gin; {line}; echo st''atus=$?=\n")
    answer = vm.console.expect(rf"(?s)\A.{{{seen}}}.*begin\r\n(.*)status=(\d+)=", SECONDS)
    assert answer[2] == "0", answer[1]
    return answer[1].replace("\r", "")


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "imgvm", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)


@SOFTWARE
def test_a_shell_reads_and_writes_its_disk(accel: str, busybox: Path) -> None:
    """The example as it is: raw bytes of the disk, read back by two other readers."""
    with Image.open(busybox, writable=True) as image:
        image.write(FAR, b"put there before")
    with imgvm.run(busybox, accel, watch=Watch(count=True)) as vm:
        assert re.match(r"Linux debian-busybox 6\.\S+-cloud-amd64 ", tell(vm, "uname -a"))
        assert "model name\t: imgvm software processor" in tell(vm, "cat /proc/cpuinfo")
        assert tell(vm, f"dd if=/dev/vda bs=1 skip={FAR} count=16 2>/dev/null") == "put there before"
        tell(vm, "echo written by the guest | dd of=/dev/vda bs=512 seek=12345 conv=notrunc,fsync 2>/dev/null")
        vm.console.expect(PROMPT, SECONDS)
        vm.console.send("poweroff\n")
        result = vm.wait(SECONDS)
    assert result is not None
    assert (result.reason, result.status, result.accel) == ("poweroff", 0, accel)
    assert result.instructions > 100_000_000

    with Reader(busybox) as reader:  # libqcow, which shares no code with us
        assert reader.read(12345 * 512, len(WRITTEN)) == WRITTEN
        assert reader.read(FAR, 16) == b"put there before"
    if shutil.which("qemu-img"):
        subprocess.run(["qemu-img", "check", "-q", busybox], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", busybox, busybox.with_suffix(".raw")], check=True)
        with busybox.with_suffix(".raw").open("rb") as raw:
            raw.seek(12345 * 512)
            assert raw.read(len(WRITTEN)) == WRITTEN


@pytest.mark.parametrize(("vendor", "name"), [("intel", "GenuineIntel"), ("amd", "AuthenticAMD")])
def test_a_processor_of_either_vendor(vendor: str, name: str, pack_config: Callable[[str], Path]) -> None:
    """Linux finds what it looks for on each, and complains of nothing."""
    image = pack_config(
        f"version: 1\nname: vendor\nmachine: {{cpu: {{vendor: {vendor}}}}}\n"
        'boot:\n  kernel: {distro: "debian:bookworm", package: linux-image-cloud-amd64}\n  cmdline: [console=ttyS0, quiet]\n'
        "exec: {command: [sh, -c, cat /proc/cpuinfo; dmesg]}\n"
    )
    done = command("-q", "run", image, "--accel", "interp")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"vendor_id\t: {name}" in done.stdout.replace("\r", "")
    assert "Command line:" in done.stdout
    assert "unchecked MSR" not in done.stdout


@pytest.mark.skipif(not (shutil.which("mke2fs") and shutil.which("debugfs")), reason="e2fsprogs is not installed")
def test_a_file_system_on_the_disk(pack_config: Callable[[str], Path], tmp_path: Path) -> None:
    """Files on ext4, made and read by e2fsprogs; a command instead of a shell."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/in").write_text("three words here\n")
    words = ["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "root", tmp_path / "disk.raw", "8M"]
    subprocess.run(words, check=True)
    image = pack_config(
        "version: 1\nname: files\n"
        "boot: {kernel: {distro: 'debian:bookworm'}, cmdline: [console=ttyS0, quiet], modules: [ext4]}\n"
        "disks: [{name: data, source: disk.raw}]\n"
        "exec: {command: [sh, -ec, 'mount /dev/vda /mnt; wc -w < /mnt/in; sort /init > /mnt/out; md5sum < /mnt/out; umount /mnt']}\n"
    )
    done = command("run", image, "--accel", "interp")
    assert done.returncode == 0, done.stdout + done.stderr
    count, digest = re.fullmatch(r"(?s)(?:.*\n)?(\d+)\r?\n([0-9a-f]{32})  -\r?\n", done.stdout).groups()  # type: ignore[union-attr]
    assert count == "3"

    raw = tmp_path / "after.raw"
    with Reader(image) as reader:
        raw.write_bytes(reader.read(0, reader.disk_bytes))
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    out = subprocess.run(["debugfs", "-R", "cat /out", raw], check=True, capture_output=True).stdout
    assert b"mount -t proc" in out
    assert subprocess.run(["md5sum"], input=out, capture_output=True, check=True).stdout[:32].decode() == digest


def test_the_commands_status_is_imgvms() -> None:
    done = command("run", EXAMPLES / "debian-exec.yaml", "--accel", "interp")
    assert done.returncode == 7, done.stdout + done.stderr
    assert re.search(r"^Linux 6\.\S+-cloud-amd64\r?$", done.stdout, re.M)
    assert "imgvm: engine interp: the software processor, as asked" in done.stderr


@SOFTWARE
def test_two_processors(accel: str, busybox: Path) -> None:
    with imgvm.run(busybox, accel, ["machine.cpus=2"]) as vm:
        assert tell(vm, "nproc") == "2\n"
        assert tell(vm, "for i in 0 1; do taskset $((i + 1)) grep -c ^processor /proc/cpuinfo; done") == "2\n2\n"


def test_a_panic_is_255_and_says_where(busybox: Path) -> None:
    done = command("run", busybox, "--accel", "interp", "--set", "boot.cmdline=console=ttyS0 quiet rdinit=/nothing")
    assert done.returncode == 255, done.stdout + done.stderr
    assert re.search(r"^imgvm: .*: Kernel panic - not syncing: VFS: Unable to mount root fs", done.stderr, re.M)


def test_a_triple_fault_is_255_and_says_where(busybox: Path) -> None:
    with imgvm.run(busybox, "interp", ["boot.cmdline=console=ttyS0 quiet reboot=t"]) as vm:
        vm.console.expect(PROMPT, SECONDS)
        vm.console.send("reboot -f\n")
        result = vm.wait(SECONDS)
    assert result is not None
    assert (result.reason, result.status) == ("triple_fault", 255)
    assert re.match(r"triple fault on processor 0 at 0010:0xffffffff[89a-f][0-9a-f]{7} ", result.message)


@pytest.mark.nightly
def test_the_translator_in_lockstep() -> None:
    """Nothing that it does from the kernel's first instruction to a command's status is other than what the interpreter does."""
    config = EXAMPLES / "debian-exec.yaml"
    words = [sys.executable, "-m", "imgvm", "run", str(config), "--accel", "jit", "--lockstep", "--set", "machine.memory=256MiB"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout.startswith("Linux 6.1")) == (7, True), done.stderr
