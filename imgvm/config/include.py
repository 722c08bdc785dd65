# SPDX-License-Identifier: MIT
"""`include` and `profiles`: a config put together from several files and parts, before it is checked.

The included files come first, in their order; what includes them is laid over them (merge.py). Relative
paths in an included file start at its own folder: here for `include` itself, in paths.py for all else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgvm.config import document, merge
from imgvm.config.suggest import nearest
from imgvm.config.tree import Path as TreePath
from imgvm.config.tree import Tree, size
from imgvm.errors import ConfigError, UsageError

MAX_INCLUDES = 64
MAX_DEPTH = 8
MAX_TOTAL_BYTES = 4 * document.MAX_TEXT_BYTES


@dataclass(frozen=True)
class Included:
    """A file that a config includes: as the config names it, as messages do, where it is, and its text."""

    origin: str
    file: str
    folder: Path
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass
class Includer:
    """Gathers the files of one config."""

    found: list[Included] = field(default_factory=list)
    total_bytes: int = 0

    def compose(self, tree: Tree, folder: Path, above: tuple[Path, ...] = ()) -> Tree:
        """The tree with its includes laid under it. Raises ConfigError for one that cannot be had."""
        wishes = tree.data.get("include") if isinstance(tree.data, dict) else None
        if not isinstance(wishes, list):
            return tree  # what is no list is left to the schema
        base: Tree | None = None
        for index, wish in enumerate(wishes):
            part = self._load(tree, ("include", index), _Wish.of(wish), folder, above)
            if part is not None:
                base = part if base is None else merge.merged(base, part)
        if base is None:
            return tree
        out = merge.merged(base, tree)
        if size(out.data) > document.MAX_NODES:
            message = f"more than {document.MAX_NODES} values with what is included"
            raise ConfigError([tree.problem(("include",), message)])
        return out

    def _load(
        self, tree: Tree, at: TreePath, wish: _Wish | None, folder: Path, above: tuple[Path, ...]
    ) -> Tree | None:
        if wish is None:
            return None
        fail = _Failure(tree, at)
        if "${" in wish.path:
            raise fail(f"{wish.path}: variables are not known yet where files are included")
        path = folder / Path(wish.path).expanduser()
        try:
            if not path.is_file() and path.exists():
                raise fail(f"{wish.path} is no file")
            with path.open("rb") as stream:
                raw = stream.read(document.MAX_TEXT_BYTES + 1)
        except FileNotFoundError:
            if wish.optional:
                return None
            raise fail(f"{wish.path}: no such file", f"looked for in {folder}") from None
        except OSError as error:
            raise fail(f"{wish.path}: {error.strerror}") from None
        real = path.resolve()
        if real in above:
            circle = " → ".join(name.name for name in (*above[above.index(real) :], real))
            raise fail(f"{wish.path} includes itself ({circle})")
        if wish.sha256 not in (None, hashlib.sha256(raw).hexdigest()):
            raise fail(f"{wish.path} has another SHA-256: {hashlib.sha256(raw).hexdigest()}")
        if len(above) >= MAX_DEPTH:
            raise fail(f"files are included more than {MAX_DEPTH} deep")
        file = os.path.normpath(Path(tree.file).parent / wish.path)
        part = document.parse(raw, file)
        self.total_bytes += len(raw)
        if len(self.found) >= MAX_INCLUDES or self.total_bytes > MAX_TOTAL_BYTES:
            raise fail(f"more than {MAX_INCLUDES} files or {MAX_TOTAL_BYTES >> 10}KiB are included")
        self.found.append(Included(wish.path, file, real.parent, raw.decode("utf-8-sig")))
        if part.data is None:
            return None
        if not isinstance(part.data, dict):
            raise ConfigError([part.problem((), "must be a map, as every config is")])
        part = self.compose(part, real.parent, (*above, real))
        part.data.pop("include", None)
        return part


@dataclass(frozen=True)
class _Wish:
    """An item of `include`."""

    path: str
    sha256: str | None = None
    optional: bool = False

    @classmethod
    def of(cls, item: Any) -> _Wish | None:
        """None for what the schema will refuse."""
        if isinstance(item, str):
            return cls(item) if item else None
        if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not item["path"]:
            return None
        return cls(item["path"], item.get("sha256"), item.get("optional") is True)


@dataclass(frozen=True)
class _Failure:
    tree: Tree
    at: TreePath

    def __call__(self, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError([*self.tree.problems, self.tree.problem(self.at, message, hint)])


def with_profiles(tree: Tree, names: Sequence[str]) -> Tree:
    """The tree with the named ones of its `profiles` laid over it, in that order."""
    known = tree.data.get("profiles") if isinstance(tree.data, dict) else None
    known = known if isinstance(known, dict) else {}
    for name in names:
        if name not in known:
            guess = nearest(name, known)
            there = "it has " + ", ".join(known) if known else "it has no profiles"
            hint = f"did you mean {guess}?" if guess else there
            raise UsageError(f"--profile {name}: the config has no profile of that name", hint)
        if isinstance(known[name], dict):
            tree = merge.with_part(tree, ("profiles", name))
    return tree
