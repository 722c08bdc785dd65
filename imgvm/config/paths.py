# SPDX-License-Identifier: MIT
"""Paths of the packing host in included files: they start at the folder of the file that they stand in, and
are rewritten to start at the config's. Which values are paths is the schema's word (`$defs/path`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgvm.config.schema import referred, schema
from imgvm.config.tree import Path as TreePath
from imgvm.config.tree import Tree

_PATH = "#/$defs/path"
Rule = dict[str, Any]


def rebase(tree: Tree, folder: Path, folders: Mapping[str, Path]) -> None:
    """Rewrites the paths of a checked tree. `folders` are those of the included files, by their names."""
    if tree.files:
        tree.data = _walk(_Rebasing(tree, folder, folders), schema(), (), tree.data)


class _Rebasing:
    def __init__(self, tree: Tree, folder: Path, folders: Mapping[str, Path]) -> None:
        self._tree = tree
        self._folder = folder
        self._folders = folders

    def path(self, at: TreePath, text: str) -> str:
        if any(at[:length] in self._tree.overridden for length in range(len(at) + 1)):
            return text
        home = self._folders.get(self._tree.place(at)[0])
        if home is None or text.startswith(("/", "~")):
            return text
        return os.path.relpath(home / text, self._folder.resolve())


def _walk(rebasing: _Rebasing, rule: Rule, at: TreePath, data: Any) -> Any:
    if rule.get("$ref") == _PATH:
        return rebasing.path(at, data) if isinstance(data, str) else data
    rule = referred(rule)
    if data in [word for branch in _branches(rule) for word in _words(branch)]:
        return data  # such as `auto` beside a path
    if isinstance(data, dict):
        for key, child in rule.get("properties", {}).items():
            if key in data and key != "profiles":
                data[key] = _walk(rebasing, child, (*at, key), data[key])
    elif isinstance(data, list) and "items" in rule:
        data = [_walk(rebasing, rule["items"], (*at, index), item) for index, item in enumerate(data)]
    for branch in _branches(rule):
        data = _walk(rebasing, branch, at, data) if _fits(branch, data) else data
    return data


def _branches(rule: Rule) -> list[Rule]:
    return [*rule.get("anyOf", ()), *rule.get("oneOf", ())]


def _words(rule: Rule) -> list[Any]:
    return [rule["const"]] if "const" in rule else list(rule.get("enum", ()))


def _fits(rule: Rule, data: Any) -> bool:
    """Whether a branch is for data of this type. Branches that only say `required` name no paths."""
    if isinstance(data, str):
        return rule.get("$ref") == _PATH
    return bool(rule.get("type") == ("object" if isinstance(data, dict) else "array"))
