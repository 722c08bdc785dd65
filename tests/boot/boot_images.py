# SPDX-License-Identifier: MIT
"""Packing for the tests here, which are skipped by name where Debian's archive or the native core is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgvm import binding
from imgvm.config import Config
from imgvm.errors import ImgvmError, PackError
from imgvm.pack import pack

SECONDS = 300  # that a boot may take where all processors have other work, too; alone it takes few


def packed(config: Config, output: Path) -> Path:
    try:
        binding.lib()
    except ImgvmError as error:
        pytest.skip(f"{error.message} (make build)")
    try:
        pack(config, output)
    except PackError as error:
        if "cannot be reached" in error.message or "apt-get is not here" in error.message:
            pytest.skip(error.message)
        raise
    return output
