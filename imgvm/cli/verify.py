# SPDX-License-Identifier: MIT
"""`imgvm verify`: an image read by a second, independent reader."""

from __future__ import annotations

from imgvm.cli.options import Allow, ImageFile
from imgvm.errors import STATUS_FINDINGS


def command(image: ImageFile, allow: Allow = None) -> int:
    """Verify tables and digests, and compare the disk with what libqcow reads; status 1 on a difference."""
    from imgvm import audit
    from imgvm.launch import open_disk, parse_grants

    status = 0
    with open_disk(image, allow=parse_grants(allow)) as opened:
        for difference in audit.verify(opened):
            print(f"{image}: {difference}")
            status = STATUS_FINDINGS
    if not status:
        print(f"{image}: verified")
    return status
