# SPDX-License-Identifier: MIT
"""A run at a terminal: raw mode and its undoing, signals, timeout, a reader that goes away."""

from __future__ import annotations

import os
import pty
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from imgvm.errors import EngineError
from imgvm.vmm import console
from imgvm.vmm.capture import Capture
from imgvm.vmm.vm import Result, detect_protocol, escape_byte


class FakeVm:
    """Runs until it is stopped, or, when it obeys, until its power button is pressed."""

    def __init__(self, obeys: bool = False, at_wait: Callable[[int], None] = lambda _: None) -> None:
        self.obeys = obeys
        self.at_wait = at_wait
        self.calls: list[str] = []
        self.waits = 0

    def wait(self, timeout: float | None = None) -> Result | None:
        self.waits += 1
        assert self.waits < 5000, "nobody ended the run"
        self.at_wait(self.waits)
        if "stop" in self.calls:
            return Result("stopped", 0, "interp", 1.5, 10)
        if self.obeys and "power" in self.calls:
            return Result("poweroff", 0, "interp", 1.0, 10)
        assert timeout is not None
        time.sleep(min(timeout, 0.002))
        return None

    def power_button(self) -> None:
        self.calls.append("power")

    def stop(self) -> None:
        self.calls.append("stop")


def send(number: int, *at: int) -> Callable[[int], None]:
    return lambda waits: os.kill(os.getpid(), number) if waits in at else None


def test_interrupt_presses_the_power_button() -> None:
    said: list[str] = []
    vm = FakeVm(obeys=True, at_wait=send(signal.SIGINT, 2))
    assert console.attend(vm, say=said.append).reason == "poweroff"
    assert vm.calls == ["power"]
    assert said == ["pressed the power button; interrupt again to end the run"]


def test_second_interrupt_ends_the_run() -> None:
    vm = FakeVm(at_wait=send(signal.SIGINT, 2, 4))
    result = console.attend(vm)
    assert vm.calls == ["power", "stop"]
    assert (result.reason, result.status, result.message) == ("signal", 130, "stopped by SIGINT")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ending_signals(number: int, status: int) -> None:
    result = console.attend(FakeVm(at_wait=send(number, 2)))
    assert (result.reason, result.status, result.instructions) == ("signal", status, 10)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    console.attend(FakeVm(at_wait=send(signal.SIGTERM, 1)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_timeout() -> None:
    vm = FakeVm()
    result = console.attend(vm, timeout_ns=20_000_000)
    assert (result.reason, result.status, result.message) == ("timeout", 124, "stopped after 20ms")
    assert vm.calls == ["stop"]


def test_an_end_just_before_the_timeout_counts() -> None:
    class Ended(FakeVm):
        def wait(self, timeout: float | None = None) -> Result | None:
            return Result("exec", 7, "kvm", 0.1, 0) if "stop" in self.calls else None

    assert console.attend(Ended(), timeout_ns=1).status == 7


def test_a_machine_that_does_not_stop_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_STOP_GRACE_S", 0.02)
    release = threading.Event()

    class Stuck(FakeVm):
        def stop(self) -> None:
            release.wait(10)

    result = console.attend(Stuck(), timeout_ns=1)
    release.set()
    assert (result.reason, result.status, result.is_stuck) == ("timeout", 124, True)
    assert "a processor still runs" in result.message


def test_a_reader_that_is_gone_ends_the_run() -> None:
    reader, writer = os.pipe()
    assert not console.reader_is_gone(writer)
    os.close(reader)
    try:
        assert console.reader_is_gone(writer)
        assert console.attend(FakeVm(), output_fd=writer).status == 141
    finally:
        os.close(writer)
    assert not console.reader_is_gone(writer)  # closed: nothing to say


@pytest.fixture
def terminal() -> Iterator[int]:
    controller, fd = pty.openpty()
    yield fd
    os.close(controller)
    os.close(fd)


def test_raw_mode_is_undone(terminal: int) -> None:
    before = termios.tcgetattr(terminal)
    with console.raw_terminal(terminal):
        lflag = termios.tcgetattr(terminal)[3]
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert termios.tcgetattr(terminal) == before
    with pytest.raises(KeyError), console.raw_terminal(terminal):
        raise KeyError
    assert termios.tcgetattr(terminal) == before


def test_a_terminal_of_another_session_is_none_of_ours(terminal: int) -> None:
    assert not console.is_terminal(terminal)
    assert not console.is_terminal(-1)


@pytest.mark.parametrize(("escape", "byte"), [("ctrl-a", 1), ("ctrl-]", 0x1D), ("ctrl-\\", 0x1C), ("none", 0)])
def test_escape(escape: str, byte: int) -> None:
    assert escape_byte(escape) == byte


def test_protocol_is_seen_in_the_kernel() -> None:
    header = (0x1BADB002).to_bytes(4, "little") + (3).to_bytes(4, "little") + (-(0x1BADB002 + 3) & 0xFFFFFFFF).to_bytes(4, "little")
    assert detect_protocol(b"\x7fELF" + bytes(4092) + header) == "multiboot"
    assert detect_protocol(b"\x7fELF" + bytes(4093) + header) == "linux"  # not aligned
    assert detect_protocol(bytes(8192) + header) == "linux"  # too far
    assert detect_protocol(header[:8] + bytes(4)) == "linux"  # wrong sum
    assert detect_protocol(b"") == "linux"


def test_capture() -> None:
    capture = Capture()
    writer = threading.Timer(0.02, lambda: os.write(capture.output_fd, b"hello\r\nlogin: "))
    writer.start()
    assert capture.expect(r"log(in)", 5)[1] == "in"
    writer.join()
    capture.send("root\n")
    assert os.read(capture.input_fd, 10) == b"root\n"
    with pytest.raises(EngineError, match="did not show 'never'"):
        capture.expect("never", 0.01)
    capture.close()
    capture.close()
    assert capture.text() == "hello\r\nlogin: "
