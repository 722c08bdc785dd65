# SPDX-License-Identifier: MIT
"""`imgvm cpu`: a flat binary on a processor without a machine around it, or as text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from imgvm.errors import STATUS_ERROR, STATUS_NOT_FOUND, STATUS_PANIC, STATUS_TIMEOUT, ImgvmError, UsageError

MODES = {16: "real", 32: "protected", 64: "long"}
LOW = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
SHOWN = (*LOW, *(f"r{n}" for n in range(8, 16)), "rip", "rflags")


def command(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="Code, as plain bytes; - reads hexadecimal.")
    ],
    bits: Annotated[int, typer.Option("-b", "--bits", metavar="16|32|64", help="The mode.")] = 64,
    address: Annotated[
        str, typer.Option("-a", "--address", metavar="N", help="Where it lies and begins.")
    ] = "0x1000",
    disassemble: Annotated[
        bool, typer.Option("-d", "--disassemble", help="Show it and do not run it.")
    ] = False,
    registers: Annotated[
        list[str] | None, typer.Option("-r", "--set", metavar="REG=N", help="A register's first value.")
    ] = None,
    steps: Annotated[int, typer.Option("-n", "--steps", metavar="N", help="Run so many instructions.")] = 0,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Run no longer.")] = 10.0,
    accel: Annotated[str, typer.Option("--accel", metavar="interp|kvm", help="The engine.")] = "interp",
) -> int:
    """Run a few bytes of code until HLT and show the registers, or disassemble them.

    Status 0 after HLT or the steps asked for, 124 on timeout, 255 on a triple fault.
    """
    if bits not in MODES:
        raise UsageError(f"there is no mode of {bits} bits", "-b 16, 32 or 64")
    if steps < 0:
        raise UsageError("fewer than no steps cannot be run")
    if accel not in ("interp", "kvm"):
        raise UsageError(f"there is no engine {accel} here", "--accel interp or kvm")
    code, at = _read(source), _number(address, "--address")
    if disassemble:
        _show_code(code, at, bits)
        return 0
    return _run(code, at, bits, registers or [], steps, timeout, accel)


def _number(text: str, what: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"{what}: {text} is no number") from None


def _read(source: Path) -> bytes:
    if str(source) == "-":
        try:
            return bytes.fromhex(sys.stdin.read())
        except ValueError:
            raise UsageError("what was read is no hexadecimal") from None
    try:
        return source.read_bytes()
    except FileNotFoundError:
        raise ImgvmError(f"there is no {source}", status=STATUS_NOT_FOUND) from None


def _show_code(code: bytes, address: int, bits: int) -> None:
    from imgvm.vmm.processor import disassemble

    at = 0
    while at < len(code):
        found = disassemble(code[at : at + 15], address + at, bits)
        raw = found.code or code[at : at + 1]
        print(f"{address + at:8x}  {raw.hex(' '):<32}  {found.text}")
        at += len(raw)


def _run(
    code: bytes, address: int, bits: int, registers: list[str], steps: int, timeout: float, accel: str
) -> int:
    from imgvm.vmm.processor import Processor

    with getattr(Processor, MODES[bits])(engine=accel) as cpu:
        cpu.memory.write(address, code)
        cpu.regs.rip = address
        for setting in registers:
            name, equals, value = setting.partition("=")
            if not equals:
                raise UsageError(f"--set {setting} is no REG=N")
            cpu.regs[name] = _number(value, name)
        stop = cpu.step(steps, timeout) if steps else cpu.run(timeout)
        for name in SHOWN:
            if bits == 64 or not name[1:].isdigit():
                print(f"{name:<7} {cpu.regs[name]:#0{18 if bits == 64 else 10}x}")
        for access in cpu.accesses():
            arrow = "<-" if access.kind == "w" else "->"
            print(f"{access.space} {access.address:#x} {arrow} {access.value:#0{2 + 2 * access.size}x}")
        print(f"{stop.reason}{f': {stop.message}' if stop.message else ''}", file=sys.stderr)
    statuses = {"halt": 0, "steps": 0, "timeout": STATUS_TIMEOUT, "shutdown": STATUS_PANIC}
    return statuses.get(stop.reason, STATUS_ERROR)
