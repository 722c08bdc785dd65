# SPDX-License-Identifier: MIT
"""A guest's root out of Debian's packages, as an initrd that runs a script and reports its status: openssl, lscpu and a
Python with its own regression tests; or stress-ng; or a C compiler."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from py_compile import PycInvalidationMode
from py_compile import compile as compile_python
from tempfile import TemporaryDirectory

import platformdirs
import pytest

from imgvm.errors import PackError
from imgvm.machine import Exec
from imgvm.pack import cpio, initramfs
from imgvm.pack.deb import DebCache

DISTRO = "debian:bookworm"
SUITES = (
    "libc6", "zlib1g", "libssl3", "openssl", "util-linux", "libsmartcols1", "libgcc-s1", "libstdc++6",
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11-testsuite", "libexpat1",
    "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1", "libtinfo6",
)  # fmt: skip
STRESS = (
    "libc6", "zlib1g", "libssl3", "libgcc-s1", "libstdc++6", "libcrypt1", "libexpat1", "libffi8", "liblzma5",
    "stress-ng", "libapparmor1", "libbsd0", "libmd0", "libegl1", "libgbm1", "libgles2", "libglvnd0", "libdrm2",
    "libwayland-server0", "libxcb-randr0", "libxcb1", "libxau6", "libxdmcp6", "libipsec-mb1", "libjpeg62-turbo",
    "libjudydebian1", "libkmod2", "libzstd1", "libsctp1", "libxxhash0",
)  # fmt: skip
COMPILER = (
    "libc6", "zlib1g", "libgcc-s1", "libzstd1", "libgmp10", "libmpfr6", "libmpc3", "libisl23", "gcc-12", "cpp-12",
    "libgcc-12-dev", "libc6-dev", "linux-libc-dev", "libcrypt1", "binutils", "binutils-x86-64-linux-gnu", "libbinutils", "libctf0",
    "libctf-nobfd0", "libjansson4",
)  # fmt: skip
PYTHON = "usr/lib/python3.11/"
_LEFT_OUT = re.compile(
    r"usr/share/(?!zoneinfo)|etc/|usr/lib/python3\.11/(idlelib|lib2to3|tkinter|turtledemo|ensurepip)/"
)
_TESTS = re.compile(  # of the test suite, what the chosen tests import and read
    r"test/(__init__|__main__|regrtest|test_support|test_(float|decimal|int|struct|hashlib|grammar)|ann_module\d?)\.py$"
    r"|test/(support|libregrtest|decimaltestdata|typinganndata)/|test/[\w.]+\.txt$"
)
_PROGRAMS = re.compile(
    r"lscpu|openssl|python3\.11|stress-ng|x86_64-linux-gnu-gcc-12|(x86_64-linux-gnu-)?(as|ld|ld\.bfd)"
)
_COMPILER_LEFT_OUT = re.compile(r"usr/lib/gcc/.*/(lto1|lto-wrapper|g\+\+-mapper-server|plugin/.*|lib\w*san\w*\..*)$")
_FOLDER_MODE, _PROGRAM_MODE = 0o755, 0o755


def _wanted(path: str) -> bool:
    if path.startswith(PYTHON + "test/"):
        return bool(_TESTS.match(path.removeprefix(PYTHON)))
    if path.startswith("usr/bin/") or path.startswith("bin/"):
        return _PROGRAMS.fullmatch(path.rpartition("/")[2]) is not None
    return not (_LEFT_OUT.match(path) or _COMPILER_LEFT_OUT.match(path)) and "/gconv/" not in path and not path.startswith(("sbin/", "usr/sbin/"))


def _members(package: Path) -> Iterator[cpio.Entry]:
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            path = member.name.removeprefix("./").strip("/")
            if not path or not _wanted(path):
                continue
            if member.issym():
                yield cpio.link(path, member.linkname)
            elif member.isfile():
                data = archive.extractfile(member)
                assert data is not None
                yield cpio.file(path, data.read(), member.mode & 0o7777)


def _compiled(path: str, source: bytes) -> cpio.Entry | None:
    """Python's own cache of a module: the guest would spend its minutes on making it."""
    with TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "m.py", Path(scratch) / "m.pyc"
        file.write_bytes(source)
        made = compile_python(
            str(file), str(out), f"/{path}", invalidation_mode=PycInvalidationMode.UNCHECKED_HASH, quiet=2
        )
        if made is None:
            return None
        folder, _, name = path.rpartition("/")
        return cpio.file(f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-311.pyc", out.read_bytes())


def build_or_skip(script: str, packages: Sequence[str] = SUITES) -> bytes:
    """As build; the test is skipped where Debian's archive cannot be had."""
    try:
        return build(script, packages)
    except PackError as error:
        if "cannot be reached" in error.message or "apt-get is not here" in error.message:
            pytest.skip(error.message)
        raise


def build(script: str, packages: Sequence[str] = SUITES) -> bytes:
    """An initrd that runs `script` with busybox' shell. PackError without Debian's archive."""
    cache = DebCache(platformdirs.user_cache_path("imgvm"))
    busybox, _ = initramfs.find_busybox(cache, DISTRO)
    entries: list[cpio.Entry] = []
    for name in packages:
        entries += _members(cache.get(DISTRO, name).path)
    if sys.version_info[:2] == (3, 11):
        for entry in [
            entry for entry in entries if entry.path.startswith(PYTHON) and entry.path.endswith(".py")
        ]:
            made = _compiled(entry.path, entry.data)
            entries += [made] if made else []
    entries.append(cpio.file("check.sh", script.encode(), _PROGRAM_MODE))
    return initramfs.build(busybox, files=entries, hostname="suites", command=Exec(("/bin/sh", "/check.sh")))
