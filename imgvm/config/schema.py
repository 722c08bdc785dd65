# SPDX-License-Identifier: MIT
"""The schema, schemas/machine.schema.json: the only description of the YAML."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


def schema_text() -> str:
    return (resources.files("imgvm") / "_schemas" / "machine.schema.json").read_text("utf-8")


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
