# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import sys

import pytest

from imgvm import binding
from imgvm.errors import STATUS_ERROR, STATUS_NOT_FOUND, EngineError, ImageError, ImgvmError


def native_error(message: bytes, hint: bytes = b"") -> object:
    error = binding.ffi().new("imgvm_error *")
    error.message, error.hint = message, hint
    return error


def test_codes_become_exceptions() -> None:
    problem = binding.failure(ImageError, -errno.ENOSPC, native_error(b"no room", b"make some"))
    assert isinstance(problem, ImageError)
    assert (problem.message, problem.hint, problem.errno) == ("no room", "make some", errno.ENOSPC)
    assert problem.status == STATUS_ERROR


def test_only_a_missing_image_is_status_127() -> None:
    assert binding.failure(ImageError, -errno.ENOENT, native_error(b"x")).status == STATUS_NOT_FOUND
    assert binding.failure(EngineError, -errno.ENOENT, native_error(b"x")).status == STATUS_ERROR


def test_an_error_without_words_names_its_number() -> None:
    assert binding.failure(ImageError, -errno.EIO, native_error(b"")).message == "EIO"


def test_bytes_that_are_no_text_are_shown() -> None:
    assert binding.failure(ImageError, -errno.EIO, native_error(b"caf\xe9")).message == "caf\\xe9"


def test_paths() -> None:
    assert binding.path_bytes("caf\udce9") == b"caf\xe9"
    with pytest.raises(ImgvmError, match="not a file name"):
        binding.path_bytes("a\0b")


def test_a_missing_core_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imgvm.vmm._native", None)
    binding._native.cache_clear()
    try:
        with pytest.raises(ImgvmError, match="not built") as caught:
            binding.lib()
        assert caught.value.hint
    finally:
        monkeypatch.undo()
        binding._native.cache_clear()
