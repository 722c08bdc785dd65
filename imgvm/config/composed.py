# SPDX-License-Identifier: MIT
"""What a config was put together from, as an image keeps it: the included texts, and what was given for it.

    {"composed": 1, "config": "ci.yaml", "includes": [{"path": "parts/base.yaml", "text": "..."}],
     "variables": {"TAG": "7"}, "profiles": ["big"], "set": ["machine.cpus=2"]}

Paths are relative to the config's folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from imgvm.config import Config
from imgvm.config.include import MAX_INCLUDES
from imgvm.errors import ImageError

FORMAT = 1
MAX_BYTES = 8 << 20
MAX_UP = 8  # folders above the config's that an included file may lie in


def text_of(config: Config) -> str | None:
    """The blob; None for a config that is one text and nothing else."""
    if not (config.includes or config.variables or config.profiles or config.overrides):
        return None
    texts: dict[str, str] = {}
    for part in config.includes:
        path = os.path.relpath(part.file, Path(config.filename).parent)
        if part.origin.startswith(("/", "~")) or PurePosixPath(path).parts.count("..") > MAX_UP:
            path = part.origin if part.origin.startswith("~") else str(Path(part.file).absolute())
        texts.setdefault(path, part.text)
    document = {
        "composed": FORMAT,
        "config": Path(config.filename).name,
        "includes": [{"path": path, "text": text} for path, text in texts.items()],
        "variables": dict(config.variables),
        "profiles": list(config.profiles),
        "set": list(config.overrides),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def files(blob: bytes, config_text: str) -> dict[str, str]:
    """Names and texts, as they lay beside each other. What the blob says is not trusted; a file that was
    named from the root of the packing host has no place here and is left out."""
    try:
        document: Any = json.loads(blob)
        if document["composed"] != FORMAT:
            raise ImageError(f"composed.json: format {document['composed']} is not known to this imgvm")
        rows = [(str(row["path"]), str(row["text"])) for row in document["includes"]]
        name = str(document["config"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageError(f"composed.json is damaged: {error}", "do not trust this image") from None
    if len(rows) > MAX_INCLUDES:
        raise ImageError(f"composed.json names {len(rows)} files", "do not trust this image")
    paths = [path for path, _ in rows if not path.startswith(("/", "~"))]
    up = max((PurePosixPath(path).parts.count("..") for path in paths), default=0)
    # As deep as the files above it need; what those folders were called is not known.
    home = PurePosixPath(*["config"] * min(up, MAX_UP))
    found = {str(_inside(home, name)): config_text}
    for path, text in rows:
        if path in paths:
            found.setdefault(str(_inside(home, path)), text)
    return found


def _inside(home: PurePosixPath, path: str) -> PurePosixPath:
    parts: list[str] = list(home.parts)
    for part in PurePosixPath(path).parts:
        if part == ".." and parts:
            parts.pop()
        elif part in ("..", "/") or not part.isprintable() or len(part.encode()) > 255:
            raise ImageError(f"composed.json names a file {path!r}", "do not trust this image")
        else:
            parts.append(part)
    if not parts:
        raise ImageError(f"composed.json names a file {path!r}", "do not trust this image")
    return PurePosixPath(*parts)
