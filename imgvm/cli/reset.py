# SPDX-License-Identifier: MIT
"""`imgvm reset`: the disks as they were packed."""

from __future__ import annotations

from imgvm.cli.options import Allow, ImageFile


def command(image: ImageFile, allow: Allow = None) -> int:
    """Make the disks of an image what they were when it was packed (image.pristine in its config)."""
    from imgvm.launch import open_disk, parse_grants
    from imgvm.qcow2 import snapshots

    with open_disk(image, writable=True, allow=parse_grants(allow)) as opened:
        snapshots.reset(opened)
    return 0
