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
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from imgvm import binding
from imgvm.errors import EngineError
from imgvm.vmm import engine as _engine

PAGE = 4096
CR0_PE, CR0_MP, CR0_ET, CR0_NE, CR0_WP, CR0_PG = 1, 2, 0x10, 0x20, 1 << 16, 1 << 31
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE = 0x20, 0x200, 0x400, 0x40000
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 0x100, 0x400, 0x800
# Segment attributes as VMX has them: type 3:0, S 4, DPL 6:5, P 7, L 13, D/B 14, G 15 (SDM vol. 3, 25.4.1).
CODE16, DATA16, CODE32, DATA32, CODE64 = 0x9B, 0x93, 0xC09B, 0xC093, 0xA09B
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
SLICE_MS = 100  # between looks at Python's signals

_GPRS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")


def _aliases() -> dict[str, tuple[str, int, int]]:
    """Name -> register, first bit, bits."""
    names = {"eip": ("rip", 0, 32), "ip": ("rip", 0, 16)}
    names |= {"eflags": ("rflags", 0, 32), "flags": ("rflags", 0, 16)}
    for name in _GPRS:
        names[f"e{name}"] = (f"r{name}", 0, 32)
        names[name] = (f"r{name}", 0, 16)
        names[f"{name[0]}l" if name.endswith("x") else f"{name}l"] = (f"r{name}", 0, 8)
        if name.endswith("x"):
            names[f"{name[0]}h"] = (f"r{name}", 8, 8)
    for number in range(8, 16):
        for suffix, bits in (("d", 32), ("w", 16), ("b", 8)):
            names[f"r{number}{suffix}"] = (f"r{number}", 0, bits)
    return names


_ALIASES = _aliases()


@dataclass(frozen=True)
class Stop:
    """Why a run ended."""

    reason: str  # steps breakpoint watchpoint halt shutdown timeout asked internal
    address: int = 0  # linear: of the breakpoint, or the watched byte that was touched
    access: str = ""  # at a watchpoint: r, w or rw
    instructions: int = 0
    message: str = ""


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


class Registers:
    """Every register as an attribute or item, as an unsigned number: rax eax ax al, rip, rflags, cs, cs_base,
    cs_limit, cs_attributes, gdtr_base, cr3, dr7, efer, st0 (80 bits), xmm1 (128), ymm2 (256), mxcsr, ..."""

    def __init__(self, processor: Processor) -> None:
        object.__setattr__(self, "_processor", processor)

    def __getitem__(self, name: str) -> int:
        processor: Processor = self.__dict__["_processor"]
        if name in _ALIASES:
            whole, first, bits = _ALIASES[name]
            return processor._get(whole) >> first & ((1 << bits) - 1)
        if name.startswith("ymm") and not name.endswith("h"):
            return processor._get(f"{name}h") << 128 | processor._get(f"xmm{name[3:]}")
        return processor._get(name)

    def __setitem__(self, name: str, value: int) -> None:
        processor: Processor = self.__dict__["_processor"]
        if name in _ALIASES:
            whole, first, bits = _ALIASES[name]
            if value >> bits:
                raise EngineError(f"the value is too large for {name}, which has {bits} bits")
            # Writing 32 bits clears the upper half, as the processor's own writes do; fewer leave the rest.
            rest = 0 if bits == 32 else processor._get(whole) & ~(((1 << bits) - 1) << first)
            processor._set(whole, rest | value << first)
        elif name.startswith("ymm") and not name.endswith("h"):
            processor._set(f"{name}h", value >> 128)
            processor._set(f"xmm{name[3:]}", value & ((1 << 128) - 1))
        else:
            processor._set(name, value)

    def __getattr__(self, name: str) -> int:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: int) -> None:
        self[name] = value

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of a listing."""
        lib, ffi = binding.lib(), binding.ffi()
        name, index = ffi.new("char const **"), 0
        while lib.imgvm_processor_register(index, name) >= 0:
            yield binding.text(name[0])
            index += 1


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

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            if key.step is not None or key.start is None or key.stop is None:
                raise EngineError("memory is read as memory[first:end]")
            return self.read(key.start, max(0, key.stop - key.start))
        return self.read(key, 1)[0]

    def __setitem__(self, key: int, value: int | bytes | bytearray) -> None:
        self.write(key, bytes([value]) if isinstance(value, int) else value)


class Breakpoints:
    """Linear addresses; the run ends before the instruction there."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._addresses: set[int] = set()

    def add(self, address: int) -> None:
        if address not in self._addresses:
            self._processor._call("add_point", address, 1, binding.lib().IMGVM_POINT_EXECUTE)
            self._addresses.add(address)

    def remove(self, address: int) -> None:
        self._processor._call("remove_point", address, 1, binding.lib().IMGVM_POINT_EXECUTE)
        self._addresses.discard(address)

    def clear(self) -> None:
        for address in tuple(self._addresses):
            self.remove(address)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._addresses))

    def __contains__(self, address: object) -> bool:
        return address in self._addresses

    def __len__(self) -> int:
        return len(self._addresses)


