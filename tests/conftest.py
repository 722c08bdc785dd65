# SPDX-License-Identifier: MIT
"""What all tests share."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # Under nohup or a CI's launcher these may arrive ignored, and ignored they would stay in every child.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
