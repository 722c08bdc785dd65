# SPDX-License-Identifier: MIT
"""Joins a config and all it names into one image, atomically: a whole image, or what was there before."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import platformdirs

from imgvm import units
from imgvm.config import Config, composed, resolved_text
from imgvm.errors import ImageError, PackError
from imgvm.machine import Boot, Machine
from imgvm.pack import bios_boot, cpio, disk, from_oci, initramfs, lock, plan, rootfs, sources
from imgvm.pack import kernel as kernels
from imgvm.pack.deb import DebCache
from imgvm.pack.grub import NO_LOADER
from imgvm.pack.modules import (
    DEVICE_MODULES,
    ENTROPY_MODULES,
    LATE_MODULES,
    SEED_MODULES,
    ModuleTree,
    find_tree,
)
from imgvm.pack.output import Replacement, check_output, full, host_error
from imgvm.pack.progress import Progress, choose
from imgvm.pack.rootfs import Root, RootKernel
from imgvm.pack.sources import Source
from imgvm.pack.tree import FileTree
from imgvm.qcow2 import Image, snapshots
from imgvm.vmm import firmware

CONFIG, MACHINE, KERNEL, INITRD, LOCK = "config.yaml", "machine.json", "kernel", "initrd", "lock.json"
COMPOSED, FIRMWARE = "composed.json", "firmware"
BUNDLED_KERNEL = "hello.elf"
BIOS = "bios"
_SLACK_BYTES = 16 * units.MIB  # page tables, boot parameters and a first few allocations of the kernel


def module_blob(index: int) -> str:
    """The blob that holds the Multiboot module of `boot.modules[index]`."""
    return f"module-{index}"


@dataclass(frozen=True)
class PackResult:
    """What was packed. `form` is how the kernel came, such as `bzImage (lz4)`."""

    path: Path
    disk_bytes: int
    file_bytes: int
    protocol: str  # linux, multiboot; bios: no kernel
    form: str
    kernel_version: str | None
    sources: tuple[Source, ...]
    blobs: Mapping[str, int]  # name to size in bytes


@dataclass(frozen=True)
class _KernelParts:
    kernel: kernels.Kernel
    modules: ModuleTree | None  # of a Linux kernel, where they were found
    source: Source
    distro: str | None = None
    in_root: RootKernel | None = None  # where it is one of the rootfs


class Packer:
    """One packing of one config. `cache` keeps what is fetched."""

    def __init__(
        self,
        config: Config,
        progress: Progress | None = None,
        cache: DebCache | None = None,
        frozen: Path | None = None,
    ) -> None:
        self._config = config
        self._machine = config.machine
        self._folder = config.folder
        self._progress = progress or Progress()
        self._cache = cache or default_cache(self._progress)
        self._sources = [
            Source.of("include", part.origin, part.text.encode()) for part in config.includes
        ]
        self._lock_path = frozen
        self._locked = lock.read(frozen) if frozen is not None else ()
        self._root: Root | None = None
        self._loader = NO_LOADER
        self._epoch_sec = source_date_epoch(config.machine)
        self._mtime_sec = self._epoch_sec or 0

    def write(self, output: Path, *, force: bool) -> PackResult:
        check_output(output, force=force)
        self._machine = plan.settled(self._machine, self._folder, output)
        with _no_collections(), ExitStack() as stack:
            self._root = self._load_root(stack)
            blobs, parts = self._blobs()
            own, further = plan.disks(
                self._machine, self._root, self._loader, self._folder, self._mtime_sec, stack
            )
            with (
                Replacement(output) as temporary,
                disk.create_image(temporary, own.size_bytes, self._machine.image) as image,
            ):
                self._fill_disks(image, own, further)
                if self._machine.image.pristine:
                    snapshots.create(image, snapshots.PRISTINE, date=self._mtime_sec)
                if self._lock_path is not None:
                    lock.check(self._lock_path, self._locked, self._sources)
                blobs[LOCK] = lock.text_of(self._sources).encode()
                self._progress.step(f"writing {output.name}")
                image.set_config(blobs, date=self._mtime_sec)
        return PackResult(
            path=output,
            disk_bytes=own.size_bytes,
            file_bytes=output.stat().st_size,
            protocol=parts.kernel.protocol if parts else BIOS,
            form=parts.kernel.form if parts else self._machine.hardware.firmware.path or "built-in",
            kernel_version=parts.kernel.version if parts else None,
            sources=tuple(self._sources),
            blobs={name: len(data) for name, data in blobs.items()},
        )

    def _pin(self, part: str, asked: str) -> Source | None:
        """What the lock has for what a part asks for, where that may have become something else since."""
        return next((row for row in self._locked if (row.part, row.asked) == (part, asked)), None)

    def _locked_pin(self, part: str, asked: str) -> Source | None:
        """The same of a part that a lock, if there is one, must know."""
        pin = self._pin(part, asked)
        if self._lock_path is not None and pin is None:
            hint = "pack without --frozen, which adds it"
            raise PackError(f"--frozen: {part}: {asked} is not in {self._lock_path}", hint)
        return pin

    def _load_root(self, stack: ExitStack) -> Root | None:
        if self._machine.rootfs is None:
            return None
        epoch_sec = self._epoch_sec

        def fetch(name: str) -> tuple[FileTree, Source]:
            cache, pin = self._cache, self._locked_pin(from_oci.PART, name)
            return from_oci.fetch(
                name, cache.folder, self._progress, stack, epoch_sec, pin=pin, offline=cache.offline
            )

        return rootfs.load(self._machine.rootfs, self._folder, fetch, self._progress, stack, epoch_sec)

    def _fill_disks(self, image: Image, own: disk.Plan, further: Mapping[str, disk.Plan]) -> None:
        for name, planned in further.items():
            image.add_disk(name, planned.size_bytes, date=self._mtime_sec)
        self._sources += own.write(disk.target(image, self._machine.image), self._progress)
        for name, planned in further.items():
            with image.open_disk(name) as further_disk:
                row = disk.target(further_disk, self._machine.image)
                self._sources += planned.write(row, self._progress)

    def _blobs(self) -> tuple[dict[str, bytes], _KernelParts | None]:
        """Everything but the disk. No file is written before all of it is there."""
        boot = self._machine.boot
        parts = self._kernel(boot) if boot is not None else None
        machine = self._machine
        if boot is not None and parts is not None:
            if boot.kernel.sha256 not in (None, parts.source.sha256):
                message = f"boot.kernel.sha256: {parts.source.origin} has SHA-256 {parts.source.sha256}"
                raise PackError(message, hint="is it the right one?")
            machine = replace(machine, boot=replace(boot, protocol=parts.kernel.protocol))
        blobs = {CONFIG: self._config.text.encode(), MACHINE: resolved_text(machine).encode()}
        written = composed.text_of(self._config)
        if written is not None:
            blobs[COMPOSED] = written.encode()
        if machine.hardware.firmware.path is not None:
            blobs[FIRMWARE] = self._firmware(machine.hardware.firmware.path)
        if boot is None or parts is None:
            return blobs, None
        self._sources.append(parts.source)
        if boot.kernel.sha256 not in (None, parts.source.sha256):
            message = f"boot.kernel.sha256: {parts.source.origin} has SHA-256 {parts.source.sha256}"
            raise PackError(message, hint="is it the right one?")
        blobs[KERNEL] = parts.kernel.data
        initrd = self._initrd(boot, parts)
        if initrd is not None:
            blobs[INITRD] = initrd
        if machine.rootfs is not None and machine.rootfs.bootloader != "none":
            self._install_bootloader(machine, parts, initrd)
        if parts.kernel.protocol == kernels.MULTIBOOT:
            for index, words in enumerate(boot.modules):
                path = words.split(None, 1)[0]
                data = sources.read(f"boot.modules[{index}]", path, self._folder)
                self._sources.append(Source.of(f"boot.modules[{index}]", path, data))
                blobs[module_blob(index)] = data
        _check_memory(self._machine, blobs)
        return blobs, parts

    def _firmware(self, path: str) -> bytes:
        """One that is not the built-in BIOS."""
        part = "machine.firmware"
        data = sources.read(part, path, self._folder)
        if not data or len(data) > firmware.MAX_BYTES or len(data) % firmware.PAGE_BYTES:
            hint = "a BIOS for PCs has whole pages of 4096 bytes, at most 256KiB"
            raise PackError(f"{part}: {path} is no such thing: it has {len(data)} bytes", hint=hint)
        self._sources.append(Source.of(part, path, data))
        return data

    def _kernel(self, boot: Boot) -> _KernelParts:
        wish = boot.kernel
        if wish.bundled:
            data = _bundled()
            kernel = kernels.load(data, "the bundled guest", kernels.MULTIBOOT)
            return _KernelParts(kernel, None, Source.of("boot.kernel", "bundled", data))
        if wish.path is not None:
            self._progress.step(f"reading {wish.path}")
            data = sources.read("boot.kernel", wish.path, self._folder)
            kernel = kernels.load(data, f"boot.kernel: {wish.path}", boot.protocol)
            tree = find_tree(sources.resolve(self._folder, wish.path), kernel.version)
            tree = tree or self._modules_of_root(kernel.version)
            return _KernelParts(kernel, tree, Source.of("boot.kernel", wish.path, data))
        if wish.from_rootfs:
            return self._kernel_of_root(boot)
        assert wish.distro is not None and wish.package is not None
        asked = f"{wish.distro} {wish.package}"
        pin = self._locked_pin("boot.kernel", asked)
        deb = self._cache.pinned(pin) if pin else self._cache.kernel(wish.distro, wish.package)
        folder = self._cache.unpacked(deb)
        images = sorted(folder.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise PackError(
                f"boot.kernel: the package {deb.name} holds no kernel",
                hint="kernel packages are called linux-image-*, such as linux-image-cloud-amd64",
            )
        self._progress.step(f"unpacking the kernel of {deb.name}")
        kernel = kernels.load(images[0].read_bytes(), f"the kernel of {deb.name}", boot.protocol)
        trees = [path for path in sorted(folder.glob("lib/modules/*")) if path.is_dir()]
        origin = f"{deb.suite} {deb.name} {deb.version}"
        source = Source("boot.kernel", origin, deb.sha256, deb.size_bytes, deb.uri, asked)
        return _KernelParts(kernel, ModuleTree.of_folder(trees[0]) if trees else None, source, wish.distro)

    def _kernel_of_root(self, boot: Boot) -> _KernelParts:
        assert self._root is not None
        found = self._root.kernel()
        self._progress.step(f"unpacking the kernel {found.path}")
        kernel = kernels.load(found.data, f"boot.kernel: {found.path} of the rootfs", boot.protocol)
        source = Source.of("boot.kernel", f"rootfs {found.path}", found.data)
        return _KernelParts(kernel, self._modules_of_root(kernel.version), source, in_root=found)

    def _modules_of_root(self, version: str | None) -> ModuleTree | None:
        files = self._root.module_files(version) if self._root is not None and version is not None else {}
        return ModuleTree(version or "", "the rootfs", files) if files else None

    def _initrd(self, boot: Boot, parts: _KernelParts) -> bytes | None:
        automatic = boot.initrd_is_auto and parts.kernel.protocol == kernels.LINUX
        if self._machine.exec is not None and not automatic:
            raise PackError("exec: a command is run by the automatic initrd only", hint="boot.initrd: auto")
        if boot.files and not automatic:
            raise PackError("boot.files: only the automatic initrd takes files", hint="boot.initrd: auto")
        if automatic:
            return self._automatic_initrd(boot, parts)
        if boot.initrd and parts.kernel.protocol == kernels.LINUX:
            joined, used = initramfs.join(boot.initrd, self._folder)
            self._sources += used
            return joined
        if boot.initrd:
            raise PackError("boot.initrd: Multiboot kernels take boot.modules instead")
        return None

    def _install_bootloader(self, machine: Machine, parts: _KernelParts, initrd: bytes | None) -> None:
        assert machine.boot is not None and machine.rootfs is not None and self._root is not None
        self._progress.step("installing GRUB")
        distro = parts.distro or initramfs.FALLBACK_DISTRO
        pin = self._locked_pin(bios_boot.PART, bios_boot.wish(distro))
        table = machine.rootfs.partition_table
        self._loader, source = bios_boot.fetch(self._cache, distro, table, pin)
        self._sources.append(source)
        found = parts.in_root or RootKernel("", b"")
        if self._initrd_of_root(machine.boot, parts) is None:
            found = replace(found, initrd_path="")
        bios_boot.add_files(self._root.tree, machine, parts.kernel, initrd, found, self._mtime_sec)

    def _initrd_of_root(self, boot: Boot, parts: _KernelParts) -> bytes | None:
        """The initrd beside a kernel of the root, where that is enough."""
        root = self._machine.rootfs
        ours = self._machine.exec or boot.files or boot.modules or (root is not None and not root.is_disk)
        if parts.in_root is None or ours or not boot.initrd_is_auto:
            return None
        return parts.in_root.initrd

    def _automatic_initrd(self, boot: Boot, parts: _KernelParts) -> bytes:
        root = self._machine.rootfs
        theirs = self._initrd_of_root(boot, parts)
        if theirs is not None:
            self._sources.append(Source.of("boot.initrd", "rootfs", theirs))
            return initramfs.unpacked(theirs, "that of the rootfs")
        self._progress.step("building the initrd")
        pin = self._pin("boot.initrd", initramfs.busybox_wish(parts.distro))
        busybox, source = initramfs.find_busybox(self._cache, parts.distro, pin)
        self._sources.append(source)
        entropy = ENTROPY_MODULES if self._machine.hardware.entropy else ()
        seed = SEED_MODULES[self._machine.cloud_init.attach] if self._machine.cloud_init else ()
        made = {wish.filesystem for wish in self._machine.disks} - {"none", "swap"}
        wanted = [*DEVICE_MODULES, *entropy, *seed, *sorted(made), *LATE_MODULES]
        modules = []
        if parts.modules is not None:
            drivers = (root.format,) if root is not None and root.is_disk else ()
            modules = parts.modules.in_load_order([*boot.modules, *drivers], optional=wanted)
        elif boot.modules:
            raise PackError(
                f"boot.modules: the modules of the kernel {parts.kernel.version or ''} are not here",
                hint="they are looked for in ../lib/modules/<version> beside the kernel, and in /lib/modules",
            )
        files, used = initramfs.config_files(boot.files, self._folder)
        self._sources += used
        if root is not None and self._root is not None and not root.is_disk:
            initramfs.complete(
                self._root.tree, busybox, modules, files,
                hostname=self._machine.name, command=self._machine.exec, mtime_sec=self._mtime_sec,
            )  # fmt: skip
            data = cpio.of_tree(self._root.tree, self._root.read)
            self._sources += self._root.sources()
            return data
        return initramfs.build(
            busybox,
            modules,
            files,
            hostname=self._machine.name,
            command=self._machine.exec,
            root=None if root is None else root.format,
            mtime_sec=self._mtime_sec,
        )


@contextmanager
def _no_collections() -> Iterator[None]:
    """The objects of a large tree would be searched for cycles again and again while they become more."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def default_cache(progress: Progress, *, offline: bool = False) -> DebCache:
    return DebCache(platformdirs.user_cache_path("imgvm"), progress, offline=offline)


