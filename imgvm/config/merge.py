# SPDX-License-Identifier: MIT
"""Lays one tree over another: maps deeply, lists of named things by their names, all else replaced.

A null takes away what lies under it. Each node of the result keeps the file and place it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgvm.config.tree import Path, Tree

# What names the things in a list: `name` in disks, networks and the like; `path` in files.
_NAMING = ("name", "path")


@dataclass(frozen=True)
class _At:
    """A node of a tree."""

    tree: Tree
    path: Path
    data: Any

    def child(self, key: str | int) -> _At:
        return _At(self.tree, (*self.path, key), self.data[key])

    def children(self) -> list[tuple[str | int, _At]]:
        keys = self.data if isinstance(self.data, dict) else range(len(self.data))
        return [(key, self.child(key)) for key in keys]


def merged(base: Tree, over: Tree) -> Tree:
    """`over` laid over `base`; the result counts as `over`'s file."""
    out = Tree(over.file, problems=[*base.problems, *over.problems], overridden=over.overridden)
    out.data = _merge(out, (), _At(base, (), base.data), _At(over, (), over.data))
    return out


def with_part(tree: Tree, part: Path) -> Tree:
    """The tree with one of its own maps (a profile) laid over it."""
    data = tree.data
    for key in part:
        data = data[key]
    out = Tree(tree.file, problems=tree.problems, overridden=dict(tree.overridden))
    out.data = _merge(out, (), _At(tree, (), tree.data), _At(tree, part, data))
    return out


def _merge(out: Tree, path: Path, base: _At, over: _At) -> Any:
    if isinstance(base.data, dict) and isinstance(over.data, dict):
        _mark(out, path, base if path == () and base.tree is over.tree else over)
        return _merge_maps(out, path, base, over)
    names = _names(base.data), _names(over.data)
    if names[0] and names[1]:
        _mark(out, path, over)
        return _merge_lists(out, path, base, over, names[0], names[1])
    return _copy(out, path, over)


def _merge_maps(out: Tree, path: Path, base: _At, over: _At) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, node in base.children():
        assert isinstance(key, str)
        if key not in over.data:
            data[key] = _copy(out, (*path, key), node)
        elif over.data[key] is not None:
            data[key] = _merge(out, (*path, key), node, over.child(key))
    for key, node in over.children():
        assert isinstance(key, str)
        if key not in base.data:
            data[key] = _copy(out, (*path, key), node)
    return data


def _merge_lists(
    out: Tree, path: Path, base: _At, over: _At, base_names: Mapping[str, int], over_names: Mapping[str, int]
) -> list[Any]:
    data: list[Any] = []
    for name, index in base_names.items():
        node, at = base.child(index), (*path, len(data))
        other = over_names.get(name)
        data.append(_copy(out, at, node) if other is None else _merge(out, at, node, over.child(other)))
    for name, index in over_names.items():
        if name not in base_names:
            data.append(_copy(out, (*path, len(data)), over.child(index)))
    return data


def _names(data: Any) -> dict[str, int]:
    """The names of a list's items and their indexes; empty unless each has a name of its own."""
    if not isinstance(data, list):
        return {}
    for key in _NAMING:
        names = [item.get(key) if isinstance(item, dict) else None for item in data]
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return {str(name): index for index, name in enumerate(names)}
    return {}


def _copy(out: Tree, path: Path, node: _At) -> Any:
    _mark(out, path, node)
    if isinstance(node.data, dict):
        return {key: _copy(out, (*path, key), child) for key, child in node.children()}
    if isinstance(node.data, list):
        return [_copy(out, (*path, key), child) for key, child in node.children()]
    return node.data


def _mark(out: Tree, path: Path, node: _At) -> None:
    file, out.values[path] = node.tree.place(node.path)
    if node.path in node.tree.keys:
        out.keys[path] = node.tree.keys[node.path]
    if file != out.file:
        out.files[path] = file
