# SPDX-License-Identifier: MIT
"""The program by which a guest tells imgvm its command's exit status, as an ELF file of 232 bytes.

`imgvm-exit STATUS` waits until standard output has left the console, then writes STATUS to the machine's
status port, upon which the machine ends. `imgvm-exit` alone only waits. It ends with 1 where the port may not
be written (not root, or a locked-down kernel), and with 0 where nothing answers at the port.

It is written in machine code because the packing host need not have a compiler, and it does not go through
/dev/port because Debian's cloud kernel has none. Its test disassembles and runs it.
"""

from __future__ import annotations

import struct

EXEC_STATUS_PORT = 0x5F4  # where the board listens: a value written ends the machine with that exec status

_PORT = struct.pack("<I", EXEC_STATUS_PORT)

# Linux system calls: number in eax, arguments in rdi, rsi, rdx; result in rax. rcx and r11 are lost.
CODE = b"".join((
    # Wait for the console: ioctl(1, TCSBRK, 1) is tcdrain(1). Standard output may be no terminal: no matter.
    b"\xb8\x10\x00\x00\x00",      # 00         mov    eax, 16        ; ioctl
    b"\xbf\x01\x00\x00\x00",      # 05         mov    edi, 1
    b"\xbe\x09\x54\x00\x00",      # 0a         mov    esi, 0x5409    ; TCSBRK
    b"\xba\x01\x00\x00\x00",      # 0f         mov    edx, 1
    b"\x0f\x05",                  # 14         syscall
    # The stack holds argc, argv[0], argv[1].
    b"\x48\x83\x3c\x24\x02",      # 16         cmp    qword ptr [rsp], 2
    b"\x72\x3e",                  # 1b         jb     done
    b"\x48\x8b\x74\x24\x10",      # 1d         mov    rsi, qword ptr [rsp + 0x10]
    b"\x31\xdb",                  # 22         xor    ebx, ebx
    # ebx = the decimal number at rsi.
    b"\x0f\xb6\x06",              # 24 digit:  movzx  eax, byte ptr [rsi]
    b"\x83\xe8\x30",              # 27         sub    eax, 0x30
    b"\x83\xf8\x09",              # 2a         cmp    eax, 9
    b"\x77\x0a",                  # 2d         ja     report
    b"\x6b\xdb\x0a",              # 2f         imul   ebx, ebx, 0xa
    b"\x01\xc3",                  # 32         add    ebx, eax
    b"\x48\xff\xc6",              # 34         inc    rsi
    b"\xeb\xeb",                  # 37         jmp    digit
    # ioperm(port, 1, 1), then the byte.
    b"\xb8\xad\x00\x00\x00",      # 39 report: mov    eax, 173       ; ioperm
    b"\xbf" + _PORT,              # 3e         mov    edi, 0x5f4
    b"\xbe\x01\x00\x00\x00",      # 43         mov    esi, 1
    b"\xba\x01\x00\x00\x00",      # 48         mov    edx, 1
    b"\x0f\x05",                  # 4d         syscall
    b"\x85\xc0",                  # 4f         test   eax, eax
    b"\x75\x11",                  # 51         jne    fail
    b"\x89\xd8",                  # 53         mov    eax, ebx
    b"\xba" + _PORT,              # 55         mov    edx, 0x5f4
    b"\xee",                      # 5a         out    dx, al
    # exit(0)
    b"\x31\xff",                  # 5b done:   xor    edi, edi
    b"\xb8\x3c\x00\x00\x00",      # 5d         mov    eax, 60        ; exit
    b"\x0f\x05",                  # 62         syscall
    # exit(1)
    b"\xbf\x01\x00\x00\x00",      # 64 fail:   mov    edi, 1
    b"\xb8\x3c\x00\x00\x00",      # 69         mov    eax, 60        ; exit
    b"\x0f\x05",                  # 6e         syscall
))  # fmt: skip

_LOAD_ADDRESS = 0x400000
_EHDR_BYTES, _PHDR_BYTES = 64, 56


def program() -> bytes:
    """The whole file: an ELF header, one program header that maps all of it, the code."""
    start = _EHDR_BYTES + _PHDR_BYTES
    size = start + len(CODE)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64-bit, little-endian, version 1
    ehdr = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident, 2, 62, 1, _LOAD_ADDRESS + start, _EHDR_BYTES, 0, 0, _EHDR_BYTES, _PHDR_BYTES, 1, 0, 0, 0,
    )  # fmt: skip
    phdr = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)  # load, r-x
    return ehdr + phdr + CODE
