# SPDX-License-Identifier: MIT
"""`imgvm run FILE` with its everyday options, read without typer, whose import takes longer than the rest.

What is written in any other way (help, faults, abbreviations, other options and verbs) is left to typer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Option -> the parameter of `run` that it sets; the table's name says how often.
ONE = {
    "--accel": "accel", "-m": "memory", "--memory": "memory", "-c": "cpus", "--cpus": "cpus",
    "--timeout": "timeout", "--result-file": "result_file",
}  # fmt: skip
MANY = {"--set": "sets", "--var": "vars", "--profile": "profiles", "--allow": "allow"}
FLAGS = {"--ephemeral": "ephemeral", "--print-config": "print_config"}
_PATHS, _NUMBERS = ("source", "result_file"), ("cpus",)


class _NotQuickError(Exception):
    pass


def run_options(args: Sequence[str]) -> dict[str, Any] | None:
    """What `run` is called with; None: ask typer."""
    if not args or args[0] != "run":
        return None
    options: dict[str, Any] = {}
    try:
        for name, value in _pairs(iter(args[1:])):
            if name in MANY.values():
                options.setdefault(name, []).append(value)
            elif name in options:
                return None
            else:
                options[name] = _typed(name, value)
    except _NotQuickError:
        return None
    return options if "source" in options else None


def _pairs(words: Iterator[str]) -> Iterator[tuple[str, Any]]:
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            yield "source", word
        elif word in FLAGS:
            yield FLAGS[word], True
        elif option in (valued := ONE | MANY):
            value = value if equals else next(words, "-")
            if value.startswith("-") or (equals and not option.startswith("--")):
                raise _NotQuickError
            yield valued[option], value
        else:
            raise _NotQuickError


def _typed(name: str, value: Any) -> Any:
    if name in _PATHS:
        return Path(value)
    if name in _NUMBERS:
        if not (value.isascii() and value.isdecimal() and len(value) < 6):
            raise _NotQuickError
        return int(value)
    return value
