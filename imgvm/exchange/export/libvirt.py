# SPDX-License-Identifier: MIT
"""libvirt: a domain in XML (https://libvirt.org/formatdomain.html), with absolute paths as it wants them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as Xml
from collections.abc import Sequence
from string import ascii_lowercase

from imgvm import units
from imgvm.exchange.export.parts import Parts
from imgvm.exchange.export.qemu import CPU_MODELS, disk_files
from imgvm.exchange.export.xml_text import text_of
from imgvm.launch import INITRD, KERNEL
from imgvm.machine import Disk

_SERIAL = re.compile(r"[A-Za-z0-9_.+\- ]+")
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def write(parts: Parts, _target: str) -> None:
    program = parts.program(multiboot=True, bios=True)
    if program.modules:
        parts.note("Multiboot modules are not in the domain: libvirt has no place for them")
    files = disk_files(parts)
    parts.text("domain.xml", domain(parts, files, has_initrd=program.initrd is not None))
    if parts.status_port is not None:
        parts.note("libvirt does not hand out the status that the guest reports; the domain just ends")
    if parts.timeout_sec is not None:
        parts.note("libvirt knows no timeout")


def domain(parts: Parts, files: Sequence[tuple[Disk, str]], *, has_initrd: bool) -> str:
    machine = parts.machine
    root = Xml.Element("domain", {"type": "kvm"})
    _add(root, "name", machine.name)
    if machine.description:
        _add(root, "description", machine.description)
    _add(root, "memory", str(machine.hardware.memory_bytes // units.KIB), unit="KiB")
    _add(root, "vcpu", str(machine.hardware.cpus))
    system = _add(root, "os")
    _add(system, "type", "hvm", arch="x86_64", machine="pc")
    if machine.loaded is None:
        _add(system, "boot", dev="hd")
    else:
        _add(system, "kernel", str(parts.final / KERNEL))
    if has_initrd:
        _add(system, "initrd", str(parts.final / INITRD))
    if parts.cmdline:
        _add(system, "cmdline", parts.cmdline)
    features = _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    _cpu(root, parts)
    _add(root, "on_poweroff", "destroy")
    _add(root, "on_reboot", "destroy" if machine.exit.on_reboot == "exit" else "restart")
    _add(root, "on_crash", "destroy")
    devices = _add(root, "devices")
    for index, (disk, file) in enumerate(files):
        entry = _add(devices, "disk", type="file", device="disk")
        _add(entry, "driver", name="qemu", type="qcow2", cache=disk.cache)
        _add(entry, "source", file=str(parts.final / file))
        _add(entry, "target", dev=f"vd{ascii_lowercase[index]}", bus="virtio")
        if disk.read_only:
            _add(entry, "readonly")
        elif not disk.is_kept:
            _add(entry, "transient")
        if _SERIAL.fullmatch(disk.serial):
            _add(entry, "serial", disk.serial)
        else:
            parts.note(f"the disk's serial number {disk.serial} is not in the domain: libvirt forbids such")
    if machine.console.device == "serial":
        serial = _add(devices, "serial", type="pty")
        _add(serial, "target", port="0")
    if machine.hardware.entropy:
        rng = _add(devices, "rng", model="virtio")
        _add(rng, "backend", "/dev/urandom", model="random")
    if parts.status_port is not None:
        # Namespaced elements: ElementTree declares the prefix by itself.
        Xml.register_namespace("qemu", QEMU_NAMESPACE)
        line = _add(root, f"{{{QEMU_NAMESPACE}}}commandline")
        for word in ("-device", f"isa-debug-exit,iobase={parts.status_port:#x},iosize=4"):
            _add(line, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    return text_of(root, parts)


def _cpu(root: Xml.Element, parts: Parts) -> None:
    cpu = parts.machine.hardware.cpu
    if cpu.model == "host":
        entry = _add(root, "cpu", mode="host-passthrough")
    else:
        entry = _add(root, "cpu", mode="custom", match="exact", check="none")
        _add(entry, "model", CPU_MODELS[cpu.model], fallback="allow")
    for feature in cpu.features:
        _add(entry, "feature", policy="require" if feature[0] == "+" else "disable", name=feature[1:])


def _add(
    parent: Xml.Element, tag: str, content: str | None = None, /, **attributes: str
) -> Xml.Element:
    element = Xml.SubElement(parent, tag, attributes)
    element.text = content
    return element
