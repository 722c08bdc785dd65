# SPDX-License-Identifier: MIT
"""OVA: a tar of an OVF envelope (DMTF DSP0243, version 1), a manifest, and the disk as a VMDK file."""

from __future__ import annotations

import hashlib
import tarfile
import xml.etree.ElementTree as Xml

from imgvm.exchange import vmdk
from imgvm.exchange.export.parts import Parts
from imgvm.exchange.export.xml_text import text_of
from imgvm.pack import disk as disks

OVF = "http://schemas.dmtf.org/ovf/envelope/1"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
VMDK_FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
# ResourceType numbers of CIM_ResourceAllocationSettingData.
CPU, MEMORY, SATA, DISK = 3, 4, 20, 17


def write(parts: Parts, _target: str) -> None:
    name = parts.machine.name
    parts.note_further_disks()
    source = disks.DiskSource(parts.image.info.disk_bytes, image=parts.image)
    with (parts.folder / "disk.vmdk").open("xb") as stream:
        vmdk.write(stream, source.size_bytes, source.pieces())
    disk_bytes = (parts.folder / "disk.vmdk").stat().st_size
    members = {f"{name}.ovf": envelope(parts, disk_bytes), "disk.vmdk": None}
    manifest = ""
    for member, content in members.items():
        if content is not None:
            (parts.folder / member).write_text(content)
        with (parts.folder / member).open("rb") as opened:
            manifest += f"SHA256({member})= {hashlib.file_digest(opened, 'sha256').hexdigest()}\n"
    (parts.folder / f"{name}.mf").write_text(manifest)
    with tarfile.open(parts.folder / f"{name}.ova", "x:", format=tarfile.USTAR_FORMAT) as tar:
        for member in (f"{name}.ovf", f"{name}.mf", "disk.vmdk"):
            entry = tarfile.TarInfo(member)
            entry.size = (parts.folder / member).stat().st_size
            with (parts.folder / member).open("rb") as opened:
                tar.addfile(entry, opened)
            (parts.folder / member).unlink()
    parts.files.append(f"{name}.ova")
    if parts.machine.loaded is not None:
        parts.note(
            "an appliance boots from its disk: the kernel, initrd and command of the image are not in it"
        )


def envelope(parts: Parts, vmdk_bytes: int) -> str:
    for prefix, uri in (("ovf", OVF), ("rasd", RASD), ("vssd", VSSD)):
        Xml.register_namespace(prefix, uri)
    machine = parts.machine
    root = Xml.Element(f"{{{OVF}}}Envelope", {f"{{{OVF}}}version": "1.0"})
    references = _add(root, "References")
    _add(references, "File", id="file1", href="disk.vmdk", size=str(vmdk_bytes))
    section = _add(root, "DiskSection")
    _add(section, "Info", "The disks")
    capacity = str(parts.image.info.disk_bytes)
    _add(section, "Disk", diskId="disk1", fileRef="file1", capacity=capacity, format=VMDK_FORMAT)
    system = _add(root, "VirtualSystem", id=machine.name)
    _add(system, "Info", machine.description or machine.name)
    _add(system, "Name", machine.name)
    guest = _add(system, "OperatingSystemSection", id="101")  # 64-bit Linux
    _add(guest, "Info", "The guest's system")
    hardware = _add(system, "VirtualHardwareSection")
    _add(hardware, "Info", "The hardware")
    settings = _add(hardware, "System")
    for key, value in (("ElementName", "Hardware"), ("InstanceID", "0"), ("VirtualSystemType", "vmx-10")):
        _add(settings, key, value, space=VSSD)
    _item(hardware, CPU, 1, "Processors", VirtualQuantity=str(machine.hardware.cpus))
    _item(hardware, MEMORY, 2, "Memory", AllocationUnits="byte * 2^20", VirtualQuantity=str(parts.memory_mib))
    _item(hardware, SATA, 3, "Disks", Address="0", ResourceSubType="AHCI")
    _item(hardware, DISK, 4, "Disk", AddressOnParent="0", HostResource="ovf:/disk/disk1", Parent="3")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + text_of(root, parts)


def _item(parent: Xml.Element, kind: int, number: int, name: str, **more: str) -> None:
    """An Item; its elements stand in the order of the alphabet, as the schema wants them."""
    item = _add(parent, "Item")
    values = {"ElementName": name, "InstanceID": str(number), "ResourceType": str(kind), **more}
    for key in sorted(values):
        _add(item, key, values[key], space=RASD)


def _add(
    parent: Xml.Element, name: str, content: str | None = None, space: str = OVF, **attributes: str
) -> Xml.Element:
    named = {f"{{{OVF}}}{key}": value for key, value in attributes.items()}
    element = Xml.SubElement(parent, f"{{{space}}}{name}", named)
    element.text = content
    return element
