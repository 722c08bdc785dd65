# SPDX-License-Identifier: MIT
"""Debian's gdb on a machine of ours: the embedded guest, which has symbols, on each engine."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import imgvm
from imgvm.config import Config
from imgvm.errors import EngineError
from imgvm.vmm import engine
from imgvm.vmm.vm import Program, Vm

GUEST = Path(imgvm.__file__).parent / "_guest" / "hello.elf"
GDB = shutil.which("gdb")

pytestmark = pytest.mark.skipif(GDB is None, reason="gdb is not installed")


class Session:
    """A machine that waits for gdb at a socket."""

    def __init__(self, vm: Vm, socket_path: Path) -> None:
        self.vm = vm
        self.path = socket_path

    def gdb(self, *commands: str, elf: Path = GUEST, timeout: float = 60) -> str:
        words = [str(GDB), "-nx", "-q", "-batch", "-iex", "set confirm off", "-iex", "set width 0", str(elf)]
        for command in (f"target remote {self.path}", *commands):
            words += ["-ex", command]
        plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=plain)
        return done.stdout + done.stderr


@pytest.fixture
def start(tmp_path: Path, needs_engine: Callable[[str], None]) -> Iterator[Callable[..., Session]]:
    vms: list[Vm] = []

    def one(accel: str = engine.INTERP, cpus: int = 1, kernel: bytes | None = None, cmdline: str = "status=7") -> Session:
        needs_engine(accel)
        text = (
            f"version: 1\nmachine: {{cpus: {cpus}, memory: 64MiB}}\ndevices: {{debug_exit: true}}\n"
            f"boot: {{kernel: k, cmdline: '{cmdline}'}}\nexit: {{on_reboot: exit}}\n"
        )
        vm = Vm(Config.from_text(text, "t").machine, accel, Program(GUEST.read_bytes() if kernel is None else kernel))
        vms.append(vm)
        vm.capture_console()
        path = tmp_path / f"gdb{len(vms)}"
        assert vm.set_gdb(f"unix:{path}") == str(path)
        vm.start()
        return Session(vm, path)

    yield one
    for vm in vms:
        vm.close()


ENGINES = pytest.mark.parametrize("accel", [engine.INTERP, engine.JIT, engine.KVM])


@ENGINES
def test_from_the_first_instruction_to_the_end(start: Callable[..., Session], accel: str) -> None:
    session = start(accel)
    text = session.gdb(
        "print $eip == (int)&start",
        "stepi", "print $esp == (int)&stack_top",
        "break put_char", "continue", "bt",
        "delete", "continue",
    )  # fmt: skip
    assert "$1 = 1" in text and "$2 = 1" in text
    assert re.search(r"Breakpoint 1, .*put_char", text)
    assert re.search(r"#1 .* in put \(\)\n#2 .* in greet \(\)\n#3 .* in start \(\)", text)
    assert "exited with code 07" in text
    result = session.vm.wait(30)
    assert result is not None and (result.reason, result.status) == ("debug_exit", 7)
    assert result.console.startswith("Hello")


@ENGINES
def test_registers_and_memory_are_written(start: Callable[..., Session], accel: str) -> None:
    session = start(accel)
    text = session.gdb(
        "set $ecx = 0x1234", "set $xmm3.v4_int32[2] = 77", "set $st0 = 1.5", "set {int}0x300000 = 0x55aa",
        "stepi",
        "print/x $ecx", "print $xmm3.v4_int32[2]", "print $st0", "print/x {int}0x300000", "info registers eflags",
        "monitor xp 0x300000 4", "print/x *(int *)0x7000000",
        "maintenance packet Qqemu.PhyMemMode:1", "x/1xw 0x300000",
    )  # fmt: skip
    assert "$1 = 0x1234" in text and "$2 = 77" in text and "$3 = 1.5" in text and "$4 = 0x55aa" in text
    assert "000000300000: aa 55 00 00" in text
    assert "Cannot access memory at address 0x7000000" in text
    assert re.search(r"0x300000:\s+0x000055aa", text)


def test_watchpoints(start: Callable[..., Session]) -> None:
    session = start()
    text = session.gdb(
        "set {int}0x300000 = 0", "set {short}0x300010 = 0xfeeb", "set {int}0x300014 = 0",
        # mov [0x300000], 42; mov eax, [0x300014]; inc dword [0x300004]; jmp $
        *(f"set {{char}}{0x200000 + i} = {byte}" for i, byte in enumerate(bytes.fromhex(
            "c705000030002a000000 a114003000 ff0504003000 ebfe"))),
        "set $eip = 0x200000",
        "watch *(int *)0x300000", "rwatch *(int *)0x300014", "awatch *(int *)0x300004",
        "continue", "print $eip", "continue", "print $eip", "continue", "print $eip",
    )  # fmt: skip
    assert "Old value = 0\nNew value = 42" in text
    assert re.search(r"\$1 = .*0x20000a", text)
    assert re.search(r"Hardware read watchpoint 2.*\n.*\n.*\n.*Value = 0", text) or "Value = 0" in text
    assert re.search(r"\$2 = .*0x20000f", text)
    assert "Old value = 0\nNew value = 1" in text
    assert re.search(r"\$3 = .*0x200015", text)


def test_monitor(start: Callable[..., Session]) -> None:
    text = start(cpus=2).gdb(
        "monitor help", "monitor info mtree", "monitor info cpus", "monitor info registers", "monitor translate 0x1234",
        "monitor nonsense", "monitor quit",
    )  # fmt: skip
    assert "0000000003f8" not in text and re.search(r"03f8-03ff  serial port", text)
    assert re.search(r"000000000000-00000009ffff  RAM", text)
    assert re.search(r"\* 0  32-bit at 0008:10000c", text) and re.search(r"  1 .*not running", text)
    assert re.search(r"^cr0 +0*11$", text, re.M) and "ymm7h" in text
    assert "0x1234" in text and "there is no command `nonsense`" in text


def test_processors_are_threads(start: Callable[..., Session]) -> None:
    text = start(cpus=3).gdb("info threads", "thread 3", "print $eip", "thread 1", "stepi", "print $eip")
    assert re.search(r"\* 1 .*processor 0.*running.*start", text)
    assert len(re.findall(r"processor \d.*waiting to be started", text)) == 2
    assert re.search(r"\$1 = .*0xfff0", text) and re.search(r"\$2 = .*start\+5", text)


def test_detaching_lets_the_machine_go(start: Callable[..., Session]) -> None:
    session = start()
    session.gdb("break put_char", "detach")
    result = session.vm.wait(30)
    assert result is not None and result.status == 7


def test_disconnecting_leaves_it_standing(start: Callable[..., Session]) -> None:
    session = start()
    session.gdb("stepi", "disconnect")
    assert session.vm.wait(0.2) is None
    assert "start+5" in session.gdb("print $eip", "detach")
    result = session.vm.wait(30)
    assert result is not None and result.status == 7


def test_killing_ends_it(start: Callable[..., Session]) -> None:
    session = start()
    session.gdb("kill")
    result = session.vm.wait(30)
    assert result is not None and (result.reason, result.message) == ("stopped", "killed by the debugger")


class Raw:
    """The protocol by hand."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.data = b""

    def send(self, body: bytes) -> None:
        self.socket.sendall(b"$%s#%02x" % (body, sum(body) & 0xFF))

    def receive(self) -> bytes:
        while not (found := re.search(rb"\$([^#]*)#..", self.data)):
            piece = self.socket.recv(4096)
            assert piece, self.data
            self.data += piece
        self.data = self.data[found.end() :]
        return found[1]

    def ask(self, body: bytes) -> bytes:
        self.send(body)
        return self.receive()


