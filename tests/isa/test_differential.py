# SPDX-License-Identifier: MIT
"""The software processor against the processor this runs on, one random user-mode instruction at a time.

tests/isa/differential/ is the program; a disagreement it prints is run again with `--seed S --case N`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import program
import pytest

HERE = Path(__file__).parent / "differential"
# Privileged by IOPL; undefined by definition; 0F 0D with a register is undefined on AMD's processors.
ALWAYS_FAULT = {"insb", "outsb", "in", "out", "cli", "sti", "rsm", "ud0", "ud1", "ud2", "nop"}
# 64-bit code, and 32- and 16-bit code in compatibility mode with segments from an LDT.
BITS = pytest.mark.parametrize("bits", ["64", "32", "16"])
LINKED = ["base/error.c", "arch/*.c", "mem/guest_mem.c", "cpu/exec/*.c", "cpu/mmu/*.c", "cpu/decode/*.c",
          "cpu/jit/*.c"]


@pytest.fixture(scope="session")
def differential() -> Path:
    # The child's signal handler runs with the case's FS, RSP and flags; with that FS the dynamic linker cannot run.
    flags = ["-fno-stack-protector", "-mno-red-zone"]
    return program.build("differential", HERE, ["*.c"], LINKED, flags=flags, link=["-Wl,-z,now"])


def check(built: Path, *arguments: str) -> str:
    done = subprocess.run([str(built), *arguments], capture_output=True, text=True, timeout=3600)
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
