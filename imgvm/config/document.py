# SPDX-License-Identifier: MIT
"""YAML text to plain data, strictly, with the place of every node.

YAML 1.2's core scalars (`no` is text, `22:22` is text, `0o17` is fifteen), keys are text and unique, one
document, no merge keys, no tags but the core ones. The text is untrusted: its size, its depth and the number
of nodes after the expansion of aliases are bounded, and nothing here recurses on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from imgvm.config.scalars import scalar
from imgvm.config.tree import Mark, Path, PlainText, Tree, children, format_path, size
from imgvm.errors import ConfigError, Problem

MAX_TEXT_BYTES = 256 << 10
MAX_DEPTH = 32
MAX_NODES = 20_000

_CORE_TAG = "tag:yaml.org,2002:"


def parse(raw: bytes | str, file: str) -> Tree:
    """Reads one document. Problems that leave a usable tree are collected in it; others raise ConfigError."""
    text = _decode(raw, file)
    try:
        return _Composer(file).compose(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        line, column = _line_column(text, error.position)
        message = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise ConfigError([Problem(file, line, column, "", message)]) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, file)]) from None


def _decode(raw: bytes | str, file: str) -> str:
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    if len(data) > MAX_TEXT_BYTES:
        hint = "large contents belong into files that the config names"
        message = f"the text is larger than {MAX_TEXT_BYTES >> 10}KiB"
        raise ConfigError([Problem(file, 1, 1, "", message, hint)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = _line_column(before, len(before))
        raise ConfigError([Problem(file, line, column, "", "the text is not UTF-8")]) from None


def _line_column(text: str, position: int) -> Mark:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def _syntax_problem(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    words = " ".join(part for part in (error.context, error.problem) if part)
    hint = "YAML indents with spaces, not tabs" if "'\\t'" in words else None
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Problem(file, line, column, "", f"not YAML: {words}", hint)


@dataclass
class _Open:
    """A map or list whose end has not been reached."""

    data: Any
    path: Path
    anchor: str | None
    key: str | None = None  # of the map's value that comes next
    expect_key: bool = True
    skip: bool = False  # the next value belongs to a refused key


class _Composer:
    """Builds the tree from the parser's events with a stack of its own."""

    def __init__(self, file: str) -> None:
        self.tree = Tree(file)
        self.stack: list[_Open] = []
        self.anchors: dict[str, Any] = {}
        self.nodes = 0
        self.documents = 0

    def compose(self, events: Iterator[yaml.Event]) -> Tree:
        for event in events:
            start: Any = event.start_mark
            mark = (start.line + 1, start.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self._fail(mark, "a second document begins here", "a config is one document")
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, mark)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event, mark)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._open(event, mark)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                done = self.stack.pop()
                if done.anchor:
                    self.anchors[done.anchor] = done.data
        return self.tree

    def _fail(self, mark: Mark, message: str, hint: str | None = None) -> NoReturn:
        path = format_path(self.stack[-1].path) if self.stack else ""
        problem = Problem(self.tree.file, *mark, path, message, hint)
        raise ConfigError([*self.tree.problems, problem])

    def _report(self, path: Path, mark: Mark, message: str, hint: str | None = None) -> None:
        self.tree.problems.append(Problem(self.tree.file, *mark, format_path(path), message, hint))

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> None:
        plain = event.implicit[0] and event.tag is None
        try:
            value = scalar(event.value) if plain else self._tagged(event, mark)
        except ValueError as error:
            value = event.value
            self._report(self._next_path(), mark, str(error))
        if self._at_key():
            self._key(value, event.value, plain, mark)
        else:
            value = PlainText(value) if plain and isinstance(value, str) and "${" in value else value
            self._place(value, mark)
            if event.anchor:
                self.anchors[event.anchor] = value

    def _tagged(self, event: yaml.ScalarEvent, mark: Mark) -> Any:
        if event.tag in (None, "!", _CORE_TAG + "str"):
            return event.value
        self._report(self._next_path(), mark, f"the tag {event.tag} is not supported", "quote text instead")
        return event.value

    def _at_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].data, dict) and self.stack[-1].expect_key

    def _next_path(self) -> Path:
        """The path of the value that comes next (at a key: of the map)."""
        if not self.stack:
            return ()
        top = self.stack[-1]
        if isinstance(top.data, list):
            return (*top.path, len(top.data))
        return top.path if top.key is None else (*top.path, top.key)

    def _key(self, value: Any, text: str, plain: bool, mark: Mark) -> None:
        top = self.stack[-1]
        top.expect_key = False
        top.key, top.skip = text, True
        path = (*top.path, text)
        if plain and text == "<<":
            self._report(top.path, mark, "merge keys are not supported", "write the keys out")
        elif not isinstance(value, str):
            self._report(top.path, mark, f"the key {text or 'null'} is not text", f'quote it: "{text}"')
        elif text in top.data:
            first = self.tree.keys[path]
            self._report(path, mark, "duplicate key", f"first given in line {first[0]}")
        else:
            top.skip = False
            self.tree.keys[path] = mark

    def _place(self, value: Any, mark: Mark) -> Path:
        """Puts a value into the map, list or document that is open, and says where that is."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self._fail(mark, f"more than {MAX_NODES} values (after expanding aliases)")
        path = self._next_path()
        if not self.stack:
            self.tree.data = value
        else:
            top = self.stack[-1]
            if isinstance(top.data, list):
                top.data.append(value)
            else:
                top.expect_key = True
                if top.skip:
                    top.skip = False
                    # A path of its own, so that the places of what is kept stay as they are.
                    return (*path, "(refused)")
                assert top.key is not None
                top.data[top.key] = value
        self.tree.values[path] = mark
        return path

    def _open(self, event: yaml.CollectionStartEvent, mark: Mark) -> None:
        if self._at_key():
            self._fail(mark, "a key must be text, not a map or list")
        if len(self.stack) >= MAX_DEPTH:
            self._fail(mark, f"nested deeper than {MAX_DEPTH} levels")
        if event.tag not in (None, "!", _CORE_TAG + "map", _CORE_TAG + "seq"):
            self._report(self._next_path(), mark, f"the tag {event.tag} is not supported")
        data: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._place(data, mark)
        if event.anchor:
            self.anchors.pop(event.anchor, None)  # an alias to it inside itself finds nothing
        self.stack.append(_Open(data, path, event.anchor))

    def _alias(self, event: yaml.AliasEvent, mark: Mark) -> None:
        name = event.anchor or ""
        if name not in self.anchors:
            self._fail(mark, f"the alias *{name} refers to nothing that is complete before it")
        if self._at_key():
            self._fail(mark, "an alias cannot be a key")
        data = self.anchors[name]
        self.nodes += size(data) - 1  # before the copy is made
        if self.nodes > MAX_NODES:
            self._fail(mark, f"more than {MAX_NODES} values (after expanding aliases)")
        if len(self.stack) + _depth(data) > MAX_DEPTH:
            self._fail(mark, f"nested deeper than {MAX_DEPTH} levels (after expanding aliases)")
        # A copy, so that an override of one place does not change the other. Its nodes have no places of
        # their own: what is wrong with them is reported where the alias stands.
        self._place(_copy(data), mark)


def _depth(data: Any) -> int:
    return 1 + max(map(_depth, children(data)), default=0) if isinstance(data, (dict, list)) else 0


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list) else data
