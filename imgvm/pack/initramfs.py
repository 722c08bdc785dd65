# SPDX-License-Identifier: MIT
"""The initrd that pack builds: busybox, the modules of the machine's devices, an init of ours, the config's
files; or the config's own archives, joined. It is left uncompressed, so that the guest need not unpack it.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from imgvm.errors import PackError
from imgvm.machine import Exec, File
from imgvm.pack import cpio, elf, exit_helper, sources
from imgvm.pack.deb import DebCache
from imgvm.pack.decompress import DecompressError, decompress, sniff
from imgvm.pack.modules import LATE_MODULES, Module
from imgvm.pack.sources import Source
from imgvm.pack.tree import FileTree

FALLBACK_DISTRO = "debian:bookworm"
BUSYBOX_PACKAGE = "busybox-static"
# Where a root file system has its first process; the first that is there.
INITS = ("sbin/init", "etc/init", "bin/init")
_NEEDED = ("init", "bin/busybox", "bin/imgvm-exit")  # by the init of ours, whatever the tree has of that name
_CPIO_MAGICS = (b"070701", b"070702")


def build(
    busybox: bytes,
    modules: Sequence[Module] = (),
    files: Sequence[cpio.Entry] = (),
    *,
    hostname: str = "",
    command: Exec | None = None,
    root: str | None = None,
    mtime_sec: int = 0,
) -> bytes:
    """The automatic initrd. `files` may replace any part of it, /init too. `root`: the type of the file
    system that it hands over to."""
    entries = _entries(busybox, modules, hostname, command)
    if root is not None:
        entries.append(cpio.file("etc/imgvm/root", _lines([root])))
    return cpio.archive([*entries, *files], mtime_sec)


def complete(
    tree: FileTree,
    busybox: bytes,
    modules: Sequence[Module] = (),
    files: Sequence[cpio.Entry] = (),
    *,
    hostname: str = "",
    command: Exec | None = None,
    mtime_sec: int = 0,
) -> None:
    """Makes a root file system one that Linux can run out of memory: adds what it lacks of the automatic
    initrd. A command, or a tree without a first process of its own, needs all of that."""
    init = tree.find(b"init", follow=False)
    own = next((path for path in INITS if tree.find(path.encode(), follow=False) is not None), None)
    console = cpio.character_device("dev/console", 5, 1)
    if command is None and (init is not None or own is not None):
        entries = [console, cpio.link("init", f"/{own}")]
        cpio.add_to(tree, entries, mtime_sec, over=False)
    else:
        ours, others = [], []
        for entry in _entries(busybox, modules, hostname, command):
            ours.append(entry) if entry.path in _NEEDED or "/imgvm" in entry.path else others.append(entry)
        cpio.add_to(tree, ours, mtime_sec, over=True)
        cpio.add_to(tree, others, mtime_sec, over=False)
    cpio.add_to(tree, files, mtime_sec, over=True)


def _entries(
    busybox: bytes, modules: Sequence[Module], hostname: str, command: Exec | None
) -> list[cpio.Entry]:
    init = resources.files("imgvm.pack").joinpath("init/init.sh").read_bytes()
    names = [module.name for module in modules]
    entries = [
        cpio.file("init", init, 0o755),
        cpio.character_device("dev/console", 5, 1),  # the kernel opens it for /init, before /dev is mounted
        cpio.folder("root", 0o700),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.link("bin/sh", "busybox"),
        cpio.file("bin/imgvm-exit", exit_helper.program(), 0o755),
        # busybox acpid runs it when the power button is pressed; USR2 asks /init to switch the machine off.
        cpio.file("etc/imgvm/acpi/PWRF/00000080", b"#!/bin/busybox sh\nkill -USR2 1\n", 0o755),
        cpio.file("etc/imgvm/modules", _lines(name for name in names if name not in LATE_MODULES)),
        cpio.file("etc/imgvm/late-modules", _lines(name for name in names if name in LATE_MODULES)),
        cpio.file("etc/hostname", f"{hostname}\n".encode()),
        cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        cpio.file("etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ]
    entries += [cpio.file(f"lib/imgvm/{module.name}.ko", module.data) for module in modules]
    if command is not None:
        entries.append(cpio.file("etc/imgvm/exec", exec_script(command).encode(), 0o755))
    return entries


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def exec_script(command: Exec) -> str:
    """A shell script that becomes the command. Every word is quoted, so none is read by the shell."""
    words = (*command.command, *command.env.values(), command.cwd)
    if any("\0" in word for word in words):
        raise PackError("exec: a command cannot hold a NUL character")
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(command.env.items())]
    return "".join([
        f"cd {shlex.quote(command.cwd)} || exit 125\n",
        *lines,
        f"exec {' '.join(map(shlex.quote, command.command))}\n",
    ])


def config_files(files: Sequence[File], folder: Path) -> tuple[list[cpio.Entry], list[Source]]:
    """The entries of `boot.files`, and what they were read from."""
    entries: list[cpio.Entry] = []
    used: list[Source] = []
    for index, file in enumerate(files):
        part = f"boot.files[{index}]"
        path = file.path.strip("/")
        if file.link is not None:
            entries.append(cpio.link(path, file.link))
        elif file.source is not None:
            data = sources.read(part, file.source, folder)
            own_mode = sources.resolve(folder, file.source).stat().st_mode & 0o7777
            entries.append(cpio.file(path, data, own_mode if file.mode is None else file.mode))
            used.append(Source.of(part, file.source, data))
        else:
            data = (file.content or "").encode()
            entries.append(cpio.file(path, data, 0o644 if file.mode is None else file.mode))
    return entries, used


def join(paths: Sequence[str], folder: Path) -> tuple[bytes, list[Source]]:
    """The config's own archives, one after the other, unpacked where they are compressed as a whole."""
    out = bytearray()
    used: list[Source] = []
    for path in paths:
        data = sources.read("boot.initrd", path, folder)
        used.append(Source.of("boot.initrd", path, data))
        out += unpacked(data, path)
        out += bytes(-len(out) % 4)  # the kernel looks for the next archive on a 4-byte boundary
    return bytes(out), used