class Watchpoints:
    """Ranges of linear addresses; the run ends behind the instruction that touches one.

    `access`: r, w or rw. Under KVM there are four, and some hosts never stop at one (docs/debugging.md).
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._ranges: set[tuple[int, int, str]] = set()

    def _kinds(self, access: str) -> int:
        lib = binding.lib()
        read, write = lib.IMGVM_POINT_READ, lib.IMGVM_POINT_WRITE
        kinds = {"r": read, "w": write, "rw": read | write}
        if access not in kinds:
            raise EngineError(f"a watchpoint's access is r, w or rw, not {access!r}")
        return int(kinds[access])

    def add(self, address: int, size: int = 1, access: str = "w") -> None:
        kinds = self._kinds(access)
        if (address, size, access) not in self._ranges:
            self._processor._call("add_point", address, size, kinds)
            self._ranges.add((address, size, access))

    def remove(self, address: int, size: int = 1, access: str = "w") -> None:
        self._processor._call("remove_point", address, size, self._kinds(access))
        self._ranges.discard((address, size, access))

    def clear(self) -> None:
        for watched in tuple(self._ranges):
            self.remove(*watched)

    def __iter__(self) -> Iterator[tuple[int, int, str]]:
        return iter(sorted(self._ranges))

    def __len__(self) -> int:
        return len(self._ranges)


class Processor:
    """A processor at its power-on state; `real`, `protected` and `long` make one that is ready for code."""

    def __init__(self, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP) -> None:
        self.engine = engine
        self.memory_bytes = memory_bytes
        self._handle: Any = None
        self._handle = binding.open_handle(
            EngineError, "imgvm_processor_create", _engine.native_id(engine), memory_bytes
        )
        self.regs = Registers(self)
        self.memory = Memory(self, physical=False)
        self.physical = Memory(self, physical=True)
        self.breakpoints = Breakpoints(self)
        self.watchpoints = Watchpoints(self)

    # ---- modes ----

    @classmethod
    def real(cls, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP) -> Processor:
        """16-bit real mode, all segments at 0, stack below 0x1000, interrupts off."""
        cpu = cls(memory_bytes, engine)
        for name in SEGMENTS:
            cpu.regs[name] = 0
        cpu.regs.rip, cpu.regs.rsp = 0x1000, 0x1000
        cpu.regs.cr0 = CR0_ET
        return cpu

    @classmethod
    def protected(cls, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP) -> Processor:
        """32-bit ring 0, flat segments, no paging, stack below 0x1000. A GDT lies in the last page."""
        cpu = cls(memory_bytes, engine)
        cpu._load_flat(CODE32)
        cpu.regs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE
        cpu.regs.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT
        return cpu

    @classmethod
    def long(cls, memory_bytes: int = 2 << 20, engine: str = _engine.INTERP) -> Processor:
        """64-bit ring 0, memory mapped one to one, SSE and AVX on. GDT and page tables lie at its end."""
        cpu = cls(memory_bytes, engine)
        cpu._load_flat(CODE64)
        cpu.regs.cr3 = cpu._map_all()
        cpu.regs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        cpu.regs.xcr0 = 7
        cpu.regs.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
        cpu.regs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
        return cpu

    def _load_flat(self, code: int) -> None:
        gdt = self.memory_bytes - PAGE
        for number, attributes in ((1, code), (2, DATA32)):
            # limit FFFFF in units of a page; attributes are bits 55:40
            self.physical.write_int(gdt + 8 * number, 0xF_0000_0000_FFFF | attributes << 40)
        self.regs.gdtr_base, self.regs.gdtr_limit = gdt, 0x17
        self.regs.cr0 = self.regs.cr0 | CR0_PE  # from here on a selector is only that
        for name in SEGMENTS:
            self.regs[name] = CODE_SELECTOR if name == "cs" else DATA_SELECTOR
            self.regs[f"{name}_base"], self.regs[f"{name}_limit"] = 0, 0xFFFFFFFF
            self.regs[f"{name}_attributes"] = code if name == "cs" else DATA32
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
        return binding.call(EngineError, f"imgvm_processor_{name}", self._handle, *args)

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
        lib, out = binding.lib(), binding.ffi().new("imgvm_stop *")
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        while True:
            # Slices, because Python handles signals only between native calls.
            left = SLICE_MS if deadline is None else int(max(0.0, deadline - time.monotonic()) * 1000)
            self._call("run", count - done if count else 0, min(left, SLICE_MS), out)
            done += out.instructions
            over = deadline is not None and time.monotonic() >= deadline
            if out.reason != lib.IMGVM_STOP_TIMEOUT or over:
                return self._translate(out, done)

    def _translate(self, out: Any, instructions: int) -> Stop:
        lib = binding.lib()
        reasons = {
            lib.IMGVM_STOP_STEPS: "steps",
            lib.IMGVM_STOP_BREAKPOINT: "breakpoint",
            lib.IMGVM_STOP_WATCHPOINT: "watchpoint",
            lib.IMGVM_STOP_HALT: "halt",
            lib.IMGVM_STOP_SHUTDOWN: "shutdown",
            lib.IMGVM_STOP_TIMEOUT: "timeout",
            lib.IMGVM_STOP_ASKED: "asked",
        }
        letters = (("r", lib.IMGVM_POINT_READ), ("w", lib.IMGVM_POINT_WRITE))
        access = "".join(letter for letter, kind in letters if out.kinds & kind)
        reason = reasons.get(out.reason, "internal")
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
