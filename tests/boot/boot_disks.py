# SPDX-License-Identifier: MIT
"""Runs a machine that boots from disks which a test makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from boot_images import SECONDS

import imgvm
from imgvm.errors import EngineError
from imgvm.vmm import engine
from imgvm.vmm.vm import Result

Boot = Callable[..., Result]
Keys = tuple[tuple[str, str, str], ...]  # wait for this, type that, wait for this


def booter(pack: Callable[[str], Path], folder: Path) -> Boot:
    """`disks`: their contents by name; those that begin with `cd` cannot be written."""

    def boot(disks: dict[str, bytes], accel: str = "interp", keys: Keys = (), **more: str) -> Result:
        text = "version: 1\nname: bios\nmachine: {memory: 64MiB}\ndevices: {debug_exit: true}\ndisks:\n"
        for name, data in disks.items():
            (folder / f"{name}.raw").write_bytes(data)
            read_only = str(name.startswith("cd")).lower()
            text += f"  - {{name: {name}, source: {name}.raw, format: raw, read_only: {read_only}}}\n"
        text += "".join(f"{key}: {value}\n" for key, value in more.items())
        try:
            engine.probe(accel)
        except EngineError as error:
            pytest.skip(f"{accel}: {error.message}")
        image = pack(text)
        with imgvm.run(image, accel=accel) as vm:
            for before, typed, after in keys:
                vm.console.expect(before)
                vm.console.send(typed)
                vm.console.expect(after)
            result = vm.wait(SECONDS)
            assert result is not None, vm.console.text()[-2000:]
        image.unlink()
        return result

    return boot
