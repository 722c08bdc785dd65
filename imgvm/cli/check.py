# SPDX-License-Identifier: MIT
"""`imgvm check`: the consistency of an image's tables."""

from __future__ import annotations

from imgvm.cli.options import ImageFile
from imgvm.errors import STATUS_FINDINGS


def command(image: ImageFile) -> int:
    """Check an image's reference counts and tables; status 1 when something is wrong."""
    from imgvm.launch import require_image
    from imgvm.qcow2 import Image

    require_image(image)
    with Image.open(image) as opened:
        found = opened.check()
    if found.clean:
        print(f"{image}: clean")
        return 0
    print(f"{image}: {found.corruptions} corruptions, {found.leaks} leaked clusters")
    return STATUS_FINDINGS
