# SPDX-License-Identifier: MIT
"""An OVA: a tar of an OVF envelope and its disks, which become qcow2 files beside the config."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from imgvm.errors import ImgvmError, UsageError
from imgvm.exchange import vmdk
from imgvm.exchange.importing import MAX_TEXT_BYTES, Imported, from_xml
from imgvm.pack import disk as disks
from imgvm.pack.output import Replacement, check_output
from imgvm.qcow2 import Image

MAX_MEMBERS = 100
_CLUSTER_BYTES = 65536
_PIECE_BYTES = 1 << 20


def is_ova(path: Path) -> bool:
    return path.suffix.lower() == ".ova"


def from_ova(path: Path, folder: Path, *, force: bool) -> Imported:
    """Reads the envelope, and converts the disks that the config names into `folder`."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = _members(tar, path)
            envelopes = [member for name, member in members.items() if name.lower().endswith(".ovf")]
            if len(envelopes) != 1 or envelopes[0].size > MAX_TEXT_BYTES:
                raise UsageError(f"{path} has no OVF envelope of a reasonable size", "is it an OVA?")
            stream = tar.extractfile(envelopes[0])
            assert stream is not None  # a regular file
            found = from_xml(stream.read(), f"{path}:{envelopes[0].name[:60]}")
            for number, disk in enumerate(found.document.get("disks", [])):
                member = members.get(disk["source"])
                if member is None:
                    missing = disk["source"][:60]
                    raise UsageError(f"{path}: the disk {missing} is not in it", "export it again")
                target = folder / f"{path.stem}-disk{number}.qcow2"
                check_output(target, force=force)
                _convert(tar, member, f"{path}:{member.name[:60]}", target)
                disk |= {"source": str(target.resolve()), "format": "qcow2"}
    except (tarfile.TarError, EOFError) as error:
        raise ImgvmError(f"{path} is no OVA: {error}", "an OVA is an uncompressed tar") from None
    return found


def _members(tar: tarfile.TarFile, path: Path) -> dict[str, tarfile.TarInfo]:
    """Regular files by name. Nothing is unpacked by its name: a tar can name any path."""
    members: dict[str, tarfile.TarInfo] = {}
    for number, member in enumerate(tar):
        if number >= MAX_MEMBERS:
            raise UsageError(f"{path} holds more than {MAX_MEMBERS} files")
        if member.isreg():
            members.setdefault(member.name, member)
    return members


def _convert(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, target: Path) -> None:
    stream = tar.extractfile(member)
    assert stream is not None
    with tempfile.TemporaryFile(dir=target.parent) as seekable, Replacement(target) as temporary:
        while data := stream.read(_PIECE_BYTES):
            seekable.write(data)
        reader = vmdk.Reader(seekable, name)
        with Image.create(temporary, reader.disk_bytes, cluster_bytes=_CLUSTER_BYTES) as image:
            for offset, data in reader.pieces():
                for start, end in disks.runs(data, offset, _CLUSTER_BYTES):
                    image.write(offset + start, data[start:end])
