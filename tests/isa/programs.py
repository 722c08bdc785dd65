# SPDX-License-Identifier: MIT
"""The tests' programs that run instructions, each of some C files here and the processor that they link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from imgvm.vmm import _build

TESTS = Path(__file__).parents[1]
OUT = TESTS.parent / "build" / "isa"
PROCESSOR = ["base/error.c", "arch/*.c", "mem/guest_mem.c", "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c", "cpu/jit/*.c"]
# In `differential` a signal handler runs with the case's FS, RSP and flags, and so the dynamic linker cannot.
ANY_STATE = ["-fno-stack-protector", "-mno-red-zone"]
BOUND_AT_ONCE = ["-Wl,-z,now"]


def _object(source: Path, folder: Path, newest: float, flags: Sequence[str]) -> str:
    """Made anew when its source or any header is younger."""
    root = _build.NATIVE if source.is_relative_to(_build.NATIVE) else TESTS
    made = folder / (str(source.relative_to(root)).replace("/", ".") + ".o")
    if not made.exists() or made.stat().st_mtime <= max(newest, source.stat().st_mtime):
        include = [f"-I{_build.NATIVE}", f"-I{TESTS}"]
        fresh = made.with_suffix(f".{os.getpid()}.tmp")
        command = ["cc", *_build.CFLAGS, *flags, *include, "-c", str(source), "-o", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        fresh.rename(made)
    return str(made)


def program(
    name: str,
    ours: Sequence[str],
    linked: Sequence[str] = PROCESSOR,
    *,
    flags: Sequence[str] = (),
    everywhere: Sequence[str] = (),
    link: Sequence[str] = (),
    out: Path = OUT,
) -> Path:
    """Of the files that match `ours` below tests/, compiled with `flags`, and `linked` below the core."""
    headers = [path for root in (_build.NATIVE, TESTS) for kind in ("*.h", "*.def") for path in root.rglob(kind)]
    newest = max(path.stat().st_mtime for path in headers)
    folder = out / "obj"  # all programs': no two compile a file differently
    folder.mkdir(parents=True, exist_ok=True)
    objects = [_object(path, folder, newest, [*everywhere, *flags]) for at in ours for path in sorted(TESTS.glob(at))]
    objects += [
        _object(path, folder, newest, [*everywhere, *_build.file_flags(str(path))])
        for at in linked
        for path in sorted(_build.NATIVE.glob(at))
    ]
    done = subprocess.run(["cc", "-pthread", *link, *objects, "-o", str(out / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / name
