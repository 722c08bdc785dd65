# SPDX-License-Identifier: MIT
"""`imgvm cpu` on a few bytes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from imgvm.cli import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "code.bin"
    path.write_bytes(bytes.fromhex("b82a000000 e780 f4"))  # mov eax, 42; out 0x80, eax; hlt
    return path


def test_code_runs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpu", str(file), "--set", "rbx=0x77"]) == 0
    said = capsys.readouterr()
    assert "rax     0x000000000000002a\nrbx     0x0000000000000077\n" in said.out
    assert "port 0x80 <- 0x0000002a" in said.out
    assert said.err == "halt\n"


@pytest.mark.parametrize(("bits", "text"), [(16, "mov ax, 0x2a"), (32, "mov eax, 0x2a"), (64, "mov eax, 0x2a")])
def test_code_is_shown(file: Path, capsys: pytest.CaptureFixture[str], bits: int, text: str) -> None:
    assert main(["cpu", "-d", "-b", str(bits), "-a", "0x7c00", str(file)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("    7c00  b8 2a 00 ") and first.endswith(text)


def test_what_is_no_instruction_is_shown_as_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("06 90 48"))
    assert main(["cpu", "-d", "-"]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert words == [["1000", "06", "(bad)"], ["1001", "90", "nop"], ["1002", "48", "(cut", "off)"]]


def test_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "code"
    code.write_bytes(b"\xeb\xfe")
    assert main(["cpu", str(code), "--timeout", "0.1"]) == 124
    assert main(["cpu", str(code), "-n", "5", "-b", "16"]) == 0
    code.write_bytes(b"\x0f\x0b")
    assert main(["cpu", str(code), "--set", "idtr_limit=0"]) == 255
    assert capsys.readouterr().err.splitlines()[:2] == ["timeout", "steps"]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["/nowhere"], 127, "there is no /nowhere"),
        (["-", "-b", "8"], 125, "no mode of 8 bits"),
        (["-", "--accel", "qemu"], 125, "no engine qemu"),
        (["-", "-n", "-1"], 125, "fewer than no steps"),
        (["-", "-a", "here"], 125, "here is no number"),
        (["-", "--set", "rax"], 125, "no REG=N"),
        (["-", "--set", "foo=1"], 125, "no register foo"),
    ],
)
def test_mistakes(
    args: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("f4"))
    assert main(["cpu", *args]) == status
    assert words in capsys.readouterr().err
