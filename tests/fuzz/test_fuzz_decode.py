# SPDX-License-Identifier: MIT
"""The decoder's fuzzer: a glance at its seeds always, a long look in the nightly lane."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import decode

NIGHTLY_SECONDS = 600

pytestmark = [
    pytest.mark.skipif(not decode.available(), reason="clang with its libFuzzer is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("capstone") is None, reason="capstone is not installed"),
]


def test_the_seeds_break_no_promise() -> None:
    seeds = decode.seeds()
    assert len(list(seeds.iterdir())) > 1000
    subprocess.run([str(decode.build()), "-runs=0", str(seeds)], check=True, capture_output=True)
    compared, agreed, strange = decode.compare([seeds])
    assert not strange, "\n".join(strange[:40])
    assert agreed > compared // 3


@pytest.mark.nightly
def test_for_a_long_time() -> None:
    corpus = decode.fuzz(NIGHTLY_SECONDS)
    folders = [corpus, decode.seeds()]
    for compared, agreed, strange in (decode.compare(folders), decode.compare_mutations(folders, NIGHTLY_SECONDS)):
        assert not strange, "\n".join(strange[:100])
        assert agreed > compared // 4
