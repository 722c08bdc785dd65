# SPDX-License-Identifier: MIT
"""The command: verbs, usage errors, and one clear line for each exception."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgvm import cli
from imgvm.cli import app, main, with_run
from imgvm.errors import ConfigError, ImgvmError, Problem

GOOD = "version: 1\nboot: {kernel: k}\n"


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD + "machine: {memroy: 1}\nnetworks: none\n")
    return str(path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ci.img", "run ci.img"),
        ("-q ci.img --accel kvm", "-q run ci.img --accel kvm"),
        ("-C a/b ci.img", "-C a/b run ci.img"),
        ("./x", "run ./x"),
        ("run ci.img", "run ci.img"),
        ("pack a.yaml", "pack a.yaml"),
        ("pakc", "pakc"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_a_file_is_run(given: str, meant: str) -> None:
    assert with_run(given.split()) == meant.split()


def test_a_file_without_suffix_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_run(["ci"]) == ["ci"]
    (tmp_path / "ci").touch()
    assert with_run(["ci"]) == ["run", "ci"]
    (tmp_path / "check").touch()
    assert with_run(["check", "x"]) == ["check", "x"]


def test_every_verb_is_listed_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    whole = app.build(cli.VERBS)
    registered = [*whole.registered_commands, *whole.registered_groups]
    assert {command.name for command in registered} == set(cli.VERBS)
    for verb in cli.VERBS:
        assert f"  {verb} " in shown
        assert main([verb, "--help"]) == 0
        assert f"Usage: imgvm {verb}" in capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("imgvm 0.")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nonsense"], "imgvm: No such command"),
        (["run"], "imgvm: Missing argument"),
        (["run", "--nonsense"], "imgvm: No such option"),
        (["-C", "/does/not/exist", "schema"], "imgvm: -C /does/not/exist: No such file or directory"),
        (["run", "x.img", "-c", "many"], "imgvm: Invalid value for"),
        (["validate", "--format", "xml", "a"], "imgvm: Invalid value for"),
        (["run", "x.img", "--timeout", " "], "imgvm: the value for exit.timeout is empty"),
    ],
)
def test_usage_errors_are_one_line_and_125(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 125
    said = capsys.readouterr()
    assert said.err.startswith(line)
    assert said.out == ""


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def invoke(_args: list[str]) -> int:
        raise error

    monkeypatch.setattr(app, "invoke", invoke)
    return main(["schema"])


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (ImgvmError("it broke", "mend it", 126), 126, "imgvm: it broke\nimgvm: hint: mend it\n"),
        (ConfigError([Problem("f", 1, 2, "a.b", "wrong", "so"), Problem("f", 3, 4, "", "bad")]), 125, "f:1:2: a.b: wrong (so)\nf:3:4: bad\n"),
        (OSError(28, "No space left on device", "x.img"), 125, "imgvm: x.img: No space left on device\n"),
        (MemoryError(), 125, "imgvm: out of memory\nimgvm: hint: give the machine less with --set machine.memory=...\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("x"), 125, "imgvm: a fault of imgvm itself: ZeroDivisionError: x\nimgvm: hint: IMGVM_TRACEBACK=1 shows where\n"),
    ],
)
def test_exceptions(
    error: BaseException, status: int, lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IMGVM_TRACEBACK", raising=False)
    assert raising(error, monkeypatch) == status
    assert capsys.readouterr().err == lines


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGVM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError("x"), monkeypatch)


def test_a_closed_reader_ends_quietly() -> None:
    shell = f"{sys.executable} -m imgvm schema | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_validate(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", good]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "imgvm: 1 config is valid\n")
    assert main(["validate", good, bad]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{bad}:3:11: machine.memroy: unknown key (did you mean memory?)",
        f"{bad}:4:1: networks: unknown key: this version of imgvm does not support it yet",
    ]
    assert said.err == "imgvm: 2 problems\n"


def test_validate_for_programs(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "validate", "--format", "json", good]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["-q", "validate", "--format", "json", bad]) == 1
    said = capsys.readouterr()
    assert [problem["line"] for problem in json.loads(said.out)] == [3, 4]
    assert said.err == ""
    assert main(["validate", "--format", "github", bad]) == 1
    assert capsys.readouterr().out.startswith("::error file=")


def test_validate_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "/no/such.yaml"]) == 127
    assert capsys.readouterr().err == "imgvm: /no/such.yaml: No such file or directory\nimgvm: hint: check the name and the folder\n"


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"].startswith("imgvm")


def test_pack_dry_run_writes_nothing(good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", good, "--dry-run", "--set", "machine.memory=1GiB"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["machine"]["memory"] == "1GiB"
    assert said.err == "imgvm: would write good.img\n"
    assert [path.name for path in tmp_path.iterdir()] == ["good.yaml"]


def test_pack_keeps_what_is_there(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "there.img"
    target.write_text("mine")
    assert main(["pack", good, "-o", str(target)]) == 125
    assert capsys.readouterr().err == f"imgvm: {target} exists\nimgvm: hint: --force replaces it, -o names another\n"
    assert target.read_text() == "mine"


def test_run_prints_the_config_of_a_config(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", good, "--print-config", "-m", "1GiB", "-c", "2", "--accel", "interp", "--timeout", "5s", "--set", "name=other"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    hardware = document["machine"]
    assert (hardware["cpus"], hardware["memory"], hardware["accel"]) == (2, "1GiB", "interp")
    assert (document["exit"]["timeout"], document["name"]) == ("5s", "other")


def test_faulty_options_are_told_like_a_config(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", good, "-m", "512", "--accel", "qemu"]) == 125
    said = capsys.readouterr().err
    assert 'machine.memory: "512" is not a size' in said
    assert "machine.accel: must be one of auto, kvm, jit, interp" in said


def test_run_of_nothing_is_127(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    assert main([str(tmp_path / "none.img"), "--result-file", str(result)]) == 127
    assert capsys.readouterr().err == f"imgvm: {tmp_path}/none.img: No such file or directory\nimgvm: hint: check the name and the folder\n"
    assert json.loads(result.read_text()) == {
        "reason": "error", "status": 127, "message": f"{tmp_path}/none.img: No such file or directory (check the name and the folder)",
    }  # fmt: skip


def test_result_file_is_tried_before_the_run(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", good, "--result-file", str(tmp_path)]) == 125
    assert "cannot be written" in capsys.readouterr().err
