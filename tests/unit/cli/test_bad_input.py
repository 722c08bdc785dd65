# SPDX-License-Identifier: MIT
"""What a careless or hostile user gives: one clear line and a hint, the documented status, nothing left behind."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import SPIN, leave, say

from imgvm.cli import main
from imgvm.qcow2 import Image

Images = Callable[..., Path]
DISK = "disks: [{name: data, size: 1MiB}]"
HOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def complaint(capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The line and the hint, which must be all (beside the line about the engine)."""
    said = capfd.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if not line.startswith("imgvm: engine ")]
    assert len(lines) == 2, lines
    assert lines[0].startswith("imgvm: ") and lines[1].startswith("imgvm: hint: "), lines
    assert "Traceback" not in said.err and "fault of imgvm" not in said.err
    return lines[0].removeprefix("imgvm: "), lines[1].removeprefix("imgvm: hint: ")


@pytest.mark.parametrize("verb", ["run", "inspect", "check", "verify"])
def test_what_is_no_image_file(verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path)]) == 126
    assert complaint(capfd) == (f"{tmp_path}: Is a directory", "name a file in it")
    assert main([verb, f"{tmp_path}/none.img"]) == 127
    assert "No such file" in complaint(capfd)[0]
    assert main([verb, "/dev/zero"]) == 126
    assert complaint(capfd)[0] == "/dev/zero is neither a file nor a block device"
    raw = tmp_path / "raw.img"
    raw.write_bytes(bytes(65536))
    assert main([verb, str(raw)]) == 127
    assert complaint(capfd)[0] == f"{raw} is not an image of imgvm's kind (qcow2)"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if verb != "run":  # which reads a config from it
        assert main([verb, str(pipe)]) == 127
        complaint(capfd)


@pytest.mark.parametrize("verb", ["pack", "validate"])
def test_what_is_no_config_file(verb: str, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path)]) == 125
    assert complaint(capfd) == (f"{tmp_path}: Is a directory", "name a file in it")
    assert main([verb, f"{tmp_path}/none.yaml"]) == 127
    complaint(capfd)
    image = image_of(leave(0))
    assert main([verb, str(image)]) == 125
    assert complaint(capfd)[0] == f"{image} is an image, not a config"


def test_a_config_from_a_pipe(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `imgvm run <(...)`: it can be read once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image_of(leave(6))
    text = f"version: 1\nmachine: {{memory: 16MiB, accel: interp}}\nboot: {{kernel: {tmp_path}/kernel}}\ndevices: {{debug_exit: true}}\n"
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    assert main(["-q", "run", f"/dev/fd/{reader}", "--set", "name=piped"]) == 6
    os.close(reader)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none.raw", "No such file or directory"),
        (".", "Is a directory"),
        ("pipe", "neither a file nor a block device"),
        ("/dev/zero", "neither a file nor a block device"),
    ],
)
def test_disks_and_kernels_that_are_none(source: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    config = tmp_path / "c.yaml"
    config.write_text(f"version: 1\nboot: {{kernel: {{bundled: true}}}}\ndisks: [{{name: d, source: {source}}}]\n")
    assert main(["pack", str(config), "-o", str(tmp_path / "out.img")]) == 125
    line, _ = complaint(capfd)
    assert line.startswith("disks[0].source: ") and words in line
    config.write_text(f"version: 1\nboot: {{kernel: {source}, initrd: none}}\n")
    assert main(["pack", str(config), "-o", str(tmp_path / "out.img")]) == 125
    assert complaint(capfd)[0].startswith("boot.kernel: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "pipe"]


def test_more_memory_than_the_host_has(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = str(image_of(leave(0)))
    assert main(["run", image, "-m", f"{(HOST_BYTES >> 30) + 2}GiB"]) == 126
    line, hint = complaint(capfd)
    assert re.match(r"this host has \d+MiB of memory, the machine wants ", line)
    assert hint.startswith("give it less: -m ")


def test_long_words_are_cut(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(image_of(leave(0))), "--set", "boot.cmdline=" + "a" * 100_000]) == 125
    assert len(capfd.readouterr().err) < 1000


def test_messages_do_not_drive_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "\x1b[2Jx.img")]) == 127
    said = capfd.readouterr().err
    assert "\x1b" not in said and "\\x1b[2Jx.img" in said


def test_a_locked_image(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0), DISK)
    with Image.open(image, writable=True):
        assert main(["run", str(image)]) == 125
        line, hint = complaint(capfd)
        assert "is in use by another process" in line
        assert "copy the image" in hint
    assert main(["-q", "run", str(image)]) == 0


# Hostile images


def overlay(image: Path, backing: str, name: str = "over.img", form: str = "raw") -> Path:
    made = image.parent / name
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", form, made, "1M"], check=True)
    return made


