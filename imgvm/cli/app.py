# SPDX-License-Identifier: MIT
"""The verbs put together. The only place, with the verbs' files, that sees typer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import imgvm
from imgvm.cli import (
    check,
    convert,
    cpu,
    doctor,
    extract,
    inspect,
    pack,
    resize,
    run,
    schema,
    snapshot,
    validate,
    verify,
)
from imgvm.errors import STATUS_SIGNAL, UsageError
from imgvm.log import NORMAL, QUIET, VERBOSE, log

app = typer.Typer(
    name="imgvm",
    help="Describe a machine in YAML, pack it into one qcow2 file, run it anywhere.\n\n"
    "`imgvm FILE` is short for `imgvm run FILE`.",
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MODULES = (
    pack, run, validate, inspect, extract, check, verify, convert, snapshot, resize, schema, doctor, cpu,
)  # fmt: skip
for _module in _MODULES:
    app.command(name=_module.__name__.rpartition(".")[2])(_module.command)


def _version(asked: bool) -> None:
    if asked:
        print(f"imgvm {imgvm.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    directory: Annotated[
        Path | None, typer.Option("-C", "--directory", metavar="DIR", help="Go to this folder first.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say errors only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    log.level = QUIET if quiet else VERBOSE if verbose else NORMAL
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as error:
            raise UsageError(f"-C {directory}: {error.strerror}") from None


def invoke(args: list[str]) -> int:
    """Runs the command that `args` name; errors of the command line become UsageError."""
    # Whether typer stands on click or carries it, its usage errors share this base.
    usage_error: Any = typer.BadParameter.__mro__[2]
    if not args:
        args = ["--help"]
    try:
        status = app(args=args, prog_name="imgvm", standalone_mode=False)
    except usage_error as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "imgvm"
        raise UsageError(error.format_message(), f"see `{path} --help`") from None
    except typer.Exit as done:
        status = done.exit_code
    except typer.Abort:
        status = STATUS_SIGNAL + 2
    sys.stdout.flush()
    return status if isinstance(status, int) else 0
