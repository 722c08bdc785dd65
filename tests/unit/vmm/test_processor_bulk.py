# SPDX-License-Identifier: MIT
"""The processor as a driver of test vectors uses it: many registers and bytes at once, exceptions told."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgvm.errors import EngineError
from imgvm.vmm import engine
from imgvm.vmm.processor import Processor, Stop

CODE = 0x1000
DOCS = Path(__file__).parents[3] / "docs"


def test_many_registers_at_once() -> None:
    with Processor.long() as cpu:
        values = {"rax": 1 << 63, "cs": 0x18, "cs_limit": 0xFFFF, "st3": 0x3FFF_8000_0000_0000_0000, "ymm2": 3 << 200}
        cpu.regs.update(values)
        assert cpu.regs.read(*values) == tuple(values.values())
        assert cpu.regs.read("rax", "xmm2", "ymm2h") == (1 << 63, 0, 3 << 72)
        assert cpu.regs.read() == ()
        cpu.regs.update({})


def test_parts_of_registers_as_the_processor_writes_them() -> None:
    with Processor.long() as cpu:
        cpu.regs.rax = cpu.regs.rbx = cpu.regs.rcx = 0x1122_3344_5566_7788
        cpu.regs.update({"eax": 1, "bx": 2, "ch": 3, "r8b": 4, "eflags": 0x246})
        assert cpu.regs.read("rax", "rbx", "rcx", "r8") == (1, 0x1122_3344_5566_0002, 0x1122_3344_5566_0388, 4)
        assert cpu.regs.read("eflags", "flags", "cl", "ch") == (0x246, 0x246, 0x88, 3)


def test_order_counts_for_selectors() -> None:
    with Processor.protected() as cpu:
        cpu.regs.update({"cr0": 0x10, "ds": 0x1234})  # real mode: the base comes with the selector
        assert cpu.regs.ds_base == 0x12340


@pytest.mark.parametrize("values", [{"eax": 1 << 32}, {"al": 256}, {"rax": -1}, {"xmm0": 1 << 128}, {"cs": 0x10000}])
def test_what_does_not_fit(values: dict[str, int]) -> None:
    with Processor.long() as cpu, pytest.raises(EngineError, match="unsigned numbers of their own size"):
        cpu.regs.update(values)


def test_processors_in_several_threads() -> None:
    def work(number: int) -> bool:
        with Processor.long() as cpu:
            for turn in range(300):
                value = number << 32 | turn
                cpu.regs.update({"rax": value, "rbx": value, "rcx": value})
                if cpu.regs.read("rax", "rbx", "rcx") != (value, value, value):
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_many_different_sets_of_registers() -> None:
    with Processor.long() as cpu:
        for mask in range(1, 1 << 11):
            names = [name for bit, name in enumerate(cpu.regs) if bit < 11 and mask >> bit & 1]
            cpu.regs.update(dict.fromkeys(names, mask))
            assert set(cpu.regs.read(*names)) == {mask}


def test_there_is_no_such_register() -> None:
    with Processor.long() as cpu:
        with pytest.raises(EngineError, match="no register foo"):
            cpu.regs.update({"foo": 1})
        with pytest.raises(EngineError, match="no register bar"):
            cpu.regs.read("rax", "bar")


def test_bytes_here_and_there() -> None:
    with Processor.real() as cpu:
        cells = [(0x1000, 0x90), [0xFFFFF, 0xF4], (0x1FFFFF, 7)]
        cpu.physical.poke(cells)
        assert cpu.physical.peek(address for address, _ in cells) == b"\x90\xf4\x07"
        assert cpu.memory.peek([0x1000]) == b"\x90"
        cpu.physical.poke([])
        assert cpu.physical.peek([]) == b""
        with pytest.raises(EngineError, match="no memory at physical address 0x200000"):
            cpu.physical.poke([(0, 1), (0x200000, 1)])
        with pytest.raises(EngineError, match="no memory"):
            cpu.physical.peek([1 << 40])


def test_poked_code_is_what_runs() -> None:
    with Processor.real() as cpu:
        for value in range(20):  # mov al, value, over and over in one place
            cpu.physical.poke([(CODE, 0xB0), (CODE + 1, value)])
            cpu.regs.update({"ip": CODE})
            assert cpu.step() == Stop("steps", instructions=1)
            assert cpu.regs.al == value


@pytest.mark.parametrize(
    ("mode", "code", "vector", "error_code"),
    [
        ("real", "f7f3", 0, None),  # div bx, which is 0
        ("real", "0f0b", 6, None),
        ("real", "a1ffff", 13, None),  # a word at FFFFh: no error code in real mode
        ("protected", "8ed8", 13, 0x50),  # mov ds, ax beyond the table
        ("protected", "0f0b", 6, None),
        ("long", "488b03", 14, 0),  # mov rax, [rbx]
        ("long", "cd80", 13, 0x402),  # int 80h, which is not in the table
    ],
)
def test_exceptions_are_told(mode: str, code: str, vector: int, error_code: int | None) -> None:
    with getattr(Processor, mode)(exceptions="report") as cpu:
        cpu.memory[CODE] = bytes.fromhex(code)
        cpu.regs.update({"rax": 0x53, "rbx": 0 if mode == "real" else 1 << 40, "rdx": 7, "rip": CODE})
        before = cpu.regs.read("rax", "rdx", "rsp", "rip")
        assert cpu.step() == Stop("exception", vector=vector, error_code=error_code)
        assert cpu.regs.read("rax", "rdx", "rsp", "rip") == before
        if vector == 14:
            assert cpu.regs.cr2 == 1 << 40
        cpu.memory[CODE] = b"\x90"  # and it goes on
        assert cpu.step().reason == "steps"


def test_software_interrupts_are_delivered_all_the_same() -> None:
    with Processor.real(exceptions="report") as cpu:
        cpu.memory[CODE] = b"\xcc"
        cpu.physical.write_int(3 * 4, 0x0040_2000, 4)
        assert cpu.step() == Stop("steps", instructions=1)
        assert cpu.regs.read("cs", "ip", "sp") == (0x40, 0x2000, 0x1000 - 6)


def test_a_step_over_a_fault_ends_at_the_handler() -> None:
    with Processor.real() as cpu:
        cpu.memory[CODE] = bytes.fromhex("40 f7f3")  # inc ax; div bx, which is 0
        cpu.physical.write_int(0, 0x0040_2000, 4)
        cpu.memory[0x2400] = b"\x40\x40"
        cpu.regs.update({"ax": 0, "bx": 0})
        assert cpu.step(2).reason == "steps"
        assert cpu.regs.read("cs", "ip", "ax", "sp") == (0x40, 0x2000, 1, 0x1000 - 6)
        assert cpu.memory.read_int(0x1000 - 6, 2) == CODE + 1
        assert cpu.step().reason == "steps"
        assert cpu.regs.read("ip", "ax") == (0x2001, 2)


def test_a_step_with_a_trap_ends_behind_its_instruction() -> None:
    with Processor.real() as cpu:
        cpu.memory[CODE] = b"\x40"
        cpu.physical.write_int(4, 0x0040_2000, 4)
        cpu.regs.update({"ax": 0, "flags": 0x102})
        assert cpu.step().reason == "steps"
        assert cpu.regs.read("cs", "ip", "ax") == (0x40, 0x2000, 1)


def test_a_single_step_trap_is_told_behind_its_instruction() -> None:
    with Processor.real(exceptions="report") as cpu:
        cpu.memory[CODE] = b"\x40"  # inc ax
        cpu.regs.flags = 0x102
        stop = cpu.step(2)
        assert (stop.reason, stop.vector, cpu.regs.ax, cpu.regs.ip) == ("exception", 1, 1, CODE + 1)
        assert cpu.regs.dr6 & 0x4000


def test_kvm_delivers_exceptions_itself(needs_engine: Callable[[str], None]) -> None:
    needs_engine(engine.KVM)
    with pytest.raises(EngineError, match="delivers exceptions itself"):
        Processor.real(engine=engine.KVM, exceptions="report")
    with pytest.raises(EngineError, match="deliver or to report"):
        Processor.real(exceptions="ignore")


@pytest.mark.parametrize("accel", [engine.INTERP, engine.JIT])
def test_one_processor_for_many_cases(accel: str) -> None:
    """A halt, a triple fault, a shadow: none of them is the next case's."""
    with Processor.real(engine=accel) as cpu:
        for turn in range(3):
            cpu.memory[CODE] = bytes.fromhex("40 f4")  # inc ax; hlt
            cpu.regs.update({"eip": CODE, "eax": turn, "eflags": 2})
            assert cpu.run().reason == "halt"
            assert cpu.regs.read("eip", "eax") == (CODE + 2, turn + 1)
            cpu.memory[CODE] = bytes.fromhex("0f0b")
            cpu.regs.update({"idtr_limit": 0, "ip": CODE})
            assert cpu.run().reason == "shutdown"
            cpu.memory[CODE] = bytes.fromhex("8ed0 40")  # mov ss, ax; inc ax
            cpu.regs.update({"idtr_limit": 0x3FF, "rip": CODE, "eax": 0, "esp": 0x1000})
            assert cpu.step().reason == "steps"
            cpu.physical.write_int(4, 0x0040_2000, 4)  # a single step's handler
            cpu.memory[0x2400] = b"\xf4"
            cpu.regs.update({"eip": CODE + 2, "eflags": 0x102})
            assert cpu.run(timeout=5).reason == "halt"
            assert cpu.regs.read("cs", "eip", "eax") == (0x40, 0x2001, 1)
            cpu.regs.cs = 0


