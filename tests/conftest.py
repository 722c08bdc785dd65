# SPDX-License-Identifier: MIT
"""What all tests share."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from imgvm.errors import EngineError
from imgvm.vmm import engine

hypothesis.settings.register_profile("imgvm", deadline=None)  # on a busy host, anything may take its time
hypothesis.settings.load_profile("imgvm")


def pytest_configure() -> None:
    # Under nohup or a CI's launcher these may arrive ignored, and ignored they would stay in every child.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """A registry of Debian's package, on a port of its own."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\nhttp: {{addr: '{address}'}}\n")
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                socket.create_connection(tuple(address.split(":")), 1).close()  # type: ignore[arg-type]
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "registry.log").read_text()
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def needs_engine() -> Callable[[str], None]:
    """Skips the test when an engine is not there."""

    def check(name: str) -> None:
        try:
            engine.probe(name)
        except EngineError as error:
            pytest.skip(str(error))

    return check


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of few MiB: `@pytest.mark.parametrize("small_disk", [48], indirect=True)`, else one."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size={getattr(request, 'param', 1)}M"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
