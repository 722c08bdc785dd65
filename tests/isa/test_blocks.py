# SPDX-License-Identifier: MIT
"""The translator against the interpreter: random programs of some instructions in every mode, with faults, interrupts,
break- and watchpoints in between.

tests/isa/blocks/ is the program; a disagreement it prints is run again with `--seed S --case N`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import program
import pytest

TESTS = Path(__file__).parents[1]
SHARED = ["isa/blocks/[!m]*.c", "isa/kvm/world.c", "isa/kvm/operands.c"]  # all but main
LINKED = ["base/error.c", "arch/*.c", "mem/guest_mem.c", "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c", "cpu/jit/*.c"]


@pytest.fixture(scope="session")
def blocks() -> Path:
    return program.build("blocks", TESTS, ["isa/blocks/main.c", *SHARED], LINKED)


def check(built: Path, *arguments: str, ended_share: float = 0.1, operand_share: float = 0.1) -> None:
    done = subprocess.run([str(built), *arguments], capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    totals = re.search(r"^(\d+) programs: (\d+) reached their end, (\d+) an exception; (\d+) runs, (\d+) cut short; (\d+) at an operand", done.stdout, re.M)
    assert totals, done.stdout
    programs, ended, _, runs, cut, at_operands = map(int, totals.groups())
    assert ended > programs * ended_share and runs > 5 * programs and cut < runs / 10
    assert at_operands > programs * operand_share


def test_every_mode(blocks: Path) -> None:
    check(blocks, "--seed", "1", "--count", "1500")


# The end is HLT, which is #GP in ring 3.
@pytest.mark.parametrize(("mode", "ended_share"), [("long3", 0.01), ("long0", 0.3)])
def test_64_bit(blocks: Path, mode: str, ended_share: float) -> None:
    check(blocks, "--seed", "2", "--count", "1000", "--mode", mode, ended_share=ended_share, operand_share=0.5)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(10, 20))
def test_every_mode_at_length(blocks: Path, seed: int) -> None:
    check(blocks, "--seed", str(seed), "--count", "300000")
