# SPDX-License-Identifier: MIT
"""A Debian shell at the hands of a strict user: piped input, an idle machine, a full host, a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.boot, pytest.mark.network]

SECONDS = 120
RUN = [sys.executable, "-m", "imgvm", "run"]


def test_piped_input_waits_for_the_guest(busybox: Path) -> None:
    """Not a byte of it is lost, though it is there before the kernel is; its end does not end the guest."""
    numbers = [str(number) for number in range(1000, 1400)]
    # shown at the end: before, the terminal's echo of what comes next may run through what a command says
    words = "".join(f"echo {number} >> /seen\n" for number in numbers) + "cat /seen; poweroff -f\n"
    run = [*RUN, busybox, "--accel", "interp"]
    done = subprocess.run(run, input=words, capture_output=True, text=True, timeout=5 * SECONDS)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\d+)\r?$", done.stdout, re.M) == numbers


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_until(fd: int, pattern: bytes) -> bytes:
    seen, deadline = b"", time.monotonic() + SECONDS
    while not re.search(pattern, seen) and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 65536)
    assert re.search(pattern, seen), seen[-2000:]
    return seen


@pytest.mark.parametrize("engine", ["--accel=interp", "--accel=jit --cpus=4"])
def test_an_idle_guest_sleeps(busybox: Path, engine: str) -> None:
    """Also with its input at its end."""
    process = subprocess.Popen([*RUN, busybox, *engine.split()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(b"echo re''ady\n")
        process.stdin.close()
        read_until(process.stdout.fileno(), rb"\nready")
        time.sleep(3)  # the kernel's last chores
        before, at = cpu_seconds(process.pid), time.monotonic()
        time.sleep(10)
        share = (cpu_seconds(process.pid) - before) / (time.monotonic() - at)
        assert process.poll() is None
        assert share < 0.01, f"{share:.1%} of a processor"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("small_disk", [48], indirect=True)
def test_a_full_host_disk(busybox: Path, small_disk: Path) -> None:
    """The guest sees I/O errors and goes on; the user is told why, in one line at the end."""
    image = Path(shutil.copy(busybox, small_disk))
    words = "dd if=/dev/urandom of=/dev/vda bs=64k count=512 conv=fsync; echo dd=$?\necho still he''re\npoweroff -f\n"
    done = subprocess.run([*RUN, image, "--accel", "interp"], input=words, capture_output=True, text=True, timeout=SECONDS)
    assert re.search(r"I/O error", done.stdout), done.stdout
    assert "dd=1" in done.stdout and "still here" in done.stdout
    told = [line for line in done.stderr.splitlines() if "failed" in line]
    assert len(told) == 1, done.stderr
    assert re.match(r"imgvm: \d+ disk requests? failed: .*No space left on device", told[0])
    assert "Traceback" not in done.stderr
    if shutil.which("qemu-img"):  # leaks waste space; corruption would be our fault
        assert subprocess.run(["qemu-img", "check", "-q", image]).returncode in (0, 3)


def test_ctrl_c_is_the_guests_on_a_terminal(busybox: Path) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*RUN, str(busybox), "--accel", "interp"])
    try:
        read_until(fd, rb"/ # ")
        os.write(fd, b"stty -isig -echo; echo re''ady; cat -v\n")
        read_until(fd, rb"\nready")
        os.write(fd, b"\x03\x1a\n")
        read_until(fd, rb"\^C\^Z")
        os.write(fd, b"\x01h")
        read_until(fd, rb"ctrl-a x  end the machine")
        os.write(fd, b"\x01\x01\x01x")
        _, status = os.waitpid(pid, 0)
        pid = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(fd)
