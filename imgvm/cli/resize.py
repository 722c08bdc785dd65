# SPDX-License-Identifier: MIT
"""`imgvm resize`: another size of an image's disk."""

from __future__ import annotations

from typing import Annotated

import typer

from imgvm import units
from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import UsageError


def command(
    image: ImageFile,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="As in 8GiB.")],
    shrink: Annotated[bool, typer.Option("--shrink", help="Lose what lies behind the new end.")] = False,
    allow: Allow = None,
) -> int:
    """Make an image's disk larger, or with --shrink smaller; partitions and file systems are yours to fit."""
    from imgvm.launch import open_disk, parse_grants

    try:
        wanted = units.parse_size(size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with open_disk(image, writable=True, allow=parse_grants(allow)) as opened:
        now = opened.info.disk_bytes
        if wanted < now and not shrink:
            has = units.format_size(now)
            raise UsageError(f"{image} has a disk of {has}", "--shrink cuts it, with what is behind")
        opened.resize(wanted)
    return 0
