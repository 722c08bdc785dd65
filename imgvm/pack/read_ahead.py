# SPDX-License-Identifier: MIT
"""Reads the contents of files before they are asked for: many small ones in one call of the core, a few calls
at a time, while Python does something else."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from imgvm import binding
from imgvm.errors import PackError
from imgvm.pack.from_dir import HostFile
from imgvm.pack.tree import Content, Span

_READERS = 4  # each may wait for the host's disk
_BATCHES = 6  # read, or being read, at a time
_BATCH_BYTES = 1 << 20
_BATCH_PIECES = 4096
_NONE = (1 << 64) - 1

# (path or descriptor of the file, offset, length, what the file's length must be)
Piece = tuple[bytes | int, int, int, int]


class _Batch:
    """Pieces of files, read one behind the other."""

    def __init__(self) -> None:
        self.parts: deque[_Part] = deque()
        self._rows = array("Q")  # of imgvm_piece
        self._names = bytearray()
        self.room = bytearray()
        self._size_bytes = 0
        self._read: Future[int] | None = None

    def add(self, content: Content, piece: Piece, *, is_last: bool) -> None:
        file, offset, length, file_bytes = piece
        if isinstance(file, int):
            self._rows.extend((_NONE, file, offset, length, file_bytes))
        else:
            self._rows.extend((len(self._names), 0, offset, length, file_bytes))
            self._names += file + b"\0"
        start = self._size_bytes
        self._size_bytes += length
        self.parts.append(_Part(content, is_last, self, len(self.parts), start, self._size_bytes))

    @property
    def is_full(self) -> bool:
        return self._size_bytes >= _BATCH_BYTES or len(self.parts) >= _BATCH_PIECES

    def begin(self, pool: ThreadPoolExecutor, room: bytearray) -> None:
        self.room = room
        self._read = pool.submit(self._work, len(self.parts))

    def _work(self, count: int) -> int:
        ffi = binding.ffi()
        rows = ffi.from_buffer("imgvm_piece[]", self._rows)
        names, out = ffi.from_buffer("char[]", self._names), ffi.from_buffer("uint8_t[]", self.room)
        done: int = binding.lib().imgvm_read_pieces(names, rows, count, out)
        return done

    def read(self, part: _Part) -> bytes | None:
        """Waits until it is there; None: it cannot be read as it was planned."""
        assert self._read is not None
        if part.number >= self._read.result():
            return None
        return bytes(memoryview(self.room)[part.start : part.end])


class _Part(NamedTuple):
    """Where a piece of a content will be."""

    content: Content
    is_last: bool
    batch: _Batch
    number: int
    start: int
    end: int


class ReadAhead:
    """Contents in the order in which they will be asked for. What comes out of turn is read only then."""

    def __init__(self, contents: Iterable[Content]) -> None:
        self._plan = _batches(contents)
        self._begun: deque[_Batch] = deque()
        self._parts: deque[_Part] = deque()  # of the batch whose turn it is
        self._rooms = [bytearray(2 * _BATCH_BYTES) for _ in range(_BATCHES)]
        self._pool = ThreadPoolExecutor(_READERS, "imgvm-read")

    def __enter__(self) -> Self:
        self._next_batch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _next_batch(self) -> None:
        while self._rooms and (batch := next(self._plan, None)) is not None:
            batch.begin(self._pool, self._rooms.pop())
            self._begun.append(batch)
        if self._begun:
            self._parts = self._begun.popleft().parts

    def pieces(self, content: Content) -> Iterable[bytes]:
        """As `content.pieces()`."""
        if not self._parts or self._parts[0].content is not content:
            return content.pieces()
        if self._parts[0].is_last:
            return (self._next_part(content),)
        return self._all_parts(content)

    def _all_parts(self, content: Content) -> Iterator[bytes]:
        is_last = False
        while not is_last:
            is_last = self._parts[0].is_last
            yield self._next_part(content)

    def _next_part(self, content: Content) -> bytes:
        part = self._parts.popleft()
        data = part.batch.read(part)
        if data is None:
            raise _failure(content)
        if not self._parts:
            self._rooms.append(part.batch.room)
            self._next_batch()
        return data


def _failure(content: Content) -> Exception:
    """What is wrong with a content that could not be read."""
    try:
        for _ in content.pieces():
            pass
    except (OSError, PackError) as error:
        return error
    return PackError("a file changed while it was packed", hint="pack again")


def _batches(contents: Iterable[Content]) -> Iterator[_Batch]:
    batch = _Batch()
    for content in contents:
        pieces = _pieces_of(content)
        for index, piece in enumerate(pieces, 1):
            batch.add(content, piece, is_last=index == len(pieces))
            if batch.is_full:
                yield batch
                batch = _Batch()
    if batch.parts:
        yield batch


def _pieces_of(content: Content) -> list[Piece]:
    """Nothing of what is at hand."""
    rows: list[tuple[int, int]]
    if isinstance(content, HostFile):
        file: bytes | int = content.path
        file_bytes = content.size_bytes if content.between is None else _NONE
        rows = content.extents()
    elif isinstance(content, Span):
        file, file_bytes = content.file.fileno(), _NONE
        rows = [(start, length) for _, length, start in content.parts]
    else:
        return []
    if len(rows) == 1 and rows[0][1] <= _BATCH_BYTES:
        return [(file, *rows[0], file_bytes)]
    return [
        (file, at, min(_BATCH_BYTES, offset + length - at), file_bytes)
        for offset, length in rows
        for at in range(offset, offset + length, _BATCH_BYTES)
    ]
