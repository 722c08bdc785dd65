# SPDX-License-Identifier: MIT
"""Unpacks at pack time what a guest would otherwise unpack at every start: kernels, initrds, modules.

The result is bounded, so that a small hostile file cannot fill the host's memory.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

MAX_UNPACKED_BYTES = 1 << 30
_MAX_LZMA_BYTES = 512 << 20  # of memory: kernels have dictionaries of up to 128 MiB, headers ask for 4 GiB
LZ4_LEGACY_BLOCK_BYTES = 8 << 20  # each block of the legacy format but the last unpacks to this

_MAGICS: tuple[tuple[str, bytes], ...] = (
    ("gzip", b"\x1f\x8b\x08"),
    ("xz", b"\xfd7zXZ\x00"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("lz4", b"\x02\x21\x4c\x18"),  # the legacy frame, which kernels use
    ("bzip2", b"BZh"),
    ("lzma", b"\x5d\x00\x00"),
    ("lzo", b"\x89LZO\x00\r\n\x1a\n"),
)


class DecompressError(ValueError):
    """The data is damaged, too large, or of a format that cannot be unpacked here."""


def sniff(data: bytes | memoryview) -> str | None:
    """The compression format that `data` begins with, by name."""
    head = bytes(data[:16])
    return next((name for name, magic in _MAGICS if head.startswith(magic)), None)


def decompress(data: bytes, limit_bytes: int = MAX_UNPACKED_BYTES) -> tuple[bytes, bytes]:
    """Unpacks one stream. Returns its content and whatever followed it (kernels append their size)."""
    name = sniff(data)
    unpack = _UNPACKERS.get(name or "")
    if unpack is None:
        raise DecompressError(f"{name} compression is not supported" if name else "not a compressed file")
    try:
        content, rest = unpack(data, limit_bytes)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        if isinstance(error, DecompressError):
            raise
        raise DecompressError(f"the {name} data is damaged ({error})") from error
    if len(content) > limit_bytes:
        raise DecompressError(f"the {name} data unpacks to more than {limit_bytes >> 20} MiB")
    return content, rest


def _gzip(data: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(wbits=31)
    content = stream.decompress(data, limit_bytes + 1)
    return content, _ended("gzip", stream.eof, len(content) > limit_bytes, stream.unused_data)


def _xz(data: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_LZMA_BYTES)
    content = stream.decompress(data, limit_bytes + 1)
    return content, _ended("xz", stream.eof, len(content) > limit_bytes, stream.unused_data)


def _lzma(data: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, _MAX_LZMA_BYTES)
    content = stream.decompress(data, limit_bytes + 1)
    # A known size in the header (bytes 5-12) ends the stream without an end marker.
    (size_bytes,) = struct.unpack_from("<Q", data.ljust(13, b"\0"), 5)
    ended = stream.eof or len(content) == size_bytes
    rest = stream.unused_data if stream.eof else b""
    return content, _ended("lzma", ended, len(content) > limit_bytes, rest)


def _bzip2(data: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    stream = bz2.BZ2Decompressor()
    content = stream.decompress(data, limit_bytes + 1)
    return content, _ended("bzip2", stream.eof, len(content) > limit_bytes, stream.unused_data)


def _ended(name: str, eof: bool, too_large: bool, rest: bytes) -> bytes:
    if not eof and not too_large:
        raise DecompressError(f"the {name} data is cut short")
    return rest


def _zstd(data: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    import zstandard

    # Kernels are packed with windows of up to 128 MiB (zstd --ultra -22), beyond the default bound.
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    content = bytearray()
    step_bytes = 1 << 12  # which become 128 MiB at the most
    try:
        for start in range(0, len(data), step_bytes):
            content += stream.decompress(data[start : start + step_bytes])
            if len(content) > limit_bytes:
                return bytes(content), b""
            if stream.eof:
                return bytes(content), stream.unused_data + data[start + step_bytes :]
    except zstandard.ZstdError as error:
        raise DecompressError(f"the zstd data is damaged ({error})") from error
    raise DecompressError("the zstd data is cut short")


def _lz4(data: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    """The legacy format: magic, then blocks, each a 32-bit size and that many bytes. It has no end mark."""
    from lz4 import block

    content = bytearray()
    position = 4
    while position + 4 <= len(data):
        (packed_bytes,) = struct.unpack_from("<I", data, position)
        start = position + 4
        if start + packed_bytes > len(data):
            if len(data) - position == 4 and packed_bytes == len(content):
                break  # not a block: the size of all, which kernels append
            raise DecompressError("the lz4 data is cut short")
        packed = data[start : start + packed_bytes]
        try:
            content += block.decompress(packed, uncompressed_size=LZ4_LEGACY_BLOCK_BYTES)
        except block.LZ4BlockError as error:
            raise DecompressError(f"the lz4 data is damaged ({error})") from error
        position = start + packed_bytes
        if len(content) > limit_bytes:
            break
        if len(content) % LZ4_LEGACY_BLOCK_BYTES:
            break  # a short block is the last
    return bytes(content), data[position:]


_UNPACKERS: dict[str, Callable[[bytes, int], tuple[bytes, bytes]]] = {
    "gzip": _gzip,
    "xz": _xz,
    "zstd": _zstd,
    "lz4": _lz4,
    "bzip2": _bzip2,
    "lzma": _lzma,
}
