# SPDX-License-Identifier: MIT
"""QEMU: a script with the command line, and what it names beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imgvm.exchange.export.parts import Parts
from imgvm.launch import INITRD, KERNEL, MODULE
from imgvm.machine import Disk, Machine

if TYPE_CHECKING:
    from imgvm.vmm.vm import Program

DISK = "disk.qcow2"
# The nearest of QEMU's processors that hosts and its own translator both have.
CPU_MODELS = {
    "portable": "Nehalem", "x86-64": "qemu64", "x86-64-v2": "Nehalem", "x86-64-v3": "Haswell-noTSX",
    "host": "max",
}  # fmt: skip

SMBIOS_SYSTEM = ("manufacturer", "product", "version", "serial", "sku", "family")

_SCRIPT = """\
#!/bin/sh
# The machine {name} on QEMU. QEMU_ACCEL=tcg takes its translator even where there is KVM.
cd "$(dirname "$0")" || exit
{command} "$@"
{ending}"""
_STATUS = """\
status=$?
# isa-debug-exit makes (status << 1) | 1 of what the guest reports.
[ $((status & 1)) = 1 ] && exit $((status >> 1))
exit $status
"""


def write(parts: Parts, _target: str) -> None:
    program = parts.program(multiboot=True, bios=True)
    files = disk_files(parts)
    hardware = command(parts, files)
    parts.text("run.sh", _script(parts, [*hardware, *_program(parts, program)]), executable=True)
    root = parts.machine.root_on_disk
    if root is not None and root.bootloader != "none":
        parts.text("run-bios.sh", _script(parts, hardware), executable=True)
        parts.note("run-bios.sh starts what lies on the disk, with the command line of its grub.cfg")
    if parts.status_port is not None:
        parts.note("an error of QEMU itself (status 1) cannot be told from a guest's status 0")
    if parts.machine.debug_exit is not None and parts.machine.debug_exit.mapping == "qemu":
        parts.note("run.sh gives what the guest wrote; imgvm gives (value << 1) | 1")


def _script(parts: Parts, options: Sequence[Sequence[str]]) -> str:
    lines = [" ".join(words) for words in options]
    if parts.timeout_sec is not None:
        lines.insert(0, f"timeout --foreground {parts.timeout_sec}")
    ending = _STATUS if parts.status_port is not None else ""
    return _SCRIPT.format(name=parts.machine.name, command=" \\\n    ".join(lines), ending=ending)


def disk_files(parts: Parts) -> list[tuple[Disk, str]]:
    """Writes the disks as qcow2 files."""
    files = []
    if parts.machine.own_disk is not None:
        parts.qcow2_disk(DISK)
        files.append((parts.machine.own_disk, DISK))
    for disk, stem in parts.further_disks():
        parts.further_qcow2(f"{stem}.qcow2", disk)
        files.append((disk, f"{stem}.qcow2"))
    return files


def command(parts: Parts, files: Sequence[tuple[Disk, str]]) -> list[list[str]]:
    """The command line but for what is loaded, a list for each option with its value, quoted for a shell."""
    machine = parts.machine
    hardware = machine.hardware
    cpu = ",".join([CPU_MODELS[hardware.cpu.model], *hardware.cpu.features])
    options: list[list[str]] = [
        ["qemu-system-x86_64"],
        ["-name", shlex.quote(machine.name)],
        ["-nodefaults", "-no-user-config"],
        # Without graphics, its BIOS speaks on the serial port.
        ["-machine", f'pc,accel="${{QEMU_ACCEL:-kvm:tcg}}"{"" if machine.loaded else ",graphics=off"}'],
        ["-cpu", cpu],
        ["-m", f"{parts.memory_mib}M"],
        ["-smp", str(hardware.cpus)],
        ["-display", "none"],
        ["-serial", "stdio" if machine.console.device == "serial" else "null"],
    ]
    for index, (disk, file) in enumerate(files):
        settings = f"file={file},format=qcow2,cache={disk.cache}{_access(disk)}"
        device = f"virtio-blk-pci,drive=disk{index},serial={disk.serial.replace(',', ',,')}"
        options += [["-drive", f"if=none,id=disk{index},{settings}"], ["-device", shlex.quote(device)]]
    if hardware.entropy:
        options.append(["-device", "virtio-rng-pci"])
    if parts.status_port is not None:
        options.append(["-device", f"isa-debug-exit,iobase={parts.status_port:#x},iosize=4"])
    if machine.exit.on_reboot == "exit":
        options.append(["-no-reboot"])
    return [*options, *_smbios(machine)]


def _smbios(machine: Machine) -> list[list[str]]:
    texts = vars(machine.smbios)
    system = {name: texts[name] for name in SMBIOS_SYSTEM} | {"uuid": machine.hardware.uuid}
    rows = [(1, system), (3, {"asset": machine.smbios.asset_tag})]
    rows += [(11, {"value": text}) for text in machine.smbios.oem_strings]
    options = []
    for kind, named in rows:
        words = [f"{name}={text.replace(',', ',,')}" for name, text in named.items() if text]
        if words:
            options.append(["-smbios", shlex.quote(",".join([f"type={kind}", *words]))])
    return options


def _access(disk: Disk) -> str:
    if disk.read_only:
        return ",read-only=on"
    return (",discard=unmap" if disk.discard else "") + ("" if disk.is_kept else ",snapshot=on")


def _program(parts: Parts, program: Program) -> list[list[str]]:
    """The options that load kernel and initrd."""
    if parts.machine.loaded is None:
        return []
    options = [["-kernel", KERNEL]]
    if program.initrd is not None:
        options.append(["-initrd", INITRD])
    elif program.modules:
        modules = (_module(parts, index) for index in range(len(program.modules)))
        options.append(["-initrd", shlex.quote(",".join(modules))])
    if parts.cmdline:
        options.append(["-append", shlex.quote(parts.cmdline)])
    return options


def _module(parts: Parts, index: int) -> str:
    """A Multiboot module: the file and its arguments; QEMU doubles commas."""
    boot = parts.machine.boot
    words = boot.modules[index].split(None, 1) if boot and index < len(boot.modules) else []
    return " ".join([MODULE.format(index), *words[1:]]).replace(",", ",,")
