# SPDX-License-Identifier: MIT
"""The quick way to read `run`'s options calls it as typer would, or leaves it to typer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from multiboot_guest import leave

from imgvm.cli import app, on_terminal, quick, with_run
from imgvm.errors import UsageError

READ = [
    "run a.img",
    "a.img",
    "run a.img --accel interp",
    "run --accel jit -m 1GiB -c 2 a.img",
    "a.img --memory 64MiB --cpus 12 --timeout 1m30s --result-file r/x.json",
    "run --set machine.memory=1GiB a.yaml --set=exit.timeout=2s --var A=b --var C=d=e --profile fast --allow disks,backing",
    "run --accel= a.img",
    "run ./-odd --ephemeral --print-config",
    "run a.img --set a=--",
]
LEFT = [
    "", "run", "--help", "run --help", "run a.img -h", "-q run a.img", "pack a.yaml", "run a.img b.img", "run a.img -- ", "run -",
    "run a.img --acc jit", "run a.img -m1GiB", "run a.img -m=1GiB", "run a.img --cpus two", "run a.img --cpus -1", "run a.img --cpus",
    "run a.img --cpus 2 --cpus 3", "run a.img --cpus \N{ARABIC-INDIC DIGIT TWO}", "run a.img --ephemeral=1", "run a.img --gdb",
    "run a.img --timeout -5s", "run a.img --stats", "run --accel jit", "run a.img --nonsense", "run a.img --ephemeral --ephemeral",
]  # fmt: skip


def command() -> Any:
    group: Any = typer.main.get_command(app.build(["run"]))
    return group.commands["run"]


@pytest.mark.parametrize("line", READ)
def test_it_calls_run_as_typer_does(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(on_terminal, "command", lambda source, **options: called.append({"source": source, **options}) or 0)
    args = with_run(line.split()) if not line.startswith("run") else line.split()
    args = args if args[0] == "run" else ["run", *args]
    options = quick.run_options(args)
    assert options is not None
    on_terminal.command(**options)
    assert app.invoke(args) == 0
    quickly, by_typer = called
    defaults = {name: value for name, value in by_typer.items() if name not in quickly}
    assert quickly == {name: by_typer[name] for name in quickly}
    assert all(value in (None, False) for value in defaults.values())


@pytest.mark.parametrize("line", LEFT)
def test_what_is_left_to_typer(line: str) -> None:
    assert quick.run_options(with_run(line.split())) is None


def test_its_options_are_run_s() -> None:
    params = {opt: param for param in command().params for opt in param.opts}
    for option, name in (quick.ONE | quick.MANY | quick.FLAGS).items():
        param = params[option]
        assert param.name == name
        assert param.multiple is (option in quick.MANY)
        assert param.is_flag is (option in quick.FLAGS)
        assert (param.type.name == "int") is (name in quick._NUMBERS)
        assert (param.type.name == "path") is (name in quick._PATHS)


def test_faults_are_told_by_typer() -> None:
    with pytest.raises(UsageError, match="No such option"):
        app.invoke(["run", "a.img", "--nonsense"])


def test_a_run_loads_little(image_of: Callable[..., Path]) -> None:
    """What takes longer to import than all the rest together."""
    program = (
        "import sys\n"
        "from imgvm.cli import main\n"
        "assert main(sys.argv[1:]) == 7\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    image = image_of(leave(7))
    words = [sys.executable, "-c", program, "run", image, "--accel", "interp", "--timeout", "60s"]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    assert {"json", "imgvm", "_cffi_backend"} <= loaded
    assert not loaded & {"typer", "click", "yaml", "jsonschema", "dataclasses", "inspect", "tempfile", "shutil", "difflib", "hashlib"}
