# SPDX-License-Identifier: MIT
"""Several processors under ThreadSanitizer: the machine, its devices, the engine and the page walk, instrumented; and the
disks of one file.

Not the rest of cpu/: a guest's own races are its own affair, and would be all that one saw. Nor the translator: the
sanitizer holds signals back, and its clock is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_native import HERE, compile_program

from imgvm.vmm import _build

pytestmark = pytest.mark.nightly

PROGRAMS = ("test_smp_interp", "test_guests_interp", "test_board", "test_qcow2_disks", "test_qcow2_queue")
SECONDS = 1800


@pytest.mark.skipif(not shutil.which("setarch"), reason="setarch is not installed")
@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_do_not_race(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = _build.file_flags

    def flags(source: str) -> list[str]:
        left_out = {"-fno-sanitize=all"} if Path(source).parent.name == "mmu" else set()
        return [flag for flag in usual(source) if flag not in left_out]

    monkeypatch.setattr(_build, "file_flags", flags)
    monkeypatch.setenv("IMGVM_CFLAGS", "-fsanitize=thread -DINSTRUMENTED")  # an output folder of its own
    monkeypatch.setenv("IMGVM_SMP_ROUNDS", "512")
    binary = compile_program(HERE / f"{program}.c")
    # the sanitizer's shadow memory wants the addresses of a process without randomization
    done = subprocess.run(["setarch", "-R", binary], capture_output=True, text=True, timeout=SECONDS)
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr[:6000]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