@pytest.mark.parametrize("enabled", [True, False])
def test_a20(enabled: bool) -> None:
    with Processor.real() as cpu:
        cpu.set_a20(enabled)
        cpu.physical.poke([(0, 0x11), (0x100000, 0x22), (0x1000, 0x40), (0x101000, 0x48)])
        cpu.memory[0x2000] = bytes.fromhex("8a1e1000 c606 1100 77")  # mov bl, [0x10]; mov byte [0x11], 0x77
        cpu.regs.update({"ds": 0xFFFF, "ip": 0x2000})
        assert cpu.step(2).reason == "steps"
        assert cpu.regs.bl == (0x22 if enabled else 0x11)
        assert cpu.physical.peek([1, 0x100001]) == (b"\0\x77" if enabled else b"\x77\0")
        cpu.regs.update({"cs": 0xFFFF, "ip": 0x1010, "ax": 5})  # code too: inc ax here, dec ax there
        assert cpu.step().reason == "steps"
        assert cpu.regs.ax == (4 if enabled else 6)


def test_16_bit_protected_mode() -> None:
    with Processor.protected(bits=16, exceptions="report") as cpu:
        cpu.memory[CODE] = bytes.fromhex("01d8 a1ffff")  # add ax, bx; mov ax, [0xffff]
        cpu.regs.update({"eax": 0xFFFF_0001, "ebx": 2})
        assert cpu.bits == 16
        assert cpu.step().reason == "steps"
        assert cpu.regs.eax == 0xFFFF_0003
        assert cpu.step() == Stop("exception", vector=13, error_code=0)


