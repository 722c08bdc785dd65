# SPDX-License-Identifier: MIT
"""`imgvm verify`: an image read by a second, independent reader."""

from __future__ import annotations

from imgvm.cli.options import ImageFile
from imgvm.errors import STATUS_FINDINGS


def command(image: ImageFile) -> int:
    """Verify the config's digests, and compare the disk with what libqcow reads; status 1 on a difference."""
    from imgvm import launch

    differences = launch.verify(image)
    for difference in differences:
        print(f"{image}: {difference}")
    if not differences:
        print(f"{image}: verified")
    return STATUS_FINDINGS if differences else 0
