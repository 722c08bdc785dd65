# SPDX-License-Identifier: MIT
"""`imgvm check`: the consistency of an image's tables."""

from __future__ import annotations

from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import STATUS_FINDINGS


def command(image: ImageFile, allow: Allow = None) -> int:
    """Check an image's reference counts and tables; status 1 when something is wrong."""
    from imgvm.launch import open_disk, parse_grants

    with open_disk(image, allow=parse_grants(allow)) as opened:
        found = opened.check()
    if found.clean:
        print(f"{image}: clean")
        return 0
    print(f"{image}: {found.corruptions} corruptions, {found.leaks} leaked clusters")
    return STATUS_FINDINGS
