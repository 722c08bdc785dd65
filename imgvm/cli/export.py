# SPDX-License-Identifier: MIT
"""`imgvm export`: an image for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile
from imgvm.log import log


def command(
    image: ImageFile,
    target: Annotated[
        str,
        typer.Option(
            "--to", metavar="TARGET", help="qemu, libvirt, firecracker, ova, vagrant, kubevirt or k8s-job."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="A new folder; by default NAME-TARGET."),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option("--ref", metavar="REF", help="The container image that Kubernetes is to run."),
    ] = None,
    allow: Allow = None,
) -> int:
    """Write what another program needs to run an image into a folder, and print the files' names."""
    from imgvm import launch
    from imgvm.exchange.export import export

    folder = output or Path(f"{image.stem}-{target}")
    parts = export(image, target, folder, ref=ref, allow=launch.parse_grants(allow))
    for name in parts.files:
        print(folder / name)
    for note in parts.notes:
        log.info(f"note: {note}")
    return 0
