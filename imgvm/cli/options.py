# SPDX-License-Identifier: MIT
"""Arguments that several verbs share."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from imgvm.errors import UsageError

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a key, as in machine.memory=1GiB. Repeatable."),
]
Vars = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="Give a variable of the config a value. Repeatable."),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option("--profile", metavar="NAME", help="Lay a profile of the config over it. Repeatable."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="LIST", help="What an image may use of this host: backing, disks."),
]
PlainHttp = Annotated[
    bool, typer.Option("--plain-http", help="Talk to the registry without encryption, as to localhost.")
]
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="HOST/NAME:TAG, such as registry.example/team/ci:1.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image that `imgvm pack` wrote.")]


def refuse_image(config: Path) -> None:
    """A config is wanted: an image deserves better than the reader's complaint about its bytes."""
    with contextlib.suppress(OSError):
        if config.is_file() and config.open("rb").read(4) == b"QFI\xfb":
            hint = "`imgvm run` runs it, `imgvm inspect --config` shows what it was packed from"
            raise UsageError(f"{config} is an image, not a config", hint)
