# SPDX-License-Identifier: MIT
"""Fuzzes the reader and writer of qcow2: python tests/fuzz/qcow2.py [SECONDS].

libFuzzer drives fuzz_qcow2.c, under AddressSanitizer and UBSan, from small images of every feature that qemu-img and we
make. What it finds stays in build/fuzz/qcow2.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from imgvm.qcow2 import Image
from imgvm.vmm import _build

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "fuzz" / "qcow2"
DISK = 300 * 1024
MEMORY_MIB, TIMEOUT_SECONDS, INPUT_BYTES = 512, 20, 96 * 1024
OPTIONS = (
    "compat=0.10", "compat=1.1", "refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on", "compression_type=zstd",
    "preallocation=metadata",
)  # fmt: skip


def build() -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    program = OUT / "fuzz_qcow2"
    block = sorted((_build.NATIVE / "block").glob("*.c"))
    base = [_build.NATIVE / "base" / name for name in ("error.c", "sha256.c", "sha256_host.c")]
    command = ["clang", "-std=gnu11", "-O1", "-g", "-pthread", "-fsanitize=fuzzer,address,undefined",
               "-fno-sanitize-recover=undefined", f"-I{_build.NATIVE}", str(HERE / "fuzz_qcow2.c"),
               *map(str, [*block, *base]), "-lz", "-lzstd", "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)
    return program


def _ours(folder: Path, **options: object) -> Path:
    path = folder / "ours.img"
    path.unlink(missing_ok=True)
    with Image.create(path, DISK, **options) as image:  # type: ignore[arg-type]
        image.write(0, b"some data" * 200)
        image.write_compressed(image.info.cluster_bytes, b"again and again " * (image.info.cluster_bytes // 16))
        image.create_snapshot("first", date=0, state=b"state" * 300)
        image.write(100_000, b"more")
        image.zero(150_000, 20_000)
        image.set_config({"machine.yaml": b"version: 1\n"}, date=1)
        image.create_snapshot("second", date=2)
        image.add_disk("data", DISK)
        image.open_disk("data").write(70_000, b"of a further disk")
    return path


def seeds() -> Path:
    """An image of each kind for each thing that is done with it."""
    folder = OUT / "seeds"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made: list[bytes] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for options in ({"cluster_bytes": 512}, {"cluster_bytes": 4096, "version": 2},
                        {"cluster_bytes": 4096, "compression": "zstd"},
                        {"cluster_bytes": 16384, "extended_l2": True}):  # fmt: skip
            made.append(_ours(work, **options).read_bytes())
        if shutil.which("qemu-img"):
            for options in OPTIONS:
                path = work / "theirs.img"
                path.unlink(missing_ok=True)
                create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size=512,{options}", str(path), "256k"]
                subprocess.run(create, check=True, capture_output=True)
                if options != "refcount_bits=1":
                    subprocess.run(["qemu-img", "snapshot", "-c", "one", str(path)], check=True, capture_output=True)
                made.append(path.read_bytes())
    for index, data in enumerate(made):
        for choice in (0, 1, 2, 6, 0x19, 0x3D, 0x45, 0xC9):
            (folder / f"{index:02}-{choice:02x}").write_bytes(bytes([choice]) + data[: INPUT_BYTES - 1])
    return folder


def fuzz(seconds: int) -> Path:
    """The corpus that it grew. CalledProcessError when a promise was broken: the input lies beside it."""
    program, corpus = build(), OUT / "corpus"
    corpus.mkdir(exist_ok=True)
    subprocess.run(
        [str(program), f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES}", f"-rss_limit_mb={MEMORY_MIB}",
         f"-timeout={TIMEOUT_SECONDS}", "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={OUT}/", str(corpus),
         str(seeds())], check=True)  # fmt: skip
    return corpus


if __name__ == "__main__":
    fuzz(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
