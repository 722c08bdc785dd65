# SPDX-License-Identifier: MIT
"""The software processor against this host's KVM: 16- and 32-bit modes, compatibility mode, system instructions.

tests/isa/kvm/ is the program; a disagreement it prints is run again with `--seed S --case N`. What KVM's emulator is
known to do other than the manual says is listed, with the manual's place, in tests/isa/kvm/known.c.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from decoding import OUT

from imgvm.vmm import _build

HERE = Path(__file__).parent / "kvm"
LINKED = ["base/error.c", "backend/kvm_state.c", "backend/kvm_cpuid.c", "arch/*.c", "mem/guest_mem.c",
          "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c"]


def compile_object(source: Path, newest: float) -> Path:
    inside = source.is_relative_to(_build.NATIVE)
    name = str(source.relative_to(_build.NATIVE)).replace("/", ".") if inside else source.name
    made = OUT / "against_kvm.obj" / (name + ".o")
    if made.exists() and made.stat().st_mtime > max(newest, source.stat().st_mtime):
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    flags = _build.file_flags(str(source)) if inside else []
    include = [f"-I{_build.NATIVE}", f"-I{HERE}"]
    command = ["cc", *_build.CFLAGS, *flags, *include, "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="session")
def against_kvm() -> Path:
    headers = [path for root in (_build.NATIVE, HERE) for kind in ("*.h", "*.def") for path in root.rglob(kind)]
    newest = max(path.stat().st_mtime for path in headers)
    linked = [path for pattern in LINKED for path in sorted(_build.NATIVE.glob(pattern))]
    objects = [str(compile_object(source, newest)) for source in [*sorted(HERE.glob("*.c")), *linked]]
    out = OUT / "against_kvm"
    done = subprocess.run(["cc", "-pthread", *objects, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def check(program: Path, *arguments: str) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=3600)
    if skipped := re.match(r"skipped: (.*)", done.stdout):
        pytest.skip(skipped[1])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    agreed = re.search(r"^(\d+) agree", done.stdout, re.M)
    assert agreed and int(agreed[1]) > 1000, done.stdout


def test_agrees_with_kvm(against_kvm: Path) -> None:
    check(against_kvm, "--seed", "1", "--count", "30000", "--seconds", "25")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_agrees_with_kvm_at_length(against_kvm: Path, seed: int) -> None:
    check(against_kvm, "--seed", str(seed), "--count", "200000", "--seconds", "300")
