# SPDX-License-Identifier: MIT
"""`imgvm config`: the config inside an image, read and changed in place."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgvm.cli.options import Allow, AsJson, ImageFile
from imgvm.errors import STATUS_FINDINGS, ConfigError, ImgvmError, UsageError
from imgvm.log import for_stdout, json_text, log, one_line

if TYPE_CHECKING:
    from imgvm.edit import Change, Edited

group = typer.Typer(
    help="Read and change the config of an image, in place.", rich_markup_mode=None, no_args_is_help=True
)


@group.command("get")
def get(
    image: ImageFile,
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="A key, as machine.memory; by default all of them.")
    ] = "",
    as_json: AsJson = False,
    allow: Allow = None,
) -> int:
    """Print a value of the resolved config; status 1 when it has none."""
    from imgvm import edit, launch

    value = edit.get(edit.resolved(image, launch.parse_grants(allow)), path)
    if value is edit.ABSENT:
        log.info(f"{image}: there is no {path}")
        return STATUS_FINDINGS
    plain = isinstance(value, str) and not as_json
    print(for_stdout(value) if plain else json_text(value, indent=1))
    return 0


@group.command("set")
def set_(
    image: ImageFile,
    assignments: Annotated[
        list[str], typer.Argument(metavar="PATH=VALUE...", help="Keys and values, as machine.memory=1GiB.")
    ],
    allow: Allow = None,
) -> int:
    """Change values; what is settled at pack time cannot be."""
    from imgvm import edit, launch

    done = edit.set_values(image, assignments, launch.parse_grants(allow))
    if not done.in_place:
        log.info("the text had to be written anew: its comments are gone")
    _tell(image, done)
    return 0


@group.command("edit")
def edit_(image: ImageFile, allow: Allow = None) -> int:
    """Edit the text with $VISUAL or $EDITOR; it is checked before anything is written."""
    from imgvm import edit, launch

    grants = launch.parse_grants(allow)
    old = edit.read_text(image, grants)
    fd, name = tempfile.mkstemp(prefix=f"{Path(image).stem}-", suffix=".yaml")
    draft = Path(name)
    with os.fdopen(fd, "w") as stream:
        stream.write(old)
    while True:
        _run_editor(draft)
        new = draft.read_text("utf-8", "surrogateescape")
        try:
            done = edit.replace_text(image, old, new, grants)
            break
        except ConfigError as error:
            for problem in error.problems:
                sys.stderr.write(f"{one_line(str(problem))}\n")
        except ImgvmError as error:
            raise ImgvmError(error.message, _kept(draft), error.status) from None
        if not (os.isatty(0) and typer.confirm("edit again?", default=True, err=True)):
            raise ImgvmError(f"{image} was not changed", _kept(draft))
    draft.unlink(missing_ok=True)
    if new == old:
        log.info(f"{image}: nothing changed")
    _tell(image, done)
    return 0


@group.command("diff")
def diff(
    image: ImageFile,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="An image or a config; by default this image as packed."),
    ] = None,
    as_json: AsJson = False,
    allow: Allow = None,
) -> int:
    """Show what was changed since packing, or what OTHER has differently; status 1 when there is anything."""
    from imgvm import edit, launch

    grants = launch.parse_grants(allow)
    if other is None:
        found = edit.since_packed(image, grants)
    else:
        found = list(edit.changes(edit.resolved(image, grants), edit.resolved(other, grants)))
    if as_json:
        rows = [
            {"path": row.path} | {
                key: value for key, value in (("old", row.old), ("new", row.new)) if value is not edit.ABSENT
            }
            for row in found
        ]  # fmt: skip
        print(json_text(rows, indent=1))
    else:
        sys.stdout.writelines(_lines(found))
    return STATUS_FINDINGS if found else 0


def _lines(changes: Iterable[Change]) -> Iterable[str]:
    from imgvm.edit import ABSENT

    for change in changes:
        for sign, value in (("-", change.old), ("+", change.new)):
            if value is not ABSENT:
                yield f"{sign} {one_line(change.path)}: {_shown(value)}\n"


def _shown(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json_text(value))


def _tell(image: Path, done: Edited) -> None:
    from imgvm.edit import ABSENT

    for change in done.changes:
        old, new = ("nothing" if value is ABSENT else _shown(value) for value in (change.old, change.new))
        log.info(f"{image}: {change.path}: {old} -> {new}")


def _run_editor(draft: Path) -> None:
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        status = subprocess.run([*words, str(draft)]).returncode
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"{words[0]}: {error.strerror}", "set EDITOR to an editor") from None
    if status:
        draft.unlink(missing_ok=True)
        raise ImgvmError(f"{words[0]} ended with status {status}; nothing was changed", "EDITOR names it")


def _kept(draft: Path) -> str:
    return f"what you wrote is in {draft}"
