# SPDX-License-Identifier: MIT
"""SMBIOS as guests see it: Linux's own parser, and a program that the built-in BIOS boots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bios_programs import sector

import imgvm
from imgvm.errors import EngineError
from imgvm.vmm import engine

SECONDS = 120
UUID = "12345678-9abc-def0-0102-030405060708"
MACHINE = (
    f"machine:\n  accel: %s\n  cpus: 2\n  uuid: {UUID.upper()}\n"
    "  smbios: {manufacturer: Example, product: Box, serial: S-1, oem_strings: ['io.systemd.credential:motd=hello']}\n"
)
ENGINES = pytest.mark.parametrize("accel", ["interp", "jit", "kvm"])
# What the boot sector finds: the 32-bit entry point, and the first 352 bytes of the tables that it names.
FINDER = """
    movw $0xf000, %ax
    movw %ax, %ds
    cmpl $0x5f4d535f, 0xffa0
    movb $1, %al
    jne out
    movl 0xffb8, %eax
    shrl $4, %eax
    movw %ax, %ds
    xorw %si, %si
    movw $352, %cx
    movw $0x3f8, %dx
again:
    lodsb
    outb %al, %dx
    loop again
    movb $7, %al
out:
    jmp finish
"""


# The same, when the machine has been reset: RAM still has the mark.
AFTER_RESET = """
    cmpw $0x1234, 0x600
    je 3f
    movw $0x1234, 0x600
    movb $6, %al
    movw $0xcf9, %dx
    outb %al, %dx
    hlt
3:
""" + FINDER


def need(accel: str) -> None:
    try:
        engine.probe(accel)
    except EngineError as error:
        pytest.skip(f"{accel}: {error.message}")


@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("accel", ["interp", "jit"])
def test_linux_reads_the_tables(accel: str, pack_config: Callable[[str], Path]) -> None:
    names = "sys_vendor product_name product_serial product_uuid bios_vendor chassis_vendor"
    image = pack_config(
        "version: 1\nname: box\n" + MACHINE % accel + "boot:\n"
        '  kernel: {distro: "debian:bookworm", package: linux-image-cloud-amd64}\n  cmdline: [console=ttyS0, quiet]\n'
        f"exec:\n  command: 'cd /sys/class/dmi/id && for name in {names}; do echo $name=$(cat $name)=; done;"
        " grep -ac io.systemd.credential:motd=hello /sys/firmware/dmi/tables/DMI; dmesg | grep -E \"SMBIOS|DMI:\"'\n"
    )
    with imgvm.run(image) as vm:
        result = vm.wait(SECONDS)
    assert result is not None and (result.reason, result.status) == ("exec", 0), result
    lines = result.console.replace("\r", "")
    for line in (
        "sys_vendor=Example=", "product_name=Box=", "product_serial=S-1=", f"product_uuid={UUID}=", "bios_vendor=imgvm=",
        "chassis_vendor=Example=", "1",
    ):  # fmt: skip
        assert f"{line}\n" in lines, lines
    assert "SMBIOS 3.0.0 present" in lines and "DMI: Example Box, BIOS 1 01/01/2026" in lines, lines


@pytest.mark.parametrize("program", [FINDER, AFTER_RESET], ids=["at once", "after a reset"])
@ENGINES
def test_a_program_of_the_bios_finds_them(accel: str, program: str, pack_config: Callable[[str], Path], tmp_path: Path) -> None:
    need(accel)
    (tmp_path / "d.raw").write_bytes(sector(tmp_path, program))
    image = pack_config(
        "version: 1\nname: box\n" + MACHINE % accel + "devices: {debug_exit: true}\n"
        "disks: [{name: d, source: d.raw, format: raw, read_only: true}]\n"
    )
    with imgvm.run(image) as vm:
        result = vm.wait(SECONDS)
    assert result is not None and (result.reason, result.status) == ("debug_exit", 7), result
    assert all(f"{text}\0" in result.console for text in ("Example", "Box", "S-1", "CPU 0", "io.systemd.credential:motd=hello"))
    assert "\x78\x56\x34\x12" in result.console
