# SPDX-License-Identifier: MIT
"""The software processor against this host's KVM: 16- and 32-bit modes, compatibility mode, system instructions.

tests/isa/kvm/ is the program; a disagreement it prints is run again with `--seed S --case N`. What KVM's emulator is
known to do other than the manual says is listed, with the manual's place, in tests/isa/kvm/known.c.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import program
import pytest

HERE = Path(__file__).parent / "kvm"
LINKED = ["base/error.c", "backend/kvm_state.c", "backend/kvm_cpuid.c", "arch/*.c", "mem/guest_mem.c",
          "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c"]


@pytest.fixture(scope="session")
def against_kvm() -> Path:
    return program.build("against_kvm", HERE, ["*.c"], LINKED)


def check(built: Path, *arguments: str) -> None:
    done = subprocess.run([str(built), *arguments], capture_output=True, text=True, timeout=3600)
    if skipped := re.match(r"skipped: (.*)", done.stdout):
        pytest.skip(skipped[1])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    agreed = re.search(r"^(\d+) agree", done.stdout, re.M)
    assert agreed and int(agreed[1]) > 1000, done.stdout


def test_agrees_with_kvm(against_kvm: Path) -> None:
    check(against_kvm, "--seed", "1", "--count", "30000", "--seconds", "25")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_agrees_with_kvm_at_length(against_kvm: Path, seed: int) -> None:
    check(against_kvm, "--seed", str(seed), "--count", "200000", "--seconds", "300")
