# SPDX-License-Identifier: MIT
"""`imgvm pack`: a config becomes one image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Profiles, Sets, Vars, refuse_image
from imgvm.errors import PackError
from imgvm.log import log


def command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or a folder that `imgvm unpack` made.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The image; by default NAME.img.")
    ] = None,
    sets: Sets = None,
    vars: Vars = None,
    profiles: Profiles = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the image when there is one.")] = False,
) -> int:
    """Pack a config into an image. Prints the image's name."""
    from imgvm.config import Config

    if config.is_dir():
        from imgvm.exchange import folder

        if folder.is_unpacked(config):
            target = output or Path(f"{folder.name_of(config)}.img")
            print(folder.assemble(config, target, sets=sets or (), force=force))
            return 0
    refuse_image(config)
    loaded = Config.load(config, sets or (), variables=vars or (), profiles=profiles or ())
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
