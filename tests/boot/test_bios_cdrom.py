# SPDX-License-Identifier: MIT
"""El Torito on the built-in BIOS, with ISO images of a few sectors."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from bios_programs import BOOT_SIGNATURE, HELLO, sector
from boot_disks import Boot

CD_SECTOR_BYTES = 2048
CATALOG, PROGRAM, TEXT = 18, 19, 20  # their sectors
ENGINES = pytest.mark.parametrize("accel", ["interp", "jit", "kvm"])

# Asks what was booted (4B01h) and how large it is (48h), reads a sector of 2048 bytes (42h), and prints it.
READER = f"""
    movb %dl, drive
    movw $0x4b01, %ax
    movw $status, %si
    int $0x13
    movb $1, %al
    jc finish
    movb $2, %al
    cmpb %dl, status + 2
    jne finish
    movb $3, %al
    cmpl ${PROGRAM}, status + 4
    jne finish
    movb $0x48, %ah
    movb drive, %dl
    movw $parameters, %si
    int $0x13
    movb $4, %al
    jc finish
    cmpw ${CD_SECTOR_BYTES}, parameters + 24
    jne finish
    movb $5, %al
    cmpl $21, parameters + 16
    jne finish
    movb $0x42, %ah
    movw $packet, %si
    int $0x13
    movb $6, %al
    jc finish
    movw $0x8000, %si
    call print
    movb $0x43, %ah         /* it cannot be written */
    movw $packet, %si
    int $0x13
    movb $7, %al
    jnc finish
    movb $0, %al
    jmp finish
packet:
    .byte 16, 0
    .word 1, 0x8000, 0
    .quad {TEXT}
parameters:
    .word 26
    .skip 24
status:
    .skip 19
drive:
    .byte 0
"""


def iso(program: bytes, *, media: int = 0, platform: int = 0, segment: int = 0, catalog: bool = True, record: bool = True) -> bytes:
    sectors = {16: b"\1CD001\1", TEXT: b"a text of the CD-ROM\r\n\0"}
    if record:
        sectors[17] = b"\0CD001\1EL TORITO SPECIFICATION".ljust(0x47, b"\0") + struct.pack("<I", CATALOG)
    if catalog:
        validation = struct.pack("<BB26xH", 1, platform, 0)[:28] + bytes(2) + BOOT_SIGNATURE
        count = -(-len(program) // 512)
        sectors[CATALOG] = validation + struct.pack("<BBHBBHI20x", 0x88, media, segment, 0, 0, count, PROGRAM)
    sectors[PROGRAM] = program
    return b"".join(sectors.get(index, b"").ljust(CD_SECTOR_BYTES, b"\0") for index in range(TEXT + 1))


@ENGINES
def test_a_program_reads_its_cdrom(boot: Boot, tmp_path: Path, accel: str) -> None:
    result = boot({"cd": iso(sector(tmp_path, READER))}, accel)
    assert (result.status, result.console) == (0, "a text of the CD-ROM\r\n")


def test_a_program_may_lie_elsewhere(boot: Boot, tmp_path: Path) -> None:
    """It is entered at the beginning of its segment: this one says which."""
    result = boot({"cd": iso(sector(tmp_path, "movw %cs, %ax\n movb %ah, %al\n outb %al, $0xf4\n"), segment=0x1200)})
    assert result.status == 0x12


def test_disks_come_first_unless_the_order_says_otherwise(boot: Boot, tmp_path: Path) -> None:
    disks = {"cd": iso(sector(tmp_path, "movb $1, %al\n jmp finish\n")), "d": sector(tmp_path, "movb $2, %al\n jmp finish\n")}
    assert boot(disks).status == 2
    assert boot(disks, boot="{order: [cdrom, disk]}").status == 1
    assert boot(disks, boot="{order: [cdrom]}").status == 1


def test_an_iso_image_that_can_be_written_is_a_disk_if_it_can_be_one(boot: Boot, tmp_path: Path) -> None:
    plain = iso(sector(tmp_path, "movb $1, %al\n jmp finish\n"))
    hybrid = sector(tmp_path, "movb %dl, %al\n jmp finish\n") + plain[512:]
    assert boot({"writable": plain}).status == 1
    assert boot({"writable": hybrid}).status == 0x80
    assert boot({"cd": hybrid}).status == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"record": False}, "has no El Torito boot record"),
        ({"catalog": False}, "has a boot record without a catalog"),
        ({"platform": 0xef}, "is not made for a BIOS to boot"),
        ({"media": 2}, "asks for an emulated disk, which is not supported"),
        ({"segment": 0x9ff0}, "has a boot program that does not fit into low memory"),
        ({"segment": 0x20}, "has a boot program that does not fit into low memory"),
    ],
)
def test_what_cannot_be_booted_says_why(boot: Boot, tmp_path: Path, change: dict[str, int], reason: str) -> None:
    result = boot({"cd": iso(sector(tmp_path, HELLO), **change)})
    assert result.console.replace("\r", "") == f"CD-ROM E0h: {reason}\nNo bootable device\n"
    assert (result.reason, result.status) == ("panic", 255)
