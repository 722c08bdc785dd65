# SPDX-License-Identifier: MIT
"""What a schema cannot say: sums, units, and keys that contradict each other. Only looks at a tree that has
passed the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from imgvm import units
from imgvm.config.document import Path, Tree
from imgvm.config.features import CPU_FEATURES
from imgvm.config.suggest import did_you_mean
from imgvm.errors import Problem
from imgvm.machine import SEED_DISK

MIN_MEMORY_BYTES = units.MIB
MAX_MEMORY_BYTES = units.TIB
PAGE_BYTES = 4096
SECTOR_BYTES = 512
MAX_DISK_BYTES = 256 * units.TIB
USER_DATA_BEGINNINGS = ("#", "Content-Type:", "MIME-Version:", "From ")
MAX_CMDLINE_BYTES = 2047  # what Linux on x86 keeps (COMMAND_LINE_SIZE with the final NUL)


def check(tree: Tree) -> list[Problem]:
    return [*_sizes(tree), *_cpu(tree), *_boot(tree), *_disks(tree), *_cloud_init(tree), *_timeout(tree)]


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


def _disks(tree: Tree) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, disk in enumerate(tree.data.get("disks", [])):
        at: Path = ("disks", index)
        first = seen.setdefault(disk["name"], index)
        if first != index:
            yield tree.problem((*at, "name"), f"{disk['name']} is given twice", f"first as disks[{first}]")
        if disk.get("embed", True):
            continue
        if index == 0:
            yield tree.problem((*at, "embed"), "the first disk is the image's own")
        if "source" not in disk:
            yield tree.problem(at, "a disk outside the image needs a source", "name the file of the host")
            continue
        if disk.get("format", "auto") == "auto":
            # A guest could write a header into a raw disk that makes it another's disk.
            hint = "format: raw or format: qcow2"
            yield tree.problem(at, "a disk outside the image needs its format", hint)
        if "size" in disk:
            yield tree.problem((*at, "size"), "a disk outside the image has the size of its file", key=True)


def _cloud_init(tree: Tree) -> Iterator[Problem]:
    seed = tree.data.get("cloud_init")
    if seed is None:
        return
    text = seed.get("user_data")
    if isinstance(text, str) and not text.startswith(USER_DATA_BEGINNINGS):
        hint = "begin it with #cloud-config or #!, or write it as a map"
        yield tree.problem(("cloud_init", "user_data"), "is text that cloud-init would pass over", hint)
    for index, disk in enumerate(tree.data.get("disks", [])):
        if disk["name"] == SEED_DISK.name:
            message = f"{disk['name']} is the name of the disk that cloud_init makes"
            yield tree.problem(("disks", index, "name"), message)


def _timeout(tree: Tree) -> Iterator[Problem]:
    path: Path = ("exit", "timeout")
    text = _get(tree.data, path)
    if text not in (None, "none") and units.parse_duration(text) == 0:
        yield tree.problem(path, "must be longer than nothing", "write none for no timeout")


def _boot(tree: Tree) -> Iterator[Problem]:
    boot = tree.data["boot"]
    cmdline = boot.get("cmdline", "")
    text = cmdline if isinstance(cmdline, str) else " ".join(cmdline)
    at: Path = ("boot", "cmdline")
    if "\n" in text:
        yield tree.problem(at, "must be one line", "write a list to spread it over lines")
    if len(text.encode("utf-8", "replace")) > MAX_CMDLINE_BYTES:
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
    yield from _files(tree)


def _files(tree: Tree) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, file in enumerate(tree.data["boot"].get("files", [])):
        at: Path = ("boot", "files", index, "path")
        name = file["path"]
        if any(part in (".", "..", "") for part in name[1:].split("/")):
            yield tree.problem(at, f"{name} must not contain . or .. or empty parts")
        if name in seen:
            yield tree.problem(at, f"{name} is given twice", f"first as boot.files[{seen[name]}]")
        seen.setdefault(name, index)
        if "mode" in file and "link" in file:
            yield tree.problem(("boot", "files", index, "mode"), "a symbolic link has no mode")
