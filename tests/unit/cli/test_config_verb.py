# SPDX-License-Identifier: MIT
"""`imgvm config`: get, set, edit and diff on images, and what a killed process leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import leave

from imgvm.cli import main
from imgvm.qcow2 import Image

Images = Callable[..., Path]
DISK = "disks: [{name: data, size: 1MiB}]  # kept"


def text_of(image: Path, blob: str = "config.yaml") -> str:
    with Image.open(image) as opened:
        return opened.read_config(blob).decode()


def test_get(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = str(image_of(leave(0), DISK))
    for words, shown in (
        (["machine.memory"], "16MiB\n"), (["machine.cpus"], "1\n"), (["disks[0].size"], "1MiB\n"),
        (["machine.memory", "--json"], '"16MiB"\n'), (["devices.debug_exit.mapping"], "raw\n"),
    ):  # fmt: skip
        assert main(["config", "get", image, *words]) == 0
        assert capfd.readouterr().out == shown
    assert main(["config", "get", image]) == 0
    assert json.loads(capfd.readouterr().out)["name"] == "small"
    assert main(["config", "get", image, "machine.nothing"]) == 1
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", f"imgvm: {image}: there is no machine.nothing\n")


def test_set_changes_text_and_machine_together(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(3), DISK)
    before = text_of(image)
    with Image.open(image, writable=True) as opened:
        opened.write(5, b"the guest's")
    assert main(["config", "set", str(image), "machine.memory=32MiB", "labels.a=b"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        f"imgvm: {image}: machine.memory: 16MiB -> 32MiB", f'imgvm: {image}: labels: nothing -> {{"a": "b"}}',
    ]  # fmt: skip
    assert text_of(image) == before.replace("memory: 16MiB", "memory: 32MiB") .rstrip("\n") + "\nlabels:\n  a: b\n"
    assert text_of(image, "config.packed.yaml") == before
    assert json.loads(text_of(image, "machine.json"))["machine"]["memory"] == "32MiB"
    with Image.open(image) as opened:
        assert opened.read(5, 11) == b"the guest's"
        assert opened.check().clean
    assert main(["-q", "run", str(image)]) == 3
    assert main(["config", "diff", str(image)]) == 1
    assert capfd.readouterr().out == '- machine.memory: 16MiB\n+ machine.memory: 32MiB\n+ labels: {"a": "b"}\n'


def test_what_is_refused_changes_nothing(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0), DISK)
    before = image.read_bytes()
    for words, complaint in (
        (["machine.memory=5"], "must be a size"), (["boot.kernel=k"], "settled when the image is packed"),
        (["machine.memory=1GiB", "disks[0].size=2MiB"], "disks: this is settled"), (["nonsense"], "there is no `=`"),
        (["machine.memroy=1GiB"], "did you mean memory?"), (["boot.cmdline=${X}"], "variables are settled"),
    ):  # fmt: skip
        assert main(["config", "set", str(image), *words]) == 125
        assert complaint in capfd.readouterr().err
    assert main(["config", "set", str(image), "machine.memory=16MiB"]) == 0  # as it is
    assert image.read_bytes() == before
    if os.geteuid():
        image.chmod(0o444)
        assert main(["config", "set", str(image), "machine.memory=32MiB"]) == 125
        assert "cannot be written" in capfd.readouterr().err


def editor(folder: Path, script: str) -> str:
    program = folder / "editor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_edit(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0), DISK)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("EDITOR", editor(tmp_path, 'sed -i "s/16MiB/64MiB # more/" "$1"; echo "console: {escape: none}" >>"$1"'))
    assert main(["config", "edit", str(image)]) == 125  # a comment within { }
    said = capfd.readouterr().err
    assert f"{image}:config.yaml:4:1: not YAML" in said and "what you wrote is in " in said
    draft = Path(said.rpartition("what you wrote is in ")[2].strip())
    assert "64MiB # more" in draft.read_text()
    monkeypatch.setenv("EDITOR", editor(tmp_path, 'sed -i "s/16MiB/64MiB/" "$1"; echo "# more" >>"$1"'))
    assert main(["config", "edit", str(image)]) == 0
    assert capfd.readouterr().err == f"imgvm: {image}: machine.memory: 16MiB -> 64MiB\n"
    assert text_of(image).endswith("# more\n")
    before = image.read_bytes()
    for words, status in (("true", 0), ("false", 125), ("/no/such/editor", 125), (editor(tmp_path, 'echo "[" >"$1"'), 125)):
        monkeypatch.setenv("EDITOR", words)
        assert main(["config", "edit", str(image)]) == status
    assert image.read_bytes() == before


def test_edit_does_not_undo_somebody_elses(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    other = f"{sys.executable} -m imgvm config set {image} machine.cpus=2"
    monkeypatch.setenv("EDITOR", editor(tmp_path, f'{other}; echo "# mine" >>"$1"'))
    assert main(["config", "edit", str(image)]) == 125
    assert "changed by somebody else" in capfd.readouterr().err
    assert "# mine" not in text_of(image) and "cpus: 2" in text_of(image)


def test_diff(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0), DISK)
    other = tmp_path / "other.img"
    shutil.copy(image, other)
    assert main(["config", "diff", str(image)]) == 0
    assert main(["config", "diff", str(image), str(other)]) == 0
    assert capfd.readouterr().out == ""
    assert main(["-q", "config", "set", str(other), "exit.timeout=1m", "description=more"]) == 0
    assert main(["config", "diff", str(image), str(other), "--json"]) == 1
    assert json.loads(capfd.readouterr().out) == [
        {"path": "exit.timeout", "old": "none", "new": "1m"}, {"path": "description", "new": "more"},
    ]  # fmt: skip
    config = tmp_path / "c.yaml"
    config.write_text("version: 1\nname: small\nboot: {kernel: kernel}\n")
    assert main(["config", "diff", str(image), str(config)]) == 1
    assert "- machine.memory: 16MiB\n+ machine.memory: 512MiB\n" in capfd.readouterr().out


LOOP = """
import itertools, sys
from imgvm.edit import set_values
for turn in itertools.count(int(sys.argv[2])):
    set_values(sys.argv[1], [f"labels.turn=v{turn}"])
    print(turn, flush=True)
"""


def test_a_killed_change_loses_nothing(image_of: Images) -> None:
    image = image_of(leave(6), DISK)
    disk = os.urandom(100_000)
    with Image.open(image, writable=True) as opened:
        opened.write(4000, disk)
    rng, turn = random.Random(5), 0
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", LOOP, str(image), str(turn + 1)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        done = [int(writer.stdout.readline()) for _ in range(rng.randint(1, 3))][-1]
        time.sleep(rng.uniform(0, 0.03))  # somewhere in a later change
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        done = max([done, *map(int, writer.stdout)])
        writer.stdout.close()
        label = json.loads(text_of(image, "machine.json"))["labels"]["turn"]
        turn = int(label.removeprefix("v"))
        assert turn in (done, done + 1)
        assert f"turn: {label}\n" in text_of(image)
        with Image.open(image) as opened:
            assert opened.read(4000, len(disk)) == disk
            assert not opened.check().corruptions
    assert main(["-q", "run", str(image)]) == 6
