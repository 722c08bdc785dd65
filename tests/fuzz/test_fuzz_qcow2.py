# SPDX-License-Identifier: MIT
"""The image fuzzer: a glance at its seeds always, a long look in the nightly lane."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import decode
import qcow2

NIGHTLY_SECONDS = 3600

pytestmark = pytest.mark.skipif(not decode.available(), reason="clang with its libFuzzer is not installed")


def test_the_seeds_break_no_promise() -> None:
    seeds = qcow2.seeds()
    assert len(list(seeds.iterdir())) >= 32
    subprocess.run([str(qcow2.build()), "-runs=0", str(seeds)], check=True, capture_output=True)


@pytest.mark.nightly
@pytest.mark.timeout(2 * NIGHTLY_SECONDS)
def test_for_a_long_time() -> None:
    qcow2.fuzz(NIGHTLY_SECONDS)