@ENGINES
def test_an_interrupt_stops_a_loop(start: Callable[..., Session], accel: str) -> None:
    session = start(accel)
    raw = Raw(session.path)
    assert raw.ask(b"?") == b"T05thread:1;"
    assert raw.ask(b"M200000,2:ebfe") == b"OK"
    pc = 8
    assert raw.ask(b"P%x=00002000" % pc) == b"OK"
    raw.send(b"vCont;c")
    time.sleep(0.05)
    raw.socket.sendall(b"\x03")
    assert raw.receive() == b"T02thread:1;"
    assert raw.ask(b"p%x" % pc) == b"00002000"
    before = raw.ask(b"g")
    assert raw.ask(b"G" + before) == b"OK"
    assert raw.ask(b"g") == before


def test_what_is_no_request_is_refused(start: Callable[..., Session]) -> None:
    raw = Raw(start().path)
    assert raw.ask(b"m0,zz") == b"E01"
    assert raw.ask(b"mfff00000,4") == b"E0e"
    assert raw.ask(b"p3e8") == b"E01"
    assert raw.ask(b"vMustReplyEmpty") == b"" and raw.ask(b"_") == b""
    assert raw.ask(b"Tff") == b"E03" and raw.ask(b"T1") == b"OK"
    assert raw.ask(b"Z9,0,1") == b"" and raw.ask(b"Z0,xyz") == b"E01"
    assert raw.ask(b"X300000,3:a}\x03b") == b"OK"  # an escaped '#'
    assert raw.ask(b"x300000,3") == b"ba}\x03b"
    raw.socket.sendall(b"$g#00")
    raw.data = b""
    assert raw.socket.recv(1) in (b"+", b"-")


