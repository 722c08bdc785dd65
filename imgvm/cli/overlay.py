# SPDX-License-Identifier: MIT
"""`imgvm overlay`: images that keep only what differs from another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile
from imgvm.log import log

group = typer.Typer(
    help="Images that keep only what differs from another.", rich_markup_mode=None, no_args_is_help=True
)


@group.callback()
def _group() -> None:
    pass  # a group stays one with a single command


@group.command("create")
def create(
    base: ImageFile,
    overlay: Annotated[Path, typer.Argument(metavar="OVERLAY", help="The new image.")],
    allow: Allow = None,
) -> int:
    """Make an overlay of an image, which must not change from then on. Prints the overlay's name."""
    from imgvm import launch
    from imgvm.qcow2 import overlay as overlays

    with launch.open_disk(base, allow=launch.parse_grants(allow)) as image:
        if not image.has_config:
            log.info(f"{base} has no config: the overlay runs when it gets one")
    overlays.create(base, overlay)
    print(overlay)
    if not base.resolve().is_relative_to(overlay.resolve().parent):
        log.info(f"{base} is not in the folder of {overlay}: running it needs --allow backing")
    return 0
