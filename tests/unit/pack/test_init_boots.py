# SPDX-License-Identifier: MIT
"""The initrd that pack builds, booted with Debian's kernel by another machine than ours.

QEMU's isa-debug-exit at the status port turns a written value v into the process status (v << 1) | 1.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import platformdirs
import pytest
from builders import skip_when_offline

from imgvm.machine import Exec
from imgvm.pack import elf, initramfs, modules
from imgvm.pack import kernel as kernels
from imgvm.pack.deb import DebCache
from imgvm.pack.exit_helper import EXEC_STATUS_PORT

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.network,
    pytest.mark.boot,
    pytest.mark.skipif(QEMU is None, reason="QEMU is not installed"),
]
SECONDS = 300


@pytest.fixture(scope="module")
def unpacked() -> Path:
    cache = DebCache(platformdirs.user_cache_path("imgvm"))
    with skip_when_offline():
        return cache.unpacked(cache.kernel("debian:bookworm", "linux-image-cloud-amd64"))


@pytest.fixture(scope="module")
def kernel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = kernels.load(next(unpacked.glob("boot/vmlinuz-*")).read_bytes(), "Debian's kernel")
    assert loaded.form == "bzImage (lz4)" and elf.is_static(loaded.data)
    path = tmp_path_factory.mktemp("kernel") / "vmlinux"
    path.write_bytes(loaded.data)
    return path


class Guest:
    """QEMU with the unpacked kernel, an initrd of ours, a virtio disk and a virtio-rng."""

    def __init__(self, folder: Path, kernel: Path, initrd: bytes, cmdline: str) -> None:
        (folder / "initrd").write_bytes(initrd)
        (folder / "disk").write_bytes(b"on the disk\n".ljust(1 << 20, b"\0"))
        assert QEMU is not None
        self.process = subprocess.Popen(
            [
                QEMU, "-accel", "tcg", "-M", "q35", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot",
                "-serial", "stdio", "-kernel", kernel, "-initrd", folder / "initrd", "-append", cmdline,
                "-drive", f"file={folder}/disk,if=virtio,format=raw", "-device", "virtio-rng-pci",
                "-device", f"isa-debug-exit,iobase={EXEC_STATUS_PORT:#x},iosize=1",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = b""

    def type(self, after: bytes, text: bytes) -> None:
        """Types `text` when the console has shown `after`."""
        assert self.process.stdout is not None and self.process.stdin is not None
        end = time.monotonic() + SECONDS
        while after not in self.output and time.monotonic() < end:
            piece = self.process.stdout.read1(4096)
            assert piece, self.output
            self.output += piece
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait(self) -> tuple[int, str]:
        try:
            rest, _ = self.process.communicate(timeout=SECONDS)
        finally:
            self.process.kill()
        return self.process.returncode, (self.output + rest).decode(errors="replace")


@pytest.fixture
def boot(tmp_path: Path, kernel: Path, unpacked: Path):  # type: ignore[no-untyped-def]
    def start(command: Exec | None, cmdline: str = "console=ttyS0 quiet panic=-1") -> Guest:
        tree = modules.ModuleTree.of_folder(next(unpacked.glob("lib/modules/*")))
        wanted = modules.DEVICE_MODULES + modules.ENTROPY_MODULES + modules.LATE_MODULES
        busybox, _ = initramfs.find_busybox(DebCache(platformdirs.user_cache_path("imgvm")), None)
        initrd = initramfs.build(busybox, tree.in_load_order((), wanted), hostname="guest", command=command)
        return Guest(tmp_path, kernel, initrd, cmdline)

    return start


SHOW = 'echo "[$GREETING] [$1] $(pwd) $(tty) $(hostname)"; head -n1 /dev/vda; [ -c /dev/hwrng ] && exit 7'
EXEC = Exec(("sh", "-c", SHOW, "sh", "it's $HOME"), {"GREETING": 'say "hi"'}, "/tmp")


@pytest.mark.parametrize("cmdline", ["console=ttyS0 quiet panic=-1", "panic=-1"])
def test_command_runs_and_its_status_comes_out(boot, cmdline: str) -> None:  # type: ignore[no-untyped-def]
    status, output = boot(EXEC, cmdline).wait()
    assert status == (7 << 1) | 1, output
    assert '[say "hi"] [it\'s $HOME] /tmp /dev/ttyS0 guest' in output
    assert "on the disk" in output
    assert "cannot be loaded" not in output


def test_all_output_arrives_before_the_status(boot) -> None:  # type: ignore[no-untyped-def]
    status, output = boot(Exec(("sh", "-c", "seq 1 2000; printf END"))).wait()
    assert status == 1, output[-500:]
    assert "1999\r\n2000\r\nEND" in output


def test_command_that_is_not_there(boot) -> None:  # type: ignore[no-untyped-def]
    status, output = boot(Exec(("no-such-command",))).wait()
    assert status == (127 << 1 | 1) & 0xFF, output
    assert "no-such-command" in output


@pytest.mark.parametrize("farewell", ["exit", "poweroff", "reboot"])
def test_shell_and_the_ways_out_of_it(boot, farewell: str) -> None:  # type: ignore[no-untyped-def]
    guest = boot(None)
    guest.type(b"/ # ", f"echo $((6 * 7)); {farewell}\n".encode())
    status, output = guest.wait()
    assert status == 0, output
    assert "a shell of guest" in output and "42" in output
    assert "panic" not in output
