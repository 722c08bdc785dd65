# SPDX-License-Identifier: MIT
"""`--set path=value`: changes of a config's tree before it is checked. The value is YAML."""

from __future__ import annotations

import re
from typing import Any

from imgvm.config.scalars import scalar
from imgvm.config.tree import Path, Tree, format_path
from imgvm.errors import ConfigError, UsageError

_PART = re.compile(r'(?:^|\.)(?:"([^"]*)"|([^."\[\]]+))|\[(\d{1,5})\]')
MAX_WORDS = 80
# Values that are what they look like: YAML is slow to import.
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]{0,39}", re.ASCII)
_QUOTED = re.compile(r'"([ !#-\[\]-~]*)"')
HINT = "write --set machine.memory=1GiB or --set disks[0].size=2GiB"


def parse_path(text: str) -> Path:
    """`disks[0].size`, `disks.0.size`, `labels."a.b"`: keys, and indexes as integers."""
    parts: list[str | int] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None or (match[3] is not None and not parts):
            raise UsageError(f"{text!r} is not a path into a config", HINT)
        quoted, plain, index = match.groups()
        parts.append(int(index) if index is not None else quoted if quoted is not None else plain)
        position = match.end()
    if not parts:
        raise UsageError("--set lacks a path", HINT)
    return tuple(parts)


def _words(override: str) -> str:
    """An override as messages name it."""
    return f"--set {override if len(override) <= MAX_WORDS else override[:MAX_WORDS] + '...'}"


def apply(tree: Tree, override: str) -> Path:
    """Puts one `path=value` into the tree; says the path that was set."""
    target, equals, value = override.partition("=")
    if not equals:
        raise UsageError(f"{_words(override)}: there is no `=`", HINT)
    path = parse_path(target.strip())
    path = _assign(tree, path, _value(value, override), override)
    for places in (tree.values, tree.keys):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
    tree.overridden[path] = f"{_words(override)}"
    return path


def _value(text: str, override: str) -> Any:
    if _WORD.fullmatch(text):
        return scalar(text)
    if quoted := _QUOTED.fullmatch(text):
        return quoted[1]
    from imgvm.config import document

    try:
        parsed = document.parse(text, f"{_words(override)}")
    except ConfigError as error:
        raise UsageError(f"{_words(override)}: {error.problems[0].message}", HINT) from None
    if parsed.problems:
        raise UsageError(f"{_words(override)}: {parsed.problems[0].message}", HINT)
    return parsed.data


def _assign(tree: Tree, path: Path, value: Any, override: str) -> Path:
    if tree.data is None:
        tree.data = {}
    at: Any = tree.data
    done: Path = ()
    for index, part in enumerate(path):
        last = index == len(path) - 1
        fresh: Any = value if last else ([] if _is_index(path[index + 1]) else {})
        key: Any = _list_index(at, part, override) if isinstance(at, list) else part
        if isinstance(at, dict):
            if not isinstance(key, str):
                where = format_path(done) or "the config"
                raise UsageError(f"{_words(override)}: {where} is no list", HINT)
            if last or at.get(key) is None:
                at[key] = fresh
        elif isinstance(at, list):
            if key == len(at):
                at.append(fresh)
            elif last:
                at[key] = fresh
        else:
            what = format_path(done)
            raise UsageError(f"{_words(override)}: {what} is neither map nor list", HINT)
        done = (*done, key)
        at = at[key]
    return done


def _is_index(part: str | int) -> bool:
    return isinstance(part, int) or part.isdigit()


def _list_index(items: list[Any], part: str | int, override: str) -> int:
    """An index, or the `name` of an item; one past the end appends."""
    if isinstance(part, str) and not _is_index(part):
        for index, item in enumerate(items):
            if isinstance(item, dict) and item.get("name") == part:
                return index
        raise UsageError(f"{_words(override)}: no item is named {part}", HINT)
    index = int(part)
    if index > len(items):
        raise UsageError(f"{_words(override)}: the list has {len(items)} items", HINT)
    return index
