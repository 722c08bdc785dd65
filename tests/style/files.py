# SPDX-License-Identifier: MIT
"""The project's own files: what git tracks or would track, or, in an unpacked archive, what is there."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "imgvm" / "vmm" / "native"
_NOT_OURS = {".git", ".venv", "build", "dist", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}


@cache
def project_files() -> tuple[Path, ...]:
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(words, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if done is not None and done.returncode == 0:
        found = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not _NOT_OURS & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in found if path.is_file() and not path.is_symlink()))


def texts(*suffixes: str) -> list[Path]:
    """Files with one of the suffixes; without any, all that are text."""
    if suffixes:
        return [path for path in project_files() if path.suffix in suffixes]
    return [path for path in project_files() if b"\0" not in path.read_bytes()[:8192]]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
