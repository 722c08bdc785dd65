# SPDX-License-Identifier: MIT
"""The embedded config of an image file, changed byte by byte as somebody hostile would (docs/image-format.md)."""

from __future__ import annotations

from hashlib import sha256

HEAD_BYTES, RECORD_BYTES = 64, 112


class Payload:
    """Head, index and snapshot record within the bytes of an image file; `seal` makes the digest right again."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.record = data.index(b"imgvmcfg") - 64  # the snapshot's record in its table
        (self.head,) = [at for at in range(0, len(data), 512) if data[at : at + 8] == b"IMGVMCFG"]

    def put(self, at: int, value: int, size: int) -> None:
        self.data[at : at + size] = value.to_bytes(size)

    def blob(self, index: int) -> int:
        return self.head + HEAD_BYTES + index * RECORD_BYTES

    def grow(self, payload_bytes: int) -> None:
        """Says that the payload is so large, in both places, and that the L1 table maps it."""
        self.put(self.record + 88, payload_bytes, 8)
        self.put(self.head + 16, payload_bytes, 8)
        self.put(self.record + 8, 8192, 4)

    def seal(self) -> bytes:
        count = int.from_bytes(self.data[self.head + 12 : self.head + 16])
        index = self.data[self.blob(0) : self.blob(count)]
        self.data[self.head + 32 : self.head + 64] = sha256(self.data[self.head : self.head + 32] + index).digest()
        return bytes(self.data)