def pack(
    config: Config,
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    cache: DebCache | None = None,
    frozen: Path | None = None,
    offline: bool = False,
) -> PackResult:
    """Packs `config` into the image `output`, which must not exist unless `force`.

    `frozen` names a lock: an input that is not what it says is an error. `offline`: nothing is fetched.
    Without a `progress`, a bar is shown when stderr is a terminal, else nothing. Raises PackError and
    ImageError, and then leaves nothing behind.
    """
    shown = progress or choose()
    try:
        cache = cache or default_cache(shown, offline=offline)
        return Packer(config, shown, cache, frozen).write(Path(output), force=force)
    except OSError as error:
        raise host_error(error, output) from error
    except ImageError as error:
        if error.errno == errno.ENOSPC:
            raise full(output) from error
        raise
    finally:
        shown.finish()


def source_date_epoch(machine: Machine) -> int | None:
    """SOURCE_DATE_EPOCH, else the config's: what the image says of time depends on nothing else."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return machine.image.source_date_epoch
    if not text.isascii() or not text.isdigit() or int(text) > 0xFFFFFFFF:
        raise PackError(f"SOURCE_DATE_EPOCH is {text!r}, not seconds since 1970")
    return int(text)


def _bundled() -> bytes:
    try:
        return resources.files("imgvm").joinpath("_guest", BUNDLED_KERNEL).read_bytes()
    except OSError as error:
        hint = "run `make build`, or reinstall imgvm"
        raise PackError("the bundled guest has not been built", hint=hint) from error


def _check_memory(machine: Machine, blobs: Mapping[str, bytes]) -> None:
    needed = sum(len(data) for name, data in blobs.items() if name not in (CONFIG, MACHINE, COMPOSED))
    if machine.boot is not None and not machine.boot.kernel.bundled and INITRD in blobs:
        needed += len(blobs[INITRD]) + _SLACK_BYTES  # the kernel unpacks the initrd beside itself
    if needed > machine.hardware.memory_bytes:
        raise PackError(
            f"machine.memory: {units.format_size(machine.hardware.memory_bytes)} cannot hold the kernel "
            f"and its initrd ({needed >> 20} MiB with what they unpack)",
            hint=f"give at least {-(-needed // (64 * units.MIB)) * 64}MiB",
        )
