# SPDX-License-Identifier: MIT
"""A machine on this process's terminal: raw mode, signals, timeout.

On a terminal every key goes to the guest, Ctrl-C too, and ctrl-a x ends the run. Without one, SIGINT presses
the power button and a second one ends the run. SIGTERM and SIGHUP end it at once. However the run ends, the
terminal is put back as it was.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from imgvm import units
from imgvm.errors import STATUS_SIGNAL, STATUS_TIMEOUT
from imgvm.vmm.vm import Result, wait_slice

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_STOP_GRACE_S = 10.0


class Running(Protocol):
    """What `attend` needs of a machine."""

    def wait(self, timeout: float | None = None) -> Result | None: ...
    def power_button(self) -> None: ...
    def stop(self) -> None: ...


def is_terminal(fd: int) -> bool:
    """A terminal that this process may set: it must be in the foreground, else tcsetattr would stop it."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Raw mode, undone on the way out and while the process is stopped and continued."""
    saved = termios.tcgetattr(fd)
    raw = make_raw(saved)

    def again(_number: int, _frame: FrameType | None) -> None:
        if is_terminal(fd):
            termios.tcsetattr(fd, termios.TCSANOW, raw)

    before = signal.signal(signal.SIGCONT, again)
    termios.tcsetattr(fd, termios.TCSADRAIN, raw)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def make_raw(attributes: list[Any]) -> list[Any]:
    """As cfmakeraw(3): no echo, no lines, no signals, eight bits, output as it is."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = attributes
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = (cflag & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]


class _Signals:
    """Counts what arrived; the loop in `attend` acts on it, outside the handlers."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.ending: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self.ending = number


def reader_is_gone(fd: int) -> bool:
    """Whether `fd` is a pipe whose reader has closed it (`| grep -m1`)."""
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return False
        poll = select.poll()
        poll.register(fd, 0)  # errors are always reported
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except OSError:
        return False


def attend(
    vm: Running,
    *,
    timeout_ns: int | None = None,
    output_fd: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Waits for the end of a started machine; signals and the timeout end it too."""
    deadline = None if timeout_ns is None else time.monotonic() + timeout_ns / 1e9
    pressed = 0
    with _Signals() as signals:
        while True:
            left = wait_slice(deadline)
            result = vm.wait(left)
            if result is not None:
                return result
            if signals.ending is not None:
                return _stopped_by_signal(vm, signals.ending)
            if signals.interrupts > pressed:
                if pressed or signals.interrupts > 1:
                    return _stopped_by_signal(vm, signal.SIGINT)
                pressed = 1
                say("pressed the power button; interrupt again to end the run")
                vm.power_button()
            if output_fd is not None and reader_is_gone(output_fd):
                return _stopped_by_signal(vm, signal.SIGPIPE)
            if deadline is not None and time.monotonic() >= deadline:
                assert timeout_ns is not None
                message = f"stopped after {units.format_duration(timeout_ns)}"
                return _end(vm, "timeout", STATUS_TIMEOUT, message)


def _stopped_by_signal(vm: Running, number: int) -> Result:
    return _end(vm, "signal", STATUS_SIGNAL + number, f"stopped by {signal.Signals(number).name}")


def _end(vm: Running, reason: str, status: int, message: str) -> Result:
    # A KVM without hardware may spin in the host's kernel and not heed a stop: no waiting for ever.
    stopper = threading.Thread(target=vm.stop, daemon=True)
    stopper.start()
    stopper.join(_STOP_GRACE_S)
    last = None if stopper.is_alive() else vm.wait(_STOP_GRACE_S)
    if last is None:
        message += ", but a processor still runs and is left to the end of this process"
        return Result(reason, status, "", 0.0, 0, message=message, is_stuck=True)
    if last.reason != "stopped":
        return last  # the guest ended by itself just before
    from dataclasses import replace

    return replace(last, reason=reason, status=status, message=message)
