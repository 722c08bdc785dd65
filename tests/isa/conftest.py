# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest
from decoding import build, build_decoder


@pytest.fixture(scope="session")
def tool() -> Path:
    """Our decoder as a program."""
    return build_decoder()


@pytest.fixture(scope="session")
def processor() -> Path:
    """Runs instructions on this processor."""
    return build("hardware_tool", [])
