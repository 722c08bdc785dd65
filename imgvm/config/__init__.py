# SPDX-License-Identifier: MIT
"""YAML text -> data with places -> schema -> Machine.

    config = Config.load("ci.yaml", overrides=["machine.memory=1GiB"], variables=["TAG=7"], profiles=["fast"])
    config.machine.hardware.memory_bytes

Every problem of a text is raised at once, as one ConfigError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgvm import machine as _machine
from imgvm.config import accept, semantics, tree
from imgvm.config import overrides as _overrides
from imgvm.errors import STATUS_ERROR, STATUS_NOT_FOUND, ConfigError, ImgvmError, Problem, errno_hint
from imgvm.machine import Machine
from imgvm.record import NOTHING, Record

if TYPE_CHECKING:
    from imgvm.config.include import Included

__all__ = ["Config"]

MAX_RESOLVED_BYTES = 1 << 20
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # in a C string, and in UTF-8
_COMPOSING = ("include", "vars", "profiles")  # of which nothing is left when a config is resolved


class Config(Record):
    """A checked config: the machine, the text as written, and where its relative paths start."""

    machine: Machine
    text: str
    filename: str
    folder: Path
    includes: tuple[Included, ...] = ()
    variables: Mapping[str, str] = NOTHING  # given from outside
    profiles: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        variables: Sequence[str] = (),
        profiles: Sequence[str] = (),
    ) -> Config:
        """Reads a file. `overrides` are `path=value` texts, as of `--set`; `variables` are `NAME=VALUE`."""
        from imgvm.config.document import MAX_TEXT_BYTES

        raw = read_text(path, MAX_TEXT_BYTES)
        folder = Path(path).resolve().parent
        return cls.from_text(raw, str(path), folder, overrides, variables=variables, profiles=profiles)

    @classmethod
    def from_text(
        cls,
        text: str | bytes,
        filename: str = "<text>",
        folder: Path | None = None,
        overrides: Sequence[str] = (),
        *,
        variables: Sequence[str] = (),
        profiles: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Config:
        from imgvm.config import document, include, paths  # YAML is slow to import
        from imgvm.config import variables as _variables

        home = folder or Path.cwd()
        values = _variables.given(variables)
        includer = include.Includer()
        read = document.parse(text, filename)
        # Under the name that an include of it would have, so that a circle is seen.
        read = includer.compose(read, home, ((home / Path(filename).name).resolve(),))
        read = include.with_profiles(read, profiles)
        _override(read, overrides)
        used = _variables.resolve(read, values, os.environ if environment is None else environment)
        _check(read)
        paths.rebase(read, home, {part.file: part.folder for part in includer.found})
        machine = _machine.from_document(read.data, _default_name(filename))
        kept = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        found = tuple(includer.found)
        return cls(machine, kept, filename, home, found, used, tuple(profiles), tuple(overrides))

    @classmethod
    def from_resolved(cls, text: str | bytes, filename: str, overrides: Sequence[str] = ()) -> Config:
        """Reads the JSON that `resolved` wrote and an image carried. The image is not trusted."""
        if len(text) > MAX_RESOLVED_BYTES:
            raise ConfigError([Problem(filename, 0, 0, "", "the resolved config is too large")])
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError([Problem(filename, 0, 0, "", "the resolved config is not JSON")]) from None
        read = tree.Tree(filename, data)
        _override(read, overrides)
        composed = [key for key in _COMPOSING if isinstance(data, dict) and key in data]
        read.problems += [read.problem((key,), "a resolved config has no such key") for key in composed]
        _check(read)
        machine = _machine.from_document(read.data, "machine")
        kept = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return cls(machine, kept, filename, Path.cwd())

    def resolved(self) -> str:
        """The machine with every default written out, as JSON that is itself a valid config."""
        return resolved_text(self.machine)


def read_text(path: str | Path, most_bytes: int) -> bytes:
    """A file that says what a machine is. One byte more than `most_bytes` tells that it is too large."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(most_bytes + 1)
    except OSError as error:
        status = STATUS_NOT_FOUND if isinstance(error, FileNotFoundError) else STATUS_ERROR
        hint = errno_hint(error.errno)
        raise ImgvmError(f"{path}: {error.strerror}", hint, status, errno=error.errno or 0) from None


def resolved_text(machine: Machine) -> str:
    return json.dumps(_machine.to_document(machine), indent=1, ensure_ascii=False) + "\n"


def _default_name(filename: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(filename).stem.lower()).strip("-._")[:63]
    return name or "machine"


def _override(read: tree.Tree, sets: Sequence[str]) -> None:
    for override in sets:
        _overrides.apply(read, override)
    if read.data is None:
        raise ConfigError([read.problem((), "the config is empty", "it begins with `version: 1`")])


def _check(read: tree.Tree) -> None:
    """ConfigError with all that is wrong."""
    problems = [*read.problems, *_unusable(read), *_against_schema(read)] or semantics.check(read)
    if problems:
        raise ConfigError(sorted(set(problems), key=lambda p: (p.file, p.line, p.column, p.path)))


def _unusable(read: tree.Tree) -> Iterator[Problem]:
    for path, text, is_key in read.texts():
        if found := _UNUSABLE.search(text):
            what = "a NUL character" if found[0] == "\0" else "half a surrogate pair, which is no character"
            yield read.problem(path, f"the text contains {what}", key=is_key)


def _against_schema(read: tree.Tree) -> list[Problem]:
    if accept.accepts(read.data):
        return []
    from imgvm.config import check  # which has words for it, and is slow to import

    return check.check(read)
