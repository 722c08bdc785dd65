# SPDX-License-Identifier: MIT
"""The verbs on real images with small guests, on the software processor: output, statuses, faults."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import SPIN, TRIPLE_FAULT, leave, say

import imgvm
from imgvm import audit
from imgvm.cli import main
from imgvm.errors import ImgvmError
from imgvm.qcow2 import Image
from imgvm.qcow2.reader import IndependentReader

Images = Callable[..., Path]
DISK = "disks: [{name: data, size: 1MiB}]"


@pytest.mark.parametrize("status", [0, 7, 255])
def test_the_guests_status_is_ours(status: int, image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(image_of(say("hello\n") + leave(status)))]) == status
    said = capfd.readouterr()
    assert said.out == "hello\n"
    assert said.err.splitlines()[0] == "imgvm: engine interp: the software processor, as asked"


def test_result_file(image_of: Images, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert main(["-q", "run", str(image_of(leave(3))), "--result-file", str(result)]) == 3
    found = json.loads(result.read_text())
    assert (found["reason"], found["status"], found["accel"]) == ("debug_exit", 3, "interp")
    assert found["instructions"] > 0
    assert found["seconds"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel", "result.json", "small.img"]


def test_stats(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = str(image_of(say("hi\n") + leave(3)))
    assert main(["-q", "run", image, "--accel", "jit", "--stats=json"]) == 3
    counts = json.loads(capfd.readouterr().err)
    assert counts["run"]["instructions"] > 0
    assert counts["blocks"]["decoded"] > 0
    assert sum(counts["exits"].values()) == counts["translator"]["entered"]
    assert (counts["ports"]["serial port"], counts["ports"]["debug_exit"]) == (3, 1)
    assert main(["run", image, "--stats"]) == 3
    said = capfd.readouterr().err
    assert re.search(r"^imgvm: blocks\nimgvm:   decoded +[1-9]", said, re.M)
    assert re.search(r"^imgvm: ports\nimgvm:   serial port +3\nimgvm:   debug exit +1$", said, re.M)
    assert main(["run", image, "--stats=xml"]) == 125
    assert "--stats=xml: there are table and json" in capfd.readouterr().err


@pytest.mark.parametrize("accel", ["jit", "interp"])
def test_no_memory_is_writable_and_executable(accel: str, image_of: Images) -> None:
    with imgvm.run(image_of(say("up") + SPIN), accel) as vm:
        while "up" not in vm.console.text():
            assert vm.wait(0.01) is None
        rights = {line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert {"rw-s", "r-xs"} <= rights
    assert not [found for found in rights if "w" in found and "x" in found]


def test_names_for_perf(image_of: Images) -> None:
    image, watch = image_of(leave(3)), imgvm.Watch(perf_map=True)
    with imgvm.run(image, "jit", watch=watch) as vm, imgvm.run(image, "jit", watch=watch) as other:
        assert [machine.wait(30).status for machine in (vm, other)] == [3, 3]
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    names = [line.split()[2] for line in path.read_text().splitlines()]
    assert names.count("jit:dispatch") == 2 and names.count("jit:refill_read") == 2
    assert path.stat().st_mode & 0o777 == 0o600


def traced(image: Path, folder: Path, kinds: str) -> list[str]:
    """What the guest did, without time and processor."""
    main(["run", str(image), "--trace", kinds, "--trace-file", str(folder / "trace")])
    lines = (folder / "trace").read_text().splitlines()
    assert all(re.match(r" *\d+\.\d{6} 0 ", line) for line in lines)
    return [line.split(maxsplit=2)[2] for line in lines]


def test_trace_of_ports_and_modes(image_of: Images, tmp_path: Path) -> None:
    lines = traced(image_of(say("hi") + leave(3)), tmp_path, "ports,modes")
    assert re.fullmatch(r"mode protected32 cpl 0 cr0 11 cr3 0 cr4 0 efer 0 at \w+:100\w+", lines[0])
    writes = [line for line in lines if line.startswith("port write")]
    assert writes[:2] == ["port write 3f8/1 = 68 serial port", "port write 3f8/1 = 69 serial port"]
    assert re.fullmatch(r"port write \w+/1 = 3 debug_exit", writes[2]) and len(writes) == 3


def test_trace_of_a_triple_fault(image_of: Images, tmp_path: Path) -> None:
    first, *_, last = traced(image_of(TRIPLE_FAULT), tmp_path, "all")
    assert first.startswith("mode protected32")
    assert last.startswith("triple fault at ")


def test_trace_of_unknown_events(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(image_of(leave(3))), "--trace", "ports,everything"]) == 125
    said = capfd.readouterr().err
    assert 'cannot trace "everything"' in said
    assert "there are all, exits, exceptions, interrupts, modes, msrs, ports, mmio" in said


def test_a_triple_fault_is_255_and_says_where(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(image_of(TRIPLE_FAULT))]) == 255
    assert "imgvm: the guest's processor stopped on a triple fault: " in capfd.readouterr().err


def test_timeout_is_124(image_of: Images, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert main([str(image_of(SPIN)), "--timeout", "200ms", "--result-file", str(result)]) == 124
    assert "imgvm: timeout: stopped after 200ms" in capfd.readouterr().err
    assert json.loads(result.read_text())["reason"] == "timeout"


def test_a_config_is_packed_for_one_run(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    image_of(say("from yaml") + leave(9))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tmp_path / "c.yaml"
    config.write_text("version: 1\nmachine: {memory: 16MiB}\nboot: {kernel: kernel}\ndevices: {debug_exit: true}\n")
    assert main(["run", str(config), "--accel", "interp"]) == 9
    assert capfd.readouterr().out == "from yaml"
    assert list((tmp_path / "cache" / "imgvm" / "run").iterdir()) == []


def test_ephemeral_leaves_the_image_alone(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = image_of(leave(4), DISK)
    image.chmod(0o444)
    before = image.read_bytes()
    assert main(["-q", "run", str(image), "--ephemeral"]) == 4
    assert image.read_bytes() == before
    assert list((tmp_path / "cache" / "imgvm" / "run").iterdir()) == []


def test_overrides_of_a_run(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = str(image_of(leave(0)))
    assert main(["run", image, "--print-config", "-m", "64MiB", "--set", "boot.cmdline=c"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["machine"]["memory"], document["boot"]["cmdline"]) == ("64MiB", "c")
    assert main(["run", image, "--set", "boot.kernel=other"]) == 125
    assert "this is settled when the image is packed" in capfd.readouterr().err
    assert main(["run", image, "--set", "machine.memory=5"]) == 125


def test_inspect_extract_check_verify(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = str(image_of(leave(0), DISK))
    assert main(["inspect", image]) == 0
    shown = capfd.readouterr().out
    assert "name      small\n" in shown
    assert "blob      kernel " in shown
    assert main(["inspect", image, "--config"]) == 0
    assert capfd.readouterr().out.startswith("version: 1\nname: small\n")
    assert main(["inspect", image, "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["disk_bytes"], facts["machine"]["name"]) == (1 << 20, "small")
    assert "imgvm.config" in facts["snapshots"]
    assert main(["extract", image, "kernel", "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "kernel").read_bytes()
    assert main(["extract", image, "nothing"]) == 125
    assert "it carries config.yaml, machine.json, kernel" in capfd.readouterr().err
    assert main(["check", image]) == 0
    assert main(["verify", image]) == 0
    assert capfd.readouterr().out == f"{image}: clean\n{image}: verified\n"


def test_verify_sees_a_changed_blob(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(say("find me") + leave(0))
    data = image.read_bytes()
    image.write_bytes(data.replace(b"\x7fELF", b"\x7fELG", 1))
    assert main(["verify", str(image)]) == 1
    assert "kernel" in capfd.readouterr().out
    assert main(["run", str(image)]) == 125
    assert "kernel" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["foreign", "empty", "text", "truncated", "no-config"])
def test_images_that_are_none(damage: str, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    broken = tmp_path / "broken.img"
    expected = 127
    if damage == "foreign":
        broken.write_bytes(b"\x7fELF" + bytes(4096))
    elif damage == "empty":
        broken.touch()
    elif damage == "text":
        broken.write_text("hello " * 1000)
    elif damage == "truncated":
        broken.write_bytes(image.read_bytes()[:5000])
        expected = 125
    else:
        if shutil.which("qemu-img") is None:
            pytest.skip("qemu-img is not installed")
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(image), str(broken)], check=True)
    assert main(["run", str(broken)]) == expected
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("imgvm: ") and lines[1].startswith("imgvm: hint: "), lines


def test_a_run_from_python(image_of: Images) -> None:
    with imgvm.run(image_of(say("ready\n") + SPIN)) as vm:
        assert vm.console.expect("ready", 20)
        assert vm.wait(0) is None
        vm.stop()
        result = vm.wait(20)
    assert result is not None
    assert (result.reason, result.accel, result.console) == ("stopped", "interp", "ready\n")
    with pytest.raises(ImgvmError, match="No such file"):
        imgvm.run("/no/such.img")


def test_pack_from_python(image_of: Images, tmp_path: Path) -> None:
    image_of(leave(5))
    config = imgvm.Config.from_text(
        "version: 1\nmachine: {memory: 16MiB}\nboot: {kernel: kernel}\ndevices: {debug_exit: true}\n", "p", tmp_path
    )
    imgvm.pack(config, tmp_path / "packed.img")
    with imgvm.run(tmp_path / "packed.img", accel="interp") as vm:
        result = vm.wait(20)
    assert result is not None
    assert result.status == 5


def read_until(fd: int, words: bytes, seconds: float = 30) -> bytes:
    seen, deadline = b"", time.monotonic() + seconds
    while words not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 4096)
    assert words in seen, seen
    return seen


def test_on_a_terminal(image_of: Images) -> None:
    """Raw while it runs; Ctrl-C is the guest's; ctrl-a x ends it; the terminal is put back."""
    image = image_of(say("running\n") + SPIN)
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    starter = (
        "import fcntl, os, sys, termios\n"
        "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from imgvm.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", starter, str(image)]
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal)
    try:
        seen = read_until(controller, b"running\n")
        assert b"ctrl-a x ends the run" in seen
        assert not termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)
        os.write(controller, b"\x03")
        time.sleep(0.3)
        assert process.poll() is None
        os.write(controller, b"\x01x")
        assert process.wait(30) == 0
        assert termios.tcgetattr(terminal) == before
    finally:
        process.kill()
        process.wait()
        os.close(controller)
        os.close(terminal)


