# SPDX-License-Identifier: MIT
"""What a machine has written: in the image, in the overlay beside it (`persist: overlay`), or in both."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgvm import launch
from imgvm.errors import READ_ONLY_ERRORS, ImageError
from imgvm.log import log
from imgvm.qcow2 import Image, overlay, snapshots
from imgvm.record import Record


class Kept(Record):
    """The open images that have what the machine's disks hold now, and which of them has the first disk."""

    images: tuple[Image, ...]
    first: Image


def overlay_of(path: str | Path, image: Image) -> Path | None:
    """The overlay that an open image's config asks for, there or not."""
    if not image.has_config:
        return None
    return launch.overlay_beside(Path(path), image, launch.machine_of(Path(path), image))


@contextmanager
def opened(path: str | Path, allow: Collection[str] = (), *, writable: bool) -> Iterator[Kept]:
    """To be read, the image is among them in any case."""
    with launch.open_disk(path, allow=allow) as image:
        beside = overlay_of(path, image)
    if beside is None:
        with launch.open_disk(path, writable=writable, allow=allow) as image:
            yield Kept((image,), image)
        return
    found = launch.open_image(path, allow=allow, ephemeral=not writable)
    with found.image as image:
        images = [image] if image.writable or not writable else []
        if found.overlay is not None:
            images.append(found.overlay)
        own = found.machine.own_disk
        yield Kept(tuple(images), images[-1] if own is not None and own.is_overlaid else image)


def reset(path: str | Path, allow: Collection[str] = ()) -> None:
    """Makes the disks what they were when the image was packed."""
    beside, in_image = _places(Path(path), allow)
    if in_image:
        with launch.open_disk(path, writable=True, allow=allow) as image:
            snapshots.reset(image)
    if beside is not None and beside.exists():
        _throw_away(path, beside, allow)


def _places(path: Path, allow: Collection[str]) -> tuple[Path | None, bool]:
    """The overlay, if the machine has one, and whether disks are kept in the image, too."""
    with launch.open_disk(path, allow=allow) as image:
        beside = overlay_of(path, image)
        if beside is None:
            return None, True
        return beside, launch.is_written(launch.machine_of(path, image), beside)


def _throw_away(path: str | Path, beside: Path, allow: Collection[str]) -> None:
    if not launch.is_qcow2(beside):
        raise ImageError(f"{beside} is no overlay", "move it away")
    with launch.open_disk(path, allow=allow) as image:
        try:
            image.open_over(beside, writable=True)  # which nobody else has open then
        except ImageError as error:
            if error.errno in (errno.EBUSY, *READ_ONLY_ERRORS):
                raise
        try:
            beside.unlink()
        except OSError as error:
            raise ImageError(f"{beside}: {error.strerror}", errno=error.errno or 0) from None


def describe_overlay(path: str | Path, image: Image) -> dict[str, Any] | None:
    """Plain facts of the overlay beside an open image, as `imgvm inspect --json` has them."""
    beside = overlay_of(path, image)
    if beside is None or not beside.exists():
        return None
    return {"file": beside.name, "file_bytes": beside.stat().st_size, "state": _state(path, beside)}


def _state(path: str | Path, beside: Path) -> str:
    try:
        with launch.open_disk(path, allow=launch.GRANTS) as image:
            name = launch.base_id(image, launch.machine_of(Path(path), image))
            overlay.open_beside(path, image, name, writable=False).close()
    except ImageError as error:
        return {errno.EBUSY: "in use", errno.ESTALE: "of another image"}.get(error.errno, "damaged")
    return "of this image"


def tell_of_overlay(path: str | Path, image: Image) -> None:
    """For what takes an image as it was packed."""
    beside = overlay_of(path, image)
    if beside is not None and beside.exists():
        log.info(f"what its machine wrote is in {beside}, and is not taken along")
