# SPDX-License-Identifier: MIT
"""Build step: feeds imgvm_api.h to cffi and compiles every native/**/*.c into one abi3 module.

IMGVM_CFLAGS is appended to the compiler's flags (the asan build uses it).
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

NATIVE = Path(__file__).parent / "native"
CFLAGS = ["-std=gnu11", "-O2", "-g", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread", "-fno-strict-aliasing"]
# The guest's x87 and vector state stays live in the host's registers while these run (docs/engine.md).
GENERAL_REGS_ONLY = ["-mgeneral-regs-only", "-fno-tree-loop-distribute-patterns", "-fno-stack-protector"]


def declarations() -> str:
    """imgvm_api.h without its include guard, as cffi's cdef wants it."""
    text = (NATIVE / "include" / "imgvm_api.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    kept = [line for line in text.splitlines() if not re.match(r"#\s*(include|ifndef|endif|define IMGVM_API_H)", line)]
    return "\n".join(kept)


def sources() -> list[str]:
    return sorted(str(path) for path in NATIVE.rglob("*.c"))


def file_flags(source: str) -> list[str]:
    """Extra flags of one source file."""
    relative = Path(source).resolve().relative_to(NATIVE.resolve())
    return GENERAL_REGS_ONLY if relative.parts[0] == "cpu" else []


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
            raise SystemExit("imgvm: the native core runs on x86-64 Linux only (this is "
                             f"{platform.machine()} {sys.platform})")
        build = Path(self.build_temp)
        build.mkdir(parents=True, exist_ok=True)
        binding = build / "_native.c"
        ffi = FFI()
        ffi.cdef(declarations())
        ffi.set_source("imgvm.vmm._native", '#include "include/imgvm_api.h"', py_limited_api=True)
        ffi.emit_c_code(str(binding))

        extra = shlex.split(os.environ.get("IMGVM_CFLAGS", ""))
        ext.sources = [str(binding), *sources()]
        ext.depends = sorted(str(path) for pattern in ("*.h", "*.def") for path in NATIVE.rglob(pattern))
        ext.include_dirs = [str(NATIVE)]
        ext.extra_compile_args = CFLAGS + extra
        ext.extra_link_args = ["-pthread", *extra]
        ext.libraries = ["z", "zstd"]
        ext.define_macros = [("Py_LIMITED_API", "0x030b0000")]
        self._compile_with_file_flags()
        super().build_extension(ext)

    def _compile_with_file_flags(self) -> None:
        compile_one = self.compiler._compile

        def with_file_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):  # type: ignore[no-untyped-def]
            try:
                flags = file_flags(src)
            except ValueError:  # the generated binding lies outside native/
                flags = []
            compile_one(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = with_file_flags
