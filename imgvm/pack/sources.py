# SPDX-License-Identifier: MIT
"""What an image is made of, and reading it from the packing host with errors a person can act on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from imgvm.errors import PackError
from imgvm.qcow2 import MAX_BLOB_BYTES


@dataclass(frozen=True)
class Source:
    """A row of an image's lock.json: which thing was used for which part. No path of the packing host."""

    part: str
    origin: str
    sha256: str
    size_bytes: int
    uri: str = ""
    asked: str = ""  # for which words of the config a package was chosen

    @classmethod
    def of(cls, part: str, origin: str, data: bytes) -> Source:
        return cls(part, origin, hashlib.sha256(data).hexdigest(), len(data))


def resolve(folder: Path, path: str) -> Path:
    """A path of the config: relative ones start at the config's folder, and `~` is the user's home."""
    return folder / Path(path).expanduser()


def failed(part: str, path: str, folder: Path, error: OSError) -> PackError:
    """The error for a source that the host does not hand out."""
    hint = None
    if isinstance(error, IsADirectoryError):
        hint = "name a file"
    elif isinstance(error, FileNotFoundError) and not Path(path).is_absolute():
        hint = f"relative paths start at the config's folder, {folder}"
    elif isinstance(error, PermissionError):
        hint = "make it readable for the user who packs (kernels in /boot often are not)"
    return PackError(f"{part}: {path}: {error.strerror}", hint=hint, errno=error.errno or 0)


def read(part: str, path: str, folder: Path) -> bytes:
    """The bytes of a source file."""
    file = resolve(folder, path)
    try:
        if not (file.is_file() or file.is_dir() or not file.exists()):
            raise PackError(f"{part}: {path} is no ordinary file", hint="copy its contents to one")
        if file.stat().st_size > MAX_BLOB_BYTES:
            raise PackError(f"{part}: {path} is too large for this ({file.stat().st_size >> 20} MiB)")
        return file.read_bytes()
    except OSError as error:
        raise failed(part, path, folder, error) from error
