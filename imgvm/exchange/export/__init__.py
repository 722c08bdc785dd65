# SPDX-License-Identifier: MIT
"""An image as what other programs run: a folder with its parts in their formats.

    export("ci.img", "libvirt", "ci-libvirt")

Each target is a module with `write(parts)`, which puts its files into `parts.folder` and notes what the other
program cannot do. The image itself is not changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from importlib import import_module
from pathlib import Path

from imgvm import kept, launch
from imgvm.errors import PackError, UsageError
from imgvm.exchange.export.parts import Parts
from imgvm.machine import Smbios
from imgvm.pack.output import host_error

# Those whose disks keep what is written to them in any case.
_KEEPS_ALL = ("firecracker", "ova", "vagrant")
_SAYS_SMBIOS = ("qemu", "libvirt", "k8s-job")
# Target -> its module, and what is said of it.
TARGETS = {
    "qemu": ("qemu", "a script with QEMU's command line"),
    "libvirt": ("libvirt", "a domain for `virsh define`"),
    "firecracker": ("firecracker", "a file for `firecracker --config-file`"),
    "ova": ("ova", "an appliance for VirtualBox and VMware"),
    "vagrant": ("vagrant", "a box for Vagrant's libvirt provider"),
    "kubevirt": ("kubernetes", "a VirtualMachine and its container image"),
    "k8s-job": ("kubernetes", "a Kubernetes Job that runs imgvm"),
}


def export(
    path: str | Path, target: str, folder: str | Path, *, ref: str | None = None, allow: Collection[str] = ()
) -> Parts:
    """Writes the files of `target` into a folder that is new or empty. `ref` names the container image."""
    if target not in TARGETS:
        raise UsageError(f"--to {target}: there is no such target", "targets: " + ", ".join(TARGETS))
    output = Path(folder)
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise PackError(f"{folder} exists and is not empty", "name another with -o")
    opened = launch.open_image(path, writable=False, allow=allow)
    try:
        kept.tell_of_overlay(path, opened.image)
        with opened.image, tempfile.TemporaryDirectory(
            prefix=f".{output.name}.", dir=output.resolve().parent, ignore_cleanup_errors=True
        ) as temporary:
            inside = Path(temporary) / "export"
            inside.mkdir()
            parts = Parts(opened, inside, output.resolve(), ref or f"{opened.machine.name}:latest")
            if target in _KEEPS_ALL:
                for disk in opened.machine.attached:
                    if not disk.read_only and not disk.is_kept:
                        parts.note(f"what is written to the disk {disk.name} stays there")
            says = opened.machine.smbios != Smbios() or bool(opened.machine.hardware.uuid)
            if says and target not in _SAYS_SMBIOS:
                parts.note("what SMBIOS is to say is not taken along")
            import_module(f"imgvm.exchange.export.{TARGETS[target][0]}").write(parts, target)
            inside.rename(output)
    except OSError as error:
        raise host_error(error, folder) from error
    return parts
