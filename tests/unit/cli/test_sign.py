# SPDX-License-Identifier: MIT
"""`imgvm sign` and `imgvm verify --key`: keys, changed bytes, and what a signature covers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from multiboot_guest import leave

from imgvm.cli import main
from imgvm.qcow2 import Image

Images = Callable[..., Path]
DISK = "disks: [{name: data, size: 1MiB}]"

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="cryptography is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


def verify(image: Path, key: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capfd.readouterr()
    status = main(["verify", str(image), "--key", str(key)])
    return status, [line.removeprefix(f"{image}: ") for line in capfd.readouterr().out.splitlines()]


def replace_blobs(image: Path, **blobs: bytes) -> None:
    with Image.open(image, writable=True) as opened:
        there = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        opened.set_config(there | blobs, date=0)


def test_sign_and_verify(image_of: Images, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    image, (private, public) = image_of(leave(4), DISK), keys
    assert verify(image, public, capfd) == (1, ["it is not signed"])
    assert main(["sign", str(image), "--key", str(private)]) == 0
    assert verify(image, public, capfd) == (0, ["verified"])
    assert main(["-q", "run", str(image)]) == 4
    with Image.open(image, writable=True) as opened:
        opened.write(0, b"the guest writes")
    assert verify(image, public, capfd) == (0, ["verified"])  # the disk is not part of it
    assert main(["sign", str(image), "--key", str(private), "--disk"]) == 0
    assert verify(image, public, capfd) == (0, ["verified"])
    with Image.open(image, writable=True) as opened:
        opened.write(1000, b"!")
    assert verify(image, public, capfd) == (1, ["the disk was changed after signing"])
    large = Path(shutil.copy(image, image.with_name("large.img")))
    with Image.open(large, writable=True) as opened:
        opened.resize(1 << 50)  # of which nothing need be read: that would take days
    assert verify(large, public, capfd) == (1, ["the disk was changed after signing"])
    assert main(["verify", str(image)]) == 0


def test_what_was_changed_is_named(image_of: Images, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    image, (private, public) = image_of(leave(0), DISK), keys
    assert main(["sign", str(image), "--key", str(private)]) == 0
    assert main(["-q", "config", "set", str(image), "machine.memory=64MiB"]) == 0
    assert verify(image, public, capfd) == (1, [
        "config.packed.yaml was added after signing", "config.yaml was changed after signing",
        "machine.json was changed after signing", "machine.packed.json was added after signing",
    ])  # fmt: skip
    assert main(["sign", str(image), "--key", str(private)]) == 0
    replace_blobs(image, kernel=b"another")
    assert verify(image, public, capfd) == (1, ["kernel was changed after signing"])
    assert main(["sign", str(image), "--key", str(private)]) == 0
    data = image.read_bytes()
    image.write_bytes(data.replace(b"another", b"bnother"))
    status, said = verify(image, public, capfd)
    assert status == 1 and "the checksum of blob kernel is wrong" in said[0]


def test_other_keys(image_of: Images, keys: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image, (private, public) = image_of(leave(0)), keys
    assert main(["sign", str(image), "--key", str(private)]) == 0
    other = tmp_path / "other.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", other)
    openssl("pkey", "-in", other, "-pubout", "-out", tmp_path / "other.pub")
    assert verify(image, tmp_path / "other.pub", capfd) == (1, [f"it is not signed with the key of {tmp_path}/other.pub"])
    openssl("genpkey", "-algorithm", "x25519", "-out", tmp_path / "x.pem")
    openssl("pkey", "-in", other, "-aes128", "-passout", "pass:secret", "-out", tmp_path / "locked.pem")
    before = image.read_bytes()
    for key, complaint in (
        (public, "no private key"), (tmp_path / "x.pem", "no Ed25519 key"), (image, "no private key"),
        (tmp_path / "locked.pem", "locked with a password"), (tmp_path / "none.pem", "No such file"),
    ):  # fmt: skip
        assert main(["sign", str(image), "--key", str(key)]) == 125
        assert complaint in capfd.readouterr().err
    assert main(["verify", str(image), "--key", str(private)]) == 125
    assert "no public key" in capfd.readouterr().err
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    "signature",
    [b"", b"[]", b"{}", b'{"version": 1, "statement": 5, "signature": ""}', b'{"version": 1, "statement": "{}", "signature": "?"}', b"[" * 10**5, b"\xff",
     b" " * (2 << 20)],
)  # fmt: skip
def test_damaged_signatures(signature: bytes, image_of: Images, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0))
    replace_blobs(image, **{"signature.json": signature})
    status = main(["verify", str(image), "--key", str(keys[1])])
    said = capfd.readouterr()
    assert (status, "its signature is damaged" in said.out) == (1, True) or (status == 125 and "more than" in said.err)


def test_two_blobs_of_a_name_are_refused(image_of: Images, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Else one could be checked and the other one run."""
    image, (private, public) = image_of(leave(0)), keys
    replace_blobs(image, kernem=b"evil")
    assert main(["sign", str(image), "--key", str(private)]) == 0
    data = bytearray(image.read_bytes())
    for at in [at for at in range(0, len(data), 512) if data[at : at + 8] == b"IMGVMCFG"]:
        end = at + 64 + 112 * int.from_bytes(data[at + 12 : at + 16])
        data[at + 64 : end] = data[at + 64 : end].replace(b"kernem\0", b"kernel\0")
        data[at + 32 : at + 64] = sha256(data[at : at + 32] + data[at + 64 : end]).digest()
    image.write_bytes(data)
    for words in (["verify", str(image), "--key", str(public)], ["run", str(image)], ["inspect", str(image)]):
        assert main(words) == 125
        assert "a name is given twice" in capfd.readouterr().err


def test_a_statement_is_not_moved(image_of: Images, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Another statement with the old signature, and a signature of another context."""
    image, (private, public) = image_of(leave(0)), keys
    assert main(["sign", str(image), "--key", str(private)]) == 0
    with Image.open(image) as opened:
        document = json.loads(opened.read_config("signature.json"))
    changed = document | {"statement": document["statement"] + " "}
    replace_blobs(image, **{"signature.json": json.dumps(changed).encode()})
    assert verify(image, public, capfd)[0] == 1


def test_without_the_library_it_says_what_to_install(image_of: Images, keys: tuple[Path, Path]) -> None:
    program = "import sys; sys.modules['cryptography'] = None\nfrom imgvm.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "sign", str(image_of(leave(0))), "--key", str(keys[0])]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr.splitlines()[0]) == (125, "imgvm: signatures need the Python package cryptography")


def test_further_disks_are_signed_with_the_disk(image_of: Images, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    image, (private, public) = image_of(leave(4), "disks: [{name: a, size: 1MiB}, {name: b, size: 1MiB}]"), keys
    assert main(["sign", str(image), "--key", str(private), "--disk"]) == 0
    assert verify(image, public, capfd) == (0, ["verified"])
    with Image.open(image, writable=True) as opened:
        opened.open_disk("b").write(5, b"x")
    assert verify(image, public, capfd) == (1, ["the disk b was changed after signing"])