@needs_qemu_img
@pytest.mark.parametrize("verb", ["run", "inspect", "check", "verify", "extract"])
def test_backing_files_elsewhere_need_consent(verb: str, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:secret:" + bytes(1 << 20))
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    inner = image.rename(folder / image.name)
    rest = ["kernel"] if verb == "extract" else []
    for backing in (str(secret), "../secret", "link", f"file:{secret}", str(folder / image.name)):
        form = "qcow2" if backing.endswith(".img") else "raw"
        bad = overlay(inner, backing, form=form)
        assert main([verb, str(bad), *rest]) == 126, backing
        line, hint = complaint(capfd)
        assert "its backing file" in line and "--allow backing" in hint
        bad.unlink()
    # Two steps: the outer name is harmless, the inner one is not.
    overlay(inner, str(secret), "mid.img")
    assert main([verb, str(overlay(inner, "mid.img", form="qcow2")), *rest]) == 126
    complaint(capfd)


@needs_qemu_img
@pytest.mark.parametrize(("answer", "status"), [("y\n", 4), ("yes\n", 4), ("n\n", 126), ("\n", 126), ("\x04", 126)])
def test_on_a_terminal_consent_is_asked_for(answer: str, status: int, image_of: Images, tmp_path: Path) -> None:
    image = image_of(leave(4))
    (tmp_path / "away").mkdir()
    away = overlay(tmp_path / "away" / "x", str(image), form="qcow2")
    controller, terminal = pty.openpty()
    words = [sys.executable, "-m", "imgvm", "-q", "run", str(away)]
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    try:
        os.write(controller, answer.encode())
        assert process.wait(30) == status
        said = os.read(controller, 4096).decode()
        assert f"its backing file {image}" in said.replace("\r\n", "") and "Allow it (backing)? [y/N]" in said
    finally:
        process.kill()
        process.wait()
        os.close(controller)
        os.close(terminal)


@needs_qemu_img
def test_backing_files_in_the_folder_and_with_consent(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(4), DISK)
    beside = overlay(image, image.name, form="qcow2")
    assert main(["-q", "run", str(beside)]) == 4
    before = beside.read_bytes()
    assert main(["-q", "run", str(beside), "--ephemeral"]) == 4
    assert beside.read_bytes() == before
    (tmp_path / "away").mkdir()
    away = overlay(tmp_path / "away" / "x", str(image), form="qcow2")
    assert main(["-q", "run", str(away), "--allow", "backing"]) == 4
    assert main(["run", str(away), "--allow", "everything"]) == 125
    assert complaint(capfd)[0] == "--allow everything: there is no such grant"
    assert not list(tmp_path.glob(".*"))


def test_mutated_images_never_crash(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each byte of the header and of the tables in turn set to what breaks it; a status of ours each time."""
    image = image_of(leave(0), DISK)
    data = image.read_bytes()
    broken = tmp_path / "broken.img"
    for offset in [*range(4, 104), *range(65536, len(data), 8191)]:
        broken.write_bytes(data[:offset] + b"\xff\xff" + data[offset + 2 :])
        status = main(["-q", "run", str(broken), "--timeout", "10s"])
        said = capfd.readouterr()
        assert status in (0, 125, 126, 127), (offset, status, said.err)
        assert "fault of imgvm" not in said.err and "Traceback" not in said.err, (offset, said.err)
        assert bool(said.err) == bool(status), (offset, status, said.err)


# Hosts that are full, read-only, or end us


@needs_root
def test_a_full_disk_at_pack(small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "disk.raw").write_bytes(os.urandom(2 << 20))
    config = tmp_path / "c.yaml"
    config.write_text("version: 1\nboot: {kernel: {bundled: true}}\ndisks: [{name: d, source: disk.raw}]\n")
    assert main(["pack", str(config), "-o", str(small_disk / "out.img")]) == 125
    line, hint = complaint(capfd)
    assert "no space left" in line and "nothing was written" in line
    assert "-o" in hint
    assert list(small_disk.iterdir()) == []


@needs_root
def test_a_read_only_file_system(small_disk: Path, image_of: Images, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = Path(shutil.copy(image_of(leave(3), DISK), small_disk))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert main(["run", str(image)]) == 126
    line, hint = complaint(capfd)
    assert line == f"{image} cannot be written, but its machine has a disk to write to"
    assert hint.startswith("--ephemeral runs it all the same")
    assert main(["-q", "run", str(image), "--ephemeral"]) == 3


def start(*args: str | Path, **more: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "imgvm", *map(str, args)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing_behind(number: int, status: int, image_of: Images, tmp_path: Path) -> None:
    image = image_of(say("up\n") + SPIN, DISK)
    process = start("run", image, "--ephemeral", env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert process.wait(30) == status
    assert b"ended: stopped by" in process.stderr.read()
    assert list((tmp_path / "cache/imgvm/run").iterdir()) == []


def test_interrupts_without_a_terminal(image_of: Images) -> None:
    process = start("run", image_of(say("up\n") + SPIN), stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert b"pressed the power button" in process.stderr.read()


def test_leftovers_of_the_killed_are_swept(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "cache/imgvm/run"
    (run / "run-4194305-old").mkdir(parents=True)  # beyond the largest process id
    (run / f"run-{os.getpid()}-mine").mkdir()
    assert main(["-q", "run", str(image_of(leave(0))), "--ephemeral"]) == 0
    assert [path.name for path in run.iterdir()] == [f"run-{os.getpid()}-mine"]


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["validate", "c.yaml"], ["schema"]])
def test_words_need_no_native_code(args: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("version: 1\nboot: {kernel: k}\n")
    code = (
        "import sys\nfrom imgvm.cli import main\nstatus = main(sys.argv[1:])\n"
        "bad = {'imgvm.vmm._native', 'cffi', 'pyqcow'} & set(sys.modules)\nsys.exit(status or (repr(bad) if bad else 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert done.returncode == 0, done.stderr
