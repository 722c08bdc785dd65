# SPDX-License-Identifier: MIT
"""Random changes of a file: what a fuzzer without feedback does."""

from __future__ import annotations

import random
from collections.abc import Sequence

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 511, 512, 4095, 65535, 65536, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 40,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
DULL = bytes(64)


def _place(data: bytearray, rng: random.Random) -> int:
    """Where something is: long stretches of zeros are dull, and the beginning is not."""
    if rng.random() < 0.3:
        return rng.randrange(min(len(data), 1024))
    for _ in range(8):
        at = rng.randrange(len(data))
        if data[at : at + 64] != DULL:
            return at
    return at


def _number(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) + rng.choice((0, 0, 0, 1, -1))
    at = _place(data, rng) // size * size
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("big", "little")))


def _flip(data: bytearray, rng: random.Random) -> None:
    data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[max(_place(data, rng), 1) :]


def _drop(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 512))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, size = _place(data, rng), rng.choice((1, 8, 64, 512))
    data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 50))


def _splice(data: bytearray, corpus: Sequence[bytes], rng: random.Random) -> None:
    other = rng.choice(corpus)
    at, start, size = _place(data, rng), rng.randrange(len(other)), rng.choice((4, 16, 64, 512))
    data[at : at + size] = other[start : start + size]


def mutate(seed: bytearray, corpus: Sequence[bytes], tokens: Sequence[bytes], rng: random.Random) -> bytearray:
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        if tokens and rng.random() < 0.5:
            at = _place(data, rng)
            data[at : at + rng.choice((0, 0, 1, 5))] = rng.choice(tokens)
            continue
        match rng.randrange(7):
            case 0 | 1:
                _number(data, rng)
            case 2:
                _flip(data, rng)
            case 3:
                _cut(data, rng) if rng.random() < 0.3 else _flip(data, rng)
            case 4:
                _drop(data, rng)
            case 5:
                _repeat(data, rng)
            case _:
                _splice(data, corpus, rng)
    return data
