# SPDX-License-Identifier: MIT
"""Mutated input for every reader of what others made: a few hundred always, many thousand in the nightly lane."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import readers

COUNT, NIGHTLY_COUNT = 150, 20_000
SECONDS, NIGHTLY_SECONDS = 600, 3600


def check(name: str, count: int, seed: int, seconds: int) -> None:
    if tool := readers.missing(name):
        pytest.skip(f"{tool} is not installed")
    done = readers.fuzz(name, count, seed, seconds)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    accepted = re.fullmatch(rf"{name}: {count} inputs, (\d+) accepted\n", done.stdout)
    assert accepted and 0 < int(accepted[1]) < count  # else there was nothing to be found


@pytest.mark.parametrize("name", readers.READERS)
def test_only_errors_of_ours(name: str) -> None:
    check(name, COUNT, 1, SECONDS)


@pytest.mark.nightly
@pytest.mark.timeout(2 * NIGHTLY_SECONDS)
@pytest.mark.parametrize("name", readers.READERS)
def test_only_errors_of_ours_for_long(name: str) -> None:
    check(name, NIGHTLY_COUNT, 2, NIGHTLY_SECONDS)
