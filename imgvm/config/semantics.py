# SPDX-License-Identifier: MIT
"""What a schema cannot say: sums, units, and keys that contradict each other. Only looks at a tree that has
passed the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from imgvm import __version__, units
from imgvm.config.features import CPU_FEATURES
from imgvm.config.suggest import did_you_mean
from imgvm.config.tree import Path, Tree
from imgvm.errors import Problem
from imgvm.machine import ROOT_DISK, SEED_DISK

MIN_MEMORY_BYTES = units.MIB
MAX_MEMORY_BYTES = units.TIB
PAGE_BYTES = 4096
SECTOR_BYTES = 512
MAX_DISK_BYTES = 256 * units.TIB
MAX_OEM_BYTES = 48 * units.KIB  # of 56 that the tables have room for
_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}(?:\.[0-9]{1,4})?")
_SERIAL_KEY = re.compile(r"[a-z0-9_-]+")
_SERIAL_VALUE = re.compile(r"[!#-&(-:<-~]+")
USER_DATA_BEGINNINGS = ("#", "Content-Type:", "MIME-Version:", "From ")
MAX_CMDLINE_BYTES = 2047  # what Linux on x86 keeps (COMMAND_LINE_SIZE with the final NUL)


def wants_newer(tree: Tree) -> list[Problem]:
    """One that is for a newer imgvm: what else is wrong with it would only be what that one knows."""
    wanted = tree.data.get("minimum_imgvm") if isinstance(tree.data, dict) else None
    if not isinstance(wanted, str) or not _VERSION.fullmatch(wanted):
        return []
    if _numbers(wanted) <= _numbers(__version__):
        return []
    message = f"this imgvm is {__version__}, and {wanted} is wanted"
    return [tree.problem(("minimum_imgvm",), message, "use a newer one")]


def _numbers(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0][:3]


def check(tree: Tree) -> list[Problem]:
    return [
        *_sizes(tree),
        *_cpu(tree),
        *_smbios(tree),
        *_boot(tree),
        *_rootfs(tree),
        *_disks(tree),
        *_cloud_init(tree),
        *_timeout(tree),
    ]


def _get(data: Any, path: Path) -> Any:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _sizes(tree: Tree) -> Iterator[Problem]:
    yield from _size(tree, ("machine", "memory"), MIN_MEMORY_BYTES, MAX_MEMORY_BYTES, PAGE_BYTES)
    for index in range(len(tree.data.get("disks", []))):
        yield from _size(tree, ("disks", index, "size"), SECTOR_BYTES, MAX_DISK_BYTES, SECTOR_BYTES)
    if _get(tree.data, ("rootfs", "size")) != "auto":
        yield from _size(tree, ("rootfs", "size"), units.MIB, MAX_DISK_BYTES, SECTOR_BYTES)
    yield from _size(tree, ("rootfs", "free"), 0, MAX_DISK_BYTES, 1)
    yield from _size(tree, ("image", "size"), SECTOR_BYTES, MAX_DISK_BYTES, SECTOR_BYTES)
    cluster: Path = ("image", "cluster_size")
    problems = list(_size(tree, cluster, 512, 2 * units.MIB, 1))
    yield from problems
    text = _get(tree.data, cluster)
    if text is not None and not problems and units.parse_size(text).bit_count() != 1:
        yield tree.problem(cluster, f"{text} is not a power of two")


def _size(tree: Tree, path: Path, least: int, most: int, multiple: int) -> Iterator[Problem]:
    text = _get(tree.data, path)
    if text is None:
        return
    try:
        size = units.parse_size(text)
    except ValueError as error:
        yield tree.problem(path, str(error))
        return
    if size < least:
        yield tree.problem(path, f"must be at least {units.format_size(least)}, not {text}")
    elif size > most:
        yield tree.problem(path, f"must be at most {units.format_size(most)}, not {text}")
    elif size % multiple:
        yield tree.problem(path, f"must be a multiple of {multiple} bytes, not {text}")


def _cpu(tree: Tree) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for index, feature in enumerate(_get(tree.data, ("machine", "cpu", "features")) or ()):
        at: Path = ("machine", "cpu", "features", index)
        sign, name = feature[0], feature[1:]
        if name not in CPU_FEATURES:
            guess = did_you_mean(name, CPU_FEATURES)
            hint = f"did you mean {sign}{guess}?" if guess else "names are those of /proc/cpuinfo"
            yield tree.problem(at, f"{name} is not a processor feature", hint)
        elif seen.get(name, sign) != sign:
            yield tree.problem(at, f"{name} is both given and taken away", "decide for one of them")
        seen.setdefault(name, sign)


def _smbios(tree: Tree) -> Iterator[Problem]:
    path: Path = ("machine", "smbios", "oem_strings")
    strings = _get(tree.data, path) or ()
    if sum(len(text) + 1 for text in strings) > MAX_OEM_BYTES:
        message = f"have together more than {units.format_size(MAX_OEM_BYTES)}"
        yield tree.problem(path, message, "put long texts on a disk")


def _disks(tree: Tree) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    taken = {ROOT_DISK: "rootfs"} if _root_is_disk(tree) else {}
    if _get(tree.data, ("cloud_init", "attach")) != "smbios" and "cloud_init" in tree.data:
        taken[SEED_DISK.name] = "cloud_init"
    for index, disk in enumerate(tree.data.get("disks", [])):
        at: Path = ("disks", index)
        if disk["name"] in taken:
            message = f"{disk['name']} is the name of the disk that {taken[disk['name']]} makes"
            yield tree.problem((*at, "name"), message)
        first = seen.setdefault(disk["name"], index)
        if first != index:
            yield tree.problem((*at, "name"), f"{disk['name']} is given twice", f"first as disks[{first}]")
        if disk.get("filesystem", "none") != "none" and "source" in disk:
            message = "is for a disk without a source"
            yield tree.problem((*at, "filesystem"), message, "take it or the source out", key=True)
        if "sha256" in disk and ("source" not in disk or not disk.get("embed", True)):
            yield tree.problem((*at, "sha256"), "is that of a source which is packed", key=True)
        if disk.get("embed", True):
            continue
        if index == 0 and not _root_is_disk(tree):
            yield tree.problem((*at, "embed"), "the first disk is the image's own")
        if "source" not in disk:
            yield tree.problem(at, "a disk outside the image needs a source", "name the file of the host")
            continue
        if disk.get("format", "auto") not in ("raw", "qcow2"):
            # A guest could write a header into a raw disk that makes it another's disk.
            hint = "format: raw or format: qcow2"
            yield tree.problem(at, "a disk outside the image needs its format", hint)
        if disk.get("persist") == "overlay":
            hint = "image or discard; or embed it"
            yield tree.problem((*at, "persist"), "an overlay is for disks that lie in the image", hint)
        if "size" in disk:
            yield tree.problem((*at, "size"), "a disk outside the image has the size of its file", key=True)


def _cloud_init(tree: Tree) -> Iterator[Problem]:
    seed = tree.data.get("cloud_init")
    if seed is None:
        return
    if seed.get("attach") == "smbios":
        yield from _seed_in_smbios(tree, seed)
    elif "seed_from" in seed:
        message = "is said in a serial number, and the seed is a disk"
        yield tree.problem(("cloud_init", "seed_from"), message, "attach: smbios", key=True)
    for key in ("user_data", "vendor_data"):
        text = seed.get(key)
        if isinstance(text, str) and not text.startswith(USER_DATA_BEGINNINGS):
            hint = "begin it with #cloud-config or #!, or write it as a map"
            yield tree.problem(("cloud_init", key), "is text that cloud-init would pass over", hint)


def _seed_in_smbios(tree: Tree, seed: dict[str, Any]) -> Iterator[Problem]:
    for key in ("user_data", "vendor_data", "network_config"):
        if key in seed:
            hint = "attach: iso; or lay it where seed_from says"
            yield tree.problem(("cloud_init", key), "does not go into a serial number", hint, key=True)
    if _get(tree.data, ("machine", "smbios", "serial")) is not None:
        at: Path = ("machine", "smbios", "serial")
        yield tree.problem(at, "is what cloud_init.attach: smbios makes it", "take one of them out", key=True)
    facts = seed.get("meta_data", {})
    if isinstance(facts, str):  # as the resolved config has it
        try:
            facts = json.loads(facts)
        except (ValueError, RecursionError):
            facts = None
    if not isinstance(facts, dict):
        yield tree.problem(("cloud_init", "meta_data"), "must be a map where it is a serial number")
        return
    for key, value in facts.items():
        if not _SERIAL_KEY.fullmatch(key) or not isinstance(value, str) or not _SERIAL_VALUE.fullmatch(value):
            message = f"{key} must be text without spaces, quotes and semicolons where it is a serial number"
            yield tree.problem(("cloud_init", "meta_data"), message)


def _timeout(tree: Tree) -> Iterator[Problem]:
    path: Path = ("exit", "timeout")
    text = _get(tree.data, path)
    if text not in (None, "none") and units.parse_duration(text) == 0:
        yield tree.problem(path, "must be longer than nothing", "write none for no timeout")


def _kernel(tree: Tree) -> Any:
    return _get(tree.data, ("boot", "kernel"))


def _firmware(tree: Tree) -> Iterator[Problem]:
    """Either a kernel is loaded, or a firmware boots from a disk."""
    firmware = _get(tree.data, ("machine", "firmware")) or "auto"
    at: Path = ("machine", "firmware")
    if _kernel(tree) is not None and firmware in ("auto", "none"):
        if "order" in tree.data["boot"]:
            hint = "take out boot.kernel, or say machine.firmware: bios, to boot from a disk"
            message = "the kernel is loaded, and nothing else booted"
            yield tree.problem(("boot", "order"), message, hint, key=True)
        return
    if _kernel(tree) is not None:
        if not tree.data.get("disks") and _get(tree.data, ("rootfs", "bootloader")) in (None, "none"):
            hint = "rootfs.bootloader: grub makes one; firmware: none loads the kernel"
            yield tree.problem(at, "there is no disk that the firmware could boot from", hint)
        return
    for key in sorted(set(tree.data.get("boot", {})) - {"order"}):
        yield tree.problem(("boot", key), "needs a kernel", "boot.kernel names the kernel to boot", key=True)
    if "exec" in tree.data:
        hint = "boot.kernel names the kernel to boot"
        yield tree.problem(("exec",), "needs a kernel, whose automatic initrd runs it", hint, key=True)
    if firmware == "none":
        hint = "boot.kernel names the kernel to boot; firmware: bios boots from a disk"
        yield tree.problem(at, "without a kernel and a firmware nothing is booted", hint)
    elif not tree.data.get("disks"):
        hint = "boot.kernel names the kernel to boot; or give the BIOS a disk to boot from"
        place: Path = ("boot",) if "boot" in tree.data else ()
        yield tree.problem(place, "nothing to boot: there is neither boot.kernel nor a disk", hint)


def _boot(tree: Tree) -> Iterator[Problem]:
    yield from _firmware(tree)
    if _kernel(tree) is None:
        return
    boot = tree.data["boot"]
    cmdline = boot.get("cmdline", "")
    text = cmdline if isinstance(cmdline, str) else " ".join(cmdline)
    at: Path = ("boot", "cmdline")
    if "\n" in text:
        yield tree.problem(at, "must be one line", "write a list to spread it over lines")
    ours = len(" root=/dev/vda1 rw") if "rootfs" in tree.data else 0
    ours += len(" ds=nocloud") if "cloud_init" in tree.data else 0
    if len(text.encode("utf-8", "replace")) + ours > MAX_CMDLINE_BYTES:
        yield tree.problem(at, f"is longer than {MAX_CMDLINE_BYTES} bytes")

    kernel = boot["kernel"]
    bundled = isinstance(kernel, dict) and bool(kernel.get("bundled"))
    multiboot = boot.get("protocol") == "multiboot"
    initrd = boot.get("initrd", "none" if bundled or multiboot else "auto")
    if multiboot and initrd != "none":
        yield tree.problem(("boot", "initrd"), "a multiboot kernel takes no initrd", "use boot.modules")
    if bundled and initrd != "none":
        yield tree.problem(("boot", "initrd"), "the bundled guest takes no initrd")
    if initrd != "auto":
        for path in (("boot", "files"), ("exec",)):
            if _get(tree.data, path):
                why = "the bundled guest has none" if bundled else "boot.initrd is not auto"
                yield tree.problem(path, "needs the automatic initrd", why, key=True)
    if multiboot:
        return
    if initrd != "auto" and boot.get("modules"):
        yield tree.problem(("boot", "modules"), "kernel modules need the automatic initrd", key=True)
    for index, module in enumerate(boot.get("modules", [])):
        if boot.get("protocol") == "linux" and ("/" in module or " " in module):
            message = f"{module!r} is not the name of a kernel module"
            yield tree.problem(("boot", "modules", index), message, "a name such as ext4, without folder")
    yield from _files(tree, "boot")


def _rootfs(tree: Tree) -> Iterator[Problem]:
    kernel = _kernel(tree)
    from_rootfs = isinstance(kernel, dict) and "from_rootfs" in kernel
    rootfs = tree.data.get("rootfs")
    if rootfs is None:
        if from_rootfs:
            at: Path = ("boot", "kernel", "from_rootfs")
            yield tree.problem(at, "there is no rootfs", "give a rootfs", key=True)
        return
    yield from _files(tree, "rootfs")
    yield from _bootloader(tree, rootfs)
    if rootfs.get("compression", "none") != "none" and rootfs.get("format", "ext4") != "erofs":
        hint = "format: erofs; or compress the image: image.compression"
        yield tree.problem(("rootfs", "compression"), "only an erofs is compressed so", hint, key=True)
    if _root_is_disk(tree):
        return
    for name in ("size", "free", "partition_table", "label", "bootloader"):
        if name in rootfs and rootfs[name] not in ("auto", "none"):
            yield tree.problem(("rootfs", name), "an initramfs is not on a disk", "take it out", key=True)
    for name in ("read_only", "persist"):
        if rootfs.get(name) not in (None, False, "image"):
            yield tree.problem(("rootfs", name), "an initramfs is memory of the guest's own", key=True)
    bundled = isinstance(kernel, dict) and bool(kernel.get("bundled"))
    if kernel is None:
        yield tree.problem(("rootfs", "format"), "an initramfs needs a kernel", "boot.kernel names it")
    elif tree.data["boot"].get("initrd", "auto") != "auto" or bundled:
        message = "an initramfs takes the place of the initrd"
        yield tree.problem(("rootfs", "format"), message, "boot.initrd: auto")


def _bootloader(tree: Tree, rootfs: dict[str, Any]) -> Iterator[Problem]:
    if rootfs.get("bootloader", "none") == "none" or not _root_is_disk(tree):
        return
    at: Path = ("rootfs", "bootloader")
    if rootfs.get("partition_table", "none") == "none":
        message = "a boot loader needs the room before a partition"
        yield tree.problem(at, message, "partition_table: gpt, or mbr", key=True)
    if rootfs.get("format", "ext4") != "ext4":
        message = f"GRUB does not read {rootfs['format']} as imgvm writes it"
        yield tree.problem(at, message, "format: ext4", key=True)
    boot = tree.data.get("boot", {})
    if _kernel(tree) is None:
        yield tree.problem(at, "there is no kernel for it to start", "boot.kernel names one", key=True)
    bundled = isinstance(_kernel(tree), dict) and _kernel(tree).get("bundled")
    if bundled or boot.get("protocol") == "multiboot":
        yield tree.problem(at, "GRUB is made to start Linux", "take it out, or name a Linux kernel", key=True)


def _root_is_disk(tree: Tree) -> bool:
    return "rootfs" in tree.data and tree.data["rootfs"].get("format", "ext4") != "initramfs"


def _files(tree: Tree, part: str) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, file in enumerate(tree.data[part].get("files", [])):
        at: Path = (part, "files", index, "path")
        name = file["path"]
        if any(part in (".", "..", "") for part in name[1:].split("/")):
            yield tree.problem(at, f"{name} must not contain . or .. or empty parts")
        if name in seen:
            yield tree.problem(at, f"{name} is given twice", f"first as {part}.files[{seen[name]}]")
        seen.setdefault(name, index)
        if "mode" in file and "link" in file:
            yield tree.problem((part, "files", index, "mode"), "a symbolic link has no mode")