def unpacked(data: bytes, path: str) -> bytes:
    """An initrd as the kernel reads it without unpacking. Several parts in one file are left as they are."""
    if data.startswith(_CPIO_MAGICS):
        return data
    if sniff(data) is None:
        raise PackError(
            f"boot.initrd: {path} is not an initramfs",
            hint="a cpio archive in the newc format, compressed or not",
        )
    try:
        content, rest = decompress(data)
    except DecompressError as error:
        if sniff(data) == "lzo":
            return data  # kernels can
        raise PackError(f"boot.initrd: {path}: {error}") from error
    if not content.startswith(_CPIO_MAGICS):
        raise PackError(f"boot.initrd: {path} holds no cpio archive", hint="pack it with cpio -o -H newc")
    return data if rest.strip(b"\0") else content


def busybox_wish(distro: str | None) -> str:
    return f"{distro or FALLBACK_DISTRO} {BUSYBOX_PACKAGE}"


def find_busybox(cache: DebCache, distro: str | None, pin: Source | None = None) -> tuple[bytes, Source]:
    """Debian's, where the kernel is Debian's too: the same on every host. Else the host's when it is static.
    `pin` names the very package."""
    is_ours = pin is None and distro is None
    found = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin") if is_ours else None
    if found is not None:
        try:
            data = Path(found).read_bytes()
            if elf.is_static(data):
                return data, Source.of("boot.initrd", "busybox of the host", data)
        except (OSError, elf.ElfError):
            pass  # Debian's will do
    deb = cache.pinned(pin) if pin else cache.get(distro or FALLBACK_DISTRO, BUSYBOX_PACKAGE)
    data = (cache.unpacked(deb) / "bin/busybox").read_bytes()
    origin = f"{deb.suite} {deb.name} {deb.version}"
    asked = busybox_wish(distro)
    return data, Source("boot.initrd", origin, deb.sha256, deb.size_bytes, deb.uri, asked)