def test_the_description_follows_the_mode(start: Callable[..., Session]) -> None:
    session = start()
    raw = Raw(session.path)
    assert b"<architecture>i386</architecture>" in raw.ask(b"qXfer:features:read:target.xml:0,1000")
    raw.ask(b"qRcmd," + b"architecture 16".hex().encode())
    raw.socket.close()
    time.sleep(0.05)
    raw = Raw(session.path)
    assert b"<architecture>i8086</architecture>" in raw.ask(b"qXfer:features:read:target.xml:0,1000")


def test_mad_packets_do_no_harm(start: Callable[..., Session]) -> None:
    raw = Raw(start(cpus=2).path)
    assert raw.ask(b"QStartNoAckMode") == b"OK"
    chance = random.Random(20)
    known = [b"qXfer:features:read:target.xml:", b"qXfer:threads:read::", b"qRcmd,", b"qThreadExtraInfo,", b"vCont;x", b"Z", b"M", b"X"]
    for _ in range(3000):
        start_with = chance.choice(known) if chance.random() < 0.5 else bytes([chance.choice(b"gGpPmMxXZzHTqQv?_!")])
        letters = b"0123456789abcdef,:;=-fF}" if chance.random() < 0.8 else bytes(c for c in range(4, 256) if c not in b"$#+-")
        body = start_with + bytes(chance.choice(letters) for _ in range(chance.choice((0, 1, 3, 9, 40, 3000))))
        if b"71756974" not in body:  # quit
            raw.ask(body)
    raw.socket.sendall(b"+++#00")
    assert raw.ask(b"T2") == b"OK"
    with pytest.raises((AssertionError, ConnectionError)):
        raw.socket.sendall(b"$" + b"0" * 40000)  # longer than was agreed: that connection is over
        while True:
            raw.receive()


LONG = """
.globl _start
_start: mov $0x1122334455667788, %rax
        mov %cr4, %rdx
        or $0x200, %edx
        mov %rdx, %cr4
        mov $3, %ecx
loop:   add %rcx, %rbx
        movq %rbx, %xmm2
        dec %ecx
        jnz loop
        mov $9, %al
        out %al, $0xf4
        jmp .
"""


@ENGINES
def test_64_bit_code(start: Callable[..., Session], tmp_path: Path, accel: str) -> None:
    (tmp_path / "long.S").write_text(LONG)
    elf = tmp_path / "long"
    layout = "-nostdlib -static -no-pie -Wl,-Ttext=0x1000000,--build-id=none,-z,norelro"
    subprocess.run(["cc", *layout.split(), "-o", str(elf), str(tmp_path / "long.S")], check=True)
    session = start(accel, kernel=elf.read_bytes())
    text = session.gdb(
        "show architecture", "stepi", "print/x $rax", "set $r15 = 0x123456789abc", "break loop", "continue",
        "print $ecx", "continue", "continue", "print $rbx - $rcx", "print $xmm2.v2_int64[0]", "print/x $r15", "print/x $efer & 0x500",
        "info registers rip", "delete", "continue", elf=elf,
    )  # fmt: skip
    assert "i386:x86-64" in text
    assert "$1 = 0x1122334455667788" in text and "$2 = 3" in text and text.count("Breakpoint 1, ") == 3
    assert "$5 = 0x123456789abc" in text and "$6 = 0x500" in text and "<loop>" in text
    assert "exited with code 011" in text  # octal


def test_addresses_that_are_none(tmp_path: Path) -> None:
    text = "version: 1\nboot: {kernel: k}\n"
    with Vm(Config.from_text(text, "t").machine, engine.INTERP, Program(GUEST.read_bytes())) as vm:
        with pytest.raises(EngineError, match="cannot listen"):
            vm.set_gdb("unix:/nowhere/at/all")
        with pytest.raises(EngineError, match="cannot listen"):
            vm.set_gdb("127.0.0.1:notaport")
        assert re.fullmatch(r"127\.0\.0\.1:\d+", vm.set_gdb("127.0.0.1:0"))
        with pytest.raises(EngineError, match="already"):
            vm.set_gdb("0")
