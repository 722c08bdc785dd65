# SPDX-License-Identifier: MIT
"""What packing is doing, for a person: one line that redraws itself on a terminal, else one line a step."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TextIO

from imgvm.log import one_line

_REDRAW_SECONDS = 0.1
_BAR_CELLS = 24


class Progress:
    """Shows nothing; the base of those that do. A step ends where the next begins."""

    def step(self, text: str, total_bytes: int = 0) -> None:
        """Begins a step; with `total_bytes` it is measured by `advance`."""

    def advance(self, done_bytes: int) -> None:
        """So much of the step is done."""

    def note(self, text: str) -> None:
        """Something that the user should know, and that is no error."""

    def finish(self) -> None:
        """All is done, or has failed: leaves the terminal clean."""


class PlainProgress(Progress):
    """One line a step, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def step(self, text: str, total_bytes: int = 0) -> None:
        self._line(text)

    def note(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        self._stream.write(f"imgvm: {one_line(text)}\n")
        self._stream.flush()


class JsonProgress(Progress):
    """One JSON object a line, for programs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def step(self, text: str, total_bytes: int = 0) -> None:
        self._line({"event": "step", "text": text, "total_bytes": total_bytes})

    def note(self, text: str) -> None:
        self._line({"event": "note", "text": text})

    def finish(self) -> None:
        self._line({"event": "finish"})

    def _line(self, event: dict[str, str | int]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class BarProgress(Progress):
    """One line on a terminal: the step, and a bar where its size is known."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._total_bytes = 0
        self._drawn_at = 0.0

    def step(self, text: str, total_bytes: int = 0) -> None:
        self._text, self._total_bytes = one_line(text), total_bytes
        self._draw(0)

    def advance(self, done_bytes: int) -> None:
        if time.monotonic() - self._drawn_at >= _REDRAW_SECONDS:
            self._draw(done_bytes)

    def note(self, text: str) -> None:
        self._erase()
        self._stream.write(f"imgvm: {one_line(text)}\n")
        self._draw(0)

    def finish(self) -> None:
        self._erase()
        self._stream.flush()

    def _draw(self, done_bytes: int) -> None:
        line = self._text
        if self._total_bytes:
            share = min(done_bytes / self._total_bytes, 1.0)
            bar = ("#" * int(share * _BAR_CELLS)).ljust(_BAR_CELLS, ".")
            line = f"[{bar}] {share:4.0%} {line}"
        self._erase()
        self._stream.write(line[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()
        self._drawn_at = time.monotonic()

    def _erase(self) -> None:
        self._stream.write("\r\x1b[K")


def choose(mode: str = "auto", stream: TextIO | None = None) -> Progress:
    """The progress of `--progress auto|bar|plain|json|none`; auto is a bar on a terminal, else none."""
    out = sys.stderr if stream is None else stream
    if mode == "auto":
        mode = "bar" if out.isatty() else "none"
    kinds = {"bar": BarProgress, "plain": PlainProgress, "json": JsonProgress}
    return kinds[mode](out) if mode in kinds else Progress()
