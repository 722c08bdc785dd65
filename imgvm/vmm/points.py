# SPDX-License-Identifier: MIT
"""A processor's break- and watchpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgvm import binding
from imgvm.errors import EngineError

if TYPE_CHECKING:
    from imgvm.vmm.processor import Processor


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
