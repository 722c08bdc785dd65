# SPDX-License-Identifier: MIT
"""Machines of other programs as configs: a libvirt domain, an OVA or OVF, a QEMU command line.

Only what a config can say comes over; all else is a note. What is read is untrusted: texts are bounded, XML
with a document type is refused (entities), and the config that comes out is checked like any other.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as Xml
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imgvm import units
from imgvm.config import Config, read_text
from imgvm.config.edit_text import dump
from imgvm.config.schema import schema
from imgvm.errors import UsageError, cut

MAX_TEXT_BYTES = 1 << 20
MAX_NOTES, MAX_NOTE = 50, 200
# Elements of a domain that are read, or say nothing that a config would.
_DOMAIN_KNOWN = {
    "name", "description", "vcpu", "memory", "currentMemory", "os", "cpu", "devices", "uuid", "features",
    "on_reboot", "on_poweroff", "on_crash", "clock", "pm", "metadata", "title", "resource",
}  # fmt: skip
_DOMAIN_QUIET = {
    "emulator", "controller", "console", "serial", "input", "memballoon", "audio", "panic", "channel",
}  # fmt: skip
DEFAULT_KERNEL = {"distro": "debian:bookworm"}

_short = partial(cut, most=60)


@dataclass
class Imported:
    """A config in the making. `notes` say what of the other machine is not in it."""

    name: str = "machine"
    document: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(cut(text, MAX_NOTE))

    def put(self, section: str, key: str, value: Any) -> None:
        self.document.setdefault(section, {})[key] = value

    def cpus(self, text: str | None) -> None:
        number = int(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else 0
        most = schema()["$defs"]["machine"]["properties"]["cpus"]["maximum"]
        if 1 <= number <= most:
            self.put("machine", "cpus", number)
        elif text is not None:
            self.note(f"{_short(text)} processors")

    def memory(self, size_bytes: int | None, words: str) -> None:
        if size_bytes is not None and size_bytes >= units.MIB:
            # Whole MiB: a config wants pages, and shows what it means.
            self.put("machine", "memory", units.format_size(size_bytes // units.MIB * units.MIB))
        else:
            self.note(f"memory of {_short(words)}")

    def disk(self, source: str, form: str = "auto", *, read_only: bool = False, serial: str = "") -> None:
        disks = self.document.setdefault("disks", [])
        if len(disks) >= schema()["$defs"]["disks"].get("maxItems", 64):
            self.note(f"the further disk {_short(source)}: this version takes {len(disks)}")
            return
        disk: dict[str, Any] = {"name": f"disk{len(disks)}", "source": source}
        if form in ("raw", "qcow2"):
            disk["format"] = form
        elif form != "auto":
            self.note(f"the format {_short(form)} of {_short(source)}: convert it with qemu-img")
        if read_only:
            disk["read_only"] = True
        if re.fullmatch(r"[!-~]{1,20}", serial):
            disk["serial"] = serial
        disks.append(disk)

    def kernel(self, path: str | None, initrd: str | None, cmdline: str | None) -> None:
        """Once the disks are known: without a kernel it boots from them."""
        if path is None:
            if not self.document.get("disks"):
                self.note("it has nothing to boot; Debian's kernel is put in")
                self.put("boot", "kernel", dict(DEFAULT_KERNEL))
                self.put("boot", "cmdline", "console=ttyS0")
            return
        self.put("boot", "kernel", path)
        self.put("boot", "initrd", initrd or "none")
        if cmdline:
            self.put("boot", "cmdline", cmdline)

    def move(self, base: Path, folder: Path) -> None:
        """Relative paths started at `base`, and are to start at `folder`."""

        def moved(path: str) -> str:
            if Path(path).is_absolute():
                return path
            return os.path.relpath(base.resolve() / path, folder.resolve())

        boot = self.document.get("boot", {})
        for key in ("kernel", "initrd"):
            if isinstance(boot.get(key), str) and (key, boot[key]) != ("initrd", "none"):
                boot[key] = moved(boot[key])
        for disk in self.document.get("disks", []):
            disk["source"] = moved(disk["source"])

    def text(self) -> str:
        """The config as YAML, with the notes as comments. It is valid, or an error of ours is raised."""
        name = re.sub(r"[^a-z0-9._-]+", "-", self.name.lower()).strip("-._")[:63] or "machine"
        document = {"version": 1, "name": name, **_dollars(self.document)}
        notes = [f"# not taken over: {re.sub(r'[^ -~]+', ' ', note)}\n" for note in self.notes]
        text = "".join(notes) + dump(document)
        Config.from_text(text, "the imported config")
        return text


def from_file(path: str | Path) -> Imported:
    """A libvirt domain or an OVF envelope in XML, or a shell script or text with a QEMU command line."""
    data = read_text(path, MAX_TEXT_BYTES)
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"{path} is too large for a machine's description", "an OVA ends in .ova")
    if data.lstrip().startswith(b"<"):
        return from_xml(data, str(path))
    from imgvm.exchange.import_qemu import command_of, from_command

    return from_command(command_of(data.decode("utf-8", "replace"), str(path)))


def from_xml(data: bytes, name: str, *, in_archive: bool = False) -> Imported:
    """`in_archive`: what the envelope names is not in a folder of this host."""
    root = parse_xml(data, name)
    if root.tag == "domain":
        return from_domain(root)
    if _local(root.tag) == "Envelope":
        return from_envelope(root, in_archive=in_archive)
    raise UsageError(f"{name}: <{_short(_local(root.tag))}> is neither a libvirt domain nor an OVF envelope")


def parse_xml(data: bytes, name: str) -> Xml.Element:
    # Entities are what makes XML dangerous, and only a document type brings them.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise UsageError(f"{name}: XML with a document type, or in UTF-16, is not read", "take that out")
    try:
        return Xml.fromstring(data)
    except (Xml.ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{name} is not XML: {error}", "virsh dumpxml NAME writes it") from None


def from_domain(root: Xml.Element) -> Imported:
    """https://libvirt.org/formatdomain.html"""
    found = Imported(root.findtext("name") or "machine")
    if description := (root.findtext("description") or "").strip():
        found.document["description"] = description
    found.cpus((root.findtext("vcpu") or "").strip() or None)
    memory = root.find("memory")
    if memory is not None:
        words = f"{(memory.text or '').strip()} {memory.get('unit', 'KiB')}"
        found.memory(_domain_size(words), words)
    if root.find("os/loader") is not None:
        found.note("its firmware: the built-in BIOS takes its place")
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("mode") in ("host-passthrough", "host-model", "maximum"):
        found.put("machine", "cpu", {"model": "host"})
    if root.findtext("on_reboot") == "destroy":
        found.put("exit", "on_reboot", "exit")
    for element in root:
        if _local(element.tag) not in _DOMAIN_KNOWN:
            found.note(f"<{_short(_local(element.tag))}>")
    _domain_devices(root, found)
    found.kernel(root.findtext("os/kernel"), root.findtext("os/initrd"), root.findtext("os/cmdline"))
    return found


