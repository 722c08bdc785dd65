# SPDX-License-Identifier: MIT
"""The one exception tree: each error says what happened, what to do, and which process status it means."""

from __future__ import annotations

import errno as numbers
from collections.abc import Iterable

from imgvm.record import Record

STATUS_FINDINGS = 1  # validate, check, verify: the thing was read, and it has faults
STATUS_TIMEOUT = 124
STATUS_ERROR = 125  # imgvm's own error
STATUS_CANNOT_RUN = 126  # this image cannot run here
STATUS_NOT_FOUND = 127  # no such image, or no config in it
STATUS_SIGNAL = 128  # plus the signal's number
STATUS_PANIC = 255  # guest panic or triple fault


_HINTS = {
    numbers.ENOENT: "check the name and the folder",
    numbers.ENOTDIR: "check the name: a part of it is a file, not a folder",
    numbers.EISDIR: "name a file in it",
    numbers.EACCES: "make it readable for this user",
    numbers.EPERM: "make it readable for this user",
    numbers.ELOOP: "its symbolic links lead in a circle",
}


def errno_hint(number: int | None) -> str | None:
    """What to do about a file that the host does not hand out."""
    return _HINTS.get(number or 0)


class ImgvmError(Exception):
    """An error to be shown as one line. `errno` is the host's error number behind it (positive; 0: none)."""

    def __init__(
        self, message: str, hint: str | None = None, status: int = STATUS_ERROR, *, errno: int = 0
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.errno = errno

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(ImgvmError):
    """The command line asks for something impossible."""


class ImageError(ImgvmError):
    """An image cannot be opened, read, written or trusted."""


class ConsentError(ImageError):
    """An image wants something of this host that its user has not agreed to: `grant` of `--allow`."""

    def __init__(self, message: str, grant: str, *, errno: int = 0) -> None:
        hint = f"if you trust the image, --allow {grant} lets it"
        super().__init__(message, hint, STATUS_CANNOT_RUN, errno=errno)
        self.grant = grant


class PackError(ImgvmError):
    """A source named by the config cannot be had or cannot be put into an image."""


class EngineError(ImgvmError):
    """The machine cannot be built or run here."""


MAX_WORDS = 1000  # of one message: what it quotes may be of any length
MAX_PROBLEMS = 100  # that one error lists


def cut(words: str, most: int = MAX_WORDS) -> str:
    """Words of somebody else, as far as a message has room for them."""
    return words if len(words) <= most else words[: most - 3] + "..."


class Problem(Record):
    """One fault of a config. Lines and columns count from 1; 0 means that the place is unknown (`--set`)."""

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str | None = None

    def __init__(
        self, file: str, line: int, column: int, path: str, message: str, hint: str | None = None
    ) -> None:
        super().__init__(file, line, column, cut(path), cut(message), hint and cut(hint))

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        path = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}: {path}{self.message}{hint}"


class ConfigError(ImgvmError):
    """All the problems of a config at once, in the order of the text; of too many, the first ones."""

    def __init__(self, problems: Iterable[Problem], status: int = STATUS_ERROR) -> None:
        self.problems = tuple(problems)
        first, more = self.problems[:MAX_PROBLEMS], len(self.problems) - MAX_PROBLEMS
        if more > 1:  # an error that is raised again has one more already
            rest = Problem(first[-1].file, 0, 0, "", f"{more} more problems are not shown")
            self.problems = (*first, rest)
        super().__init__("\n".join(map(str, self.problems)), status=status)
