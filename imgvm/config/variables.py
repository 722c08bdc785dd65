# SPDX-License-Identifier: MIT
"""`$$` in a text value means `$`. `${` is kept for variables, which this version does not support, and so is
refused: a config that means something else tomorrow must not be accepted today."""

from __future__ import annotations

from typing import Any

from imgvm.config.document import Path, Tree

# Read by people only; nothing is ever substituted in them.
_LITERAL = ("description",)


def resolve(tree: Tree) -> None:
    """Rewrites the tree's text values; problems are added to the tree."""
    tree.data = _resolve(tree, (), tree.data)


def _resolve(tree: Tree, path: Path, data: Any) -> Any:
    if len(path) == 1 and isinstance(path[0], str) and (path[0] in _LITERAL or path[0].startswith("x-")):
        return data
    if isinstance(data, dict):
        return {key: _resolve(tree, (*path, key), value) for key, value in data.items()}
    if isinstance(data, list):
        return [_resolve(tree, (*path, index), value) for index, value in enumerate(data)]
    if not isinstance(data, str):
        return data
    if "\0" in data:
        tree.problems.append(tree.problem(path, "the text contains a NUL character"))
    parts = data.split("$$")
    if any("${" in part for part in parts):
        message = "variables are not supported by this version of imgvm yet"
        tree.problems.append(tree.problem(path, message, "write $${ for a ${ that the guest is to see"))
    return "$".join(parts)
