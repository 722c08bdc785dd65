# SPDX-License-Identifier: MIT
"""What an image says of its config is not believed: sizes, counts, names and texts beyond reason."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multiboot_guest import leave
from payloads import RECORD_BYTES, Payload

from imgvm.cli import main
from imgvm.errors import ImgvmError
from imgvm.qcow2 import Image

Images = Callable[..., Path]
GIB = 1 << 30
VERBS = ("run", "inspect", "verify", "extract", "unpack", "export", "config", "edit")


def words_of(verb: str, image: Path, folder: Path) -> list[str]:
    more = {
        "extract": ["kernel", "-o", str(folder / "x")], "unpack": [str(folder / "x")],
        "export": ["--to", "qemu", "-o", str(folder / "x")],
    }  # fmt: skip
    if verb in ("config", "edit"):
        return ["config", "set" if verb == "edit" else "get", str(image), *(["machine.cpus=2"] if verb == "edit" else [])]
    return [verb, str(image), *more.get(verb, [])]


@pytest.fixture
def little_memory() -> object:
    """Whoever believes a blob of many gigabytes fails here, and does not get away with memory that is never touched."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("blob", [0, 1, 2])
def test_blobs_beyond_reason(verb: str, blob: int, little_memory: object, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a file that is as large as they are, with nothing in it."""
    image = image_of(leave(0))
    payload = Payload(bytearray(image.read_bytes()))
    payload.grow(24 * GIB)
    payload.put(payload.blob(blob) + 72, 20 * GIB, 8)
    image.write_bytes(payload.seal())
    os.truncate(image, 24 * GIB)
    status = main(words_of(verb, image, tmp_path))
    said = capfd.readouterr()
    assert "out of memory" not in said.err and "fault of imgvm" not in said.err
    assert not (tmp_path / "x").exists() or blob != 2
    if (blob == 1 and verb not in ("verify", "extract")) or (blob == 2 and verb in ("run", "extract", "unpack", "export")):
        assert status in (125, 126) and "hint" in said.err
    if verb == "verify":
        assert status == 1 and f"more than {4 << 30}" in said.out


@pytest.mark.parametrize("verb", VERBS)
def test_blobs_that_are_more_than_the_file(verb: str, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A thousand of them that lie in one place, or where nothing is, would fill memory and disk."""
    image = image_of(leave(0))
    data = image.read_bytes()
    beyond = Payload(bytearray(data))
    beyond.grow(1 << 30)
    shared = Payload(bytearray(data))
    for blob in (1, 2):
        shared.put(shared.blob(blob) + 64, 0, 8)
        shared.put(shared.blob(blob) + 72, int.from_bytes(data[shared.head + 16 : shared.head + 24]), 8)
    for payload, words in ((beyond, "it is larger than the file"), (shared, "its index is wrong")):
        image.write_bytes(payload.seal())
        assert main(words_of(verb, image, tmp_path)) == 125
        assert f"damaged: {words}" in capfd.readouterr().err


@pytest.mark.parametrize(("at", "value", "size"), [(12, 1025, 4), (12, 0xFFFFFFFF, 4), (16, 1, 8), (16, 1 << 63, 8), (8, 2, 4)])
def test_heads_beyond_reason(at: int, value: int, size: int, image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    payload = Payload(bytearray(image.read_bytes()))
    payload.put(payload.head + at, value, size)
    image.write_bytes(bytes(payload.data))
    assert main(["inspect", str(image)]) == 125
    assert "damaged" in capfd.readouterr().err


def test_names_do_not_drive_the_terminal(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        opened.set_config(blobs | {"\x1b[2Jgone": b""}, date=0)
    assert main(["inspect", str(image)]) == 0
    said = capfd.readouterr()
    assert "\x1b" not in said.out and "\\x1b[2Jgone" in said.out
    assert main(["extract", str(image), "none"]) == 125
    assert "\x1b" not in capfd.readouterr().err


HOSTILE = "\x1b[2Jgone\u202e\x9b1m"


def hostile(image: Path) -> None:
    """Its texts, blobs and snapshots are named by somebody who would drive the terminal."""
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        document = json.loads(blobs["machine.json"])
        document |= {"description": f"first\nblob      kernel {HOSTILE}", "labels": {HOSTILE: HOSTILE}}
        text = f"# {HOSTILE}\n{blobs['config.yaml'].decode()}"
        opened.set_config(blobs | {"machine.json": json.dumps(document).encode(), "config.yaml": text.encode(), HOSTILE: b""}, date=0)
        opened.create_snapshot(f"a\n2\tb{HOSTILE}", date=0)


def seen(words: list[str]) -> str:
    """What a command shows on a terminal."""
    controller, terminal = pty.openpty()
    try:
        subprocess.run([sys.executable, "-m", "imgvm", *words], stdin=terminal, stdout=terminal, stderr=terminal, timeout=60)
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):
            while data := os.read(controller, 65536):
                shown += data
        return shown.decode()
    finally:
        os.close(controller)


@pytest.mark.parametrize(
    "words",
    [["inspect", "IMAGE"], ["inspect", "IMAGE", "--json"], ["inspect", "IMAGE", "--config"], ["config", "get", "IMAGE"],
     ["config", "get", "IMAGE", "description"], ["config", "diff", "IMAGE", "small.yaml"], ["config", "diff", "IMAGE", "small.yaml", "--json"],
     ["snapshot", "list", "IMAGE"], ["verify", "IMAGE"], ["extract", "IMAGE", "none"], ["extract", "IMAGE", "config.yaml"],
     ["config", "set", "IMAGE", "machine.cpus=x"], ["export", "IMAGE", "--to", "none"], ["import", "domain.xml"]],
)  # fmt: skip
def test_texts_do_not_drive_the_terminal(words: list[str], image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = image_of(leave(0))
    (tmp_path / "small.yaml").write_text("version: 1\nname: small\nboot: {kernel: kernel}\n")
    (tmp_path / "domain.xml").write_text("<domain><description>\u202e\x9b</description><os><kernel>\u202e</kernel></os></domain>")
    hostile(image)
    shown = seen([str(image) if word == "IMAGE" else word for word in words])
    assert shown
    assert not set(shown) & {"\x1b", "\u202e", "\x9b"}, shown
    lines = shown.splitlines()
    if words[0] == "inspect" and len(words) == 2:
        assert sum(line.startswith("blob      kernel") for line in lines) == 1
    if words[0] == "snapshot":
        assert all(line.count("\t") == 4 for line in lines)


def test_programs_get_texts_as_they_are(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    hostile(image)
    assert main(["config", "get", str(image), "description"]) == 0
    assert HOSTILE in capfd.readouterr().out
    assert main(["extract", str(image), "config.yaml"]) == 0
    assert capfd.readouterr().out.startswith(f"# {HOSTILE}\n")
    assert main(["inspect", str(image), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["machine"]["labels"] == {HOSTILE: HOSTILE}


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("key", ["description", "labels", "source"])
def test_texts_that_no_system_call_takes(text: str, key: str, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.raw").write_bytes(bytes(512))
    image = image_of(leave(0), "disks: [{name: a, size: 1MiB}, {name: b, source: b.raw, format: raw, embed: false}]")
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        document = json.loads(blobs["machine.json"])
        if key == "source":
            document["disks"][1]["source"] = text
        else:
            document[key] = text if key == "description" else {text: "x"}
        opened.set_config(blobs | {"machine.json": json.dumps(document).encode()}, date=0)
    for words in (["run", str(image), "--allow", "disks"], ["inspect", str(image)], ["config", "get", str(image)]):
        assert main(words) in (125, 126)
        said = capfd.readouterr().err
        assert "the text contains" in said and "fault of imgvm" not in said


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 10**5, b"{}" + b" " * (2 << 20), b"\xff", b'{"version": 1}', b"5"])
def test_resolved_configs_that_are_none(text: bytes, image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        opened.set_config(blobs | {"machine.json": text}, date=0)
    for words in (["run", str(image)], ["config", "set", str(image), "machine.cpus=2"]):
        assert main(words) in (125, 126)
        said = capfd.readouterr().err
        assert said and "fault of imgvm" not in said and "out of memory" not in said


PLACES = st.one_of(
    st.tuples(st.just("record"), st.integers(0, 111), st.integers(0, 255)),
    st.tuples(st.just("head"), st.integers(8, 31), st.integers(0, 255)),
    st.tuples(st.just("index"), st.integers(0, 4 * RECORD_BYTES - 1), st.integers(0, 255)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(PLACES, min_size=1, max_size=6), sealed=st.booleans())
def test_any_change_is_an_error_or_harmless(changes: list[tuple[str, int, int]], sealed: bool, image_of: Images, tmp_path: Path) -> None:
    pristine = tmp_path / "small.img"
    if not pristine.exists():
        image_of(leave(0))
    payload = Payload(bytearray(pristine.read_bytes()))
    for place, offset, value in changes:
        base = {"record": payload.record, "head": payload.head, "index": payload.blob(0)}[place]
        payload.data[base + offset] = value
    broken = tmp_path / "broken.img"
    broken.write_bytes(payload.seal() if sealed else bytes(payload.data))
    try:
        with Image.open(broken) as image:
            for blob in image.config_blobs():
                image.read_config(blob.name, 1 << 20)
    except ImgvmError as error:
        assert error.message


def test_consent_is_asked_for_all_disks_by_what_they_are(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One answer is for all of them; and what a link is called says nothing."""
    (tmp_path / "secret.raw").write_bytes(bytes(512))
    (tmp_path / "a.raw").write_bytes(bytes(512))
    (tmp_path / "harmless.raw").symlink_to(tmp_path / "secret.raw")
    disks = "{name: one, source: a.raw, format: raw, embed: false}, {name: two, source: harmless.raw, format: raw, embed: false}"
    image = image_of(leave(0), f"disks: [{{name: own, size: 1MiB}}, {disks}]")
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        document = json.loads(blobs["machine.json"])
        document["disks"][2]["source"] = "harmless.raw"  # where pack wrote what the link led to
        opened.set_config(blobs | {"machine.json": json.dumps(document).encode()}, date=0)
    assert main(["run", str(image)]) == 126
    said = capfd.readouterr().err
    assert f"its disk one is a file of this host, {tmp_path}/a.raw; its disk two is a file of this host, {tmp_path}/secret.raw" in said
    assert "harmless" not in said
    (tmp_path / "harmless.raw").unlink()
    (tmp_path / "harmless.raw").symlink_to("harmless.raw")
    assert main(["run", str(image)]) == 126
    assert main(["run", str(image), "--allow", "disks"]) == 125
    assert "fault of imgvm" not in capfd.readouterr().err


def test_long_messages_are_cut(image_of: Images, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    with Image.open(image, writable=True) as opened:
        for number in range(100):
            opened.create_snapshot(f"{number}" + "x" * 200, date=0)
    assert main(["snapshot", "apply", str(image), "none"]) == 125
    assert 8000 < len(capfd.readouterr().err) < 9000


def test_a_name_of_other_bytes_is_printed(image_of: Images, tmp_path: Path) -> None:
    image, name = image_of(leave(0)), os.fsencode(tmp_path) + b"/\xff.img"
    words = [sys.executable, "-m", "imgvm", "overlay", "create", str(image), name]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, capture_output=True, env=strict, timeout=60)
    assert (done.returncode, done.stdout) == (0, name + b"\n"), done.stderr
