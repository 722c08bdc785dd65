# SPDX-License-Identifier: MIT
"""A processor's registers by name, one at a time or many in one native call."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from imgvm import binding
from imgvm.errors import EngineError

if TYPE_CHECKING:
    from imgvm.vmm.processor import Processor

PLANS_KEPT = 1024
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
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


class _Plan:
    """Registers by name, prepared for one native call."""

    def __init__(self, names: tuple[str, ...]) -> None:
        parts = [_parts_of(name) for name in names]
        sizes = [sum(size for _, _, size, _ in mine) for mine in parts]
        flat = [part for mine in parts for part in mine]
        self.count = len(flat)
        self.parts = binding.ffi().new("imgvm_register_part[]", flat)
        self.values = binding.ffi().new("uint8_t[]", max(1, sum(sizes)))
        self.view = memoryview(binding.ffi().buffer(self.values))
        # Wider than a machine word (st0, xmm1, ymm2): as bytes.
        self.packer = struct.Struct("<" + "".join(_FORMATS.get(size, f"{size}s") for size in sizes))
        self.wide = [(number, size) for number, size in enumerate(sizes) if size not in _FORMATS]

    def pack(self, numbers: Iterable[int]) -> None:
        fields: list[Any] = list(numbers)
        try:
            for number, size in self.wide:
                fields[number] = fields[number].to_bytes(size, "little")
            self.packer.pack_into(self.view, 0, *fields)
        except (struct.error, OverflowError):
            raise EngineError("registers hold unsigned numbers of their own size") from None

    def unpack(self) -> tuple[int, ...]:
        fields = self.packer.unpack_from(self.view)
        if not self.wide:
            return fields
        return tuple(int.from_bytes(f, "little") if isinstance(f, bytes) else f for f in fields)


@cache
def _indexes() -> dict[str, tuple[int, int]]:
    """Name -> index, bytes."""
    lib, name, found = binding.lib(), binding.ffi().new("char const **"), dict[str, tuple[int, int]]()
    while (size := lib.imgvm_processor_register(len(found), name)) >= 0:
        found[binding.text(name[0])] = len(found), size
    return found


def _parts_of(name: str) -> list[tuple[int, int, int, bool]]:
    """What imgvm_register_part says: index, first byte, bytes, and whether writing clears the rest."""
    if name in _ALIASES:
        whole, first, bits = _ALIASES[name]
        return [(_indexes()[whole][0], first // 8, bits // 8, bits == 32)]
    if name.startswith("ymm") and not name.endswith("h"):
        return _parts_of(f"xmm{name[3:]}") + _parts_of(f"{name}h")
    if name not in _indexes():
        raise EngineError(f"there is no register {name}")
    index, size = _indexes()[name]
    return [(index, 0, size, True)]


class Registers:
    """Every register as an attribute or item, as an unsigned number: rax eax ax al, rip, rflags, cs, cs_base,
    cs_limit, cs_attributes, gdtr_base, cr3, dr7, efer, st0 (80 bits), xmm1 (128), ymm2 (256), mxcsr, ..."""

    def __init__(self, processor: Processor) -> None:
        object.__setattr__(self, "_processor", processor)
        object.__setattr__(self, "_plans", dict[tuple[str, ...], _Plan]())

    def _plan(self, names: tuple[str, ...]) -> _Plan:
        plans: dict[tuple[str, ...], _Plan] = self.__dict__["_plans"]
        plan = plans.get(names)
        if plan is None:
            if len(plans) >= PLANS_KEPT:
                plans.clear()
            plan = plans[names] = _Plan(names)
        return plan

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

    def update(self, values: Mapping[str, int]) -> None:
        """Sets many in one call, in the order given."""
        plan = self._plan(tuple(values))
        plan.pack(values.values())
        processor: Processor = self.__dict__["_processor"]
        processor._call("set_parts", plan.parts, plan.count, plan.values)

    def read(self, *names: str) -> tuple[int, ...]:
        """The values of many, in one call."""
        plan = self._plan(names)
        processor: Processor = self.__dict__["_processor"]
        processor._call("get_parts", plan.parts, plan.count, plan.values)
        return plan.unpack()

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of a listing."""
        return iter(_indexes())
