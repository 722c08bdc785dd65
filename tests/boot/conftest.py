# SPDX-License-Identifier: MIT
"""Debian's cloud kernel, packed once for all tests here; each test gets a copy of the image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_disks import Boot, booter
from boot_images import packed

from imgvm.config import Config

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(Config.load(EXAMPLES / "debian-busybox.yaml"), tmp_path_factory.mktemp("boot") / "busybox.img")


@pytest.fixture
def busybox(busybox_image: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(busybox_image, tmp_path / "busybox.img"))


@pytest.fixture
def pack_config(tmp_path: Path) -> Callable[[str], Path]:
    """Packs a config given as text; paths in it are relative to tmp_path."""
    return lambda text: packed(Config.from_text(text, "boot.yaml", tmp_path), tmp_path / "packed.img")


@pytest.fixture
def boot(pack_config: Callable[[str], Path], tmp_path: Path) -> Boot:
    return booter(pack_config, tmp_path)
