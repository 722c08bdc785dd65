# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from imgvm.pack import elf, exit_helper

LISTING = re.compile(
    r'^    (b"\S+"(?: \+ _PORT)?),\s+# (?P<at>[0-9a-f]{2}) (?:\w+:)?\s+(?P<text>[^;\n]+)', re.M
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "imgvm-exit"
    path.write_bytes(exit_helper.program())
    path.chmod(0o755)
    return path


def traced(program: Path, *arguments: str, stdout: int | None = subprocess.DEVNULL) -> tuple[int, str]:
    """Its status and system calls; ioperm always fails, so that no port of this host is touched."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = program.with_suffix(".log")
    command = ["strace", "-o", str(log), "-e", "inject=ioperm:error=EPERM", str(program), *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False)
    if not log.exists() or "ioctl" not in log.read_text():
        pytest.skip("strace cannot trace here")
    return done.returncode, log.read_text()


def test_is_a_small_static_program() -> None:
    data = exit_helper.program()
    assert len(data) == 232
    assert elf.is_static(data)


def test_comments_say_what_the_code_is() -> None:
    capstone = pytest.importorskip("capstone")
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    source = Path(exit_helper.__file__).read_text()
    written = {int(match["at"], 16): match["text"].strip() for match in LISTING.finditer(source)}
    labels = {name: int(at, 16) for at, name in re.findall(r"# ([0-9a-f]{2}) (\w+):", source)}
    found = {}
    for instruction in engine.disasm(exit_helper.CODE, 0):
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        for name, at in labels.items():
            if instruction.mnemonic.startswith("j"):
                text = re.sub(rf"\b{at:#x}$", name, text)
        found[instruction.address] = text

    def numbers(text: str) -> str:
        words = re.sub(r"\s+", " ", text)
        return re.sub(r"\b(0x[0-9a-f]+|\d+)\b", lambda number: str(int(number[0], 0)), words)

    assert {at: numbers(text) for at, text in written.items()} == {
        at: numbers(text) for at, text in found.items()
    }


def test_without_permission_it_says_so(program: Path) -> None:
    status, calls = traced(program, "7")
    assert status == 1
    assert re.search(r"ioperm\((0x5f4|1524), (0x)?1, 1\)", calls)


def test_first_it_waits_for_the_console(program: Path) -> None:
    _, calls = traced(program, "7")
    assert calls.index("TCSBRK, 1)") < calls.index("ioperm(")


def test_alone_it_only_waits_for_the_console(program: Path) -> None:
    status, calls = traced(program)
    assert status == 0
    assert "TCSBRK, 1)" in calls and "ioperm" not in calls


def test_on_a_terminal(program: Path) -> None:
    master, slave = os.openpty()
    try:
        assert subprocess.run([program], stdout=slave, check=False).returncode == 0
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write ports")
def test_an_ordinary_user_may_not(program: Path) -> None:
    assert subprocess.run([program, "7"], check=False).returncode == 1
