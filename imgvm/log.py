# SPDX-License-Identifier: MIT
"""Words for people: they go to stderr, so that stdout stays data."""

from __future__ import annotations

import re
import sys

QUIET, NORMAL, VERBOSE = 0, 1, 2


# A guest's last words or an untrusted file's names must not drive the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with control characters as escapes; lines and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Log:
    """One line a call, each beginning with `imgvm: `. Writing to a closed stderr is not an error."""

    def __init__(self, level: int = NORMAL) -> None:
        self.level = level

    def error(self, message: str, hint: str | None = None) -> None:
        self._write(message)
        if hint:
            self._write(f"hint: {hint}")

    def info(self, message: str) -> None:
        if self.level >= NORMAL:
            self._write(message)

    def verbose(self, message: str) -> None:
        if self.level >= VERBOSE:
            self._write(message)

    def _write(self, message: str) -> None:
        try:
            for line in message.splitlines() or [""]:
                sys.stderr.write(f"imgvm: {printable(line)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


log = Log()
