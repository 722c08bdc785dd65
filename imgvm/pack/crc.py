# SPDX-License-Identifier: MIT
"""Tables for cyclic redundancy checks that take a byte's lowest bit first."""

from __future__ import annotations


def table(polynomial: int) -> list[int]:
    """The remainder of each byte; `polynomial` with its bits turned round."""
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (polynomial if byte & 1 else 0)
        rows.append(byte)
    return rows
