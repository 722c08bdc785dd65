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
    from imgvm import kept
    from imgvm.launch import parse_grants

    try:
        wanted = units.parse_size(size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with kept.opened(image, parse_grants(allow), writable=True) as found:
        now = found.first.info.disk_bytes
        if wanted < now and not shrink:
            has = units.format_size(now)
            raise UsageError(f"{image} has a disk of {has}", "--shrink cuts it, with what is behind")
        found.first.resize(wanted)
    return 0
