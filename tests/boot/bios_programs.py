# SPDX-License-Identifier: MIT
"""Programs for a BIOS: boot sectors, and tests/guest/bios as a disk that boots."""

from __future__ import annotations

import subprocess
from pathlib import Path

GUEST = Path(__file__).parents[1] / "guest" / "bios"
PROGRAM_SECTORS = 40
SECTOR_BYTES = 512
BOOT_SIGNATURE = b"\x55\xaa"
FLAGS = (
    "-m16", "-march=i686", "-mregparm=3", "-mgeneral-regs-only", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
    "-fno-pic", "-fno-stack-protector", "-fno-jump-tables", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
    "-fno-strict-aliasing", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments",
)  # fmt: skip


def services_disk(folder: Path, size_bytes: int, *defines: str) -> bytes:
    """A raw disk that boots tests/guest/bios/services.c."""
    elf, binary = folder / "services.elf", folder / "services.bin"
    words = [f"-DPROGRAM_SECTORS={PROGRAM_SECTORS}", f"-DDISK_SECTORS={size_bytes // SECTOR_BYTES}"]
    words += [f"-D{define}" for define in defines]
    sources = [str(GUEST / "boot.S"), str(GUEST / "services.c")]
    subprocess.run(["cc", *FLAGS, *words, "-T", str(GUEST / "program.ld"), "-o", str(elf), *sources], check=True)
    subprocess.run(["objcopy", "-O", "binary", str(elf), str(binary)], check=True)
    return binary.read_bytes().ljust(size_bytes, b"\0")


def sector(folder: Path, assembly: str) -> bytes:
    """A boot sector of a few lines, which lie at 0000:7C00 and have `print` (DS:SI) and `finish` (AL: the status)."""
    source, binary = folder / "sector.S", folder / "sector.bin"
    source.write_text(f"""
    .code16
    .globl _start
_start:
    xorw %bx, %bx
    movw %bx, %ds
{assembly}
print:
    lodsb
    testb %al, %al
    jz 1f
    movb $0x0e, %ah
    xorw %bx, %bx
    int $0x10
    jmp print
1:  ret
finish:
    outb %al, $0xf4
    hlt
    .org 510
    .word 0xaa55
""")
    words = ["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-Ttext,0x7c00,--oformat,binary"]
    subprocess.run(["cc", *words, "-o", str(binary), str(source)], check=True)
    return binary.read_bytes()


HELLO = """
    movw $text, %si
    call print
    movb $7, %al
    jmp finish
text:
    .asciz "hello from a boot sector\\r\\n"
"""
