# SPDX-License-Identifier: MIT
"""`did you mean`: the known word that a misspelt one stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Words that the peers use for the same thing.
_SYNONYMS = {
    "ram": "memory", "mem": "memory", "cpu": "cpus", "vcpus": "cpus", "smp": "cpus", "ncpus": "cpus",
    "accelerator": "accel", "append": "cmdline", "args": "cmdline", "initramfs": "initrd",
    "ramdisk": "initrd", "drives": "disks", "disk": "disks", "drive": "disks", "volumes": "disks",
    "readonly": "read_only", "ro": "read_only", "file": "source", "cmd": "command", "environment": "env",
    "workdir": "cwd", "working_dir": "cwd", "hardware": "machine", "rng": "entropy",
    "interpreter": "interp", "tcg": "interp", "img": "raw", "symlink": "link",
    "lzcnt": "abm", "pni": "sse3", "sha": "sha_ni", "tsc_deadline": "tsc_deadline_timer",
}  # fmt: skip


def snake_case(word: str) -> str:
    """`readOnly`, `read-only` and `ReadOnly` as `read_only`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).replace("-", "_").lower()


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    words = list(known)
    snake = snake_case(word)
    for candidate in (snake, _SYNONYMS.get(snake, ""), snake.replace("_", "")):
        if candidate in words:
            return candidate
    return nearest(snake, words)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a name of somebody's own nearly is: no synonyms, and letters as they are."""
    import difflib  # of use once somebody has misspelt something

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
