# SPDX-License-Identifier: MIT
"""A console kept in memory: the native side writes the guest's bytes into a memory file, and reads what is
typed from a pipe. No Python runs when the guest prints."""

from __future__ import annotations

import os
import re
import time

from imgvm.errors import STATUS_TIMEOUT, EngineError

MAX_READ_BYTES = 64 << 20


class Capture:
    def __init__(self) -> None:
        self.output_fd = os.memfd_create("imgvm-console", os.MFD_CLOEXEC)
        self.input_fd, self._typed_fd = os.pipe2(os.O_CLOEXEC)
        self._last = ""

    def data(self) -> bytes:
        """All that the guest has written so far."""
        if self.output_fd < 0:
            return self._last.encode()
        size = min(os.fstat(self.output_fd).st_size, MAX_READ_BYTES)
        return os.pread(self.output_fd, size, 0)

    def text(self) -> str:
        return self.data().decode("utf-8", "replace")

    def send(self, text: str) -> None:
        """Types a text."""
        os.write(self._typed_fd, text.encode())

    def expect(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Waits until the output holds a match. EngineError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            text = self.text()
            if match := re.search(pattern, text):
                return match
            if time.monotonic() >= deadline:
                tail = "\n".join(text.splitlines()[-5:])
                message = f"the console did not show {pattern!r} in {timeout:g} s; its end:\n{tail}"
                raise EngineError(message, status=STATUS_TIMEOUT)
            time.sleep(0.01)

    def close(self) -> None:
        if self.output_fd >= 0:
            self._last = self.text()
            for fd in (self.output_fd, self.input_fd, self._typed_fd):
                os.close(fd)
            self.output_fd = self.input_fd = self._typed_fd = -1
