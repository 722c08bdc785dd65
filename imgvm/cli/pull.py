# SPDX-License-Identifier: MIT
"""`imgvm pull`: an image out of a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import PlainHttp, Reference


def command(
    ref: Reference,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The image; by default NAME.img.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the image when there is one.")] = False,
    plain_http: PlainHttp = False,
) -> int:
    """Pull an image from an OCI registry, and print its file's name."""
    from imgvm.exchange import oci

    print(oci.pull(ref, output, force=force, plain_http=plain_http))
    return 0
