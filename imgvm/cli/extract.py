# SPDX-License-Identifier: MIT
"""`imgvm extract`: one blob of an image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import ImageError, UsageError
from imgvm.log import printable


def command(
    image: ImageFile,
    blob: Annotated[str, typer.Argument(metavar="BLOB", help="Its name, as `imgvm inspect` lists it.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="By default stdout.")
    ] = None,
    allow: Allow = None,
) -> int:
    """Write a blob, such as kernel or initrd, to a file or stdout."""
    from imgvm import launch

    grants = launch.parse_grants(allow)
    with launch.open_image(image, writable=False, allow=grants).image as opened:
        names = [row.name for row in opened.config_blobs()]
        if blob not in names:
            raise ImageError(f"{image} carries no {blob}", "it carries " + ", ".join(names))
        data = opened.read_config(blob)
    if output is not None:
        output.write_bytes(data)
        return 0
    if os.isatty(1) and not _is_text(data):
        raise UsageError(f"{blob} is binary", "give -o FILE, or send stdout to a file")
    sys.stdout.buffer.write(data)
    return 0


def _is_text(data: bytes) -> bool:
    """Whether a terminal shows it and does nothing else."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return text == printable(text)
