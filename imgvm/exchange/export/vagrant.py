# SPDX-License-Identifier: MIT
"""Vagrant: a box of the libvirt provider, a gzipped tar of metadata.json, Vagrantfile and box.img."""

from __future__ import annotations

import gzip
import json
import tarfile

from imgvm.exchange.export.parts import Parts
from imgvm.launch import INITRD, KERNEL
from imgvm.units import GIB

DISK = "box.img"


def write(parts: Parts, _target: str) -> None:
    program = parts.program(multiboot=False)
    parts.qcow2_disk(DISK)
    parts.note_further_disks()
    size_gib = -(-parts.image.info.disk_bytes // GIB)
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": size_gib}
    parts.text("metadata.json", json.dumps(metadata) + "\n")
    parts.text("Vagrantfile", _vagrantfile(parts, has_initrd=program.initrd is not None))
    box = f"{parts.machine.name}.box"
    # Without times and owners: the same image gives the same box.
    with (
        (parts.folder / box).open("wb") as stream,
        gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in parts.files:
            entry = tarfile.TarInfo(name)
            entry.size = (parts.folder / name).stat().st_size
            with (parts.folder / name).open("rb") as source:
                tar.addfile(entry, source)
    for name in parts.files:
        (parts.folder / name).unlink()
    parts.files[:] = [box]
    parts.note("Vagrant waits for SSH, which the guest must offer")


def _vagrantfile(parts: Parts, *, has_initrd: bool) -> str:
    hardware = parts.machine.hardware
    lines = [
        "# The machine as its image describes it.",
        'Vagrant.configure("2") do |config|',
        '  config.vm.synced_folder ".", "/vagrant", disabled: true',
        "  config.vm.provider :libvirt do |libvirt|",
        f"    libvirt.memory = {parts.memory_mib}",
        f"    libvirt.cpus = {hardware.cpus}",
        '    libvirt.disk_bus = "virtio"',
        f'    libvirt.kernel = File.expand_path("{KERNEL}", __dir__)',
    ]
    if has_initrd:
        lines.append(f'    libvirt.initrd = File.expand_path("{INITRD}", __dir__)')
    if parts.cmdline:
        lines.append(f"    libvirt.cmd_line = {_ruby(parts.cmdline)}")
    if hardware.entropy:
        lines.append('    libvirt.random model: "random"')
    return "\n".join([*lines, "  end", "end", ""])


def _ruby(text: str) -> str:
    """A text in single quotes, in which Ruby replaces nothing."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
