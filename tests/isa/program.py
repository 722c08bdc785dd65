# SPDX-License-Identifier: MIT
"""Test programs in C that are linked with parts of the core."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from decoding import OUT

from imgvm.vmm import _build

ISA = Path(__file__).parent


def build(
    name: str, folder: Path, patterns: Iterable[str], linked: Iterable[str], *,
    flags: Sequence[str] = (), link: Sequence[str] = (), like: str = "",
) -> Path:
    """The program `name` of the sources in `folder` and those of the core. What is newer than all headers is not
    compiled again. `flags` are for its own sources, `link` for the linker; `like`: a program with the same objects."""
    with _alone(like or name):
        return _build_alone(name, folder, patterns, linked, flags, link, like or name)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Of all processes that run tests."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_alone(
    name: str, folder: Path, patterns: Iterable[str], linked: Iterable[str],
    flags: Sequence[str], link: Sequence[str], like: str,
) -> Path:
    headers = [path for root in (_build.NATIVE, ISA) for kind in ("*.h", "*.def") for path in root.rglob(kind)]
    newest = max(path.stat().st_mtime for path in headers)
    include = [f"-I{_build.NATIVE}", f"-I{folder}"]
    objects = []
    for root, globs in ((folder, patterns), (_build.NATIVE, linked)):
        for source in (path for pattern in globs for path in sorted(root.glob(pattern))):
            ours = flags if root == folder else _build.file_flags(str(source))
            made = OUT / f"{like}.obj" / (str(source.relative_to(root)).replace("/", ".") + ".o")
            objects.append(made)
            if not made.exists() or made.stat().st_mtime <= max(newest, source.stat().st_mtime):
                made.parent.mkdir(parents=True, exist_ok=True)
                _run(["cc", *_build.CFLAGS, *ours, *include, "-c", source, "-o", made])
    out, made = OUT / name, OUT / f"{name}.new"
    _run(["cc", "-pthread", *link, *objects, "-o", made])
    made.rename(out)  # another may be running it
    return out


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
