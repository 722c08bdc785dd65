# SPDX-License-Identifier: MIT
"""`imgvm verify`: an image read by a second, independent reader; or its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import STATUS_FINDINGS
from imgvm.log import one_line


def command(
    image: ImageFile,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="A public Ed25519 key, as PEM: verify the signature."),
    ] = None,
    allow: Allow = None,
) -> int:
    """Verify tables and digests, and compare the disk with what libqcow reads; status 1 on a difference.

    With --key: whether the image is what the key's owner has signed.
    """
    from imgvm.launch import open_disk, parse_grants

    grants = parse_grants(allow)
    if key is not None:
        from imgvm.exchange.sign import faults

        found = list(faults(image, key, grants))
    else:
        from imgvm import audit

        with open_disk(image, allow=grants) as opened:
            found = list(audit.verify(opened))
    for fault in found:
        print(f"{image}: {one_line(fault)}")
    if not found:
        print(f"{image}: verified")
    return STATUS_FINDINGS if found else 0
