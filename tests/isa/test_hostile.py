# SPDX-License-Identifier: MIT
"""Guests that attack: translated code must touch nothing but guest memory and its processor.

tests/isa/hostile/ is the program; what it reports is run again with `--seed S --case N`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import program
import pytest
from test_blocks import LINKED, SHARED, TESTS

OURS = ["isa/hostile/*.c", *SHARED]


@pytest.fixture(scope="session")
def hostile() -> Path:
    wrapped = [f"-Wl,--wrap={name}" for name in ("aligned_alloc", "calloc")]
    return program.build("hostile", TESTS, OURS, LINKED, link=wrapped, like="blocks")


def survive(built: Path, seed: int, count: int) -> None:
    done = subprocess.run([str(built), "--seed", str(seed), "--count", str(count)], capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: status {done.returncode}: {done.stdout[-3000:]}{done.stderr[-1000:]}"
    totals = re.search(r"^(\d+) cases, (\d+) lives, (\d+) blocks translated; (\d+) compared, 0 differ$", done.stdout, re.M)
    assert totals, done.stdout
    cases, lives, translated, compared = map(int, totals.groups())
    assert cases == count and lives > 2 * count and translated > 5 * count and compared > count / 8


def test_nothing_else_is_touched(hostile: Path) -> None:
    survive(hostile, 1, 1200)


@pytest.mark.nightly
def test_nothing_else_is_touched_at_length(hostile: Path) -> None:
    for seed in range(10, 20):
        survive(hostile, seed, 100_000)
