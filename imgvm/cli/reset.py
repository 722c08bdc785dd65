# SPDX-License-Identifier: MIT
"""`imgvm reset`: the disks as they were packed."""

from __future__ import annotations

from imgvm.cli.options import Allow, ImageFile


def command(image: ImageFile, allow: Allow = None) -> int:
    """Make the disks of an image what they were when it was packed.

    Of those in the image its image.pristine keeps a copy; an overlay is thrown away."""
    from imgvm import kept
    from imgvm.launch import parse_grants

    kept.reset(image, parse_grants(allow))
    return 0
