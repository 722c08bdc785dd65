# SPDX-License-Identifier: MIT
"""The schema, schemas/machine.schema.json: the only description of the YAML."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any


def schema_text() -> str:
    # importlib.resources would be slow to import
    return (Path(__file__).parents[1] / "_schemas" / "machine.schema.json").read_text("utf-8")


@cache
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(schema_text())
    return loaded


def referred(rule: dict[str, Any]) -> dict[str, Any]:
    """What a rule that is a reference stands for; any other rule itself."""
    found: Any = rule
    if "$ref" in rule:
        found = schema()
        for part in rule["$ref"].removeprefix("#/").split("/"):
            found = found[part]
    return dict(found)


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of the schema. Python's `$` also matches before a final newline; the schema's does not."""
    return re.compile(re.sub(r"\$$", r"\\Z", pattern))
