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


@pytest.fixture
def boot_disk(tmp_path: Path) -> Path:
    """An image without a kernel: the boot sector of its disk writes 5 to the debug exit port."""
    from imgvm.config import Config
    from imgvm.pack import pack

    program = bytes.fromhex("b005 e6f4 f4".replace(" ", ""))  # mov al, 5; out 0xf4, al; hlt
    (tmp_path / "boot.raw").write_bytes(program.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    text = "version: 1\nname: small\nmachine: {memory: 16MiB}\ndevices: {debug_exit: true}\ndisks: [{name: d, source: boot.raw, format: raw}]\n"
    pack(Config.from_text(text, "small.yaml", tmp_path), tmp_path / "small.img")
    return tmp_path / "small.img"
