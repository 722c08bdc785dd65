# SPDX-License-Identifier: MIT
"""`${NAME}` in text values: `${NAME:-default}`, `${NAME:?message}`, and `$$` for a `$`.

A variable is what --var says, else what the environment says when the config's `vars` allow that (`env`),
else its default in `vars`. A plain scalar is read again as YAML when its variables are known: `cpus: ${CPUS}`
is a number, `"${CPUS}"` is text. All is settled when the config is packed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imgvm.config.scalars import scalar
from imgvm.config.suggest import nearest
from imgvm.config.tree import Path, PlainText, Tree
from imgvm.errors import Problem, UsageError

MAX_TEXT_BYTES = 64 << 10
MAX_DEPTH = 50
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USE = re.compile(r"\$\$|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::([-?])([^{}]*))?\})?")
_ESCAPE_HINT = "write $${ for a ${ that the guest is to see"

# Read by people only; nothing is ever substituted in them.
_LITERAL = ("description", "include", "vars", "profiles")


def given(texts: Sequence[str]) -> dict[str, str]:
    """`--var NAME=VALUE` texts as a map."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"--var {text[:80]}: not NAME=VALUE", "write --var VERSION=1.2")
        found[name] = value
    return found


def resolve(tree: Tree, values: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Rewrites the tree's text values; problems are added to the tree. Returns what came from outside."""
    scope = _Scope(tree, values, environment)
    known = {*scope.declared, *_names_in(tree.data)}
    for name in values:
        if name not in known:
            guess = nearest(name, known)
            hint = f"did you mean {guess}?" if guess else "declare it under vars"
            raise UsageError(f"--var {name}: the config has no variable of that name", hint)
    tree.problems += scope.check()
    tree.data = _resolve(tree, scope, (), tree.data)
    return dict(sorted(scope.outside.items()))


def settled(tree: Tree, path: Path, data: Any) -> Any:
    """A part of a tree as `resolve` leaves it, where no variables are known: each one is a problem."""
    if isinstance(data, dict):
        return {key: settled(tree, (*path, key), value) for key, value in data.items()}
    if isinstance(data, list):
        return [settled(tree, (*path, index), value) for index, value in enumerate(data)]
    if not isinstance(data, str):
        return data
    if any(use[0] != "$$" for use in _USE.finditer(data)):
        message = "variables are settled when the image is packed"
        hint = "write the value itself, or $${ for a ${ that the guest is to see"
        tree.problems.append(tree.problem(path, message, hint))
    return data.replace("$$", "$")


@dataclass
class _Scope:
    """The variables of one config."""

    tree: Tree
    given: Mapping[str, str]
    environment: Mapping[str, str]
    declared: dict[str, dict[str, Any]] = field(default_factory=dict)
    _values: dict[str, str | None] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)  # those that --var or the environment gave

    def __post_init__(self) -> None:
        rows = self.tree.data.get("vars") if isinstance(self.tree.data, dict) else None
        for name, row in (rows if isinstance(rows, dict) else {}).items():
            self.declared[name] = row if isinstance(row, dict) else {"default": row}

    def check(self) -> Iterator[Problem]:
        """Values that are missing, and values that are none of those allowed."""
        for name, row in self.declared.items():
            at: Path = ("vars", name)
            value = self.value(name, at)
            allowed = [_text(word) for word in row.get("enum") or ()]
            if value is None:
                if row.get("required") is True:
                    hint = f"give it with --var {name}=..."
                    yield self.tree.problem(at, "a value is needed", hint, key=True)
            elif allowed and value not in allowed:
                guess = nearest(value, allowed)
                hint = f"did you mean {guess}?" if guess else ""
                message = f"must be one of {', '.join(allowed)}, not {value}"
                yield self.tree.problem(at, message, hint, key=True)

    def value(self, name: str, at: Path) -> str | None:
        """A variable's text; None when it has none. `at` is where it is used."""
        if name not in self._values:
            if name in self._open:
                circle = " → ".join([*self._open[self._open.index(name) :], name])
                self._report(at, f"the variable {name} needs itself ({circle})")
                return ""
            if len(self._open) >= MAX_DEPTH:
                self._report(at, f"variables need each other more than {MAX_DEPTH} deep")
                return ""
            self._open.append(name)
            self._values[name] = self._find(name)
            self._open.pop()
        return self._values[name]

    def _find(self, name: str) -> str | None:
        if name in self.given:
            return self.outside.setdefault(name, self.given[name])
        row = self.declared.get(name, {})
        source = row.get("env", False)
        source = name if source is True else source
        if isinstance(source, str) and source in self.environment:
            return self.outside.setdefault(name, self.environment[source])
        default = row.get("default")
        if not isinstance(default, (str, int, float)):
            return None
        is_map = isinstance(self.tree.data["vars"][name], dict)
        return self.expand(_text(default), ("vars", name, "default") if is_map else ("vars", name))

    def expand(self, text: str, at: Path) -> str:
        """`text` with its variables replaced."""
        out = []
        end = 0
        for use in _USE.finditer(text):
            out.append(text[end : use.start()])
            out.append(self._replacement(use, at))
            end = use.end()
        out.append(text[end:])
        whole = "".join(out)
        if len(whole) > MAX_TEXT_BYTES and end:
            self._report(at, f"the text is longer than {MAX_TEXT_BYTES >> 10}KiB with its variables")
            return ""
        return whole

    def _replacement(self, use: re.Match[str], at: Path) -> str:
        if use[0] == "$$":
            return "$"
        name, operator, word = use.groups()
        if name is None:
            message = "${ begins no variable: ${NAME}, ${NAME:-default}, ${NAME:?message}"
            self._report(at, message, _ESCAPE_HINT)
            return ""
        value = self.value(name, at)
        if operator == "-":
            return value or str(word).replace("$$", "$")
        if value or (value is not None and operator is None):
            return value
        if operator == "?":
            self._report(at, f"{name}: {word or 'a value is needed'}", f"give it with --var {name}=...")
        elif name in self.declared:
            hint = f"give it with --var {name}=..., or a default"
            self._report(at, f"the variable {name} has no value", hint)
        else:
            guess = nearest(name, self.declared)
            hint = f"did you mean {guess}?" if guess else f"declare it under vars; {_ESCAPE_HINT}"
            self._report(at, f"there is no variable {name}", hint)
        return ""

    def _report(self, at: Path, message: str, hint: str | None = None) -> None:
        self.tree.problems.append(self.tree.problem(at, message, hint))


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _resolve(tree: Tree, scope: _Scope, path: Path, data: Any) -> Any:
    if len(path) == 1 and isinstance(path[0], str) and (path[0] in _LITERAL or path[0].startswith("x-")):
        return data
    if isinstance(data, dict):
        return {key: _resolve(tree, scope, (*path, key), value) for key, value in data.items()}
    if isinstance(data, list):
        return [_resolve(tree, scope, (*path, index), value) for index, value in enumerate(data)]
    if not isinstance(data, str):
        return data
    text = scope.expand(data, path)
    if not isinstance(data, PlainText):
        return text
    try:
        return scalar(text)
    except ValueError as error:
        tree.problems.append(tree.problem(path, str(error)))
        return text


def _names_in(data: Any) -> Iterator[str]:
    """The variables that are used anywhere, in profiles that were not asked for too."""
    if isinstance(data, str):
        yield from (use[1] for use in _USE.finditer(data) if use[1])
    elif isinstance(data, (dict, list)):
        for child in data.values() if isinstance(data, dict) else data:
            yield from _names_in(child)
