# SPDX-License-Identifier: MIT
"""Debian's gdb on Debian's kernel: its addresses come from /proc/kallsyms, because the package carries no symbols."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from boot_images import SECONDS

from imgvm import launch
from imgvm.vmm import engine
from imgvm.vmm.vm import Vm

GDB = shutil.which("gdb")
pytestmark = [
    pytest.mark.boot,
    pytest.mark.network,
    pytest.mark.skipif(GDB is None, reason="gdb is not installed"),
]
PROMPT = r"/ # (\x1b\[6n)?$"
TEXT = 0xFFFFFFFF81000000  # where the kernel is linked; it runs there, because nothing moves it before
NAMES = ("start_kernel", "do_sys_openat2", "schedule", "linux_banner", "init_task")


def machine(image: Path, cpus: int) -> Vm:
    opened = launch.open_image(image, [f"machine.cpus={cpus}"])
    vm = launch.build(opened, engine.INTERP)
    vm.capture_console()
    return vm


def gdb(where: str, symbols: Path | None, *commands: str) -> str:
    words = [str(GDB), "-nx", "-q", "-batch", "-iex", "set confirm off", *([str(symbols)] if symbols else [])]
    for command in (f"target remote {where}", *commands):
        words += ["-ex", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout + done.stderr


def symbol_file(kallsyms: str, folder: Path) -> Path:
    """An ELF file with the kernel's symbols and nothing else."""
    lines = ['.section .kernel, "ax", @nobits']
    for address, kind, name in sorted(line.split() for line in kallsyms.splitlines()):
        what = "function" if kind in "tT" else "object"
        lines += [f".org {int(address, 16) - TEXT:#x}", f".globl {name}", f".type {name}, @{what}", f"{name}:"]
    source, out = folder / "symbols.S", folder / "symbols"
    source.write_text("\n".join([*lines, ".skip 4096", ""]))
    subprocess.run(["cc", "-c", "-o", f"{out}.o", str(source)], check=True)
    layout = ["-e", "0", f"--section-start=.kernel={TEXT:#x}"]
    subprocess.run(["ld", *layout, "-o", str(out), f"{out}.o"], check=True)
    return out


def test_the_kernel_is_debugged(busybox: Path, tmp_path: Path) -> None:
    where = str(tmp_path / "gdb")
    with machine(busybox, 2) as vm:
        vm.set_gdb(f"unix:{where}")
        vm.start()
        gdb(where, None, "detach")
        vm.console.expect(PROMPT, SECONDS)
        vm.console.send(f"echo be''gin; grep -E ' ({'|'.join(NAMES)})$' /proc/kallsyms; echo e''nd\n")
        symbols = symbol_file(vm.console.expect(r"(?s)begin\r\n(.*)end\r\n", SECONDS)[1].replace("\r", ""), tmp_path)
        vm.console.expect(PROMPT, SECONDS)

        # while it runs: stop it, wait for what the shell is told to do next
        vm.console.send("sleep 3; cat /etc/hostname-that-is-none\n")
        text = gdb(
            where, symbols, "info threads", "break do_sys_openat2 if *(char *)($rsi + 5) == 'h'", "continue", "x/s $rsi",
            "delete", "hbreak schedule", "continue", "stepi", "x/1i $pc", "detach",
        )  # fmt: skip
        assert re.search(r"processor 0.*\n.*processor 1", text), text
        assert re.search(r"(Breakpoint 1|hit Breakpoint 1), .*do_sys_openat2", text), text
        assert '"/etc/hostname-that-is-none"' in text
        assert re.search(r"Breakpoint 2, .*schedule \(\)", text)
        vm.console.expect("can't open", SECONDS)  # and it goes on as if nothing had been
        vm.console.send("poweroff -f\n")
        result = vm.wait(SECONDS)
        assert result is not None and result.reason == "poweroff"

    with machine(busybox, 1) as vm:
        vm.set_gdb(f"unix:{where}")
        vm.start()
        began = time.monotonic()
        text = gdb(
            where, symbols, "break start_kernel", "continue", "x/s (char *)linux_banner", "stepi", "info registers rip",
            "watch *(long *)&init_task", "delete 1", "continue", "kill",
        )  # fmt: skip
        assert time.monotonic() - began < SECONDS
        assert re.search(r"Breakpoint 1, .*start_kernel", text), text
        assert '"Linux version 6.' in text
        assert re.search(r"Hardware watchpoint 2: .*\n\nOld value = .*\nNew value = ", text)
        result = vm.wait(SECONDS)
        assert result is not None and result.reason == "stopped"
