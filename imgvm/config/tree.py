# SPDX-License-Identifier: MIT
"""Plain data, and where in a text each of its nodes stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imgvm.errors import Problem
from imgvm.record import NOTHING

Path = tuple[str | int, ...]
Mark = tuple[int, int]  # line and column, from 1; (0, 0): not in the text


class PlainText(str):
    """A plain scalar with a variable in it: what it is (a number, say) shows when the variable is known."""


class Tree:
    """Data, and where each node stands: `values` by its path, `keys` by the path of the value they name."""

    def __init__(
        self,
        file: str,
        data: Any = None,
        values: dict[Path, Mark] | None = None,
        keys: dict[Path, Mark] | None = None,
        problems: Iterable[Problem] = (),
        overridden: Mapping[Path, str] = NOTHING,
    ) -> None:
        self.file = file
        self.data = data
        self.values = {} if values is None else values
        self.keys = {} if keys is None else keys
        self.files: dict[Path, str] = {}  # of the nodes that come from another file
        self.problems = list(problems)
        self.overridden = dict(overridden)  # what `--set` wrote, and its words

    def place(self, path: Path, key: bool = False) -> tuple[str, Mark]:
        """The file and the place in it of a value, or of its key; else of the nearest node around it."""
        if key and path in self.keys:
            return self.files.get(path, self.file), self.keys[path]
        for length in range(len(path), -1, -1):
            if path[:length] in self.values:
                return self.files.get(path[:length], self.file), self.values[path[:length]]
        return self.file, (0, 0)

    def mark(self, path: Path, key: bool = False) -> Mark:
        return self.place(path, key)[1]

    def problem(self, path: Path, message: str, hint: str | None = None, *, key: bool = False) -> Problem:
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return Problem(self.overridden[path[:length]], 0, 0, format_path(path), message, hint)
        file, (line, column) = self.place(path, key)
        return Problem(file, line, column, format_path(path), message, hint)

    def texts(self) -> Iterator[tuple[Path, str, bool]]:
        """Every text in the data, with its path and whether it is a key."""
        stack: list[tuple[Path, Any]] = [((), self.data)]
        while stack:
            path, data = stack.pop()
            if isinstance(data, str):
                yield path, data, False
            elif isinstance(data, dict):
                yield from (((*path, key), key, True) for key in data)
                stack += (((*path, key), value) for key, value in data.items())
            elif isinstance(data, list):
                stack += (((*path, index), value) for index, value in enumerate(data))


def format_path(path: Path) -> str:
    """`disks[0].size`, as messages and `--set` write it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w-]+", part) else f'"{part}"'
            text += f".{name}" if text else name
    return text


def children(data: Any) -> Iterable[Any]:
    return data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()


def size(data: Any) -> int:
    """How many values there are in `data`, itself included."""
    return 1 + sum(map(size, children(data)))
