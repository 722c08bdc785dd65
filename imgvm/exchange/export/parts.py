# SPDX-License-Identifier: MIT
"""What every export takes from an image: its machine, and its parts as files."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imgvm import launch, units
from imgvm.errors import PackError
from imgvm.exchange.folder import write_raw
from imgvm.launch import INITRD, KERNEL, MODULE, Opened
from imgvm.machine import Machine
from imgvm.pack import disk as disks
from imgvm.pack import elf
from imgvm.qcow2 import Image

if TYPE_CHECKING:
    from imgvm.vmm.vm import Program

EXEC_STATUS_PORT = 0x5F4  # where the guest's init of an automatic initrd reports (pack/exit_helper.py)
_PIECE_BYTES = units.MIB


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

    def program(self, *, multiboot: bool) -> Program:
        """Writes kernel, initrd and modules as files; refuses what the target cannot load."""
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

    def blob(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        self.files.append(name)

    def raw_disk(self, name: str) -> None:
        write_raw(self.image, self.folder / name)
        self.files.append(name)

    def qcow2_disk(self, name: str) -> None:
        """A copy of the image; one without backing files when it is an overlay."""
        target, info = self.folder / name, self.image.info
        if info.backing_file is None:
            shutil.copyfile(self.opened.path, target)
        else:
            with Image.create(target, info.disk_bytes, cluster_bytes=info.cluster_bytes) as copy:
                for offset in range(0, info.disk_bytes, _PIECE_BYTES):
                    data = self.image.read(offset, min(_PIECE_BYTES, info.disk_bytes - offset))
                    for start, end in disks.runs(data, offset, info.cluster_bytes):
                        copy.write(offset + start, data[start:end])
                blobs = {blob.name: self.image.read_config(blob.name) for blob in self.image.config_blobs()}
                copy.set_config(blobs, date=0)
        self.files.append(name)
