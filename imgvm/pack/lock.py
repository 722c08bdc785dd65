# SPDX-License-Identifier: MIT
"""The lock: what was read and fetched for an image, by digest. It lies in the image (`lock.json`) and beside
the config; with `--frozen` only what it names is taken.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from imgvm.errors import STATUS_NOT_FOUND, PackError
from imgvm.pack.output import Replacement, is_replaced
from imgvm.pack.sources import Source

VERSION = 1
MAX_BYTES = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def path_of(config: Path) -> Path:
    """Beside the config, under its name."""
    return config.with_name(f"{config.name}.lock")


def text_of(rows: Sequence[Source]) -> str:
    plain = [{key: value for key, value in asdict(row).items() if value} for row in rows]
    return json.dumps({"lock": VERSION, "sources": plain}, indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> tuple[Source, ...]:
    try:
        with path.open("rb") as stream:
            data: Any = json.loads(stream.read(MAX_BYTES))
        if data["lock"] != VERSION:
            raise PackError(f"{path}: version {data['lock']} is not known to this imgvm", "use a newer one")
        rows = tuple(_row(row) for row in data["sources"])
    except FileNotFoundError:
        hint = "pack once without --frozen, which writes it"
        raise PackError(f"{path}: there is no lock", hint, STATUS_NOT_FOUND) from None
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}", errno=error.errno or 0) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackError(f"{path} is damaged: {error}", "pack without --frozen writes it anew") from None
    return rows


def _row(data: Any) -> Source:
    size_bytes, texts = int(data.get("size_bytes", 0)), [str(data.get(key, "")) for key in ("uri", "asked")]
    row = Source(str(data["part"]), str(data["origin"]), data["sha256"], size_bytes, *texts)
    if not _SHA256.fullmatch(row.sha256):
        raise ValueError(f"{row.sha256!r} is no SHA-256")
    return row


def write(path: Path, rows: Sequence[Source]) -> bool:
    """Whether the file is another one now. One that says the same is left alone."""
    text = text_of(rows).encode()
    if not is_replaced(path):
        path.write_bytes(text)
        return True
    try:
        if path.read_bytes() == text:
            return False
    except OSError:
        pass  # writing says what is wrong
    with Replacement(path) as temporary:
        temporary.write_bytes(text)
    return True


def deviations(locked: Sequence[Source], used: Sequence[Source]) -> Iterator[str]:
    """What was used and is not what the lock says, with both digests."""
    parts: dict[str, tuple[list[Source], list[Source]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((locked, used)):
        for row in rows:
            parts[row.part][side].append(row)
    for part, (wanted, found) in parts.items():
        for want, have in zip_longest(wanted, found):
            if have is None:
                yield f"{part}: {want.origin} is in the lock (SHA-256 {want.sha256}) and was not used"
            elif want is None:
                yield f"{part}: {have.origin} (SHA-256 {have.sha256}) is not in the lock"
            elif want.sha256 != have.sha256:
                was = "" if want.origin == have.origin else f"{want.origin}, "
                yield f"{part}: {have.origin} has SHA-256 {have.sha256}, the lock says {was}{want.sha256}"


def check(path: Path, locked: Sequence[Source], used: Sequence[Source]) -> None:
    found = list(deviations(locked, used))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise PackError(
            f"--frozen: {found[0]}{more}",
            f"pack without --frozen to take what is there now; {path.name} then shows the difference",
        )
