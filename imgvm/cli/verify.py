# SPDX-License-Identifier: MIT
"""`imgvm verify`: an image read by a second, independent reader."""

from __future__ import annotations

from imgvm.cli.options import ImageFile
from imgvm.errors import STATUS_FINDINGS


def command(image: ImageFile) -> int:
    """Verify tables and digests, and compare the disk with what libqcow reads; status 1 on a difference."""
    from imgvm import audit
    from imgvm.launch import require_image

    require_image(image)
    status = 0
    for difference in audit.verify(image):
        print(f"{image}: {difference}")
        status = STATUS_FINDINGS
    if not status:
        print(f"{image}: verified")
    return status
