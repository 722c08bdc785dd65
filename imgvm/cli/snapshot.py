# SPDX-License-Identifier: MIT
"""`imgvm snapshot`: the snapshots inside an image."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from imgvm import units
from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import UsageError
from imgvm.log import one_line


class Action(StrEnum):
    LIST = "list"
    CREATE = "create"
    APPLY = "apply"
    DELETE = "delete"


def command(
    action: Annotated[Action, typer.Argument(metavar="list|create|apply|delete")],
    image: ImageFile,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Or its id.")] = None,
    allow: Allow = None,
) -> int:
    """List an image's snapshots, keep its disks as one, go back to one, or delete one."""
    from imgvm.launch import open_disk, parse_grants
    from imgvm.qcow2 import snapshots

    if (name is None) != (action is Action.LIST):
        raise UsageError(f"snapshot {action}: " + ("takes no name" if name else "which one?"))
    with open_disk(image, writable=action is not Action.LIST, allow=parse_grants(allow)) as opened:
        if name is None:
            for row in opened.snapshots():
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.date))
                state = units.format_size(row.vm_state_bytes) if row.vm_state_bytes else "-"
                print(f"{one_line(row.id)}\t{when}\t{units.format_size(row.disk_bytes)}\t{state}\t{one_line(row.name)}")
        elif action is Action.CREATE:
            snapshots.create(opened, name, date=time.time())
        elif action is Action.APPLY:
            snapshots.apply(opened, name)
        else:
            snapshots.delete(opened, name)
    return 0
