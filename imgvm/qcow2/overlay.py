# SPDX-License-Identifier: MIT
"""Overlays: new images in which only what differs from the image below is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from imgvm.errors import READ_ONLY_ERRORS, STATUS_CANNOT_RUN, ImageError
from imgvm.qcow2 import Image

SUFFIX = ".overlay"


def create(base: str | Path, target: str | Path, *, base_id: bytes | None = None) -> None:
    """An overlay of `base`, which is named from the folder of `target`, so that both can move together."""
    below, above = Path(base).resolve(), Path(target).resolve()
    with Image.open(below) as image:
        size, cluster_bytes = image.info.disk_bytes, image.info.cluster_bytes
    Image.create(
        above,
        size,
        cluster_bytes=cluster_bytes,
        backing_file=os.path.relpath(below, above.parent),
        backing_format="qcow2",
        base_id=base_id,
    ).close()


def path_of(image: str | Path) -> Path:
    """Where what a guest writes to disks of `persist: overlay` lies: beside the image."""
    path = Path(image).resolve()
    return path.with_name(f"{path.name}{SUFFIX}")


def create_beside(image: str | Path, base_id: bytes) -> None:
    """Whole or not at all. It is no error when somebody else makes it at the same time."""
    target = path_of(image)
    made = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    hint = f"--ephemeral runs it all the same; or `imgvm overlay create {image} OTHER.img`, and run that"
    if not Path(image).is_file():
        message = f"{image} is a device: there is no place beside it for what the machine writes"
        raise ImageError(message, hint, STATUS_CANNOT_RUN)
    try:
        create(image, made, base_id=base_id)
    except ImageError as error:
        if error.errno not in READ_ONLY_ERRORS:
            raise
        message = f"{target}, where what the machine writes is to be kept, cannot be made"
        raise ImageError(message, hint, STATUS_CANNOT_RUN, errno=error.errno) from None
    try:
        os.link(made, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        made.rename(target)
    finally:
        made.unlink(missing_ok=True)


def open_beside(path: str | Path, image: Image, base_id: bytes, *, writable: bool) -> Image:
    """The overlay of an open image, over it. Closing either closes both."""
    beside = path_of(path)
    try:
        overlay = image.open_over(beside, writable=writable)
    except ImageError as error:
        if error.errno not in READ_ONLY_ERRORS:
            raise
        hint = "--ephemeral runs it all the same; or make the file writable"
        raise ImageError(f"{beside} cannot be written", hint, STATUS_CANNOT_RUN, errno=error.errno) from None
    if overlay.info.base_id == base_id:
        return overlay
    overlay.close()
    hint = f"put one of them elsewhere, or throw the overlay away with `imgvm reset {path}`"
    message = f"{beside} is an overlay of another image than this {Path(path).name}"
    raise ImageError(message, hint, STATUS_CANNOT_RUN, errno=errno.ESTALE)
