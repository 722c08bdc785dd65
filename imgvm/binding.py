# SPDX-License-Identifier: MIT
"""The only importer of the compiled core: calls imgvm_api.h and turns its codes into exceptions.

    image = binding.open_handle(ImageError, "imgvm_image_open", path, mode)   # fills `**out`
    binding.call(ImageError, "imgvm_image_flush", image)                      # raises ImageError on -errno

The core is loaded by the first call, so that importing this module stays cheap.
"""

from __future__ import annotations

import errno as errno_names
from functools import cache
from importlib import import_module
from typing import Any

from imgvm.errors import STATUS_ERROR, STATUS_NOT_FOUND, ImageError, ImgvmError

_TEXT_ENCODING = "utf-8"


@cache
def _native() -> tuple[Any, Any]:
    try:
        module = import_module("imgvm.vmm._native")
    except ImportError as problem:
        raise ImgvmError(
            f"the native core is not built: {problem}", hint="run `make build`, or reinstall imgvm"
        ) from problem
    abi = module.lib.imgvm_abi()
    if abi != module.lib.IMGVM_ABI:
        raise ImgvmError(
            f"the native core has ABI {abi}, this imgvm needs {module.lib.IMGVM_ABI}", hint="run `make build`"
        )
    return module.ffi, module.lib


def ffi() -> Any:
    """cffi's FFI object of the core."""
    return _native()[0]


def lib() -> Any:
    """The core's functions and constants, as imgvm_api.h names them."""
    return _native()[1]


def uncleared(size: int) -> Any:
    """A char array that the core fills before anybody reads it."""
    return ffi().new_allocator(should_clear_after_alloc=False)("char[]", size)


def text(field: Any) -> str:
    """A NUL-terminated char array or pointer as text; bytes that are no UTF-8 show as escapes."""
    raw: bytes = ffi().string(field)
    return raw.decode(_TEXT_ENCODING, "backslashreplace")


def path_bytes(path: str) -> bytes:
    """A path as the C side takes it (surrogates of undecodable names kept)."""
    raw = path.encode(_TEXT_ENCODING, "surrogateescape")
    if b"\0" in raw:
        raise ImgvmError(f"not a file name: {path!r}", errno=errno_names.EINVAL)
    return raw


def failure(kind: type[ImgvmError], code: int, error: Any) -> ImgvmError:
    """The exception for a negative `code` and the imgvm_error that describes it."""
    number = -code
    message = text(error.message) or errno_names.errorcode.get(number, f"error {number}")
    no_image = issubclass(kind, ImageError) and number == errno_names.ENOENT
    status = STATUS_NOT_FOUND if no_image else STATUS_ERROR
    return kind(message, hint=text(error.hint) or None, status=status, errno=number)


def call(kind: type[ImgvmError], function: str, *args: Any) -> int:
    """Call `function(*args, err)`; its non-negative result, or `kind` raised with message, hint and errno."""
    error = ffi().new("imgvm_error *")
    result: int = getattr(lib(), function)(*args, error)
    if result < 0:
        raise failure(kind, result, error)
    return result


def open_handle(kind: type[ImgvmError], function: str, *args: Any) -> Any:
    """Call `function(*args, out, err)` where `out` receives a handle; returns the handle."""
    # `T **out` is the last parameter but one of each such function.
    out_type = ffi().typeof(getattr(lib(), function)).args[-2]
    out = ffi().new(out_type)
    call(kind, function, *args, out)
    return out[0]
