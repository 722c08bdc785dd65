# SPDX-License-Identifier: MIT
"""The programs that are timed: imgvm's own command, QEMU, and small C programs."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import AbsentError
from imgvm.vmm import _build

HERE = Path(__file__).parent
QEMU = "qemu-system-x86_64"
LIMIT_S = 600

# The kernels must call nothing and use no vector register: they are copied into a bare guest.
KERNEL_CFLAGS = [
    "-O2", "-fPIE", "-mgeneral-regs-only", "-fcf-protection=none", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables", "-fno-tree-vectorize", "-fno-tree-loop-distribute-patterns",
]  # fmt: skip


def qemu() -> str:
    found = shutil.which(QEMU)
    if found is None:
        raise AbsentError(f"{QEMU} is not installed")
    return found


def qemu_version() -> str:
    text = subprocess.run([qemu(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\S+)", text)
    return match[1] if match else "?"


def imgvm(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "imgvm", *words]


def seconds_until(command: Sequence[str | Path], marker: bytes) -> float:
    """From the start of a program until it has written `marker`; then it is killed."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    seen = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while marker not in seen:
                left = begin + LIMIT_S - time.monotonic()
                piece = os.read(process.stdout.fileno(), 65536) if selector.select(max(left, 0)) else b""
                if not piece:
                    process.kill()
                    said = seen[-500:] + process.stderr.read()
                    raise RuntimeError(f"{command[0]} ended without {marker!r}: {said!r}")
                seen += piece
        return time.monotonic() - begin
    finally:
        process.kill()
        process.communicate()


def output_of(command: Sequence[str | Path], statuses: Sequence[int] = (0,)) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode not in statuses:
        said = done.stdout[-1000:] + done.stderr[-1000:]
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {said}")
    return done.stdout


def seconds_of(command: Sequence[str | Path], statuses: Sequence[int] = (0,)) -> float:
    begin = time.monotonic()
    output_of(command, statuses)
    return time.monotonic() - begin


def compile_kernels(folder: Path) -> Path:
    return _compile(HERE / "kernels.c", folder, KERNEL_CFLAGS)


def compile_user_loop(folder: Path) -> Path:
    """The kernels as a static program, for any Linux."""
    return _static("user_loop", folder, [compile_kernels(folder)])


def compile_mixed_loop(folder: Path) -> Path:
    """Vector code, x87 and system calls, as a static program for any Linux."""
    return _static("mixed_loop", folder)


def compile_narrow_loop(folder: Path) -> Path:
    """32-bit integer loops, as a static program without a library."""
    flags = ["-m32", "-march=i686", "-ffreestanding", "-fno-pic", "-fno-stack-protector"]
    return _static("narrow_loop", folder, [*flags, "-nostdlib", "-no-pie"])


def compile_faults(folder: Path) -> Path:
    """Page faults of several processes, as a static program for any Linux."""
    return _static("faults", folder)


def _static(name: str, folder: Path, more: Sequence[str | Path] = ()) -> Path:
    out = folder / name
    _cc(["-O2", "-static", HERE / f"{name}.c", *more, "-o", out])
    return out


def compile_cpu_loop(folder: Path) -> Path:
    """The kernels on the software processor alone."""
    return _compile_with_core(HERE / "cpu_loop.c", folder, [compile_kernels(folder)], [])


def compile_disk_loop(folder: Path) -> Path:
    """Transfers through the image driver alone."""
    return _compile_with_core(HERE / "disk_loop.c", folder, [], ["-lz", "-lzstd"])


def _compile_with_core(program: Path, folder: Path, objects: list[Path], libs: Sequence[str]) -> Path:
    """`needs:` names what of the core the program links, as in tests/native."""
    needs = re.search(r"^// needs: (.*)$", program.read_text(), re.M)
    assert needs is not None
    for pattern in needs[1].split():
        for source in sorted(_build.NATIVE.glob(pattern)):
            flags = [*_build.CFLAGS, *_build.file_flags(str(source)), f"-I{_build.NATIVE}"]
            objects.append(_compile(source, folder, flags))
    out = folder / program.stem
    _cc([*_build.CFLAGS, f"-I{_build.NATIVE}", program, *objects, *libs, "-o", out])
    return out


def compile_tlb_trace(folder: Path, flags: Sequence[str]) -> Path:
    """The whole core, with wrappers around its second-level TLB."""
    common = [*_build.CFLAGS, f"-I{_build.NATIVE}"]
    sources = sorted(_build.NATIVE.rglob("*.c"))
    objects = [_compile(source, folder, [*common, *_build.file_flags(str(source))]) for source in sources]
    out = folder / "tlb_trace"
    program = _compile(HERE / "tlb_trace.c", folder, [*common, "-mgeneral-regs-only"])
    _cc([*flags, "-pthread", program, *objects, "-lz", "-lzstd", "-o", out])
    return out


def compile_code_replacement(folder: Path, flags: Sequence[str]) -> Path:
    """The processor in the small world of its tests."""
    common = [*_build.CFLAGS, f"-I{_build.NATIVE}", f"-I{HERE.parent / 'tests' / 'native'}", *flags]
    parts = ("base/error.c", "arch/*.c", "mem/guest_mem.c", "cpu/*/*.c")
    sources = [path for part in parts for path in sorted(_build.NATIVE.glob(part))]
    objects = [_compile(source, folder, [*common, *_build.file_flags(str(source))]) for source in sources]
    program = _compile(HERE / "code_replacement.c", folder, common)
    out = folder / "code_replacement"
    _cc(["-pthread", program, *objects, "-o", out])
    return out


def _compile(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    name = str(source.relative_to(HERE.parent)).replace("/", ".") + ".o"
    _cc([*flags, "-c", source, "-o", folder / name])
    return folder / name


def _cc(words: Sequence[str | Path]) -> None:
    done = subprocess.run(["cc", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AbsentError(f"the compiler says: {done.stderr.strip().splitlines()[-1]}")
