# SPDX-License-Identifier: MIT
"""Words for people: they go to stderr, so that stdout stays data."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

QUIET, NORMAL, VERBOSE = 0, 1, 2


# A guest's last words or an untrusted file's names must not drive the terminal, nor (as what turns the
# direction of writing does) show as other words than they are.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(text: str, kept: str) -> str:
    def escape(found: re.Match[str]) -> str:
        number = ord(found[0])
        return found[0] if found[0] in kept else f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

    return _CONTROL.sub(escape, text)


def printable(text: str) -> str:
    """The text with control characters as escapes; lines and tabs stay."""
    return _escaped(text, "\n\t")


def one_line(text: str) -> str:
    """The same without lines and tabs: nothing in it passes for what follows it."""
    return _escaped(text, "")


def for_stdout(text: str) -> str:
    """Somebody's text as it is for a program, and printable on a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def json_text(document: Any, indent: int | None = None) -> str:
    """JSON that people can read in their language, and a terminal as well."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return _CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


class Log:
    """One message a call, which begins with `imgvm: `. Writing to a closed stderr is not an error."""

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
            # Lines that follow stand apart, so that no name passes for words of ours.
            sys.stderr.write("imgvm: " + printable(message).replace("\n", "\n       ") + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


log = Log()
