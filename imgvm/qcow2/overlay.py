# SPDX-License-Identifier: MIT
"""Overlays: new images in which only what differs from the image below is kept."""

from __future__ import annotations

import os
from pathlib import Path

from imgvm.qcow2 import Image


def create(base: str | Path, target: str | Path, *, format: str = "qcow2") -> None:
    """An overlay of `base`, which is named from the folder of `target`, so that both can move together."""
    below, above = Path(base).resolve(), Path(target).resolve()
    with Image.open(below, raw=format == "raw") as image:
        size, cluster_bytes = image.info.disk_bytes, image.info.cluster_bytes
    name = os.path.relpath(below, above.parent)
    clusters = cluster_bytes if format == "qcow2" else 1 << 16
    Image.create(
        above, size, cluster_bytes=clusters, backing_file=name, backing_format=format
    ).close()
