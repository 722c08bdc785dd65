# SPDX-License-Identifier: MIT
"""Finds a kernel's modules and the order to load them in, from the modules themselves.

Each .ko names what it needs in its `.modinfo` section (`depends=`, `softdep=pre: ...`), so that
no depmod is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgvm.errors import PackError
from imgvm.pack import elf
from imgvm.pack.decompress import DecompressError, decompress

_MAX_MODULE_BYTES = 256 << 20
_MAX_CHAIN = 100  # kernels have a dozen
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")

# What the machine's own devices need: virtio over PCI, then the devices on it.
DEVICE_MODULES = ("virtio_pci", "virtio_blk")
ENTROPY_MODULES = ("virtio_rng",)
# What reads the seed of cloud-init, by its kind.
SEED_MODULES = {"iso": ("isofs",), "vfat": ("vfat", "nls_cp437", "nls_ascii")}
# Nothing waits for the power button, and checking a module's signature takes the guest a while.
LATE_MODULES = ("button", "evdev")


@dataclass(frozen=True)
class Module:
    """A module, unpacked. `name` is the kernel's (with underscores)."""

    name: str
    data: bytes


class ModuleTree:
    """`lib/modules/<version>`: which modules there are, by name, and which are built into the kernel."""

    def __init__(self, version: str, where: str, files: Mapping[str, Callable[[], bytes]]) -> None:
        """`files`: how to read each file, by its path in the folder; `where` that is, for messages."""
        self.version = version
        self.where = where
        self._files: dict[str, tuple[str, Callable[[], bytes]]] = {}
        for path in sorted(files):
            name = path.rpartition("/")[2]
            if name.endswith(_SUFFIXES):
                self._files.setdefault(module_name(name), (path, files[path]))
        self._builtin = _builtin(files.get("modules.builtin"))

    @classmethod
    def of_folder(cls, folder: Path) -> ModuleTree:
        paths = [*folder.rglob("*.ko*"), folder / "modules.builtin"]
        files = {path.relative_to(folder).as_posix(): path.read_bytes for path in paths}
        return cls(folder.name, str(folder), files)

    def in_load_order(self, wanted: Iterable[str], optional: Iterable[str] = ()) -> list[Module]:
        """The wanted modules and all they need, each after what it needs. `optional` ones may be absent."""
        order: dict[str, Module] = {}
        required = tuple(wanted)
        for name in (*required, *optional):
            self._visit(_canonical(name), order, (), required=name in required)
        return list(order.values())

    def _visit(self, name: str, order: dict[str, Module], above: Sequence[str], *, required: bool) -> None:
        if name in order or name in self._builtin or name in above:
            return
        found = self._files.get(name)
        if found is None:
            if required:
                needed = f", which {above[-1]} needs" if above else ""
                raise PackError(
                    f"the kernel {self.version} has no module {name}{needed}",
                    hint=f"its modules are those of {self.where}",
                )
            return
        if len(above) >= _MAX_CHAIN:
            raise PackError(f"the module {above[0]} needs one that needs one, and so on {len(above)} times")
        path = f"{self.where}/{found[0]}"
        data = read_module(path, found[1])
        depends, before = dependencies(data, path)
        for other in depends:
            self._visit(other, order, (*above, name), required=True)
        for other in before:
            self._visit(other, order, (*above, name), required=False)
        order[name] = Module(name, data)


def module_name(filename: str) -> str:
    """`virtio-rng.ko.xz` is the module virtio_rng."""
    return _canonical(filename.partition(".ko")[0])


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _builtin(read: Callable[[], bytes] | None) -> frozenset[str]:
    try:
        lines = read().decode("utf-8", "replace").splitlines() if read is not None else []
    except OSError:
        return frozenset()
    return frozenset(module_name(line.rpartition("/")[2]) for line in lines)


def read_module(path: str, read: Callable[[], bytes]) -> bytes:
    """A module's ELF file; .xz, .zst and .gz are unpacked."""
    try:
        data = read()
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}", errno=error.errno or 0) from error
    if path.endswith(".ko"):
        return data
    try:
        return decompress(data, _MAX_MODULE_BYTES)[0]
    except DecompressError as error:
        raise PackError(f"{path}: {error}") from error


def dependencies(data: bytes, path: str) -> tuple[list[str], list[str]]:
    """What must be loaded before a module, and what had better be."""
    try:
        info = elf.section(data, ".modinfo")
    except elf.ElfError as error:
        raise PackError(f"{path} is not a kernel module: {error}") from error
    if info is None:
        raise PackError(f"{path} is not a kernel module: it has no .modinfo section")
    depends: list[str] = []
    before: list[str] = []
    for entry in info.split(b"\0"):
        key, _, value = entry.decode("ascii", "replace").partition("=")
        if key == "depends":
            depends += [_canonical(name) for name in value.split(",") if name]
        elif key == "softdep":
            before += _soft_before(value)
    return depends, before


def _soft_before(text: str) -> list[str]:
    """The names after `pre:` in `pre: a b post: c`."""
    found: list[str] = []
    section = ""
    for word in text.split():
        if word in ("pre:", "post:"):
            section = word
        elif section == "pre:":
            found.append(_canonical(word))
    return found


def find_tree(kernel: Path, version: str | None, root: Path = Path("/")) -> ModuleTree | None:
    """The modules of a kernel file: those beside it in an unpacked tree, else those of this host."""
    if version is None:
        return None
    near = kernel.resolve().parent.parent
    for base in (near / "lib/modules", near / "usr/lib/modules", root / "lib/modules"):
        folder = base / version
        if folder.is_dir():
            return ModuleTree.of_folder(folder)
    return None
