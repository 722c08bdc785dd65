# SPDX-License-Identifier: MIT
"""`imgvm pack`: a config becomes one image."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgvm.cli.options import Profiles, Sets, Vars, refuse_image
from imgvm.errors import PackError, UsageError
from imgvm.log import log

if TYPE_CHECKING:
    from imgvm.pack.sources import Source


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
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Take only what the lock names; anything else is an error.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing; use the cache.")] = False,
    lock: Annotated[
        Path | None,
        typer.Option("--lock", metavar="FILE", help="The lock; by default CONFIG.lock.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the image when there is one.")] = False,
) -> int:
    """Pack a config into an image. Prints the image's name.

    What was read and fetched for it is written to the lock, by digest.
    """
    from imgvm.config import Config

    if config.is_dir():
        from imgvm.exchange import folder

        if folder.is_unpacked(config):
            if frozen or lock is not None:
                raise UsageError(f"{config} was unpacked from an image: what it is made of is all there")
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

    from imgvm.pack import lock as locks
    from imgvm.pack import pack

    lock_path = lock or locks.path_of(config)
    result = pack(loaded, target, force=force, frozen=lock_path if frozen else None, offline=offline)
    if not frozen and (lock is not None or (config.is_file() and not _is_of_the_kernel(config))):
        _write_lock(lock_path, result.sources, asked=lock is not None)
    print(target)
    return 0


def _write_lock(path: Path, rows: Sequence[Source], *, asked: bool) -> None:
    """Beside the config, where there may be no place."""
    from imgvm.pack import lock

    try:
        if lock.write(path, rows):
            log.verbose(f"wrote {path}")
    except OSError as error:
        if asked:
            raise
        log.info(f"no lock is written: {path}: {error.strerror}")


def _is_of_the_kernel(config: Path) -> bool:
    """Names such as /dev/stdin and /dev/fd/63, beside which nothing belongs."""
    return config.absolute().parts[:2] in (("/", "dev"), ("/", "proc"))
