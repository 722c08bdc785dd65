# SPDX-License-Identifier: MIT
"""The built-in BIOS with boot sectors of our own: its services, what it boots and in which order, and what it says when
there is nothing. SeaBIOS in QEMU does what the same program asks, too: it is the witness that the program is right."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bios_programs import BOOT_SIGNATURE, HELLO, sector, services_disk
from boot_disks import Boot
from boot_images import SECONDS, packed

import imgvm
from imgvm import units
from imgvm.config import Config
from imgvm.vmm.vm import Watch

DISK_BYTES = 8 * units.MIB
KEYS = (("type", "aA\r\x1b", "0000011b"), ("011b", "\x1b[A\x1bOP\x03\x7f1", "00000231"))
EXAMPLES = Path(__file__).parents[2] / "examples"
ENGINES = pytest.mark.parametrize("accel", ["interp", "jit", "kvm"])


@ENGINES
def test_services(boot: Boot, tmp_path: Path, accel: str) -> None:
    defines = ["SERIAL_KEYS", "STRICT"] + (["A20_IS_ALWAYS_ON"] if accel == "kvm" else [])
    result = boot({"d": services_disk(tmp_path, DISK_BYTES, *defines)}, accel, KEYS)
    assert "FAILED" not in result.console, result.console
    assert result.console.count("\nok ") > 50
    assert (result.reason, result.status) == ("debug_exit", 0)


def test_services_of_seabios(tmp_path: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    (tmp_path / "d.raw").write_bytes(services_disk(tmp_path, DISK_BYTES))
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    command += ["-drive", f"file={tmp_path}/d.raw,format=raw,if=virtio"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    assert "FAILED" not in done.stdout, done.stdout
    assert done.stdout.count("\nok ") > 45, done.stdout + done.stderr
    assert done.returncode == 1  # (0 << 1) | 1


@ENGINES
def test_a_boot_sector(boot: Boot, tmp_path: Path, accel: str) -> None:
    result = boot({"d": sector(tmp_path, HELLO)}, accel)
    assert result.console == "hello from a boot sector\r\n"
    assert (result.reason, result.status) == ("debug_exit", 7)


def test_the_first_disk_with_a_program_boots(boot: Boot, tmp_path: Path) -> None:
    table_only = bytes(510) + BOOT_SIGNATURE
    disks = {"empty": bytes(1 << 20), "table": table_only, "system": sector(tmp_path, HELLO)}
    result = boot(disks)
    assert result.status == 7
    assert result.console.replace("\r", "").splitlines() == [
        "Disk 80h: has no boot sector",
        "Disk 81h: has no program in its boot sector",
        "hello from a boot sector",
    ]


def test_nothing_to_boot(boot: Boot) -> None:
    result = boot({"empty": bytes(1 << 20)})
    assert (result.reason, result.status) == ("panic", 255)
    assert result.message == "No bootable device"
    assert result.console.replace("\r", "") == "Disk 80h: has no boot sector\nNo bootable device\n"


def test_a_program_that_finds_nothing_lets_the_next_disk_boot(boot: Boot, tmp_path: Path) -> None:
    """INT 18h."""
    result = boot({"a": sector(tmp_path, "int $0x18\n"), "b": sector(tmp_path, HELLO)})
    assert (result.status, result.console) == (7, "hello from a boot sector\r\n")


def test_a_reset_begins_again(boot: Boot, tmp_path: Path) -> None:
    """The second time, the disk says that it has been here."""
    program = """
    movw $0x0201, %ax       /* sector 2 to 0000:8000 */
    movw $0x8000, %bx
    movw %bx, %es
    xorw %bx, %bx
    movw $2, %cx
    xorb %dh, %dh
    int $0x13
    movb $9, %al
    cmpb $1, %es:0
    je finish
    movb $1, %es:0
    movw $0x0301, %ax
    int $0x13
    movb $0xfe, %al         /* the keyboard controller pulls the reset line */
    outb %al, $0x64
    hlt
