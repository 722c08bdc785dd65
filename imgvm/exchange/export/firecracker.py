# SPDX-License-Identifier: MIT
"""Firecracker: the file of `firecracker --config-file`, in its API's words."""

from __future__ import annotations

import json
from typing import Any

from imgvm.exchange.export.parts import Parts
from imgvm.launch import INITRD, KERNEL
from imgvm.machine import Disk

DISK = "disk.raw"
MAX_CPUS = 32


def write(parts: Parts, _target: str) -> None:
    program = parts.program(multiboot=False)
    machine = parts.machine
    boot: dict[str, Any] = {"kernel_image_path": KERNEL, "boot_args": parts.cmdline}
    if program.initrd is not None:
        boot["initrd_path"] = INITRD
    drives = []
    files: list[tuple[Disk, str, Disk | None]] = []
    if machine.own_disk is not None:
        files.append((machine.own_disk, DISK, None))
    files += [(disk, f"{stem}.raw", disk) for disk, stem in parts.further_disks()]
    for disk, file, further in files:
        parts.raw_disk(file, further)
        drives.append({
            "drive_id": disk.name.replace("-", "_"),
            "path_on_host": file,
            "is_root_device": False,
            "is_read_only": disk.read_only,
        })
    if drives:
        parts.note("devices are virtio-mmio there: the guest needs virtio_mmio (boot.modules) for the disk")
    cpus = machine.hardware.cpus
    if cpus > MAX_CPUS:
        parts.note(f"Firecracker has at most {MAX_CPUS} processors, not {cpus}")
    document: dict[str, Any] = {
        "boot-source": boot,
        "drives": drives,
        "machine-config": {"vcpu_count": min(cpus, MAX_CPUS), "mem_size_mib": parts.memory_mib},
    }
    if machine.hardware.entropy:
        document["entropy"] = {}
    parts.text("firecracker.json", json.dumps(document, indent=2) + "\n")
    if parts.status_port is not None:
        parts.note("Firecracker has no port for the guest's status; the guest ends with a reboot (reboot=k)")
