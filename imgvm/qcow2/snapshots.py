# SPDX-License-Identifier: MIT
"""Snapshots of all disks of an image: the first disk's has the name, that of a further disk is NAME@DISK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from imgvm.errors import ImageError
from imgvm.qcow2 import Image

PRISTINE = "imgvm.pristine"  # the disks as they were packed


def name_of(snapshot: str, disk: str) -> str:
    return f"{snapshot}@{disk}"


def holders(images: Sequence[Image], name: str) -> Sequence[Image]:
    """Which of a machine's images have a snapshot: in each it has the same name. Ids are the first one's."""
    named = [image for image in images if any(row.name == name for row in image.snapshots())]
    return named or images[:1]


def create(image: Image, name: str, *, date: float) -> None:
    """Keep the disks as they are. Those of files below an overlay are not changed by it."""
    image.create_snapshot(name, date=date)
    for disk in image.disk_names():
        with image.open_disk(disk) as opened:
            opened.create_snapshot(name_of(name, disk), date=date)


def apply(image: Image, name: str) -> None:
    """Go back to a snapshot; a disk that was added since keeps what it holds."""
    name = _full_name(image, name)
    for disk, snapshot in _of_disks(image, name):
        with image.open_disk(disk) as opened:
            opened.apply_snapshot(snapshot)
    image.apply_snapshot(name)


def delete(image: Image, name: str) -> None:
    name = _full_name(image, name)
    for _, snapshot in list(_of_disks(image, name)):
        image.delete_snapshot(snapshot)
    image.delete_snapshot(name)


def reset(image: Image) -> None:
    """Make the disks what they were when the image was packed."""
    if PRISTINE not in {row.name for row in image.snapshots()}:
        hint = "`image: {pristine: true}` in its config has pack keep one; or throw an overlay away"
        raise ImageError(f"{image.path} has no copy of its disks as they were packed", hint)
    apply(image, PRISTINE)


def _full_name(image: Image, name: str) -> str:
    """Snapshots may be called by their ids, too."""
    rows = image.snapshots()
    if any(row.name == name for row in rows):
        return name
    return next((row.name for row in rows if row.id == name), name)


def _of_disks(image: Image, name: str) -> Iterator[tuple[str, str]]:
    there = {row.name for row in image.snapshots()}
    for disk in image.disk_names():
        if name_of(name, disk) in there:
            yield disk, name_of(name, disk)
