# SPDX-License-Identifier: MIT
from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tracemalloc
from contextlib import suppress

import pytest
import zstandard
from builders import COMPRESSORS, lz4_legacy
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvm.pack.decompress import DecompressError, decompress, sniff

TEXT = b"the quick brown fox " * 5000


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_each_format_is_recognised_and_unpacked(name: str) -> None:
    packed = COMPRESSORS[name](TEXT)
    assert sniff(packed) == name
    assert decompress(packed) == (TEXT, b"")


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "bzip2"])
def test_what_follows_the_stream_is_handed_back(name: str) -> None:
    assert decompress(COMPRESSORS[name](TEXT) + b"tail") == (TEXT, b"tail")


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_size_is_bounded(name: str) -> None:
    with pytest.raises(DecompressError, match="more than 0 MiB"):
        decompress(COMPRESSORS[name](TEXT), limit_bytes=len(TEXT) - 1)
    assert decompress(COMPRESSORS[name](TEXT), limit_bytes=len(TEXT))[0] == TEXT


@pytest.mark.parametrize(("form", "at"), [("lzma", 1), ("xz", None)])
def test_a_dictionary_of_gigabytes_is_not_made(form: str, at: int | None) -> None:
    if at is None:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
        data = lzma.compress(TEXT, filters=filters)
    else:
        packed = bytearray(COMPRESSORS[form](TEXT))
        packed[at : at + 4] = (0xFFFF0000).to_bytes(4, "little")
        data = bytes(packed)
    with pytest.raises(DecompressError, match="limit"):
        decompress(data)


def test_a_zstd_bomb_is_not_unpacked_first() -> None:
    """A few kilobytes become gigabytes: what is beyond the bound is not held in memory to be measured."""
    packer, zeros = zstandard.ZstdCompressor().compressobj(), bytes(32 << 20)
    data = b"".join([packer.compress(zeros) for _ in range(48)]) + packer.flush()
    tracemalloc.start()
    try:
        with pytest.raises(DecompressError, match="more than 1 MiB"):
            decompress(data, limit_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 512 << 20
    finally:
        tracemalloc.stop()


def test_lz4_of_several_blocks_with_the_size_that_kernels_append() -> None:
    data = os.urandom(1000) * 17_000  # two whole blocks of 8 MiB and a piece
    assert decompress(lz4_legacy(data) + len(data).to_bytes(4, "little"))[0] == data
    data = data[: 16 << 20]  # two whole blocks: only the size ends them
    assert decompress(lz4_legacy(data) + len(data).to_bytes(4, "little")) == (
        data,
        (16 << 20).to_bytes(4, "little"),
    )


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("lz4", ["lz4", "-l", "-c"]),
        ("zstd", ["zstd", "-19", "--ultra", "-c"]),
        ("xz", ["xz", "--check=crc32", "--x86", "--lzma2=dict=8MiB", "-c"]),
        ("gzip", ["gzip", "-n", "-9", "-c"]),
    ],
)
def test_what_the_tools_of_a_kernel_build_write(name: str, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    packed = subprocess.run(command, input=TEXT, capture_output=True, check=True).stdout
    assert sniff(packed) == name
    assert decompress(packed)[0] == TEXT


def test_other_formats_are_named() -> None:
    with pytest.raises(DecompressError, match="not a compressed file"):
        decompress(b"plain")
    with pytest.raises(DecompressError, match="lzo compression is not supported"):
        decompress(b"\x89LZO\x00\r\n\x1a\n")


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(COMPRESSORS)), data=st.data())
def test_damage_never_raises_anything_else(name: str, data: st.DataObject) -> None:
    packed = bytearray(COMPRESSORS[name](TEXT[:2000]))
    for _ in range(3):
        packed[data.draw(st.integers(4, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(4, len(packed)))
    with suppress(DecompressError):
        decompress(bytes(packed[:cut]), limit_bytes=1 << 20)
