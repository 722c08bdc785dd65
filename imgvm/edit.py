# SPDX-License-Identifier: MIT
"""The config inside an image: read, changed in place, compared.

    set_values("ci.img", ["machine.memory=1GiB"])

Text and resolved config change together, in one step that neither a killed process nor a power loss can tear
(docs/image-format.md). The first change keeps what was packed beside them, so that `changes` can tell.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgvm import launch
from imgvm.config import MAX_RESOLVED_BYTES, Config, resolved_text
from imgvm.config.document import MAX_TEXT_BYTES
from imgvm.config.overrides import parse_path
from imgvm.config.revise import revise
from imgvm.config.revise import set_values as set_in_text
from imgvm.config.tree import Path as KeyPath
from imgvm.config.tree import format_path
from imgvm.errors import ImageError, ImgvmError
from imgvm.launch import CONFIG_RESOLVED, CONFIG_TEXT, PACKED_RESOLVED, config_date
from imgvm.machine import to_document
from imgvm.qcow2 import Image

PACKED_TEXT = "config.packed.yaml"
FREE_KEYS = ("description", "labels")  # for people: they change nothing of the machine
ABSENT: Any = object()


@dataclass(frozen=True)
class Edited:
    """What a change did to the resolved config, and whether the text kept its comments and spacing."""

    changes: tuple[Change, ...]
    in_place: bool = True


@dataclass(frozen=True)
class Change:
    """One value of the resolved config; ABSENT where there is none."""

    path: str
    old: Any
    new: Any


def may_change(path: KeyPath) -> bool:
    """Whether a key can still be changed once the image is packed."""
    first = str(path[0])
    return first in FREE_KEYS or first.startswith("x-") or launch.is_run_key(path)


def read_text(path: str | Path, allow: Collection[str] = ()) -> str:
    """The config of an image, as it was written."""
    with launch.open_image(path, writable=False, allow=allow).image as image:
        return text_of(image)


def resolved(path: str | Path, allow: Collection[str] = ()) -> dict[str, Any]:
    """The resolved document of an image, or of a config file."""
    if not launch.is_image(path):
        return to_document(Config.load(path).machine)
    opened = launch.open_image(path, writable=False, allow=allow)
    opened.image.close()
    return to_document(opened.machine)


def get(document: Any, path: str) -> Any:
    """The value at `machine.memory` or `disks[0].size`; ABSENT when there is none."""
    for part in parse_path(path) if path else ():
        if isinstance(document, list) and str(part).isdigit() and int(part) < len(document):
            document = document[int(part)]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            return ABSENT
    return document


def set_values(path: str | Path, assignments: Sequence[str], allow: Collection[str] = ()) -> Edited:
    """Changes values, written as for `--set`. Nothing is written unless the whole config is valid then."""
    kept = True

    def change(text: str) -> str:
        nonlocal kept
        new, kept = set_in_text(text, list(assignments), _name(path))
        return new

    return Edited(_rewrite(path, change, allow).changes, kept)


def replace_text(path: str | Path, old: str, new: str, allow: Collection[str] = ()) -> Edited:
    """Puts `new` in the place of the text `old`, which must still be the image's."""

    def change(text: str) -> str:
        if text != old:
            raise ImageError(f"{path}: its config was changed by somebody else meanwhile", "edit it again")
        return new

    return _rewrite(path, change, allow)


def changes(old: Any, new: Any, path: KeyPath = ()) -> Iterator[Change]:
    """Where two resolved documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif old is ABSENT or new is ABSENT or json.dumps(old) != json.dumps(new):
        yield Change(format_path(path), old, new)


def since_packed(path: str | Path, allow: Collection[str] = ()) -> list[Change]:
    """What was changed in an image since it was packed."""
    with launch.open_image(path, writable=False, allow=allow).image as image:
        if PACKED_RESOLVED not in {blob.name for blob in image.config_blobs()}:
            return []
        packed, now = (_document(image, name) for name in (PACKED_RESOLVED, CONFIG_RESOLVED))
    return list(changes(packed, now))


def _document(image: Image, name: str) -> dict[str, Any]:
    text = image.read_config(name, MAX_RESOLVED_BYTES)
    return to_document(Config.from_resolved(text, f"{image.path}:{name}").machine)


def _name(path: str | Path) -> str:
    return f"{path}:{CONFIG_TEXT}"


def text_of(image: Image) -> str:
    """The config as it was written."""
    return image.read_config(CONFIG_TEXT, MAX_TEXT_BYTES).decode("utf-8", "replace")


def _rewrite(path: str | Path, change: Callable[[str], str], allow: Collection[str]) -> Edited:
    try:
        opened = launch.open_image(path, writable=True, allow=allow)
    except ImgvmError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        raise ImageError(f"{path} cannot be written", "make it writable, or change a copy") from None
    with opened.image as image:
        blobs = {blob.name: image.read_config(blob.name) for blob in image.config_blobs()}
        old_text, old_resolved = text_of(image), blobs[CONFIG_RESOLVED]
        new_text = change(old_text)
        if new_text == old_text:
            return Edited(())
        machine = revise(old_text, new_text, old_resolved, _name(path), may_change)
        before = to_document(opened.machine)
        blobs.setdefault(PACKED_TEXT, blobs[CONFIG_TEXT])
        blobs.setdefault(PACKED_RESOLVED, old_resolved)
        blobs |= {CONFIG_TEXT: new_text.encode(), CONFIG_RESOLVED: resolved_text(machine).encode()}
        image.set_config(blobs, date=config_date(image))
    return Edited(tuple(changes(before, to_document(machine))))
