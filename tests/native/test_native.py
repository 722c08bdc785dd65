# SPDX-License-Identifier: MIT
"""Compiles and runs each tests/native/test_*.c, alone, with the sources its first lines name.

A line `needs: dev/pic.c base/*.c` in the file's opening comment lists what it links (relative to
imgvm/vmm/native); `libs: z` adds libraries. So each test also shows how few floors its subject stands on.
IMGVM_CFLAGS adds flags (the asan lane). Built programs stay in build/native-tests.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from imgvm.vmm import _build

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "native-tests"
PROGRAMS = sorted(HERE.glob("test_*.c"))


def directive(text: str, name: str) -> list[str]:
    return [word for line in re.findall(rf"^(?:/\*| \*|//) {name}: (.*)$", text, re.M) for word in line.replace("*/", "").split()]


def newest_header() -> float:
    headers = [path for pattern in ("*.h", "*.def", "*.inc") for root in (_build.NATIVE, HERE) for path in root.rglob(pattern)]
    return max(path.stat().st_mtime for path in (*headers, *PROGRAMS))  # some programs include others


def compile_object(source: Path, out: Path, extra: list[str], headers: float) -> Path:
    """Objects are shared by all programs and made anew when the source or any header is younger."""
    inside = source.is_relative_to(_build.NATIVE)
    name = str(source.relative_to(_build.NATIVE)) if inside else source.name
    obj = out / "obj" / (name.replace("/", ".") + ".o")
    if obj.exists() and obj.stat().st_mtime > max(headers, source.stat().st_mtime):
        return obj
    obj.parent.mkdir(parents=True, exist_ok=True)
    flags = _build.file_flags(str(source)) if inside else []
    made = obj.with_suffix(f".{os.getpid()}.tmp")
    command = ["cc", *_build.CFLAGS, *extra, *flags, f"-I{_build.NATIVE}", f"-I{HERE}", "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made.rename(obj)
    return obj


def compile_program(program: Path) -> Path:
    text = program.read_text()
    extra = shlex.split(os.environ.get("IMGVM_CFLAGS", ""))
    out = OUT / (hashlib.sha256(" ".join(extra).encode()).hexdigest()[:8] if extra else "plain")
    patterns = directive(text, "needs")
    sources = [path for pattern in patterns for path in sorted(_build.NATIVE.glob(pattern))]
    assert sources or not patterns, f"{program.name}: `needs:` names no file"
    headers = newest_header()
    objects = [str(compile_object(source, out, extra, headers)) for source in dict.fromkeys([program, *sources])]
    libs = [f"-l{name}" for name in directive(text, "libs")]
    binary = out / program.stem
    done = subprocess.run(["cc", *extra, "-pthread", *objects, *libs, "-o", str(binary)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return binary


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_native(program: Path) -> None:
    done = subprocess.run([str(compile_program(program))], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    if skipped := re.match(r"skipped: (.*)", done.stdout):
        pytest.skip(f"{program.stem}: {skipped[1]}")
    assert re.search(r"^[1-9]\d* checks, 0 failed$", done.stdout, re.M), done.stdout[-2000:]
