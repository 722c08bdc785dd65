# SPDX-License-Identifier: MIT
"""`imgvm pack`: a config becomes one image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Sets, refuse_image
from imgvm.errors import PackError
from imgvm.log import log


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The image; by default NAME.img.")
    ] = None,
    sets: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the image when there is one.")] = False,
) -> int:
    """Pack a config into an image. Prints the image's name."""
    from imgvm.config import Config

    refuse_image(config)
    loaded = Config.load(config, sets or ())
    target = output or Path(f"{loaded.machine.name}.img")
    if dry_run:
        sys.stdout.write(loaded.resolved())
        log.info(f"would write {target}")
        return 0
    if target.exists() and not force:
        raise PackError(f"{target} exists", "--force replaces it, -o names another")

    from imgvm.pack import pack

    pack(loaded, target, force=force)
    print(target)
    return 0
