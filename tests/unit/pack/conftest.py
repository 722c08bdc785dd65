# SPDX-License-Identifier: MIT
"""What whole images are packed from."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import BUSYBOX, kernel, module_tree

from imgvm.pack import initramfs


@pytest.fixture
def same_busybox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busybox that is the same everywhere."""
    source = initramfs.Source.of("boot.initrd", "busybox of the test", BUSYBOX)
    monkeypatch.setattr(initramfs, "find_busybox", lambda cache, distro, pin: (BUSYBOX, source))


@pytest.fixture
def folder(tmp_path: Path, same_busybox: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel with its modules."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz").write_bytes(kernel())
    module_tree(tmp_path)
    return tmp_path
