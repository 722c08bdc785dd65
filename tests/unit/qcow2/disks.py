# SPDX-License-Identifier: MIT
"""Disk contents for the image tests."""

from __future__ import annotations

import hashlib
import random

from imgvm.qcow2 import Image

MIB = 1 << 20


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat, the same ones for the same seed."""
    return hashlib.shake_128(seed.to_bytes(4)).digest(size)


def scribble(image: Image, model: bytearray, rng: random.Random, steps: int = 40) -> None:
    """Random writes, kept in `model` as well; reads checked on the way."""
    for _ in range(steps):
        size = rng.choice([1, 511, 512, 4096, 70_000, 300_000])
        offset = rng.randrange(len(model) - size)
        if rng.random() < 0.3:
            assert image.read(offset, size) == model[offset : offset + size]
        else:
            data = rng.randbytes(size)
            image.write(offset, data)
            model[offset : offset + size] = data
        if rng.random() < 0.1:
            image.flush()
