# SPDX-License-Identifier: MIT
"""Problems as text for people, JSON for programs, and workflow commands for GitHub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable

from imgvm.errors import Problem
from imgvm.log import one_line


def as_text(problems: Iterable[Problem]) -> str:
    return "\n".join(one_line(str(problem)) for problem in problems)


def as_json(problems: Iterable[Problem]) -> str:
    return json.dumps([dataclasses.asdict(problem) for problem in problems], indent=2)


def as_github(problems: Iterable[Problem]) -> str:
    """https://docs.github.com/actions/reference/workflow-commands-for-github-actions: `::error file=...`."""
    lines = []
    for problem in problems:
        hint = f" ({problem.hint})" if problem.hint else ""
        path = f"{problem.path}: " if problem.path else ""
        place = f",line={problem.line},col={problem.column}" if problem.line else ""
        lines.append(f"::error file={_property(problem.file)}{place}::{_data(path + problem.message + hint)}")
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, Callable[[Iterable[Problem]], str]] = {
    "text": as_text, "json": as_json, "github": as_github,
}  # fmt: skip