def _domain_devices(root: Xml.Element, found: Imported) -> None:
    entropy = False
    for device in root.iterfind("devices/*"):
        kind = _local(device.tag)
        if kind == "disk" and device.get("device", "disk") == "disk":
            source, driver = device.find("source"), device.find("driver")
            path = None if source is None else source.get("file") or source.get("dev")
            if path is None:
                found.note("a disk that is neither a file nor a device of the host")
                continue
            form = "auto" if driver is None else driver.get("type", "auto")
            serial = (device.findtext("serial") or "").strip()
            found.disk(path, form, read_only=device.find("readonly") is not None, serial=serial)
        elif kind == "rng":
            entropy = True
        elif kind not in _DOMAIN_QUIET:
            found.note(f"the device <{_short(kind)}>{_kind_of(device)}")
    found.put("machine", "entropy", entropy)


def _kind_of(device: Xml.Element) -> str:
    words = device.get("type") or device.get("device")
    return f" of type {_short(words)}" if words else ""


def from_envelope(root: Xml.Element, *, in_archive: bool = False) -> Imported:
    """An OVF envelope (DMTF DSP0243); disks by their file's name, which come with it in its folder."""
    system = _first(root, "VirtualSystem")
    if system is None:
        raise UsageError("the OVF envelope has no VirtualSystem", "a collection of several is not read")
    name = _first(system, "Name")
    found = Imported((name.text if name is not None else None) or _attribute(system, "id") or "machine")
    files = {_attribute(file, "id"): _attribute(file, "href") for file in _all(root, "File")}
    disks = {
        _attribute(disk, "diskId"): files.get(_attribute(disk, "fileRef")) for disk in _all(root, "Disk")
    }
    for item in _all(system, "Item"):
        values = {_local(child.tag): (child.text or "").strip() for child in item}
        kind, quantity = values.get("ResourceType", ""), values.get("VirtualQuantity")
        if kind == "3":
            found.cpus(quantity)
        elif kind == "4":
            unit = values.get("AllocationUnits", "byte * 2^20")
            found.memory(_ovf_size(quantity or "", unit), f"{quantity} {unit}")
        elif kind == "17":
            source = disks.get(values.get("HostResource", "").rpartition("/")[2])
            if source is None:
                found.note(f"the disk {_short(values.get('HostResource', ''))} without a file")
            elif not in_archive and (source.startswith("/") or ".." in source.split("/")):
                found.note(f"the disk {_short(source)}, which is not in the envelope's folder")
            else:
                found.disk(source)
        elif kind not in ("5", "6", "20"):  # controllers
            found.note(f"the device {_short(values.get('ElementName', kind))}")
    found.kernel(None, None, None)
    return found


def _dollars(data: Any) -> Any:
    """Texts of others have no variables: `$` is written `$$`."""
    if isinstance(data, dict):
        # Of a description every character stands for itself.
        return {key: value if key == "description" else _dollars(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_dollars(value) for value in data]
    return data.replace("$", "$$") if isinstance(data, str) else data


_DOMAIN_UNITS = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip


def _domain_size(words: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,15}) ([A-Za-z]+)", words)
    return int(match[1]) * _DOMAIN_UNITS[match[2]] if match and match[2] in _DOMAIN_UNITS else None


def _ovf_size(quantity: str, unit: str) -> int | None:
    match = re.fullmatch(r"byte(?:s)?(?: ?\* ?(2\^([0-9]{1,2})|10\^([0-9]{1,2})))?", unit)
    if not re.fullmatch(r"[0-9]{1,15}", quantity):
        return None
    if match is None:
        return int(quantity) << 20 if unit.lower() in ("megabytes", "mb") else None
    factor: int = 2 ** int(match[2]) if match[2] else 10 ** int(match[3] or 0)
    return int(quantity) * factor


def _local(tag: Any) -> str:
    return str(tag).rpartition("}")[2]


def _all(root: Xml.Element, name: str) -> Sequence[Xml.Element]:
    return [element for element in root.iter() if _local(element.tag) == name]


def _first(root: Xml.Element, name: str) -> Xml.Element | None:
    return next(iter(_all(root, name)), None)


def _attribute(element: Xml.Element, name: str) -> str:
    return next((value for key, value in element.attrib.items() if _local(key) == name), "")
