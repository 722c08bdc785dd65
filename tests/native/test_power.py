# SPDX-License-Identifier: MIT
"""Power loss, many thousand times (test_qcow2_power.c); a slice of it runs with the other native tests."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from test_native import HERE, compile_program

CUTS = 15_000
SECONDS = 3600


def cut(cuts: int, seed: int) -> tuple[int, int]:
    """How many cuts there were, and how many of them through writes that were not flushed yet."""
    environment = os.environ | {"IMGVM_POWER_CUTS": str(cuts), "IMGVM_POWER_SEED": str(seed)}
    program = str(compile_program(HERE / "test_qcow2_power.c"))
    done = subprocess.run([program], capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"^[1-9]\d* checks, 0 failed$", done.stdout, re.M)
    counts = re.search(r"^(\d+) cuts, (\d+) of them", done.stdout, re.M)
    assert counts
    return int(counts[1]), int(counts[2])


@pytest.mark.nightly
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("seed", [1, 20_000])
def test_power_is_lost_many_times(seed: int) -> None:
    cuts, mixed = cut(CUTS, seed)
    assert cuts >= CUTS
    assert mixed > CUTS // 3


def test_chance_begins_where_it_is_told() -> None:
    assert cut(70, 7) == cut(70, 7)
    assert len({cut(70, seed) for seed in range(7, 12)}) > 1