@pytest.mark.parametrize(("vendor", "name"), [("intel", b"GenuineIntel"), ("amd", b"AuthenticAMD")])
def test_vendor(vendor: str, name: bytes) -> None:
    with Processor.long(vendor=vendor, exceptions="report") as cpu:
        cpu.memory[CODE] = bytes.fromhex("0fa2 0f34")  # cpuid; sysenter
        cpu.regs.update({"rax": 0, "sysenter_cs": 8, "sysenter_eip": 0x2000})
        cpu.step()
        assert b"".join(n.to_bytes(4, "little") for n in cpu.regs.read("ebx", "edx", "ecx")) == name
        stop = cpu.step()
        assert (stop.reason, stop.vector) == (("steps", None) if vendor == "intel" else ("exception", 6))


def test_features_that_are_not_there() -> None:
    with Processor.long(model="portable", features=["-sse4_2"], exceptions="report") as cpu:
        cpu.memory[CODE] = bytes.fromhex("f20f38f0c0")  # crc32 eax, al
        assert cpu.step().vector == 6
    with pytest.raises(EngineError, match="no processor model pentium"):
        Processor.long(model="pentium")
    with pytest.raises(EngineError, match="no processor vendor cyrix"):
        Processor.long(vendor="cyrix")


def test_an_endless_repetition_ends_in_time() -> None:
    """Also after many runs that were over long before their time."""
    with Processor.protected() as cpu:
        cpu.memory[CODE] = b"\x90"
        for _ in range(500):
            cpu.regs.eip = CODE
            assert cpu.step().reason == "steps"
        cpu.memory[CODE] = b"\xf3\xac"  # rep lodsb
        cpu.regs.update({"eip": CODE, "ecx": 0xFFFFFFFF, "esi": 0})
        begin = time.monotonic()
        assert cpu.step(timeout=0.3).reason == "timeout"
        assert 0.2 < time.monotonic() - begin < 20
        cpu.regs.update({"eip": CODE, "ecx": 1})
        assert cpu.step().reason == "steps"


def test_the_example_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```python\n(.*?)```", (DOCS / "vectors.md").read_text(), re.S)
    assert block
    exec(compile(block[1], "docs/vectors.md", "exec"), {})
    assert capsys.readouterr().out == "2 vectors, 0 failed\n"
