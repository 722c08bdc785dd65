# SPDX-License-Identifier: MIT
"""Sources -> one image: kernels, Debian packages, initramfs, disks, and the packer that joins them.

    from imgvm.pack import pack
    result = pack(Config.load("ci.yaml"), "ci.img")
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgvm.pack.packer import PackResult, pack

__all__ = ["PackResult", "pack"]


def __getattr__(name: str) -> Any:
    # The parts stand on their own: reading a kernel needs neither the config nor the native core.
    if name in __all__:
        from imgvm.pack import packer

        return getattr(packer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Callable(ModuleType):
    """`imgvm.pack` is this package, and `imgvm.pack(config, output)` packs."""

    def __call__(self, *args: Any, **options: Any) -> PackResult:
        from imgvm.pack import packer

        return packer.pack(*args, **options)


sys.modules[__name__].__class__ = _Callable
