# SPDX-License-Identifier: MIT
"""An OVA: a tar of an OVF envelope and its disks, which become qcow2 files beside the config."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from imgvm.errors import ImgvmError, UsageError
from imgvm.exchange.importing import MAX_TEXT_BYTES, Imported, from_xml
from imgvm.pack import from_tar
from imgvm.pack.output import Replacement, check_output
from imgvm.qcow2 import Image, pieces
from imgvm.qcow2.foreign import open_foreign

MAX_MEMBERS = 100
_CLUSTER_BYTES = 65536
_PIECE_BYTES = 1 << 20


def is_ova(path: Path) -> bool:
    return path.suffix.lower() == ".ova"


def from_ova(path: Path, folder: Path, *, force: bool) -> Imported:
    """Reads the envelope, and converts the disks that the config names into `folder`."""
    with path.open("rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:", tarinfo=from_tar.Member)  # noqa: SIM115
            members = _members(tar, path)
        except from_tar.FAULTS as error:
            raise ImgvmError(f"{path} is no OVA: {error}", "an OVA is an uncompressed tar") from None
        envelopes = [member for name, member in members.items() if name.lower().endswith(".ovf")]
        if len(envelopes) != 1 or envelopes[0].size > MAX_TEXT_BYTES:
            raise UsageError(f"{path} has no OVF envelope of a reasonable size", "is it an OVA?")
        envelope = _content(tar, envelopes[0]).read()
        found = from_xml(envelope, f"{path}:{envelopes[0].name[:60]}", in_archive=True)
        for number, disk in enumerate(found.document.get("disks", [])):
            member = members.get(disk["source"])
            if member is None:
                missing = disk["source"][:60]
                raise UsageError(f"{path}: the disk {missing} is not in it", "export it again")
            target = folder / f"{path.stem}-disk{number}.qcow2"
            check_output(target, force=force)
            _convert(_content(tar, member), f"{path}:{member.name[:60]}", target)
            disk |= {"source": str(target.resolve()), "format": "qcow2"}
    return found


def _members(tar: tarfile.TarFile, path: Path) -> dict[str, tarfile.TarInfo]:
    """Regular files by name. Nothing is unpacked by its name: a tar can name any path."""
    members: dict[str, tarfile.TarInfo] = {}
    end = path.stat().st_size
    for number, member in enumerate(tar):
        if number >= MAX_MEMBERS:
            raise UsageError(f"{path} holds more than {MAX_MEMBERS} files")
        if member.issparse():  # which could become of any size
            raise UsageError(f"{path}: {member.name[:60]} is a sparse file", "pack it again without --sparse")
        if member.offset_data + member.size > end:
            raise EOFError("it is cut short")
        if member.isreg():
            members.setdefault(member.name, member)
    return members


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    assert stream is not None  # a regular file
    return stream


def _convert(stream: IO[bytes], name: str, target: Path) -> None:
    with tempfile.TemporaryFile(dir=target.parent) as seekable, Replacement(target) as temporary:
        shutil.copyfileobj(stream, seekable, _PIECE_BYTES)
        seekable.seek(0)
        disk = open_foreign(Path(name), seekable)
        if disk is None:
            raise UsageError(f"{name} is no disk that can be read", "one is a VMDK, VDI, VHD or VHDX file")
        with Image.create(temporary, disk.disk_bytes, cluster_bytes=_CLUSTER_BYTES) as image:
            pieces.fill(image, disk.parts(), _CLUSTER_BYTES)
