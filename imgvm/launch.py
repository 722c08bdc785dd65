# SPDX-License-Identifier: MIT
"""An image, opened and turned into a machine that is ready to start.

    with imgvm.run("ci.img", accel="interp") as vm:
        vm.console.expect("login:")
        result = vm.wait()

An image may come from anywhere: what it carries is checked like any other input, and of its config only the
keys that matter after packing can be overridden.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from imgvm import units
from imgvm.config import MAX_RESOLVED_BYTES, Config
from imgvm.config.overrides import parse_path
from imgvm.errors import (
    STATUS_CANNOT_RUN,
    STATUS_ERROR,
    STATUS_NOT_FOUND,
    ConfigError,
    ConsentError,
    EngineError,
    ImageError,
    UsageError,
    errno_hint,
)
from imgvm.record import Record

if TYPE_CHECKING:
    from imgvm.config.tree import Path as KeyPath
    from imgvm.machine import Disk, Machine
    from imgvm.qcow2 import Image
    from imgvm.vmm.vm import Drive, Program, Vm, Watch

CONFIG_SNAPSHOT = "imgvm.config"
CONFIG_TEXT, CONFIG_RESOLVED = "config.yaml", "machine.json"
KERNEL, INITRD, MODULE, FIRMWARE = "kernel", "initrd", "module-{}", "firmware"
QCOW2_MAGIC = b"QFI\xfb"

# What an image may use of this host once its user agrees (`--allow`).
BACKING = "backing"  # backing and data files outside the image's folder
DISKS = "disks"  # disks that are files of this host
GRANTS = (BACKING, DISKS)

# What can still be changed when the image is packed.
RUN_KEYS = ("machine", "console", "devices", "exit", "name")
RUN_PATHS = (("boot", "cmdline"),)


class Opened(Record):
    """An image and its config; whoever holds it closes `image`."""

    path: Path
    image: Image
    machine: Machine
    allow: frozenset[str] = frozenset()
    scratch: Path | None = None  # a folder for what the guest writes; None: that goes to the disks


def is_image(path: str | Path) -> bool:
    """Whether a file is a qcow2 image by its content, else by its name. ImageError when it cannot be read."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISFIFO(mode):
            return False  # what is read from a pipe, as of `run <(...)`, can be read once
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode)):
            hint = "name an image or a config"
            raise ImageError(f"{path} is neither a file nor a block device", hint, STATUS_CANNOT_RUN)
        with Path(path).open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        status = STATUS_NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else STATUS_CANNOT_RUN
        hint = errno_hint(error.errno) or ""
        raise ImageError(f"{path}: {error.strerror}", hint, status, errno=error.errno or 0) from None
    if head[:4] == QCOW2_MAGIC:
        return True
    return b"\0" in head or Path(path).suffix in (".img", ".qcow2", ".raw", ".iso")


def is_qcow2(path: str | Path) -> bool:
    with Path(path).open("rb") as stream:
        return stream.read(4) == QCOW2_MAGIC


def require_image(path: str | Path) -> None:
    if not is_image(path) or not is_qcow2(path):
        hint = "`imgvm pack` makes images from configs"
        raise ImageError(f"{path} is not an image of imgvm's kind (qcow2)", hint, STATUS_NOT_FOUND)


def is_run_key(path: KeyPath) -> bool:
    """Whether a key of the config still matters after packing."""
    return path[0] in RUN_KEYS or path[:2] in RUN_PATHS


def check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        if not is_run_key(parse_path(override.partition("=")[0])):
            allowed = ", ".join([*RUN_KEYS, *(".".join(keys) for keys in RUN_PATHS)])
            raise UsageError(
                f"--set {override}: this is settled when the image is packed",
                f"pack the config again, or change one of {allowed}",
            )


def parse_grants(lists: Sequence[str] | None) -> frozenset[str]:
    """`--allow a,b --allow c` as a set."""
    words = ",".join(lists or ()).split(",")
    grants = frozenset(filter(None, map(str.strip, words)))
    for unknown in sorted(grants - set(GRANTS)):
        raise UsageError(f"--allow {unknown}: there is no such grant", "grants: " + ", ".join(GRANTS))
    return grants


def open_disk(
    path: str | Path, *, writable: bool = False, repair: bool = False, allow: Collection[str] = ()
) -> Image:
    """Opens an image that may come from anywhere. What it asks of this host must be in `allow`."""
    from imgvm.qcow2 import Image

    require_image(path)
    try:
        keep = BACKING not in allow
        return Image.open(path, writable=writable, repair=repair, keep_to_folder=keep)
    except ImageError as error:
        if error.errno != errno.EPERM or "is not inside its folder" not in error.message:
            raise
        raise ConsentError(error.message, BACKING, errno=error.errno) from None


