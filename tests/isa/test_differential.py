# SPDX-License-Identifier: MIT
"""The software processor against the processor this runs on, one random user-mode instruction at a time.

tests/isa/differential/ is the program; a disagreement it prints is run again with `--seed S --case N`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from decoding import OUT

from imgvm.vmm import _build

HERE = Path(__file__).parent / "differential"
# Privileged by IOPL; undefined by definition; 0F 0D with a register is undefined on AMD's processors.
ALWAYS_FAULT = {"insb", "outsb", "in", "out", "cli", "sti", "rsm", "ud0", "ud1", "ud2", "nop"}
# 64-bit code, and 32- and 16-bit code in compatibility mode with segments from an LDT.
BITS = pytest.mark.parametrize("bits", ["64", "32", "16"])
LINKED = ["base/error.c", "arch/*.c", "mem/guest_mem.c", "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c",
          "cpu/jit/*.c"]


def compile_object(source: Path, newest: float) -> Path:
    inside = source.is_relative_to(_build.NATIVE)
    name = str(source.relative_to(_build.NATIVE)).replace("/", ".") if inside else source.name
    made = OUT / "differential.obj" / (name + ".o")
    if made.exists() and made.stat().st_mtime > max(newest, source.stat().st_mtime):
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    # the child's signal handler runs with the case's FS, RSP and flags
    flags = _build.file_flags(str(source)) if inside else ["-fno-stack-protector", "-mno-red-zone"]
    command = ["cc", *_build.CFLAGS, *flags, f"-I{_build.NATIVE}", f"-I{HERE}", "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="session")
def differential() -> Path:
    headers = [path for root in (_build.NATIVE, HERE) for pattern in ("*.h", "*.def") for path in root.rglob(pattern)]
    newest = max(path.stat().st_mtime for path in headers)
    sources = [*sorted(HERE.glob("*.c")), *(path for pattern in LINKED for path in sorted(_build.NATIVE.glob(pattern)))]
    # bound at once: with the case's FS the dynamic linker cannot run
    out = OUT / "differential"
    objects = [str(compile_object(source, newest)) for source in sources]
    done = subprocess.run(["cc", "-pthread", "-Wl,-z,now", *objects, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def check(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=3600)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@BITS
def test_agrees_with_this_processor(differential: Path, bits: str) -> None:
    check(differential, "--bits", bits, "--seed", "1", "--count", "500000" if bits == "64" else "250000")


@BITS
def test_agrees_translated(differential: Path, bits: str) -> None:
    check(differential, "--translate", "--bits", bits, "--seed", "4", "--count", "400000" if bits == "64" else "200000")


@BITS
def test_every_row_runs(differential: Path, bits: str) -> None:
    """Rows that never complete must be known for it; those never tried have a reason in known.c."""
    output = check(differential, "--bits", bits, "--seed", "2", "--count", "150000", "--coverage")
    silent = {(match["mnemonic"], match["why"]) for match in re.finditer(r"^row \d+ \((?P<mnemonic>[^/,]+).*\): (?P<why>.*)$", output, re.M)}
    assert not {mnemonic for mnemonic, why in silent if why == "never run"}
    assert {mnemonic for mnemonic, why in silent if why == "ran, and always faulted"} <= ALWAYS_FAULT


@BITS
def test_undefined_opcodes(differential: Path, bits: str) -> None:
    check(differential, "--bits", bits, "--any-opcode", "--seed", "3", "--count", "200000" if bits == "64" else "100000")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(100, 110))
@BITS
def test_ten_million(differential: Path, bits: str, seed: int) -> None:
    check(differential, "--bits", bits, "--seed", str(seed), "--count", "1000000")
    check(differential, "--bits", bits, "--any-opcode", "--seed", str(seed), "--count", "1000000")
    check(differential, "--translate", "--bits", bits, "--seed", str(seed + 100), "--count", "1000000")
