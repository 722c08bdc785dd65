# SPDX-License-Identifier: MIT
"""Sizes (`512MiB`) and durations (`1m30s`) as text and as integers: bytes and nanoseconds.

Bad text raises ValueError whose message can be shown as it is.
"""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SIZE_UNITS = {
    "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
DURATION_UNITS = {"h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000}

SIZE_HINT = "sizes carry a unit: 512MiB, 2GiB, 64KiB"
DURATION_HINT = "durations carry units: 30s, 10m, 1m30s, 500ms"

_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?([A-Za-z]+)")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:ms|h|m|s))+")
_DURATION_PART = re.compile(r"([0-9]+)(ms|h|m|s)")


def parse_size(text: str) -> int:
    """Bytes of a size such as `1.5GiB`. It must be a whole number of bytes below 2**63."""
    match = _SIZE.fullmatch(text)
    if match is None or match[3] not in SIZE_UNITS:
        raise ValueError(f"{text!r} is not a size ({SIZE_HINT})")
    whole, parts, unit = match[1], match[2] or "", SIZE_UNITS[match[3]]
    number, rest = divmod(int(whole + parts) * unit, int("1" + "0" * len(parts)))
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if number >= 1 << 63:
        raise ValueError(f"{text!r} is too large (it must stay below 8388608TiB)")
    return number


def format_size(size_bytes: int) -> str:
    """The shortest exact text in binary units: parse_size(format_size(n)) == n."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration such as `1m30s`."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration ({DURATION_HINT})")
    return sum(int(number) * DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def format_duration(duration_ns: int) -> str:
    """The text parse_duration reads back, to the millisecond (finer parts are cut)."""
    parts = []
    rest = duration_ns
    for unit, unit_ns in DURATION_UNITS.items():
        count, rest = divmod(rest, unit_ns)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
