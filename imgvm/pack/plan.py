# SPDX-License-Identifier: MIT
"""Which disks a machine's image is to have, and what goes into each."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from imgvm.machine import SEED_DISK, Disk, Machine
from imgvm.pack import cloud_init
from imgvm.pack.disk import CopiedDisk, MadeDisk, Plan
from imgvm.pack.formatted import FormattedDisk
from imgvm.pack.grub import Loader
from imgvm.pack.rootfs import Root, RootDisk


def settled(machine: Machine, folder: Path, output: Path) -> Machine:
    """Disks outside the image are found from the image's folder, as everything that an image names."""

    def moved(wish: Disk) -> Disk:
        if wish.embed or wish.source is None:
            return wish
        named = Path(wish.source).expanduser()
        if named.is_absolute():
            return replace(wish, source=str(named))
        return replace(wish, source=os.path.relpath((folder / named).resolve(), output.resolve().parent))

    return replace(machine, disks=tuple(map(moved, machine.disks)))


def disks(
    machine: Machine, root: Root | None, loader: Loader, folder: Path, time_sec: int, stack: ExitStack
) -> tuple[Plan, dict[str, Plan]]:
    """The image's own disk, which is there in any case, and by their names the further ones in it."""

    def planned(wish: Disk | None, part: str, least_bytes: int = 0) -> Plan:
        if wish is not None and wish.filesystem != "none":
            sized = replace(wish, size_bytes=max(wish.size_bytes or 0, least_bytes))
            return FormattedDisk(sized, part, machine.name, time_sec)
        return CopiedDisk(wish, part, folder, stack, least_bytes)

    rows = [(f"disks[{index}]", wish) for index, wish in enumerate(machine.disks)]
    own: Plan
    if root is not None and machine.root_on_disk is not None:
        own = RootDisk(machine, root, time_sec, stack, loader)
    else:
        part, first = rows.pop(0) if rows else ("", None)
        own = planned(first, part, machine.image.size_bytes or 0)
    further = {wish.name: planned(wish, part) for part, wish in rows if wish.embed}
    if machine.seed_on_disk is not None:
        further[SEED_DISK.name] = MadeDisk(cloud_init.image(machine.seed_on_disk, machine.name, time_sec))
    return own, further
