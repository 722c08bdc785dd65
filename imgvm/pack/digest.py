# SPDX-License-Identifier: MIT
"""SHA-256 of much that comes in small pieces, worked out in a thread of its own."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256

_BATCH_BYTES = 1 << 20
_BATCHES_WAITING = 4


class Digest:
    def __init__(self) -> None:
        self._digest = sha256()
        self._batch = bytearray()
        self._pool = ThreadPoolExecutor(1, "imgvm-digest")
        self._waiting: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        self._batch += data
        if len(self._batch) >= _BATCH_BYTES:
            self._waiting.append(self._pool.submit(self._digest.update, self._batch))
            self._batch = bytearray()
            if len(self._waiting) > _BATCHES_WAITING:
                self._waiting.popleft().result()

    def hexdigest(self) -> str:
        while self._waiting:
            self._waiting.popleft().result()
        self._digest.update(self._batch)
        self._batch = bytearray()
        return self._digest.hexdigest()
