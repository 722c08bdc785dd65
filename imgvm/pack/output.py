# SPDX-License-Identifier: MIT
"""Files that are made whole or not at all: written under another name, and moved to theirs at the end."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from imgvm.errors import PackError


def check_output(output: Path, *, force: bool) -> None:
    """Before the work, whether its result may be put there."""
    if output.is_dir():
        raise PackError(f"{output} is a folder", hint="name the image, such as -o ci.img")
    if output.exists() or output.is_symlink():
        if not force:
            raise PackError(f"{output} exists", hint="--force replaces it")
        if not output.is_file():
            raise PackError(f"{output} is no ordinary file, and is not replaced")
    if not output.resolve().parent.is_dir():
        raise PackError(f"{output}: the folder {output.parent} does not exist", hint="make it first")


def host_error(error: OSError, output: str | Path) -> PackError:
    if error.errno == errno.ENOSPC:
        return full(output)
    return PackError(f"{error.filename or output}: {error.strerror or error}", errno=error.errno or 0)


def full(output: str | Path) -> PackError:
    where = Path(output).resolve().parent
    return PackError(
        f"{output}: no space left in {where}; nothing was written",
        hint="free some, or name another place with -o",
        errno=errno.ENOSPC,
    )  # fmt: skip


def _sync(path: Path) -> None:
    """What was written to a file survives a power loss from here on."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Replacement:
    """A name beside `output` to write to; at the end it takes `output`'s place, or is gone after an error."""

    def __init__(self, output: Path) -> None:
        self._output = output.resolve()
        self._folder: Path | None = None

    def __enter__(self) -> Path:
        # A folder of our own: Image.create insists on making its file itself.
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self._output.name}.", dir=self._output.parent))
        return self._folder / self._output.name

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._folder is not None
        temporary = self._folder / self._output.name
        try:
            if kind is None:
                _sync(temporary)
                temporary.replace(self._output)
        finally:
            temporary.unlink(missing_ok=True)
            self._folder.rmdir()