"""
    assert boot({"d": sector(tmp_path, program) + bytes(1024)}).status == 9


def test_text_on_the_screen(boot: Boot, tmp_path: Path) -> None:
    """Sequences only where the terminal would otherwise show something else."""
    program = """
    movw $0x0e41, %ax       /* A, in the first place */
    int $0x10
    movb $2, %ah            /* to row 2, column 4 */
    movw $0x0204, %dx
    xorb %bh, %bh
    int $0x10
    movw $0x09c4, %ax       /* two lines of a box, black on white */
    movw $0x0070, %bx
    movw $2, %cx
    int $0x10
    movb $2, %ah
    movw $0x0206, %dx
    int $0x10
    movw $0x0e42, %ax       /* B behind them: no sequence for the place */
    int $0x10
    movw $0x0e0d, %ax
    int $0x10
    movw $0x0e0a, %ax
    int $0x10
    movw $0x0600, %ax       /* everything is blank */
    movb $7, %bh
    xorw %cx, %cx
    movw $0x184f, %dx
    int $0x10
    xorb %al, %al
    jmp finish
"""
    result = boot({"d": sector(tmp_path, program)})
    assert result.console == "A\x1b[3;5H\x1b[0;30;47m──\x1b[0mB\r\n\x1b[2J"


def test_a_program_may_leave_services_for_good(boot: Boot, tmp_path: Path) -> None:
    """As those do that go on elsewhere out of a timer's interrupt: more often than the BIOS has pieces of stack."""
    program = """
    cli
    movw $tick, 0x1c * 4
    movw %bx, 0x1c * 4 + 2
again:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    movw $0x8600, %ax       /* waits 4 seconds; no tick takes that long */
    movw $64, %cx
    int $0x15
    movb $1, %al
    jmp finish
tick:
    movb $0x20, %al
    outb %al, $0x20
    decw %cs:left
    jnz again
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw $0x0201, %ax
    movw $0x8000, %bx
    movw $1, %cx
    movw $0x0080, %dx
    int $0x13
    movb $2, %al
    jc finish
    movb $3, %al
    cmpw $0xaa55, 0x81fe
    jne finish
    movb $0, %al
    jmp finish
left:
    .word 20
"""
    assert boot({"d": sector(tmp_path, program)}).status == 0


@ENGINES
def test_a_read_to_nowhere_fails_and_the_next_one_works(boot: Boot, tmp_path: Path, accel: str) -> None:
    """A000:0000 is a screen's memory, which this machine has not: the device gives up, and is set up anew."""
    program = """
    movw $0xa000, %ax
    movw %ax, %es
    movw $0x0201, %ax
    xorw %bx, %bx
    movw $1, %cx
    movw $0x0080, %dx
    int $0x13
    movb $1, %al
    jnc finish
    movb $2, %al
    cmpb $0x20, %ah
    jne finish
    movw %bx, %es
    movw $0x8000, %bx
    movw $0x0201, %ax
    int $0x13
    movb $3, %al
    jc finish
    movb $4, %al
    cmpw $0xaa55, 0x81fe
    jne finish
    movb $0, %al
    jmp finish
"""
    assert boot({"d": sector(tmp_path, program)}, accel).status == 0


@pytest.mark.parametrize("accel", ["jit"])
def test_services_in_lockstep(pack_config: Callable[[str], Path], tmp_path: Path, accel: str) -> None:
    """The translator against the interpreter in 16-bit code, block by block."""
    (tmp_path / "d.raw").write_bytes(services_disk(tmp_path, DISK_BYTES))
    text = "version: 1\nmachine: {memory: 64MiB}\ndevices: {debug_exit: true}\ndisks: [{name: d, source: d.raw, format: raw}]\n"
    with imgvm.run(pack_config(text), accel=accel, watch=Watch(lockstep=True)) as vm:
        result = vm.wait(120)
    assert result is not None
    assert (result.reason, result.status) == ("debug_exit", 0), result.message + result.console


def test_the_example(tmp_path: Path) -> None:
    """Written where packing looks for it: the config's folder and a variable."""
    program = """
    movb $0xc0, %al
    jmp finish
"""
    (tmp_path / "disk.raw").write_bytes(sector(tmp_path, program))
    config = Config.load(EXAMPLES / "boot-disk.yaml", variables=[f"DISK={tmp_path}/disk.raw"], overrides=["devices.debug_exit=true"])
    with imgvm.run(packed(config, tmp_path / "disk.img"), accel="interp") as vm:
        result = vm.wait(60)
    assert result is not None
    assert (result.reason, result.status) == ("debug_exit", 0xC0)
