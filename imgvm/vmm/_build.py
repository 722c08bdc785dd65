# SPDX-License-Identifier: MIT
"""Build step: feeds imgvm_api.h to cffi and compiles every native/**/*.c into one abi3 module.

IMGVM_CFLAGS is appended to the compiler's flags (the asan build uses it).
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

NATIVE = Path(__file__).parent / "native"
CFLAGS = shlex.split("-std=gnu11 -O2 -g -fvisibility=hidden -Wall -Wextra -pthread -fno-strict-aliasing")
# The guest's x87 and vector state stays live in the host's registers while these run (docs/engine.md);
# a sanitizer's runtime would use them.
GENERAL_REGS_ONLY = shlex.split(
    "-mgeneral-regs-only -fno-tree-loop-distribute-patterns -fno-stack-protector -fno-sanitize=all")
GENERAL_REGS_FILES = ("mem/guest_mem.c", "base/clock.c", "base/clock_piece.c")
FIRMWARE = NATIVE / "firmware"
FIRMWARE_CFLAGS = shlex.split(
    "-m16 -march=i686 -mregparm=3 -mgeneral-regs-only -Os -std=gnu11 -Wall -Wextra -ffreestanding -fno-pic "
    "-fno-stack-protector -fno-jump-tables -fcf-protection=none -fno-asynchronous-unwind-tables "
    "-fno-strict-aliasing -nostdlib -static -no-pie -Wl,--build-id=none,--no-check-sections,-z,noexecstack"
)
GUEST = Path(__file__).parent / "guest"
GUEST_CFLAGS = shlex.split(
    "-m32 -march=i686 -Os -Wall -Wextra -ffreestanding -fno-pic -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -nostdlib -static -no-pie -Wl,--build-id=none"
)


def declarations() -> str:
    """imgvm_api.h without its include guard, as cffi's cdef wants it."""
    text = (NATIVE / "include" / "imgvm_api.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    dropped = re.compile(r"#\s*(include|ifndef|endif|define IMGVM_API_H)")
    kept = [line for line in text.splitlines() if not dropped.match(line)]
    return "\n".join(kept)


def sources() -> list[str]:
    """Relative to the project: setuptools refuses absolute paths."""
    return sorted(os.path.relpath(path) for path in NATIVE.rglob("*.c") if FIRMWARE not in path.parents)


def file_flags(source: str) -> list[str]:
    """Extra flags of one source file."""
    relative = Path(source).resolve().relative_to(NATIVE.resolve())
    # These are called between two native instructions.
    live = relative.parts[0] in ("cpu", "arch") or str(relative) in GENERAL_REGS_FILES
    return GENERAL_REGS_ONLY if live else []


def build_guest(folder: Path) -> Path:
    """The embedded guest, hello.elf: freestanding, so that no 32-bit libc is needed."""
    out = folder / "hello.elf"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cc", *GUEST_CFLAGS, f"-Wl,-T,{GUEST / 'hello.ld'}", "-o", str(out), str(GUEST / "hello.c")]
    subprocess.run(command, check=True)
    return out


def build_firmware(folder: Path) -> Path:
    """The built-in BIOS, bios.bin: 64 KiB as they lie at F000:0000."""
    out, linked = folder / "bios.bin", folder / "bios.elf"
    folder.mkdir(parents=True, exist_ok=True)
    parts = sorted(str(path) for pattern in ("*.S", "*.c") for path in FIRMWARE.glob(pattern))
    script = f"-Wl,-T,{FIRMWARE / 'bios.ld'}"
    subprocess.run(["cc", *FIRMWARE_CFLAGS, script, "-o", str(linked), *parts], check=True)
    subprocess.run(["objcopy", "-O", "binary", "--gap-fill", "0xff", str(linked), str(out)], check=True)
    linked.unlink()
    return out


class BuildNative(build_ext):
    def run(self) -> None:
        super().run()
        package = Path(__file__).parents[1] if self.inplace else Path(self.build_lib) / "imgvm"
        build_guest(package / "_guest")
        build_firmware(package / "_guest")

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
        ext.sources = [os.path.relpath(binding), *sources()]
        headers = (path for pattern in ("*.h", "*.def") for path in NATIVE.rglob(pattern))
        ext.depends = sorted(os.path.relpath(path) for path in headers)
        ext.include_dirs = [os.path.relpath(NATIVE)]
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
