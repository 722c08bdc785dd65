# SPDX-License-Identifier: MIT
"""A config changed after packing: what a new text changes is carried over to the resolved config.

The resolved config can hold more than its text (`--set` at pack time, what pack found out), so it is not made
anew: only what differs between the old text and the new one is put into it. A key taken out gets its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from imgvm import machine as _machine
from imgvm.config import document, overrides, variables
from imgvm.config.edit_text import put
from imgvm.config.tree import Path, Tree
from imgvm.errors import ConfigError, Problem
from imgvm.machine import Machine

MISSING: Any = object()
SETTLED = "this is settled when the image is packed"


def set_values(text: str, assignments: list[str], file: str) -> tuple[str, bool]:
    """The text after `path=value` assignments, and whether all else in it was kept as it was written."""
    kept = True
    for assignment in assignments:
        tree = document.parse(text, file)
        path = overrides.apply(tree, assignment)
        value = _at(tree.data, path)
        text, in_place = put(text, path, value, assignment.partition("=")[2], tree.data)
        kept = kept and in_place
    return text, kept


def revise(
    old: str, new: str, resolved: str | bytes, file: str, may_change: Callable[[Path], bool]
) -> Machine:
    """The machine of `resolved` with what `new` changes of `old`. Problems have their places in `new`."""
    from imgvm.config import check, semantics  # jsonschema is slow to import

    before, tree = document.parse(old, file), document.parse(new, file)
    changes = list(differences(before.data or {}, tree.data or {}))
    problems = [
        tree.problem(path, SETTLED, "pack the config again", key=True)
        for path, _ in changes
        if not may_change(path)
    ]
    data = json.loads(resolved)
    for path, value in changes:
        if not str(path[0]).startswith("x-"):
            _apply(data, path, _without_variables(tree, path, value))
    merged = Tree(file, data, tree.values, tree.keys, problems=[*tree.problems, *problems])
    problems = merged.problems + check.check(merged)
    if not problems:
        problems = semantics.check(merged)
    if problems:
        raise ConfigError(sorted(set(problems), key=_place))
    return _machine.from_document(data)


def differences(old: Any, new: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, new value or MISSING). Maps are compared key by key, all else as a whole."""
    for key in [*old, *(key for key in new if key not in old)]:
        here, one, other = (*path, key), old.get(key, MISSING), new.get(key, MISSING)
        if not path:  # a section as a whole is no value: pack may have put more into it
            one = {} if one is MISSING and _is_map(other) else one
            other = {} if other is MISSING and _is_map(one) else other
        if _is_map(one) and _is_map(other):
            yield from differences(one, other, here)
        elif json.dumps(one, default=str) != json.dumps(other, default=str):
            yield here, other


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _place(problem: Problem) -> tuple[int, int, str]:
    return problem.line, problem.column, problem.path


def _at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _apply(data: dict[str, Any], path: Path, value: Any) -> None:
    for part in path[:-1]:
        if not _is_map(data.get(str(part))):
            data[str(part)] = {}
        data = data[str(part)]
    if value is MISSING:
        data.pop(str(path[-1]), None)
    else:
        data[str(path[-1])] = value


def _without_variables(tree: Tree, path: Path, value: Any) -> Any:
    """The value as packing would have read it; what is wrong with it is added to the tree's problems. What
    the variables were at pack time is not known any more."""
    return variables.settled(tree, path, value)
