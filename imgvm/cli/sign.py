# SPDX-License-Identifier: MIT
"""`imgvm sign`: a signature into an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile
from imgvm.log import log


def command(
    image: ImageFile,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="A private Ed25519 key, as PEM.")],
    disk: Annotated[bool, typer.Option("--disk", help="Sign what the disk holds now, too.")] = False,
    allow: Allow = None,
) -> int:
    """Sign an image's config, kernel and all else that it carries; `imgvm verify --key` checks it."""
    from imgvm import launch
    from imgvm.exchange.sign import sign

    sign(image, key, disk=disk, allow=launch.parse_grants(allow))
    log.info(f"{image} is signed{'' if disk else ', without its disk'}")
    return 0
