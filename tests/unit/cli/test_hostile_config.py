# SPDX-License-Identifier: MIT
"""What an image says of its config is not believed: sizes, counts, names and texts beyond reason."""

from __future__ import annotations

import resource
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
TIB = 1 << 40
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
    """Whoever believes a blob of terabytes fails here, and does not get away with memory that is never touched."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("blob", [0, 1, 2])
def test_blobs_of_terabytes(verb: str, blob: int, little_memory: object, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    payload = Payload(bytearray(image.read_bytes()))
    payload.grow(3 * TIB)
    payload.put(payload.blob(blob) + 72, 2 * TIB, 8)
    image.write_bytes(payload.seal())
    status = main(words_of(verb, image, tmp_path))
    said = capfd.readouterr()
    assert "out of memory" not in said.err and "fault of imgvm" not in said.err
    assert not (tmp_path / "x").exists() or blob != 2
    if (blob == 1 and verb not in ("verify", "extract")) or (blob == 2 and verb in ("run", "extract", "unpack", "export")):
        assert status in (125, 126) and "hint" in said.err
    if verb == "verify":
        assert status == 1 and f"more than {4 << 30}" in said.out


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
