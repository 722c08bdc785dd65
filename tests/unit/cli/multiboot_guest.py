# SPDX-License-Identifier: MIT
"""Small Multiboot kernels, assembled by hand: they print on COM1 and end through the debug exit port."""

from __future__ import annotations

import struct

LOAD_ADDRESS = 0x100000
COM1, DEBUG_EXIT = 0x3F8, 0xF4


def out_byte(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al"""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def say(text: str) -> bytes:
    return b"".join(out_byte(COM1, byte) for byte in text.encode())


def leave(status: int) -> bytes:
    return out_byte(DEBUG_EXIT, status) + SPIN


SPIN = b"\xf3\x90\xeb\xfc"  # pause; jmp back
# An empty interrupt table, and an exception: lidt [esp]; ud2
TRIPLE_FAULT = b"\xbc\x00\x00\x20\x00" b"\x6a\x00\x6a\x00" b"\x0f\x01\x1c\x24" b"\x0f\x0b"


def kernel(code: bytes) -> bytes:
    """An ELF32 file with one segment: the Multiboot header, then the code."""
    magic, flags = 0x1BADB002, 0
    body = struct.pack("<3I", magic, flags, -(magic + flags) & 0xFFFFFFFF) + bytes(4) + code
    header_bytes = 52 + 32
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    entry = LOAD_ADDRESS + 16
    elf = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, header_bytes, LOAD_ADDRESS, LOAD_ADDRESS, len(body), len(body), 7, 4)
    return elf + segment + body
