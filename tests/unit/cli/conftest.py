# SPDX-License-Identifier: MIT
"""Images of small guests, for the verbs that need one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def image_of(tmp_path: Path) -> Callable[..., Path]:
    """Packs a guest's code into an image: image_of(code, "more: yaml")."""
    from multiboot_guest import kernel

    from imgvm import binding
    from imgvm.config import Config
    from imgvm.errors import ImgvmError
    from imgvm.pack import pack

    try:
        binding.lib()
    except ImgvmError as error:
        pytest.skip(f"{error.message} (make build)")

    def build(code: bytes, more: str = "") -> Path:
        (tmp_path / "kernel").write_bytes(kernel(code))
        text = (
            "version: 1\nname: small\nmachine: {memory: 16MiB, accel: interp}\nboot: {kernel: kernel, cmdline: a=b}\n"
            f"devices: {{debug_exit: true}}\n{more}\n"
        )
        image = tmp_path / "small.img"
        pack(Config.from_text(text, "small.yaml", tmp_path), image)
        return image

    return build
