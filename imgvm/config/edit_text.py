# SPDX-License-Identifier: MIT
"""One value of a YAML text changed where it stands, so that comments, order and spacing stay.

The text was accepted by document.parse before, which bounds its size and depth. Every edit is read back and
compared with what it should mean; where no edit of the text does, all is written anew, without comments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from imgvm.config import document
from imgvm.config.tree import Path
from imgvm.errors import ConfigError

INDENT = 2


@dataclass
class _Node:
    """Where a node stands: characters `start` to `end`, its column, and how it is written."""

    start: int
    end: int
    column: int
    kind: str  # scalar | map | list
    flow: bool


def put(text: str, path: Path, value: Any, words: str, wanted: Any) -> tuple[str, bool]:
    """The text with `path` set to `value`, written as `words` where that works.

    `wanted` is what the whole must mean then. Also says whether the rest of the text was kept as it is.
    """
    for candidate in _candidates(text, path, value, words):
        if _means(candidate, wanted):
            return candidate, True
    return dump(wanted), False


def dump(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _means(text: str, wanted: Any) -> bool:
    try:
        tree = document.parse(text, "")
    except ConfigError:
        return False
    return not tree.problems and _same(tree.data, wanted)


def _same(one: Any, other: Any) -> bool:
    """Equal in types too: `1`, `1.0` and `true` differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _candidates(text: str, path: Path, value: Any, words: str) -> Iterator[str]:
    nodes = _nodes(text)
    forms = [json.dumps(value, ensure_ascii=False)]
    if words.strip() and "\n" not in words:
        forms.insert(0, words.strip())
    if path in nodes:
        node = nodes[path]
        for form in forms:
            space = " " if node.start == node.end else ""  # `key:` with nothing behind it
            yield text[: node.start] + space + form + text[node.end :]
        return
    depth = next(length for length in range(len(path) - 1, -1, -1) if path[:length] in nodes)
    inside, missing = nodes[path[:depth]], path[depth:]
    if not all(isinstance(part, str) for part in missing):
        return
    keys = [key if key.isidentifier() else json.dumps(key, ensure_ascii=False) for key in map(str, missing)]
    for form in forms:
        nested = f"{keys[-1]}: {form}"
        for key in reversed(keys[:-1]):
            nested = f"{key}: {{{nested}}}"
        if inside.kind == "map" and inside.flow:
            empty = not text[inside.start + 1 : inside.end - 1].strip()
            yield text[: inside.end - 1].rstrip() + ("" if empty else ", ") + nested + text[inside.end - 1 :]
        elif inside.kind == "map":
            yield _append(text, inside, keys, form)
        elif inside.kind == "scalar" and inside.start == inside.end:
            yield text[: inside.start] + f" {{{nested}}}" + text[inside.end :]


def _append(text: str, inside: _Node, keys: list[str], form: str) -> str:
    """A block map with one more key below its last value."""
    at = text.find("\n", inside.end)
    before, after = (text, "") if at < 0 else (text[:at], text[at + 1 :])
    lines = [" " * (inside.column + INDENT * level) + f"{key}:" for level, key in enumerate(keys)]
    return before.rstrip("\n") + "\n" + "\n".join(lines) + f" {form}\n" + after


def _nodes(text: str) -> dict[Path, _Node]:
    """Every node by its path; a block collection ends with its last child."""
    found: dict[Path, _Node] = {}
    stack: list[tuple[Path, _Node, list[Any]]] = []  # path, node, [next key or index]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            _, node, _ = stack.pop()
            end: Any = event.end_mark
            if node.flow:
                node.end = end.index
            if stack:
                stack[-1][1].end = node.end
        elif isinstance(event, yaml.NodeEvent):
            end = event.end_mark
            # The mark of a block of text is where the next token begins.
            is_block = isinstance(event, yaml.ScalarEvent) and event.style in ("|", ">")
            end_index = len(text[: end.index].rstrip()) if is_block else end.index
            _enter(event, end_index, found, stack)
    return found


def _enter(
    event: yaml.NodeEvent, end: int, found: dict[Path, _Node], stack: list[tuple[Path, _Node, list[Any]]]
) -> None:
    start: Any = event.start_mark
    path: Path = ()
    if stack:
        above, node, following = stack[-1]
        if node.kind == "map" and following[0] is None:  # this is a key
            following[0] = event.value if isinstance(event, yaml.ScalarEvent) else ""
            return
        path = (*above, following[0])
        following[0] = None if node.kind == "map" else following[0] + 1
        node.end = end
    kind = "map" if isinstance(event, yaml.MappingStartEvent) else "scalar"
    kind = "list" if isinstance(event, yaml.SequenceStartEvent) else kind
    flow = bool(getattr(event, "flow_style", False))
    entered = _Node(start.index, end, start.column, kind, flow)
    found[path] = entered
    if kind != "scalar":
        stack.append((path, entered, [None if kind == "map" else 0]))
