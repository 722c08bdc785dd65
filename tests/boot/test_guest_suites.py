# SPDX-License-Identifier: MIT
"""Other people's self-checks inside a stock Debian guest, on the software processor: openssl against itself and against
the host, and CPython's regression tests of its numbers and digests, with every processor model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import guest_root
import pytest
from boot_images import packed

import imgvm
from imgvm.config import Config

pytestmark = [pytest.mark.boot, pytest.mark.network]

ENGINES = pytest.mark.parametrize("engine", ["interp", "jit"])
MODELS = ("portable", "x86-64", "x86-64-v2", "x86-64-v3", "host")
PYTHON_SUITES = ("test_float", "test_int", "test_struct", "test_hashlib", "test_decimal")
TEXT = "The quick brown fox jumps over the lazy dog"
DIGESTS = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b")
QUICK_SECONDS, LONG_SECONDS = 300, 3600

# What openssl computes with all the processor's features it also computes without any, and as the host does.
OPENSSL = f"""
fail() {{ echo "FAILED: $*"; exit 1; }}
printf '%s' '{TEXT}' >/tmp/text
dd if=/dev/zero bs=1000 count=100 2>/dev/null | tr '\\0' 'x' >>/tmp/text
for digest in {" ".join(word.replace("_", "-") if word.startswith("sha3") else word for word in DIGESTS)}; do
    case $digest in blake2b) name=blake2b512 ;; *) name=$digest ;; esac
    with=$(openssl dgst -$name -r /tmp/text) || fail $digest
    without=$(OPENSSL_ia32cap=0:0 openssl dgst -$name -r /tmp/text) || fail $digest
    [ "$with" = "$without" ] || fail "$digest: $with, plainly $without"
    echo "digest $digest ${{with%% *}}"
done
key=000102030405060708090a0b0c0d0e0f
for cipher in aes-128-cbc aes-128-ctr chacha20 camellia-128-cbc; do
    case $cipher in chacha20) k=$key$key ;; *) k=$key ;; esac
    openssl enc -$cipher -K $k -iv $key -in /tmp/text -out /tmp/with || fail $cipher
    OPENSSL_ia32cap=0:0 openssl enc -$cipher -K $k -iv $key -in /tmp/text -out /tmp/without || fail $cipher
    cmp /tmp/with /tmp/without || fail "$cipher depends on the processor's features"
    OPENSSL_ia32cap=0:0 openssl enc -d -$cipher -K $k -iv $key -in /tmp/with | cmp - /tmp/text || fail "$cipher back"
    echo "cipher $cipher $(openssl dgst -sha256 -r /tmp/with)"
done
openssl genpkey -algorithm ed25519 -out /tmp/key 2>/dev/null && openssl pkey -in /tmp/key -pubout -out /tmp/public || fail key
openssl pkeyutl -sign -inkey /tmp/key -rawin -in /etc/hostname -out /tmp/signature || fail sign
OPENSSL_ia32cap=0:0 openssl pkeyutl -verify -pubin -inkey /tmp/public -rawin -in /etc/hostname -sigfile /tmp/signature || fail verify
openssl genrsa -out /tmp/rsa 1024 2>/dev/null && openssl rsa -in /tmp/rsa -check -noout || fail rsa
openssl speed -seconds 1 -bytes 1024 sha256 2>&1 | tail -n 1
openssl speed -seconds 1 -bytes 1024 -evp aes-128-gcm 2>&1 | tail -n 1
"""

# Small but wide: every float format, arithmetic of big numbers, all digests, structures.
QUICK_PYTHON = """
cd /tmp
python3.11 -m test -u none test_int test_float || fail python
"""


def whole_python(resources: str) -> str:
    return "cd /tmp\n" + "".join(
        f"python3.11 -m test -u {resources} {suite} || fail {suite}\n" for suite in PYTHON_SUITES
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str, float], str]:
    """Runs a script in the guest on an engine and a processor model; what it printed, once it ended with status 0."""
    def run(engine: str, model: str, script: str, seconds: float) -> str:
        folder = tmp_path_factory.mktemp("suites")
        (folder / "initrd").write_bytes(guest_root.build_or_skip(script))
        text = f"""
version: 1
name: suites
machine: {{memory: 1GiB, cpu: {{model: {model}}}}}
boot: {{kernel: {{distro: "debian:bookworm"}}, initrd: initrd, cmdline: [console=ttyS0, quiet]}}
"""
        image = packed(Config.from_text(text, "suites.yaml", folder), Path(folder) / "suites.img")
        with imgvm.run(image, accel=engine) as vm:
            result = vm.wait(seconds)
            said = vm.console.text().replace("\r", "")
        image.unlink()
        assert result is not None, f"no end after {seconds} s:\n{said[-3000:]}"
        assert (result.reason, result.status) == ("exec", 0), said[-3000:]
        return said

    return run


def flags(said: str) -> set[str]:
    """The words of lscpu's flags, whose lines are as wide as the terminal."""
    match = re.search(r"^Flags=(.*)$", said, re.M)
    assert match is not None, said[-2000:]
    return set(match[1].split())


SHOW = 'lscpu >/dev/null || fail lscpu\necho "Flags=$(sed -n "s/^flags.*: //p" /proc/cpuinfo | head -n 1)"\nlscpu | head -n 8\n'
HAS = {
    "portable": ({"sse4_2", "popcnt", "cx16", "lahf_lm"}, {"avx", "aes", "rdrand", "bmi1", "xsave", "smep"}),
    "x86-64": ({"sse2", "syscall", "lm"}, {"pni", "ssse3", "sse4_1", "popcnt", "avx", "aes"}),
    "x86-64-v2": ({"sse4_2", "popcnt", "smep"}, {"avx", "aes", "movbe"}),
    "x86-64-v3": ({"avx2", "bmi1", "bmi2", "fma", "f16c", "movbe", "abm", "xsave"}, {"aes", "sha_ni", "rdrand"}),
    "host": ({"sse4_2"}, {"avx512f"}),
}


@ENGINES
@pytest.mark.parametrize("model", MODELS)
def test_every_model_computes_alike(run: Callable[[str, str, str, float], str], model: str, engine: str) -> None:
    said = run(engine, model, "fail() { echo \"FAILED: $*\"; exit 1; }\n" + SHOW + OPENSSL + QUICK_PYTHON, QUICK_SECONDS)
    there, absent = HAS[model]
    assert there <= flags(said), there - flags(said)
    assert not absent & flags(said), absent & flags(said)
    assert "imgvm software processor" in said
    data = TEXT.encode() + b"x" * 100_000
    for name in DIGESTS:
        assert f"digest {name.replace('_', '-') if name.startswith('sha3') else name} {hashlib.new(name, data).hexdigest()}" in said
    assert "All 2 tests OK." in said


@pytest.mark.nightly
@pytest.mark.timeout(LONG_SECONDS + 60)
@ENGINES
@pytest.mark.parametrize("model", MODELS)
def test_python_regression_tests(run: Callable[[str, str, str, float], str], model: str, engine: str) -> None:
    """All of them; with the default model also what its authors call expensive."""
    resources = "decimal" if model == "portable" else "none"
    said = run(engine, model, "fail() { echo \"FAILED: $*\"; exit 1; }\n" + whole_python(resources), LONG_SECONDS)
    assert len(re.findall(r"^Tests result: SUCCESS$", said, re.M)) == len(PYTHON_SUITES), said[-3000:]
