# SPDX-License-Identifier: MIT
"""An image as a folder of plain files, and the image that such a folder makes.

    unpack("ci.img", "ci")      # config.yaml, machine.json, kernel, ..., disk.raw, image.json
    assemble("ci", "again.img")

What was not changed in the folder goes back byte for byte, so an image that only pack has written comes out
the same. Files may be changed: the config as by `imgvm config edit`, the kernel by another of the same kind.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from imgvm import launch, units
from imgvm.config import Config, composed, resolved_text
from imgvm.config.document import MAX_TEXT_BYTES
from imgvm.config.revise import revise, set_values
from imgvm.edit import PACKED_TEXT, config_date, may_change
from imgvm.errors import ImageError, ImgvmError, PackError
from imgvm.launch import CONFIG_RESOLVED, CONFIG_TEXT, KERNEL
from imgvm.machine import Disk, ImageOptions, Machine
from imgvm.pack import disk as disks
from imgvm.pack import kernel as kernels
from imgvm.pack.output import Replacement, check_output, host_error
from imgvm.pack.packer import COMPOSED
from imgvm.pack.progress import Progress, choose
from imgvm.qcow2 import MAX_BLOB_BYTES, Image, pieces, snapshots

MANIFEST, DISK, FURTHER_DISK = "image.json", "disk.raw", "disk-{}.raw"
COMPOSED_FOLDER = "composed"
FORMAT = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_DISK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,19}")
_PIECE_BYTES = units.MIB


@dataclass(frozen=True)
class _Manifest:
    """What the files alone do not say. `text` is the config as it was unpacked."""

    digests: dict[str, str]  # of the blobs, in their order
    text: str
    date: int
    cluster_bytes: int
    further_disks: tuple[str, ...] = ()
    pristine: bool = False


def is_unpacked(path: str | Path) -> bool:
    return (Path(path) / MANIFEST).is_file()


def unpack(path: str | Path, folder: str | Path, allow: Collection[str] = ()) -> list[str]:
    """Writes an image's parts into a folder that is new or empty; says their names. All of them, or none."""
    target = Path(folder)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise PackError(f"{folder} exists and is not empty", "name a new folder")
    with launch.open_image(path, writable=False, allow=allow).image as image:
        names = [blob.name for blob in image.config_blobs()]
        taken = {MANIFEST, DISK, COMPOSED_FOLDER, *map(FURTHER_DISK.format, image.disk_names())}
        for name in image.disk_names():
            if not _DISK_NAME.fullmatch(name):
                raise ImageError(f"{path}: a disk of the name {name!r} makes no file")
        for name in names:
            if not _FILE_NAME.fullmatch(name) or name in taken:
                hint = "`imgvm extract` can take its blobs out one by one"
                raise ImageError(f"{path}: a blob of the name {name!r} makes no file", hint)
        try:
            with tempfile.TemporaryDirectory(
                prefix=f".{target.name}.", dir=target.resolve().parent, ignore_cleanup_errors=True
            ) as temporary:
                inside = Path(temporary) / "unpacked"
                inside.mkdir()
                _write_parts(image, names, inside)
                written = _write_composed(image, names, inside)
                inside.rename(target)
        except OSError as error:
            raise host_error(error, folder) from error
        further = [FURTHER_DISK.format(name) for name in image.disk_names()]
    return [*names, DISK, *further, *written, MANIFEST]


def _write_parts(image: Image, names: Sequence[str], folder: Path) -> None:
    digests = {}
    for name in names:
        data = image.read_config(name)
        digests[name] = sha256(data).hexdigest()
        (folder / name).write_bytes(data)
    manifest = {
        "format": FORMAT,
        "blobs": digests,
        "date": config_date(image),
        "cluster_bytes": image.info.cluster_bytes,
        "config": (folder / CONFIG_TEXT).read_text("utf-8"),
    }
    if further := image.disk_names():
        manifest["further_disks"] = list(further)
    if any(row.name == snapshots.PRISTINE for row in image.snapshots()):
        manifest["pristine"] = True
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    write_raw(image, folder / DISK)
    for name in further:
        write_raw(image.open_disk(name), folder / FURTHER_DISK.format(name))


def _write_composed(image: Image, names: Sequence[str], folder: Path) -> list[str]:
    """The config and what it includes, beside each other as they were packed."""
    if COMPOSED not in names:
        return []
    text = image.read_config(PACKED_TEXT if PACKED_TEXT in names else CONFIG_TEXT, MAX_TEXT_BYTES)
    blob = image.read_config(COMPOSED, composed.MAX_BYTES)
    written = []
    for name, content in composed.files(blob, text.decode("utf-8", "replace")).items():
        path = folder / COMPOSED_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        written.append(f"{COMPOSED_FOLDER}/{name}")
    return written


def write_raw(image: Image, target: Path) -> None:
    """The guest's disk as a raw file, with holes where it is zero."""
    size, cluster_bytes = image.info.disk_bytes, image.info.cluster_bytes
    with target.open("xb") as stream:
        os.truncate(stream.fileno(), size)
        for offset, data in pieces.of_disk(image, _PIECE_BYTES):
            for start, end in pieces.runs(data, offset, cluster_bytes):
                os.pwrite(stream.fileno(), data[start:end], offset + start)