def open_image(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    writable: bool | None = None,
    allow: Collection[str] = (),
    scratch: Path | None = None,
) -> Opened:
    """Opens an image and reads its config. `writable` None: as its disk needs. `scratch` is a folder for
    overlays, which the guest writes to instead."""
    check_overrides(overrides)
    path = Path(path)
    image = open_disk(path, allow=allow)
    try:
        machine = _machine(path, image, overrides)
    except BaseException:
        image.close()
        raise
    if writable is None:
        writable = any(disk.embed and (disk.is_kept or scratch) for disk in machine.attached)
    if writable:
        image.close()
        if scratch is None:
            image = _reopen_to_write(path, allow)
        else:
            image = _overlay_in(scratch, path, "image", allow)
    return Opened(path, image, machine, frozenset(allow), scratch)


def _overlay_in(
    scratch: Path, base: Path, name: str, allow: Collection[str], format: str = "qcow2"
) -> Image:
    """An overlay of ours: its backing file may be anywhere, and what that names is asked for as ever."""
    from imgvm.qcow2 import Image, overlay

    overlay.create(base, scratch / name, format=format)
    return Image.open(scratch / name, writable=True, keep_below=BACKING not in allow)


def _reopen_to_write(path: Path, allow: Collection[str]) -> Image:
    try:
        return open_disk(path, writable=True, allow=allow)
    except ImageError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or error.status != STATUS_ERROR:
            raise
        hint = "--ephemeral runs it all the same; or make the file writable, or copy it"
        message = f"{path} cannot be written, but its machine has a disk to write to"
        raise ImageError(message, hint, STATUS_CANNOT_RUN, errno=error.errno) from None


def _machine(path: Path, image: Image, overrides: Sequence[str]) -> Machine:
    try:
        text = image.read_config(CONFIG_RESOLVED, MAX_RESOLVED_BYTES)
    except ImageError as error:
        if error.errno != errno.ENOENT:
            raise
        hint = "`imgvm pack` makes images with one; qemu-img convert and deleting its snapshot drop it"
        raise ImageError(f"{path} has no config in it", hint, STATUS_NOT_FOUND) from None
    try:
        return Config.from_resolved(text, f"{path}:{CONFIG_RESOLVED}", overrides).machine
    except ConfigError as error:
        # An image of a newer version may use keys that are not known here. A wrong override is our caller's.
        ours = any(problem.file.startswith("--set") for problem in error.problems)
        raise ConfigError(error.problems, STATUS_ERROR if ours else STATUS_CANNOT_RUN) from None


def program(opened: Opened) -> Program:
    """The blobs that are loaded into memory."""
    from imgvm.vmm.vm import Program

    image, sizes = opened.image, {blob.name: blob.bytes for blob in opened.image.config_blobs()}
    if opened.machine.loaded is None:
        return Program(firmware=_firmware(opened, sizes.get(FIRMWARE)))
    if KERNEL not in sizes:
        raise ImageError(f"{opened.path} has a config but no kernel", "pack it again", STATUS_CANNOT_RUN)
    modules = list(takewhile(sizes.__contains__, map(MODULE.format, count())))
    wanted = sum(sizes.get(name, 0) for name in (KERNEL, INITRD, *modules))
    memory = opened.machine.hardware.memory_bytes
    if wanted > memory:  # a blob can be far larger than the file: not even to be read
        message = f"{opened.path}: its kernel and initrd ({wanted >> 20} MiB) do not fit into its memory"
        raise ImageError(message, f"give it more than {units.format_size(memory)} with -m", STATUS_CANNOT_RUN)
    initrd = image.load_config(INITRD) if INITRD in sizes else None
    return Program(image.load_config(KERNEL), initrd, tuple(map(image.load_config, modules)))


def _firmware(opened: Opened, packed_bytes: int | None) -> bytes:
    from imgvm.vmm.firmware import MAX_BYTES, built_in

    if opened.machine.hardware.firmware.path is None:
        return built_in()
    if packed_bytes is None:
        hint = "machine.firmware: bios is the built-in one; pack the config again with the other"
        raise ImageError(f"{opened.path} has no firmware in it", hint, STATUS_CANNOT_RUN)
    if packed_bytes > MAX_BYTES:
        message = f"{opened.path}: its firmware is larger than {units.format_size(MAX_BYTES)}"
        raise ImageError(message, "pack it again", STATUS_CANNOT_RUN)
    return opened.image.read_config(FIRMWARE)


