# SPDX-License-Identifier: MIT
"""Compiles and runs each tests/native/test_*.c, alone, with the sources its first lines name.

A line `needs: dev/pic.c base/*.c` in the file's opening comment lists what it links (relative to
imgvm/vmm/native); `libs: z` adds libraries. So each test also shows how few floors its subject stands on.
IMGVM_CFLAGS adds flags (the asan lane). Built programs stay in build/native-tests.
"""

from __future__ import annotations

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


def compile_program(program: Path) -> Path:
    text = program.read_text()
    extra = shlex.split(os.environ.get("IMGVM_CFLAGS", ""))
    tag = f"{abs(hash(tuple(extra))) % 0xFFFF:04x}" if extra else "plain"
    out = OUT / tag / program.stem
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = [path for pattern in directive(text, "needs") for path in sorted(_build.NATIVE.glob(pattern))]
    assert sources or not directive(text, "needs"), f"{program.name}: `needs:` names no file"
    objects = []
    for source in [program, *dict.fromkeys(sources)]:
        inside = source.is_relative_to(_build.NATIVE)
        flags = _build.file_flags(str(source)) if inside else []
        obj = out.parent / f"{program.stem}.{source.stem}.{len(objects)}.o"
        command = ["cc", *_build.CFLAGS, *extra, *flags, f"-I{_build.NATIVE}", f"-I{HERE}", "-c", str(source), "-o", str(obj)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        objects.append(str(obj))
    libs = [f"-l{name}" for name in directive(text, "libs")]
    done = subprocess.run(["cc", *extra, "-pthread", *objects, *libs, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_native(program: Path) -> None:
    done = subprocess.run([str(compile_program(program))], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"^[1-9]\d* checks, 0 failed$", done.stdout, re.M), done.stdout[-2000:]
