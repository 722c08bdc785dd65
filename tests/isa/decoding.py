# SPDX-License-Identifier: MIT
"""What the decoder's tests share: our decoder as a program, an instruction to be decoded, and sets of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from imgvm.vmm import _build

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "isa"
SOURCES = ["isa.c", "plan.c", "decode.c", "disasm.c"]
TAIL = bytes.fromhex("1122334455667788010203040506")
PREFIX_WORDS = {"lock", "rep", "repe", "repne", "repz", "repnz", "bnd", "notrack", "xacquire", "xrelease", "data16"}
LEGACY_PREFIXES = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}


@dataclass(frozen=True)
class Answer:
    length: int  # not positive: no such instruction, or it is cut off
    text: str

    @property
    def valid(self) -> bool:
        return self.length > 0

    @property
    def mnemonic(self) -> str:
        return next((word for word in self.text.split() if word not in PREFIX_WORDS), "")


@dataclass(frozen=True)
class Case:
    mode: int
    code: bytes

    @property
    def prefixes(self) -> bytes:
        for at, byte in enumerate(self.code):
            if byte not in LEGACY_PREFIXES and not (self.mode == 64 and byte & 0xF0 == 0x40):
                return self.code[:at]
        return self.code

    @property
    def rest(self) -> bytes:
        return self.code[len(self.prefixes):]

    @property
    def rex_w(self) -> bool:
        return self.mode == 64 and bool(self.prefixes) and self.prefixes[-1] & 0xF8 == 0x48


def build(program: str, sources: list[Path]) -> Path:
    """Compiles tests/isa/<program>.c with these."""
    OUT.mkdir(parents=True, exist_ok=True)
    out = OUT / program
    flags = [*_build.CFLAGS, *(_build.GENERAL_REGS_ONLY if sources else []), f"-I{_build.NATIVE}"]
    command = ["cc", *flags, str(HERE / f"{program}.c"), *map(str, sources), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def build_decoder() -> Path:
    return build("decode_tool", [_build.NATIVE / "cpu" / "decode" / name for name in SOURCES])


def ask_ours(tool: Path, cases: list[Case]) -> list[Answer]:
    text = "".join(f"{case.mode} {case.code.hex()}\n" for case in cases)
    done = subprocess.run([str(tool)], input=text, capture_output=True, text=True, check=True)
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == len(cases)
    return [Answer(int(length), text) for length, text in lines]


# ---- sets of instructions ----


def opcodes(mode: int) -> Iterator[bytes]:
    skipped = LEGACY_PREFIXES | {0x0F, 0x62, 0xC4, 0xC5} | (set(range(0x40, 0x50)) if mode == 64 else set())
    yield from (bytes([opcode]) for opcode in range(256) if opcode not in skipped)
    yield from (bytes([0x0F, opcode]) for opcode in range(256) if opcode not in (0x0F, 0x38, 0x3A))
    yield from (bytes([0x0F, escape, opcode]) for escape in (0x38, 0x3A) for opcode in range(256))


def systematic(mode: int, prefixes: list[bytes], modrms: list[int]) -> Iterator[Case]:
    for opcode, prefix, modrm in product(opcodes(mode), prefixes, modrms):
        yield Case(mode, prefix + opcode + bytes([modrm]) + TAIL)


def vex(mode: int, vvvvs: list[int], modrms: list[int]) -> Iterator[Case]:
    for opcode, pp, w, long, vvvv, modrm, space in product(range(256), range(4), (0, 1), (0, 1), vvvvs, modrms, (1, 2, 3)):
        yield Case(mode, bytes([0xC4, 0xE0 | space, w << 7 | vvvv << 3 | long << 2 | pp, opcode, modrm]) + TAIL)


def prefix_set(mode: int) -> list[bytes]:
    plain = [b"", b"\x66", b"\xf3", b"\xf2", b"\x67", b"\x66\xf3", b"\xf2\x66"]
    return plain + ([b"\x48", b"\x66\x48", b"\xf3\x48", b"\xf2\x48", b"\x45", b"\x41"] if mode == 64 else [])
