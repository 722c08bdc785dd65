# SPDX-License-Identifier: MIT
"""What every export takes from an image: its machine, and its parts as files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imgvm import launch, units
from imgvm.errors import PackError
from imgvm.exchange.folder import write_raw
from imgvm.launch import INITRD, KERNEL, MODULE, Opened
from imgvm.machine import Disk, Machine
from imgvm.pack import elf
from imgvm.qcow2 import Image, pieces
from imgvm.qcow2.convert import convert

if TYPE_CHECKING:
    from imgvm.vmm.vm import Program

EXEC_STATUS_PORT = 0x5F4  # where the guest's init of an automatic initrd reports (pack/exit_helper.py)


@dataclass
class Parts:
    """An opened image and the folder that is filled, to stand at `final`. `ref` names a container image."""

    opened: Opened
    folder: Path
    final: Path
    ref: str
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def machine(self) -> Machine:
        return self.opened.machine

    @property
    def image(self) -> Image:
        return self.opened.image

    @property
    def has_disk(self) -> bool:
        return bool(self.machine.attached)

    @property
    def memory_mib(self) -> int:
        return math.ceil(self.machine.hardware.memory_bytes / units.MIB)

    @property
    def cmdline(self) -> str:
        return self.machine.kernel_cmdline

    @property
    def timeout_sec(self) -> int | None:
        timeout_ns = self.machine.exit.timeout_ns
        return None if timeout_ns is None else math.ceil(timeout_ns / 1e9)

    @property
    def status_port(self) -> int | None:
        """The port through which the guest gives its status."""
        if self.machine.exec is not None:
            return EXEC_STATUS_PORT
        return self.machine.debug_exit.port if self.machine.debug_exit else None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def text(self, name: str, content: str, *, executable: bool = False) -> None:
        path = self.folder / name
        path.write_text(content)
        if executable:
            path.chmod(0o755)
        self.files.append(name)

    def program(self, *, multiboot: bool, bios: bool = False) -> Program:
        """Writes kernel, initrd and modules as files; refuses what the target cannot load. `bios`: it can do
        without a kernel, and brings a BIOS of its own."""
        if self.machine.loaded is None:
            if not bios:
                message = f"{self.opened.path}: its machine boots from its disk, which this target cannot"
                raise PackError(message, "qemu and libvirt can; and ova is such a disk")
            if self.machine.hardware.firmware.path is not None:
                self.note("its firmware is not taken along: the target has one of its own")
            from imgvm.vmm.vm import Program

            return Program()
        program = launch.program(self.opened)
        is_linux = elf.is_x86_64(program.kernel)
        if not is_linux and not multiboot:
            raise PackError(
                f"{self.opened.path}: its kernel is a Multiboot kernel, which this target cannot load",
                "qemu and libvirt can",
            )
        self.blob(KERNEL, program.kernel)
        if program.initrd is not None:
            self.blob(INITRD, program.initrd)
        for index, data in enumerate(program.modules):
            self.blob(MODULE.format(index), data)
        return program

    def blob(self, name: str, data: bytes | memoryview) -> None:
        (self.folder / name).write_bytes(data)
        self.files.append(name)

    def further_disks(self) -> Iterator[tuple[Disk, str]]:
        """The disks behind the first that lie in the image, each with a name for its file."""
        for disk in self.machine.further_disks:
            if disk.embed:
                yield disk, f"disk-{disk.name}"
            else:
                self.note(f"the disk {disk.name} is the file {disk.source} of this host: not taken along")

    def note_further_disks(self) -> None:
        """For targets that take the first disk only."""
        for disk in self.machine.further_disks:
            self.note(f"the disk {disk.name} is not taken along")

    def raw_disk(self, name: str, disk: Disk | None = None) -> None:
        """The first disk, or a further one, as a raw file."""
        write_raw(self.image.open_disk(disk.name) if disk else self.image, self.folder / name)
        self.files.append(name)

    def further_qcow2(self, name: str, disk: Disk) -> None:
        source = self.image.open_disk(disk.name)
        with Image.create(self.folder / name, source.info.disk_bytes) as copy:
            pieces.fill(copy, pieces.of_disk(source, units.MIB), copy.info.cluster_bytes)
        self.files.append(name)

    def qcow2_disk(self, name: str) -> None:
        """A copy of the image; one without backing files when it is an overlay."""
        target = self.folder / name
        if self.image.info.backing_file is None:
            shutil.copyfile(self.opened.path, target)
        else:
            cluster_bytes = self.image.info.cluster_bytes
            convert(self.opened.path, target, cluster_bytes=cluster_bytes)
        self.files.append(name)
