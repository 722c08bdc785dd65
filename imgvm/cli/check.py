# SPDX-License-Identifier: MIT
"""`imgvm check`: the consistency of an image's tables."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import STATUS_FINDINGS


class Repair(StrEnum):
    LEAKS = "leaks"
    ALL = "all"


def command(
    image: ImageFile,
    repair: Annotated[
        Repair | None,
        typer.Option("--repair", help="leaks: give lost space back; all: also cut what leads nowhere."),
    ] = None,
    allow: Allow = None,
) -> int:
    """Check an image's reference counts and tables; status 1 when something is wrong."""
    from imgvm.launch import open_disk, parse_grants

    with open_disk(image, repair=repair is not None, allow=parse_grants(allow)) as opened:
        found = opened.check()
        if repair is not None and not found.clean:
            print(f"{image}: found {found.corruptions} corruptions, {found.leaks} leaked clusters")
            opened.repair(everything=repair is Repair.ALL)
            found = opened.check()
    if found.clean:
        print(f"{image}: clean")
        return 0
    print(f"{image}: {found.corruptions} corruptions, {found.leaks} leaked clusters")
    return STATUS_FINDINGS
