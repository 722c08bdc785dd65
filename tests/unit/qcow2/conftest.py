# SPDX-License-Identifier: MIT
"""What the image tests share: QEMU's tools as an oracle, where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Tool = Callable[..., str]


def _tool(name: str, cwd: Path) -> Tool:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")

    def run(*args: object, ok: bool = True) -> str:
        done = subprocess.run(
            [program, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=120
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, f"{name} {args}: {output}"
        return output

    return run


@pytest.fixture
def qemu_img(tmp_path: Path) -> Tool:
    return _tool("qemu-img", tmp_path)


@pytest.fixture
def qemu_io(tmp_path: Path) -> Tool:
    return _tool("qemu-io", tmp_path)
