# SPDX-License-Identifier: MIT
"""`imgvm convert`: a disk into a new image of another kind."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from imgvm import units
from imgvm.cli.options import Allow
from imgvm.errors import UsageError


class Format(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


class Compression(StrEnum):
    ZLIB = "zlib"
    ZSTD = "zstd"


def command(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="raw, qcow2, vmdk, vdi, vhd or vhdx.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new file.")],
    output_format: Annotated[Format, typer.Option("-O", "--format", help="Of the new file.")] = Format.QCOW2,
    compress: Annotated[Compression | None, typer.Option("--compress", help="Compress a qcow2.")] = None,
    cluster_size: Annotated[str, typer.Option("--cluster-size", metavar="SIZE")] = "64KiB",
    snapshot: Annotated[str | None, typer.Option("--snapshot", metavar="NAME", help="Its disk.")] = None,
    allow: Allow = None,
) -> int:
    """Copy a disk, with what is embedded in it, into a new image; zeros take no space."""
    from imgvm.launch import BACKING, parse_grants
    from imgvm.qcow2.convert import convert

    try:
        cluster_bytes = units.parse_size(cluster_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    convert(
        source,
        target,
        format=output_format,
        compression=compress,
        cluster_bytes=cluster_bytes,
        snapshot=snapshot,
        keep_to_folder=BACKING not in parse_grants(allow),
    )
    return 0
