# SPDX-License-Identifier: MIT
"""imgvm: describe a machine in YAML, pack it into one qcow2 file, run it anywhere.

    config = imgvm.Config.load("ci.yaml")
    imgvm.pack(config, "ci.img")
    with imgvm.run("ci.img") as vm:
        result = vm.wait()

Nothing native is loaded by importing this package: its names are found when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Name -> where it lives. `pack` is the subpackage itself, which can be called.
_EXPORTS = {
    "Config": "imgvm.config",
    "ConfigError": "imgvm.errors",
    "ImgvmError": "imgvm.errors",
    "Machine": "imgvm.machine",
    "Processor": "imgvm.vmm.processor",
    "Problem": "imgvm.errors",
    "Result": "imgvm.vmm.vm",
    "Vm": "imgvm.vmm.vm",
    "Watch": "imgvm.vmm.vm",
    "run": "imgvm.launch",
}
__all__ = [*sorted(_EXPORTS), "pack"]


def __getattr__(name: str) -> Any:
    if name == "pack":
        return import_module("imgvm.pack")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'imgvm' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