def drives(opened: Opened) -> list[Drive]:
    """The machine's disks: the image's own, further ones in its file, and files of this host."""
    from imgvm.vmm.vm import Drive

    found: list[Drive] = []
    try:
        for disk in opened.machine.attached:
            image = opened.image if disk == opened.machine.own_disk else _further_disk(opened, disk)
            if not disk.read_only and not disk.is_kept and opened.scratch is None:
                image = _thrown_away(image)
            found.append(Drive(image.handle, disk.read_only, disk.serial, image, disk.cache))
    except BaseException:
        for drive in reversed(found):
            drive.owner.close()
        raise
    return found


def _thrown_away(image: Image) -> Image:
    """A layer over a disk for what the guest writes. Its file has no name, and is gone with the handle."""
    import tempfile

    import platformdirs

    folder = platformdirs.user_cache_path("imgvm") / "run"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="layer-", dir=folder) as scratch:
            return image.under(Path(scratch) / "layer")
    except OSError as error:
        message = f"{folder}, where what the guest writes is to go: {error.strerror}"
        hint = "set XDG_CACHE_HOME to another folder"
        raise ImageError(message, hint, STATUS_CANNOT_RUN, errno=error.errno or 0) from error


def _further_disk(opened: Opened, disk: Disk) -> Image:
    from imgvm.qcow2 import Image

    if disk.embed:
        return opened.image.open_disk(disk.name)
    path = _host_file(opened, disk)
    if DISKS not in opened.allow:  # one answer is for all of them
        wanted = "; ".join(
            f"its disk {one.name} is a file of this host, {_host_file(opened, one)}"
            for one in opened.machine.further_disks
            if not one.embed
        )
        raise ConsentError(f"{opened.path}: {wanted}", DISKS)
    raw = disk.format == "raw"
    writable = disk.is_kept and opened.scratch is None
    image = Image.open(path, writable=writable, raw=raw, keep_to_folder=BACKING not in opened.allow)
    if image.info.format != disk.format:
        image.close()
        message = f"{path} is no {disk.format} image, as disk {disk.name} should be"
        raise ImageError(message, status=STATUS_CANNOT_RUN)
    if opened.scratch is None or disk.read_only:
        return image
    image.close()
    return _overlay_in(opened.scratch, path, f"disk-{disk.name}", opened.allow, disk.format)


def _host_file(opened: Opened, disk: Disk) -> Path:
    """What a disk outside the image really is, whatever links lead there."""
    return Path(os.path.realpath(opened.path.resolve().parent / (disk.source or "")))


def _check_host_memory(wanted_bytes: int) -> None:
    """A guest that fills more than there is would have the host's kernel kill something, or somebody else."""
    there_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted_bytes > there_bytes:
        there, wanted = f"{there_bytes >> 20}MiB", units.format_size(wanted_bytes)
        hint = f"give it less: -m {max(there_bytes >> 21, 64)}MiB"
        message = f"this host has {there} of memory, the machine wants {wanted}"
        raise EngineError(message, hint, STATUS_CANNOT_RUN)


def build(opened: Opened, engine: str, watch: Watch | None = None) -> Vm:
    """The machine, loaded but not started. It closes the image when it is closed."""
    from imgvm.vmm.vm import NO_WATCH, Vm

    _check_host_memory(opened.machine.hardware.memory_bytes)

    vm = Vm(opened.machine, engine, program(opened), drives(opened), watch or NO_WATCH)
    if not opened.machine.attached:
        opened.image.close()
    return vm


def run(
    path: str | Path,
    accel: str | None = None,
    overrides: Sequence[str] = (),
    allow: Collection[str] = (),
    watch: Watch | None = None,
) -> Vm:
    """Starts an image with its console captured. `accel` None: what its config says."""
    from dataclasses import replace

    from imgvm.vmm import engine

    opened = open_image(path, overrides, allow=allow)
    try:
        if accel is not None:
            hardware = replace(opened.machine.hardware, accel=accel)
            opened = replace(opened, machine=replace(opened.machine, hardware=hardware))
        vm = build(opened, engine.choose(opened.machine.hardware.accel).engine, watch)
    except BaseException:
        opened.image.close()
        raise
    try:
        vm.capture_console()
        vm.start()
    except BaseException:
        vm.close()
        raise
    return vm
