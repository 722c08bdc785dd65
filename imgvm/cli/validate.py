# SPDX-License-Identifier: MIT
"""`imgvm validate`: all the problems of configs, at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli.options import Profiles, Sets, Vars, refuse_image
from imgvm.errors import STATUS_FINDINGS, ConfigError, Problem
from imgvm.log import log


class Format(StrEnum):
    text = "text"
    json = "json"
    github = "github"


def command(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="YAML files.")],
    sets: Sets = None,
    vars: Vars = None,
    profiles: Profiles = None,
    format: Annotated[Format, typer.Option("--format", help="How problems are shown.")] = Format.text,
) -> int:
    """Check configs; problems go to stdout, status 1 when there are any."""
    from imgvm.config import Config
    from imgvm.config.report import FORMATS

    problems: list[Problem] = []
    for path in configs:
        refuse_image(path)
        try:
            Config.load(path, sets or (), variables=vars or (), profiles=profiles or ())
        except ConfigError as error:
            problems += error.problems
    if problems or format is Format.json:
        print(FORMATS[format.value](problems))
    if problems:
        log.info(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return STATUS_FINDINGS
    log.info(f"{len(configs)} config{'s are' if len(configs) > 1 else ' is'} valid")
    return 0
