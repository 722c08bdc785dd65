# SPDX-License-Identifier: MIT
"""What a processor starts with where no kernel is loaded."""

from __future__ import annotations

from importlib import resources

from imgvm import units
from imgvm.errors import EngineError

MAX_BYTES = 256 * units.KIB
PAGE_BYTES = 4096


def built_in() -> bytes:
    """The built-in BIOS. It belongs to the board, so it comes with this imgvm and not with an image."""
    try:
        return resources.files("imgvm").joinpath("_guest", "bios.bin").read_bytes()
    except OSError as error:
        hint = "run `make build`, or reinstall imgvm"
        raise EngineError("the built-in BIOS has not been built", hint) from error