def assemble(
    folder: str | Path,
    output: str | Path,
    *,
    sets: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Makes the image of a folder that `unpack` made. `sets` are `path=value`, as for `imgvm config set`."""
    source, target = Path(folder), Path(output)
    shown = progress or choose()
    check_output(target, force=force)
    try:
        manifest = _read_manifest(source)
        blobs = _read_blobs(source, manifest, sets)
        with ExitStack() as stack:
            files = {name: FURTHER_DISK.format(name) for name in manifest.further_disks}
            opened = {name: stack.enter_context(_raw_file(source, file)) for name, file in files.items()}
            first = stack.enter_context(_raw_file(source, DISK))
            temporary = stack.enter_context(Replacement(target))
            options = ImageOptions(cluster_bytes=manifest.cluster_bytes, compression=_compression(blobs))
            with disks.create_image(temporary, first.size_bytes, options) as image:
                for name, disk in opened.items():
                    image.add_disk(name, disk.size_bytes, date=manifest.date)
                disks.copy(first, DISK, disks.target(image, options), shown)
                for name, disk in opened.items():
                    with image.open_disk(name) as target_disk:
                        disks.copy(disk, files[name], disks.target(target_disk, options), shown)
                if manifest.pristine:
                    snapshots.create(image, snapshots.PRISTINE, date=manifest.date)
                image.set_config(blobs, date=manifest.date)
    except OSError as error:
        raise host_error(error, target) from error
    finally:
        shown.finish()
    return target


def _raw_file(folder: Path, name: str) -> closing[disks.DiskSource]:
    return closing(disks.open_source(Disk(name="disk", source=name, format="raw"), folder))


def _compression(blobs: Mapping[str, bytes]) -> str:
    return Config.from_resolved(blobs[CONFIG_RESOLVED], CONFIG_RESOLVED).machine.image.compression


def name_of(folder: str | Path) -> str:
    """The name of the machine in a folder."""
    path = Path(folder) / CONFIG_RESOLVED
    return Config.from_resolved(path.read_bytes(), str(path)).machine.name


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    hint = "`imgvm unpack` makes it; unpack the image again"
    try:
        data: Any = json.loads(path.read_bytes())
        if data["format"] != FORMAT:
            raise PackError(f"{path}: format {data['format']} is not known to this imgvm", hint)
        further = tuple(data.get("further_disks", ()))
        blobs, pristine = dict(data["blobs"]), data.get("pristine") is True
        found = _Manifest(blobs, data["config"], data["date"], data["cluster_bytes"], further, pristine)
        for key, kind in (("config", str), ("date", int), ("cluster_bytes", int)):
            if type(data[key]) is not kind:
                raise TypeError(f"{key} is {data[key]!r:.60}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackError(f"{path} is damaged: {error}", hint) from None
    for names, pattern, what in ((found.digests, _FILE_NAME, "blob"), (further, _DISK_NAME, "disk")):
        for name in names:
            if not isinstance(name, str) or not pattern.fullmatch(name):
                raise PackError(f"{path} is damaged: {name!r:.60} is no name of a {what}", hint)
    return found


def _read_blobs(folder: Path, manifest: _Manifest, sets: Sequence[str]) -> dict[str, bytes]:
    blobs = {}
    for name in manifest.digests:
        path = folder / name
        if path.stat().st_size > MAX_BLOB_BYTES:
            raise PackError(f"{path} is too large for this")
        blobs[name] = path.read_bytes()
    if CONFIG_TEXT not in blobs or CONFIG_RESOLVED not in blobs:
        raise PackError(f"{folder} has no {CONFIG_TEXT} and {CONFIG_RESOLVED}", "unpack the image again")
    text_path = folder / CONFIG_TEXT
    text = blobs[CONFIG_TEXT].decode("utf-8", "replace")
    if sets:
        text, _ = set_values(text, list(sets), str(text_path))
    if text != manifest.text:
        machine = revise(manifest.text, text, blobs[CONFIG_RESOLVED], str(text_path), may_change)
        blobs |= {CONFIG_TEXT: text.encode(), CONFIG_RESOLVED: resolved_text(machine).encode()}
    _machine(blobs, folder)
    if KERNEL in blobs and sha256(blobs[KERNEL]).hexdigest() != manifest.digests[KERNEL]:
        blobs[KERNEL] = _other_kernel(folder / KERNEL, blobs)
    return blobs


def _machine(blobs: dict[str, bytes], folder: Path) -> Machine:
    return Config.from_resolved(blobs[CONFIG_RESOLVED], str(folder / CONFIG_RESOLVED)).machine


def _other_kernel(path: Path, blobs: dict[str, bytes]) -> bytes:
    """A kernel that somebody put there: as pack would take it, and of the kind that it was packed for."""
    boot = _machine(blobs, path.parent).boot
    assert boot is not None
    found = kernels.load(blobs[KERNEL], str(path), boot.protocol)
    if found.protocol != boot.protocol:
        raise ImgvmError(
            f"{path} is entered by {found.protocol}, the image was packed for {boot.protocol}",
            "pack its config with this kernel",
        )
    return found.data
