# SPDX-License-Identifier: MIT
"""Random changes of a file: what a fuzzer without feedback does."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 511, 512, 4095, 65535, 65536, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 40,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
WORDS = (b"", b"0", b"-1", b"1", b"65536", b"4294967295", b"18446744073709551616", b"9" * 30, b"0x10", b"..", b"a" * 300)
GRAIN_BYTES = 64
_WORD = re.compile(rb"[A-Za-z0-9_.-]+")


class Seed:
    """Valid input. Of a disk all but a few bytes are zeros: `lively` are the places that are not."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        grains = range(0, len(data), GRAIN_BYTES)
        self.lively = [at for at in grains if data[at : at + GRAIN_BYTES].count(0) != len(data[at : at + GRAIN_BYTES])]

    def place(self, size: int, rng: random.Random) -> int:
        """Where to change what has `size` bytes by now."""
        way = rng.random()
        if way < 0.2:
            return rng.randrange(min(size, 1024))
        if way < 0.3:
            return rng.randrange(size)
        return min(rng.choice(self.lively) + rng.randrange(GRAIN_BYTES), size - 1)


def _number(data: bytearray, at: int, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) + rng.choice((0, 0, 0, 1, -1))
    start = at // size * size
    data[start : start + size] = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("big", "little")))


def _flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, at: int, rng: random.Random) -> None:
    del data[max(at, 1) :]


def _drop(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.choice((1, 2, 4, 16, 512))]


def _repeat(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.choice((1, 8, 64, 512))] * rng.choice((1, 1, 2, 50))


def _splice(data: bytearray, at: int, corpus: Sequence[Seed], rng: random.Random) -> None:
    other, size = rng.choice(corpus), rng.choice((4, 16, 64, 512))
    start = other.place(len(other.data), rng)
    data[at : at + size] = other.data[start : start + size]


def _word(data: bytearray, at: int, corpus: Sequence[Seed], rng: random.Random) -> None:
    """Another word for the next one: the structure around it stays."""
    old = _WORD.search(data, at)
    other = rng.choice(corpus)
    found = _WORD.search(other.data, other.place(len(other.data), rng))
    if old is not None:
        data[slice(*old.span())] = found[0] if found is not None and rng.random() < 0.5 else rng.choice(WORDS)


def mutate(seed: Seed, corpus: Sequence[Seed], tokens: Sequence[bytes], rng: random.Random) -> bytearray:
    """`tokens` are for text."""
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        at = seed.place(len(data), rng)
        if tokens and rng.random() < 0.3:
            data[at : at + rng.choice((0, 0, 1, 5))] = rng.choice(tokens)
            continue
        if tokens and rng.random() < 0.5:
            _word(data, at, corpus, rng)
            continue
        match rng.randrange(7):
            case 0 | 1:
                _number(data, at, rng)
            case 2:
                _flip(data, at, rng)
            case 3:
                _cut(data, at, rng) if rng.random() < 0.3 else _flip(data, at, rng)
            case 4:
                _drop(data, at, rng)
            case 5:
                _repeat(data, at, rng)
            case _:
                _splice(data, at, corpus, rng)
    return data
