# SPDX-License-Identifier: MIT
"""SHA-256 of much that comes in small pieces, worked out in a thread of its own."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256

_BATCH_BYTES = 1 << 20
_BATCHES_WAITING = 2


class Digest:
    def __init__(self) -> None:
        self._digest = sha256()
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._pool = ThreadPoolExecutor(1, "imgvm-digest")
        self._waiting: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        self._batch.append(data)
        self._batch_bytes += len(data)
        if self._batch_bytes >= _BATCH_BYTES:
            self._send()
            if len(self._waiting) > _BATCHES_WAITING:
                self._waiting.popleft().result()

    def _send(self) -> None:
        self._waiting.append(self._pool.submit(self._work, self._batch))
        self._batch, self._batch_bytes = [], 0

    def _work(self, batch: list[bytes]) -> None:
        self._digest.update(b"".join(batch))  # one call for many: each gives up Python's lock

    def hexdigest(self) -> str:
        self._send()
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()
