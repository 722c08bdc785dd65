# SPDX-License-Identifier: MIT
"""Arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a key, as in machine.memory=1GiB. Repeatable."),
]
Allow = Annotated[
    str | None,
    typer.Option("--allow", metavar="LIST", help="What an image may use of this host, as backing."),
]
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image that `imgvm pack` wrote.")]
