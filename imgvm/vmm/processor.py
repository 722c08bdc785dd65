# SPDX-License-Identifier: MIT
"""One processor with some memory, to be held in the hand: registers, steps, break- and watchpoints.

    cpu = Processor.long()                       # 64-bit mode, memory mapped one to one
    cpu.memory[0x1000] = bytes.fromhex("48ffc0 f4")
    cpu.regs.rip, cpu.regs.rax = 0x1000, 41
    stop = cpu.run()                             # stop.reason == "halt"
    assert cpu.regs.rax == 42

Addresses are linear unless they are called physical. There are no devices: what the processor does to ports
and beyond its memory is written down (`accesses`), a port reads as what it was told to (`set_port`), else all
ones.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple

from imgvm import binding
from imgvm.errors import EngineError
from imgvm.vmm import engine as _engine
from imgvm.vmm.points import Breakpoints, Watchpoints
from imgvm.vmm.registers import Registers

PAGE = 4096
CR0_PE, CR0_MP, CR0_ET, CR0_NE, CR0_WP, CR0_PG = 1, 2, 0x10, 0x20, 1 << 16, 1 << 31
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE = 0x20, 0x200, 0x400, 0x40000
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 0x100, 0x400, 0x800
# Segment attributes as VMX has them: type 3:0, S 4, DPL 6:5, P 7, L 13, D/B 14, G 15 (SDM vol. 3, 25.4.1).
CODE16, DATA16, CODE32, DATA32, CODE64 = 0x9B, 0x93, 0xC09B, 0xC093, 0xA09B
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
SLICE_MS = 100  # between looks at Python's signals
TIMEOUT = 6  # IMGVM_STOP_TIMEOUT
# By IMGVM_STOP_*.
_REASONS = (
    "", "steps", "breakpoint", "watchpoint", "halt", "shutdown", "timeout", "asked", "internal", "exception",
)  # fmt: skip


class Stop(NamedTuple):
    """Why a run ended."""

    reason: str  # steps breakpoint watchpoint halt shutdown timeout asked exception internal
    address: int = 0  # linear: of the breakpoint, or the watched byte that was touched
    access: str = ""  # at a watchpoint: r, w or rw
    instructions: int = 0
    message: str = ""
    vector: int | None = None  # of the exception
    error_code: int | None = None


@dataclass(frozen=True)
class Access:
    """What the processor did to a port, or where it has no memory."""

    space: str  # port | memory
    kind: str  # r | w
    address: int
    size: int
    value: int


@dataclass(frozen=True)
class Instruction:
    address: int
    code: bytes
    text: str

    def __str__(self) -> str:
        return f"{self.address:#x}: {self.text}"


def _columns(cells: Iterable[tuple[int, int] | Sequence[int]]) -> tuple[array[int], tuple[int, ...]]:
    columns = tuple(zip(*cells, strict=True))
    if not columns:
        return array("Q"), ()
    return array("Q", columns[0]), columns[1]


class Memory:
    """Bytes by address: `memory[0x1000:0x1010]`, `memory[0x1000] = b"..."`, read, write."""

    def __init__(self, processor: Processor, physical: bool) -> None:
        self._processor = processor
        self._physical = physical

    def read(self, address: int, size: int) -> bytes:
        data = binding.ffi().new("uint8_t[]", size)
        self._processor._call("read", address, data, size, self._physical)
        return bytes(binding.ffi().buffer(data))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        raw = bytes(data)
        self._processor._call("write", address, binding.ffi().from_buffer(raw), len(raw), self._physical)

    def read_int(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.read(address, size), "little")

    def write_int(self, address: int, value: int, size: int = 8) -> None:
        self.write(address, value.to_bytes(size, "little"))

    def poke(self, cells: Iterable[tuple[int, int] | Sequence[int]]) -> None:
        """Writes single bytes: pairs of an address and a value."""
        addresses, values = _columns(cells)
        self._cells("poke", addresses, bytes(values))

    def peek(self, addresses: Iterable[int]) -> bytes:
        """Reads single bytes, each at an address of its own."""
        wanted = array("Q", addresses)
        values = bytearray(len(wanted))
        self._cells("peek", wanted, values)
        return bytes(values)

    def _cells(self, name: str, addresses: array[int], values: bytes | bytearray) -> None:
        ffi = binding.ffi()
        at = ffi.from_buffer("uint64_t[]", addresses)
        self._processor._call(name, at, ffi.from_buffer(values), len(addresses), self._physical)

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            if key.step is not None or key.start is None or key.stop is None:
                raise EngineError("memory is read as memory[first:end]")
            return self.read(key.start, max(0, key.stop - key.start))
        return self.read(key, 1)[0]

    def __setitem__(self, key: int, value: int | bytes | bytearray) -> None:
        self.write(key, bytes([value]) if isinstance(value, int) else value)


@cache
def _native(name: str) -> Any:
    return getattr(binding.lib(), f"imgvm_processor_{name}")


class Processor:
    """A processor at its power-on state; `real`, `protected` and `long` make one that is ready for code.

    `model`, `features` and `vendor` are those of machine.cpu. With `exceptions="report"` an exception ends
    the run instead of being delivered, and the Stop says which.
    """

    def __init__(
        self,
        memory_bytes: int = 2 << 20,
        engine: str = _engine.INTERP,
        *,
        model: str = "host",
        features: Iterable[str] = (),
        vendor: str = "auto",
        exceptions: str = "deliver",
    ) -> None:
        self.engine = engine
        self.memory_bytes = memory_bytes
        self._handle: Any = None
        ffi = binding.ffi()
        texts = [ffi.new("char[]", text.encode()) for text in (model, " ".join(features), vendor)]
        config = ffi.new("imgvm_processor_config *")
        config.abi, config.engine = binding.lib().IMGVM_ABI, _engine.native_id(engine)
        config.memory_bytes = memory_bytes
        config.cpu_model, config.cpu_features, config.cpu_vendor = texts
        self._handle = binding.open_handle(EngineError, "imgvm_processor_create", config)
        self._error, self._out = ffi.new("imgvm_error *"), ffi.new("imgvm_stop *")
        if exceptions not in ("deliver", "report"):
            raise EngineError(f"exceptions are to deliver or to report, not to {exceptions}")
        if exceptions == "report":
            self._call("report_exceptions", True)
        self.regs = Registers(self)
        self.memory = Memory(self, physical=False)
        self.physical = Memory(self, physical=True)
        self.breakpoints = Breakpoints(self)
        self.watchpoints = Watchpoints(self)

    # ---- modes ----

    @classmethod
    def real(cls, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP, **options: Any) -> Processor:
        """16-bit real mode, all segments at 0, stack below 0x1000, interrupts off."""
        cpu = cls(memory_bytes, engine, **options)
        for name in SEGMENTS:
            cpu.regs[name] = 0
        cpu.regs.rip, cpu.regs.rsp = 0x1000, 0x1000
        cpu.regs.cr0 = CR0_ET
        return cpu

    @classmethod
    def protected(
        cls, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP, *, bits: int = 32, **options: Any
    ) -> Processor:
        """Ring 0, flat segments, no paging, stack below 0x1000. A GDT lies in the last page.

        `bits` 16: segments of 64 KiB, 16-bit code and stack.
        """
        if bits not in (16, 32):
            raise EngineError(f"protected mode has code of 16 or 32 bits, not {bits}")
        cpu = cls(memory_bytes, engine, **options)
        cpu._load_flat(CODE32 if bits == 32 else CODE16, DATA32 if bits == 32 else DATA16)
        cpu.regs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE
        cpu.regs.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT
        return cpu

    @classmethod
    def long(cls, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP, **options: Any) -> Processor:
        """64-bit ring 0, memory mapped one to one, SSE and AVX on. GDT and page tables lie at its end."""
        cpu = cls(memory_bytes, engine, **options)
        cpu._load_flat(CODE64)
        cpu.regs.cr3 = cpu._map_all()
        cpu.regs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        cpu.regs.xcr0 = 7
        cpu.regs.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
        cpu.regs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
        return cpu

    def _load_flat(self, code: int, data: int = DATA32) -> None:
        gdt = self.memory_bytes - PAGE
        limit = 0xFFFF if data == DATA16 else 0xFFFFFFFF
        for number, attributes in ((1, code), (2, data)):
            # limit FFFFF in units of a page, or FFFF bytes; attributes are bits 55:40
            high = 0 if data == DATA16 else 0xF << 48
            self.physical.write_int(gdt + 8 * number, 0xFFFF | high | attributes << 40)
        self.regs.gdtr_base, self.regs.gdtr_limit = gdt, 0x17
        self.regs.cr0 = self.regs.cr0 | CR0_PE  # from here on a selector is only that
        for name in SEGMENTS:
            self.regs[name] = CODE_SELECTOR if name == "cs" else DATA_SELECTOR
            self.regs[f"{name}_base"], self.regs[f"{name}_limit"] = 0, limit
            self.regs[f"{name}_attributes"] = code if name == "cs" else data
        self.regs.rip, self.regs.rsp = 0x1000, 0x1000

    def _map_all(self) -> int:
        """Page tables, from the end of memory downwards; the address of the first."""
        pages = self.memory_bytes // PAGE
        tables = -(-pages // 512)
        directories = -(-tables // 512)
        top = self.memory_bytes - PAGE * (3 + directories + tables)
        if top < 0x4000 or directories > 512:
            raise EngineError(f"{self.memory_bytes} bytes of memory are too few or too many to be mapped")
        pdpt, directory, table = top + PAGE, top + 2 * PAGE, top + PAGE * (2 + directories)
        present_writable_user = 7
        for base, targets, count in (
            (top, pdpt, 1), (pdpt, directory, directories), (directory, table, tables), (table, 0, pages),
        ):  # fmt: skip
            entries = [targets + PAGE * i | present_writable_user for i in range(count)]
            self.physical.write(base, b"".join(entry.to_bytes(8, "little") for entry in entries))
        return top

    # ---- the native side ----

    def _call(self, name: str, *args: Any) -> int:
        if self._handle is None:
            raise EngineError("the processor is closed")
        result: int = _native(name)(self._handle, *args, self._error)
        if result < 0:
            raise binding.failure(EngineError, result, self._error)
        return result

    def _get(self, name: str) -> int:
        value = binding.ffi().new("uint8_t[16]")
        size = self._call("get", name.encode(), value)
        return int.from_bytes(bytes(binding.ffi().buffer(value))[:size], "little")

    def _set(self, name: str, value: int) -> None:
        if not 0 <= value < 1 << 128:
            raise EngineError(f"registers hold unsigned numbers: {name} cannot become {value}")
        self._call("set", name.encode(), binding.ffi().from_buffer(value.to_bytes(16, "little")))

    # ---- running ----

    def step(self, count: int = 1, timeout: float | None = None) -> Stop:
        """Runs `count` instructions, or fewer when something comes between."""
        if count < 1:
            raise EngineError("at least one instruction is to be run")
        return self._run(count, timeout)

    def run(self, timeout: float | None = None) -> Stop:
        """Runs until a breakpoint, a watchpoint, HLT, a triple fault, or for `timeout` seconds."""
        return self._run(0, timeout)

    def _run(self, count: int, timeout: float | None) -> Stop:
        out = self._out
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        while True:
            # Slices, because Python handles signals only between native calls.
            left = SLICE_MS if deadline is None else int(max(0.0, deadline - time.monotonic()) * 1000)
            self._call("run", count - done if count else 0, min(left, SLICE_MS), out)
            done += out.instructions
            over = deadline is not None and time.monotonic() >= deadline
            if out.reason != TIMEOUT or over:
                return self._translate(out, done)

    def _translate(self, out: Any, instructions: int) -> Stop:
        reason = _REASONS[out.reason]
        if reason == "steps":
            return Stop(reason, 0, "", instructions)
        if reason == "exception":
            error_code = out.error_code if out.has_error_code else None
            return Stop(reason, 0, "", instructions, "", out.vector, error_code)
        lib = binding.lib()
        letters = (("r", lib.IMGVM_POINT_READ), ("w", lib.IMGVM_POINT_WRITE))
        access = "".join(letter for letter, kind in letters if out.kinds & kind)
        return Stop(reason, out.address, access, instructions, binding.text(out.message))

    def stop(self) -> None:
        """Ends a run that another thread is in."""
        if self._handle is not None:
            binding.lib().imgvm_processor_stop(self._handle)

    def reset(self) -> None:
        """To the power-on state; memory and points stay."""
        self._call("reset")

    # ---- looking ----

    @property
    def bits(self) -> int:
        """16, 32 or 64: how the code at rip is decoded."""
        return self._call("code_bits", binding.ffi().new("uint64_t *"))

    @property
    def pc(self) -> int:
        """Linear address of the next instruction."""
        out = binding.ffi().new("uint64_t *")
        self._call("code_bits", out)
        return int(out[0])

    def disassemble(self, address: int | None = None, count: int = 1) -> list[Instruction]:
        """Instructions as the processor would decode them now; by default from the next one on."""
        at, bits, found = self.pc if address is None else address, self.bits, []
        for _ in range(count):
            instruction = disassemble(self._fetch(at), at, bits)
            found.append(instruction)
            at += max(1, len(instruction.code))
        return found

    def _fetch(self, address: int) -> bytes:
        for size in range(15, 0, -1):
            try:
                return self.memory.read(address, size)
            except EngineError:
                continue
        raise EngineError(f"there is no code at {address:#x}")

    def set_port(self, port: int, value: int) -> None:
        """What the port reads as from now on."""
        self._call("set_port", port, value)

    def set_a20(self, enabled: bool) -> None:
        """The A20 gate: shut, FFFF:0010 is address 0, as on an 8086. (KVM has none.)"""
        if self._handle is None:
            raise EngineError("the processor is closed")
        binding.lib().imgvm_processor_set_a20(self._handle, enabled)

    def accesses(self) -> list[Access]:
        """What was done to ports and outside memory since the last call, oldest first; some 1000 are kept."""
        out = binding.ffi().new("imgvm_access[]", 1024)
        count = binding.lib().imgvm_processor_accesses(self._handle, out, 1024)
        return [
            Access("port" if a.is_port else "memory", "w" if a.is_write else "r", a.address, a.size, a.value)
            for a in (out[i] for i in range(count))
        ]

    # ---- life ----

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            binding.lib().imgvm_processor_destroy(handle)

    def __enter__(self) -> Processor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def disassemble(code: bytes, address: int = 0, bits: int = 64) -> Instruction:
    """The first instruction of `code`. One that is none has no code and the text (bad) or (cut off)."""
    text = binding.ffi().new("char[128]")
    length = binding.lib().imgvm_disassemble(code, len(code), bits, address, text, 128)
    return Instruction(address, code[:length], binding.text(text))
