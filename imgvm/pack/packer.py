# SPDX-License-Identifier: MIT
"""Joins a config and all it names into one image, atomically: a whole image, or what was there before."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

import platformdirs

from imgvm import units
from imgvm.config import Config, resolved_text
from imgvm.errors import ImageError, PackError
from imgvm.machine import Boot, Machine
from imgvm.pack import cpio, disk, initramfs, rootfs, sources
from imgvm.pack import kernel as kernels
from imgvm.pack.deb import DebCache
from imgvm.pack.modules import DEVICE_MODULES, ENTROPY_MODULES, LATE_MODULES, ModuleTree, find_tree
from imgvm.pack.output import Replacement, check_output, full, host_error, sync
from imgvm.pack.progress import Progress, choose
from imgvm.pack.rootfs import Root
from imgvm.pack.sources import Source
from imgvm.qcow2 import Image

CONFIG, MACHINE, KERNEL, INITRD, LOCK = "config.yaml", "machine.json", "kernel", "initrd", "lock.json"
BUNDLED_KERNEL = "hello.elf"
_LOCK_VERSION = 1
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
    protocol: str
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
    initrd: bytes | None = None  # that came with it


class Packer:
    """One packing of one config. `cache` keeps what is fetched."""

    def __init__(
        self, config: Config, progress: Progress | None = None, cache: DebCache | None = None
    ) -> None:
        self._config = config
        self._machine = config.machine
        self._folder = config.folder
        self._progress = progress or Progress()
        self._cache = cache or DebCache(platformdirs.user_cache_path("imgvm"), self._progress)
        self._sources: list[Source] = []
        self._root: Root | None = None
        self._mtime_sec = source_date_epoch()

    def write(self, output: Path, *, force: bool) -> PackResult:
        check_output(output, force=force)
        with ExitStack() as stack:
            self._root = self._load_root(stack)
            blobs, parts = self._blobs()
            plan = self._plan_disk(stack)
            cluster_bytes = self._machine.image.cluster_bytes
            with Replacement(output) as temporary:
                with Image.create(temporary, plan.size_bytes, cluster_bytes=cluster_bytes) as image:
                    self._sources += plan.write(image, cluster_bytes, self._progress)
                    blobs[LOCK] = self._lock()
                    self._progress.step(f"writing {output.name}")
                    image.set_config(blobs, date=self._mtime_sec)
                sync(temporary)
        return PackResult(
            path=output,
            disk_bytes=plan.size_bytes,
            file_bytes=output.stat().st_size,
            protocol=parts.kernel.protocol,
            form=parts.kernel.form,
            kernel_version=parts.kernel.version,
            sources=tuple(self._sources),
            blobs={name: len(data) for name, data in blobs.items()},
        )

    def _load_root(self, stack: ExitStack) -> Root | None:
        if self._machine.rootfs is None:
            return None
        epoch_sec = self._mtime_sec if "SOURCE_DATE_EPOCH" in os.environ else None
        return rootfs.load(
            self._machine.rootfs, self._folder, self._cache.folder, self._progress, stack, epoch_sec
        )

    def _plan_disk(self, stack: ExitStack) -> disk.Plan:
        if len(self._machine.attached) > 1:
            raise PackError("disks: this version of imgvm packs one disk, the image's own")
        if self._root is not None and self._machine.rootfs is not None and self._machine.rootfs.is_disk:
            return rootfs.RootDisk(self._machine, self._root, self._mtime_sec, stack)
        source = None
        if self._machine.disks and self._machine.disks[0].source is not None:
            source = stack.enter_context(closing(disk.open_source(self._machine.disks[0], self._folder)))
        return disk.CopiedDisk(self._machine, source)

    def _blobs(self) -> tuple[dict[str, bytes], _KernelParts]:
        """Everything but the disk. No file is written before all of it is there."""
        boot = self._machine.boot
        if boot is None:
            raise PackError("boot: the config names nothing to boot", hint="give it a boot.kernel")
        parts = self._kernel(boot)
        self._sources.append(parts.source)
        machine = replace(self._machine, boot=replace(boot, protocol=parts.kernel.protocol))
        blobs = {
            CONFIG: self._config.text.encode(),
            MACHINE: resolved_text(machine).encode(),
            KERNEL: parts.kernel.data,
        }
        initrd = self._initrd(boot, parts)
        if initrd is not None:
            blobs[INITRD] = initrd
        if parts.kernel.protocol == kernels.MULTIBOOT:
            for index, words in enumerate(boot.modules):
                path = words.split(None, 1)[0]
                data = sources.read(f"boot.modules[{index}]", path, self._folder)
                self._sources.append(Source.of(f"boot.modules[{index}]", path, data))
                blobs[module_blob(index)] = data
        _check_memory(self._machine, blobs)
        return blobs, parts

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
        deb = self._cache.kernel(wish.distro, wish.package)
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
        source = Source("boot.kernel", origin, deb.sha256, deb.size_bytes, deb.uri)
        return _KernelParts(kernel, ModuleTree.of_folder(trees[0]) if trees else None, source, wish.distro)

    def _kernel_of_root(self, boot: Boot) -> _KernelParts:
        assert self._root is not None
        path, data, initrd = self._root.kernel()
        self._progress.step(f"unpacking the kernel {path}")
        kernel = kernels.load(data, f"boot.kernel: {path} of the rootfs", boot.protocol)
        source = Source.of("boot.kernel", f"rootfs {path}", data)
        return _KernelParts(kernel, self._modules_of_root(kernel.version), source, initrd=initrd)

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

    def _automatic_initrd(self, boot: Boot, parts: _KernelParts) -> bytes:
        root = self._machine.rootfs
        ours = self._machine.exec or boot.files or boot.modules or (root is not None and not root.is_disk)
        if parts.initrd is not None and not ours:
            data = initramfs.unpacked(parts.initrd, "that of the rootfs")
            self._sources.append(Source.of("boot.initrd", "rootfs", parts.initrd))
            return data
        self._progress.step("building the initrd")
        busybox, source = initramfs.find_busybox(self._cache, parts.distro)
        self._sources.append(source)
        entropy = ENTROPY_MODULES if self._machine.hardware.entropy else ()
        wanted = [*DEVICE_MODULES, *entropy, *LATE_MODULES]
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

    def _lock(self) -> bytes:
        rows = [{key: value for key, value in asdict(row).items() if value} for row in self._sources]
        text = json.dumps({"lock": _LOCK_VERSION, "sources": rows}, indent=1, ensure_ascii=False)
        return f"{text}\n".encode()


def pack(
    config: Config,
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    cache: DebCache | None = None,
) -> PackResult:
    """Packs `config` into the image `output`, which must not exist unless `force`.

    Without a `progress`, a bar is shown when stderr is a terminal, else nothing. Raises PackError and
    ImageError, and then leaves nothing behind.
    """
    shown = progress or choose()
    try:
        return Packer(config, shown, cache).write(Path(output), force=force)
    except OSError as error:
        raise host_error(error, output) from error
    except ImageError as error:
        if error.errno == errno.ENOSPC:
            raise full(output) from error
        raise
    finally:
        shown.finish()


def source_date_epoch() -> int:
    """SOURCE_DATE_EPOCH in seconds, else 0: what the image says of time depends on nothing else."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
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
    needed = sum(len(data) for name, data in blobs.items() if name not in (CONFIG, MACHINE))
    if machine.boot is not None and not machine.boot.kernel.bundled and INITRD in blobs:
        needed += len(blobs[INITRD]) + _SLACK_BYTES  # the kernel unpacks the initrd beside itself
    if needed > machine.hardware.memory_bytes:
        raise PackError(
            f"machine.memory: {units.format_size(machine.hardware.memory_bytes)} cannot hold the kernel "
            f"and its initrd ({needed >> 20} MiB with what they unpack)",
            hint=f"give at least {-(-needed // (64 * units.MIB)) * 64}MiB",
        )
