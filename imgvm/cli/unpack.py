# SPDX-License-Identifier: MIT
"""`imgvm unpack`: an image as a folder of plain files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile


def command(
    image: ImageFile,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    allow: Allow = None,
) -> int:
    """Write config, kernel, initrd and disk into a folder. `imgvm pack DIR` makes the image of it again."""
    from imgvm import launch
    from imgvm.exchange.folder import unpack

    for name in unpack(image, folder, launch.parse_grants(allow)):
        print(folder / name)
    return 0
