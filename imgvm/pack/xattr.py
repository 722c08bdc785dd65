# SPDX-License-Identifier: MIT
"""Names of extended attributes, as ext4 and EROFS have them: a number for the prefix, and the rest."""

from __future__ import annotations

ACLS = (2, 3)  # whose names are their prefixes
_PREFIXES = (
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("user.", 1),
    ("trusted.", 4),
    ("security.", 6),
)
SYSTEM = ("system.", 7)  # of ext4 alone


def split(name: str, *more: tuple[str, int]) -> tuple[int, bytes] | None:
    """The number of the prefix, one of all or of `more`, and the rest; None for any other name."""
    for prefix, index in (*_PREFIXES, *more):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix).encode("utf-8", "surrogateescape")
            if (not rest) if index in ACLS else (0 < len(rest) < 256):
                return index, rest
    return None
