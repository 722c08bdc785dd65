# SPDX-License-Identifier: MIT
"""What a plain scalar of YAML 1.2 stands for: `12` a number, `no` a text."""

from __future__ import annotations

import re
from typing import Any

_SCALARS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"null|Null|NULL|~|"), "null"),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), "bool"),
    (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "int"),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), "float"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), "float"),
)


def scalar(text: str) -> Any:
    """The value of a plain scalar under YAML 1.2's core schema. ValueError for a number beyond reason."""
    kind = next((kind for pattern, kind in _SCALARS if pattern.fullmatch(text)), "str")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind in ("int", "float") and len(text) > 40:
        raise ValueError("the number is too long")
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
