# SPDX-License-Identifier: MIT
"""A processor in the hand: what is set is what runs, and what stops it is told, on both engines."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from imgvm.errors import EngineError
from imgvm.vmm import engine
from imgvm.vmm.processor import Access, Processor, disassemble

CODE = 0x1000
HLT = b"\xf4"


@pytest.fixture(params=[engine.INTERP, engine.JIT, engine.KVM])
def make(request: pytest.FixtureRequest, needs_engine: Callable[[str], None]) -> Iterator[Callable[..., Processor]]:
    needs_engine(request.param)
    made: list[Processor] = []

    def one(mode: str = "long", code: bytes = b"") -> Processor:
        cpu: Processor = getattr(Processor, mode)(engine=request.param)
        cpu.memory[CODE] = code + HLT
        made.append(cpu)
        return cpu

    yield one
    for cpu in made:
        cpu.close()


@pytest.fixture
def interp() -> Callable[..., Processor]:
    def one(mode: str = "long", code: bytes = b"") -> Processor:
        cpu: Processor = getattr(Processor, mode)()
        cpu.memory[CODE] = code + HLT
        return cpu

    return one


@pytest.mark.parametrize(
    ("mode", "bits", "code", "text"),
    [
        ("real", 16, "01d8", "add ax, bx"),
        ("protected", 32, "01d8", "add eax, ebx"),
        ("long", 64, "4801d8", "add rax, rbx"),
    ],
)
def test_modes(make: Callable[..., Processor], mode: str, bits: int, code: str, text: str) -> None:
    cpu = make(mode, bytes.fromhex(code))
    cpu.regs.rax, cpu.regs.rbx = 40, 2
    assert (cpu.bits, cpu.pc, cpu.disassemble()[0].text) == (bits, CODE, text)
    assert cpu.run().reason == "halt"
    assert cpu.regs.rax == 42
    assert cpu.regs.rip == CODE + len(code) // 2 + 1


def test_every_register_keeps_what_it_is_given(make: Callable[..., Processor]) -> None:
    cpu = make()
    settable = [f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")]
    settable += [f"r{n}" for n in range(8, 16)] + [f"xmm{n}" for n in range(16)] + [f"ymm{n}h" for n in range(16)]
    settable += ["fs_base", "gs_base", "k_gs_base", "lstar", "cr2", "dr0", "dr3", "gdtr_base", "idtr_base"]
    values = {name: 0x1234_5678_0000 + 16 * number for number, name in enumerate(settable)}
    for name, value in values.items():
        cpu.regs[name] = value
    cpu.regs.st0, cpu.regs.st7 = 0x4000_C000_0000_0000_0000, 0x3FFF_8000_0000_0000_0000
    cpu.memory[CODE] = b"\x90"
    assert cpu.step().reason == "steps"  # to the engine and back
    assert {name: cpu.regs[name] for name in settable} == values
    assert cpu.regs.st0 == 0x4000_C000_0000_0000_0000
    assert cpu.regs.ymm3 == values["ymm3h"] << 128 | values["xmm3"]
    assert {"rax", "cs_base", "efer", "st5", "ymm15h", "mxcsr"} < set(cpu.regs)


def test_parts_of_registers(interp: Callable[..., Processor]) -> None:
    cpu = interp()
    cpu.regs.rax = 0x1122_3344_5566_7788
    assert (cpu.regs.eax, cpu.regs.ax, cpu.regs.al, cpu.regs.ah) == (0x5566_7788, 0x7788, 0x88, 0x77)
    cpu.regs.ah = 1
    assert cpu.regs.rax == 0x1122_3344_5566_0188
    cpu.regs.eax = 5
    assert cpu.regs.rax == 5
    cpu.regs.r9b = 0xFF
    assert (cpu.regs.r9, cpu.regs.sil) == (0xFF, 0)
    with pytest.raises(EngineError, match="8 bits"):
        cpu.regs.al = 256
    with pytest.raises(EngineError, match="no register foo"):
        _ = cpu.regs.foo
    with pytest.raises(EngineError, match="16 bits"):
        cpu.regs.cs = 0x10000
    with pytest.raises(EngineError, match="unsigned"):
        cpu.regs.rax = -1


def test_a_selector_moves_the_base_in_real_mode_only(interp: Callable[..., Processor]) -> None:
    cpu = interp("real")
    cpu.regs.ds = 0x1234
    assert cpu.regs.ds_base == 0x12340
    cpu.regs.cs, cpu.regs.rip = 0x100, 0
    assert cpu.pc == CODE
    flat = interp("protected")
    flat.regs.ds = 0x1234
    assert flat.regs.ds_base == 0


def test_steps(make: Callable[..., Processor]) -> None:
    cpu = make(code=bytes.fromhex("48ffc0") * 10)
    cpu.regs.rax = 0
    assert cpu.step().reason == "steps"
    assert (cpu.regs.rax, cpu.regs.rip) == (1, CODE + 3)
    stop = cpu.step(5)
    assert (stop.reason, stop.instructions, cpu.regs.rax) == ("steps", 5, 6)
    assert cpu.run().reason == "halt"
    assert cpu.regs.rax == 10
    with pytest.raises(EngineError, match="at least one"):
        cpu.step(0)


def test_breakpoints(make: Callable[..., Processor]) -> None:
    # inc rax; dec rcx; jnz back
    cpu = make(code=bytes.fromhex("48ffc0 48ffc9 75f8"))
    cpu.regs.rax, cpu.regs.rcx = 0, 3
    cpu.breakpoints.add(CODE + 3)
    for turn in (1, 2, 3):
        stop = cpu.run()
        assert (stop.reason, stop.address) == ("breakpoint", CODE + 3)
        assert (cpu.regs.rax, cpu.regs.rip) == (turn, CODE + 3)
    assert list(cpu.breakpoints) == [CODE + 3] and CODE + 3 in cpu.breakpoints
    cpu.breakpoints.remove(CODE + 3)
    assert cpu.run().reason == "halt"
    with pytest.raises(EngineError, match="no such point"):
        cpu.breakpoints.remove(CODE + 3)


def test_a_halt_ends_steps(make: Callable[..., Processor]) -> None:
    cpu = make(code=b"\x90")
    cpu.memory[CODE + 2] = b"\x90\x90"
    assert cpu.step(4).reason == "halt"
    assert cpu.regs.rip == CODE + 2
    assert cpu.step(timeout=0.1).reason == "halt"  # it has not woken up
    assert cpu.regs.rip == CODE + 2


def test_many_breakpoints(make: Callable[..., Processor]) -> None:
    cpu = make(code=b"\x90" * 20)
    for offset in range(0, 20, 2):
        cpu.breakpoints.add(CODE + offset)
    met = []
    while (stop := cpu.run()).reason == "breakpoint":
        met.append(stop.address - CODE)
    assert met == list(range(0, 20, 2))
    cpu.breakpoints.clear()
    assert len(cpu.breakpoints) == 0


def test_watchpoints(make: Callable[..., Processor]) -> None:
    # mov [0x3000], eax; mov ebx, [0x3004]; mov [0x3008], eax
    cpu = make(code=bytes.fromhex("89042500300000 8b1c2504300000 89042508300000"))
    cpu.regs.rax = 7
    cpu.watchpoints.add(0x3000, 4)
    cpu.watchpoints.add(0x3004, 4, "rw")
    stop = cpu.run()
    if cpu.engine == engine.KVM and stop.reason == "halt":
        pytest.skip("this host's KVM does not stop at data breakpoints")
    assert (stop.reason, stop.address, stop.access) == ("watchpoint", 0x3000, "w")
    assert cpu.regs.rip == CODE + 7 and cpu.memory.read_int(0x3000, 4) == 7  # it has happened
    stop = cpu.run()
    assert (stop.reason, stop.address) == ("watchpoint", 0x3004)
    assert cpu.regs.rip == CODE + 14
    assert cpu.run().reason == "halt"
    cpu.watchpoints.clear()
    assert len(cpu.watchpoints) == 0
    with pytest.raises(EngineError, match="r, w or rw"):
        cpu.watchpoints.add(1, 1, "x")


def test_software_watches_as_much_as_it_is_asked_to(interp: Callable[..., Processor]) -> None:
    # rep movsb of 0x3000 bytes to 0x10000
    cpu = interp(code=bytes.fromhex("f3a4"))
    cpu.regs.rcx, cpu.regs.rsi, cpu.regs.rdi = 0x3000, 0x20000, 0x10000
    cpu.memory[0x20000] = bytes(range(256)) * 0x30
    cpu.watchpoints.add(0x11000, 0x1801)
    stop = cpu.run()
    assert (stop.reason, stop.address, stop.access) == ("watchpoint", 0x11000, "w")
    assert cpu.regs.rdi == 0x11001  # the first such byte
    assert cpu.run().address == 0x11001
    cpu.watchpoints.clear()
    assert cpu.run().reason == "halt"
    assert cpu.memory[0x10000:0x13000] == cpu.memory[0x20000:0x23000]


def test_kvm_says_what_it_cannot_watch(make: Callable[..., Processor]) -> None:
    cpu = make()
    if cpu.engine != engine.KVM:
        cpu.watchpoints.add(0x3001, 64)
        return
    with pytest.raises(EngineError, match="4 times 1, 2, 4 or 8"):
        cpu.watchpoints.add(0x3001, 64)
    cpu.watchpoints.add(0x3000, 32)
    assert len(cpu.watchpoints) == 1


def test_points_in_code_that_has_long_been_running(make: Callable[..., Processor]) -> None:
    # 1: inc rax; 2: mov [0x3000], rax; jmp 3f; 3: inc rbx; jmp 1b
    cpu = make(code=bytes.fromhex("48ffc0 4889042500300000 eb00 48ffc3 ebee"))
    cpu.regs.rax = cpu.regs.rbx = 0
    assert cpu.run(timeout=0.1).reason == "timeout"
    assert cpu.regs.rax > 1000
    for address in (CODE + 13, CODE + 3):
        cpu.breakpoints.add(address)
        for turn in range(3):
            before = cpu.regs.rax
            stop = cpu.run(timeout=5)
            assert (stop.reason, stop.address, cpu.regs.rip) == ("breakpoint", address, address)
            assert before <= cpu.regs.rax <= before + 1 or turn == 0
        cpu.breakpoints.clear()
        assert cpu.run(timeout=0.05).reason == "timeout"
    if cpu.engine == engine.KVM:
        return
    cpu.watchpoints.add(0x3004)
    for turn in range(3):
        before = cpu.regs.rax
        stop = cpu.run(timeout=5)
        assert (stop.reason, stop.address, cpu.regs.rip) == ("watchpoint", 0x3004, CODE + 11)
        assert cpu.memory.read_int(0x3000) == cpu.regs.rax
        assert cpu.regs.rax == before + 1 or turn == 0
    cpu.watchpoints.clear()
    before, at = cpu.regs.rax, cpu.regs.rip
    assert cpu.step(5 * 1000).reason == "steps"
    assert (cpu.regs.rax, cpu.regs.rip) == (before + 1000, at)


def test_memory(make: Callable[..., Processor]) -> None:
    cpu = make()
    cpu.memory.write_int(0x3FFC, 0x1122334455667788)
    assert cpu.memory.read_int(0x3FFC) == 0x1122334455667788
    assert cpu.memory[0x3FFC] == 0x88 and cpu.memory[0x3FFC:0x3FFE] == b"\x88\x77"
    cpu.memory[0x4000] = 0xAB
    assert cpu.physical.read(0x4000, 1) == b"\xab"
    with pytest.raises(EngineError, match="linear address 0x200000"):
        cpu.memory.read(0x1FFFFF, 2)
    with pytest.raises(EngineError, match="physical address 0x200000"):
        cpu.physical.read(0x200000, 1)
    with pytest.raises(EngineError, match="first:end"):
        cpu.memory[0:10:2]


def test_linear_is_not_physical(make: Callable[..., Processor]) -> None:
    cpu = make()
    table = cpu.regs.cr3 + 3 * 4096
    cpu.physical.write_int(table + 8 * 5, 0x7000 | 7)
    cpu.physical.write_int(table + 8 * 6, 0)
    cpu.physical[0x7010] = b"there"
    assert cpu.memory.read(0x5010, 5) == b"there"
    with pytest.raises(EngineError, match="linear address 0x6000"):
        cpu.memory.read(0x5FFF, 2)


def test_ports_and_nothing_are_written_down(make: Callable[..., Processor]) -> None:
    # in al, 0x99; out 0x98, eax; in eax, 0x99
    cpu = make(code=bytes.fromhex("e499 e798 e599"))
    cpu.regs.rax = 0x11223344
    cpu.set_port(0x99, 0xAABBCCDD)
    assert cpu.run().reason == "halt"
    assert cpu.accesses() == [
        Access("port", "r", 0x99, 1, 0xDD),
        Access("port", "w", 0x98, 4, 0x112233DD),
        Access("port", "r", 0x99, 4, 0xAABBCCDD),
    ]
    assert cpu.accesses() == []
    assert cpu.regs.rax == 0xAABBCCDD


def test_memory_that_is_not_there(interp: Callable[..., Processor]) -> None:
    cpu = interp("protected", bytes.fromhex("a100000080 a304000080"))  # mov eax, [0x80000000]; mov [..4], eax
    assert cpu.run().reason == "halt"
    assert cpu.accesses() == [
        Access("memory", "r", 0x80000000, 4, 0xFFFFFFFF), Access("memory", "w", 0x80000004, 4, 0xFFFFFFFF),
    ]  # fmt: skip


def test_a_triple_fault_is_told(make: Callable[..., Processor]) -> None:
    cpu = make(code=b"\x0f\x0b")
    cpu.regs.idtr_limit = 0
    assert cpu.run().reason == "shutdown"
    cpu.reset()
    assert (cpu.regs.rip, cpu.regs.cs_base) == (0xFFF0, 0xFFFF0000)


def test_an_endless_loop_ends_in_time(make: Callable[..., Processor]) -> None:
    cpu = make(code=b"\xeb\xfe")
    assert cpu.run(timeout=0.15).reason == "timeout"
    assert cpu.regs.rip == CODE
    threading.Timer(0.05, cpu.stop).start()
    assert cpu.run(timeout=30).reason == "asked"
    assert cpu.step(3).reason == "steps"  # nothing is left of it


def test_vector_code_computes(make: Callable[..., Processor]) -> None:
    cpu = make(code=bytes.fromhex("0f58c1"))  # addps xmm0, xmm1
    cpu.regs.xmm0 = int.from_bytes(struct.pack("<4f", 1, 2, 3, 4), "little")
    cpu.regs.xmm1 = int.from_bytes(struct.pack("<4f", 10, 20, 30, 40), "little")
    assert cpu.run().reason == "halt"
    assert struct.unpack("<4f", cpu.regs.xmm0.to_bytes(16, "little")) == (11, 22, 33, 44)


def test_disassembly() -> None:
    assert disassemble(b"\x0f\x05").text == "syscall"
    assert str(disassemble(b"\xeb\xfe", 0x7C00, 16)).startswith("0x7c00: jmp ")
    assert disassemble(b"\x48").text == "(cut off)" and disassemble(b"\x06").text == "(bad)"
    assert disassemble(b"").code == b""


def test_a_closed_processor_says_so() -> None:
    with Processor() as cpu:
        assert cpu.regs.rip == 0xFFF0
    with pytest.raises(EngineError, match="closed"):
        cpu.step()


def test_impossible_sizes() -> None:
    with pytest.raises(EngineError, match="multiple of 4096"):
        Processor(1000)
    with pytest.raises(EngineError, match="too few"):
        Processor.long(0x4000)