def test_a_reader_that_leaves_ends_the_run(image_of: Images) -> None:
    words = [sys.executable, "-m", "imgvm", "-q", str(image_of(say("found\n") + SPIN))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"found\n"
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""


def test_lockstep(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    """It compares two engines, and says so where there is nothing to compare."""
    image = image_of(say("checked") + leave(3))
    assert main(["run", str(image), "--accel", "jit", "--lockstep"]) == 3
    assert capfd.readouterr().out == "checked"
    for words in (["--accel", "interp"], ["--accel", "jit", "--cpus", "2"]):
        assert main(["run", str(image), *words, "--lockstep"]) == 125
        said = capfd.readouterr().err
        assert "lock-step holds the translator against the interpreter, on one processor" in said
        assert "hint: --accel jit --cpus 1" in said


@pytest.mark.parametrize("differs_at", [None, 5 << 38, 0, (1 << 42) - 1])
def test_a_disk_of_nothing_is_verified(differs_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a moment: of its holes only the ends are read, where another map would show."""
    with Image.create(tmp_path / "a.img", 1 << 42) as image:
        image.write(5 << 38, b"far away")
    true_read = IndependentReader.read

    def read(reader: IndependentReader, offset: int, size: int) -> bytes:
        data = bytearray(true_read(reader, offset, size))
        if differs_at is not None and offset <= differs_at < offset + size:
            data[differs_at - offset] ^= 1
        return bytes(data)

    monkeypatch.setattr(IndependentReader, "read", read)
    with Image.open(tmp_path / "a.img") as image:
        assert list(audit.verify(image)) == ([] if differs_at is None else [f"libqcow reads other bytes from {differs_at} on"])
