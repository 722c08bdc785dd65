# SPDX-License-Identifier: MIT
"""Mutates what imgvm reads from others: python tests/fuzz/readers.py [READER ...] [--count N] [--seed N].

Each reader gets its seeds, changed at random, one after the other, within bounded memory and time. It may answer or raise an
error of ours; whatever else comes out is a fault, and the input is kept in build/fuzz/readers.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reader_seeds as seeds
from mutate import Seed, mutate

from imgvm import audit
from imgvm.config import Config
from imgvm.errors import ImgvmError
from imgvm.exchange import import_ova, importing
from imgvm.pack import from_oci, from_tar
from imgvm.pack import kernel as kernels
from imgvm.pack.tree import FileTree
from imgvm.qcow2 import Image
from imgvm.qcow2.convert import convert

OUT = Path(__file__).parents[2] / "build" / "fuzz" / "readers"
MEMORY_BYTES = 2 << 30  # of address space, with the interpreter
FILE_BYTES = 64 << 20
MEMORY_FOLDER = Path("/dev/shm")  # where a sync costs nothing, and making and removing a folder next to it
_ZEROS = bytes(65536)
SECONDS = 10  # of the processor, for one input: a busy host makes nothing hang


class Hang(BaseException):
    """Not an Exception: nobody catches it by accident."""


@dataclass(frozen=True)
class Reader:
    read: Callable[[bytes, Path], object]
    seeds: Callable[[], Sequence[bytes]]
    tokens: Sequence[bytes] = ()
    repair: Callable[[bytearray], None] | None = None  # puts checksums right, so that more is reached


def _write(path: Path, data: bytes) -> None:
    """With holes for most of its zeros: some formats have megabytes of them."""
    with path.open("wb", buffering=0) as stream:
        for at in range(0, len(data), len(_ZEROS)):
            piece = data[at : at + len(_ZEROS)]
            if piece != _ZEROS:
                stream.seek(at)
                stream.write(piece)
        stream.truncate(len(data))


def _import_text(data: bytes, folder: Path) -> None:
    path = folder / "machine"
    _write(path, data)
    found = importing.from_file(path)
    found.move(folder, folder)
    found.text()


def _import_ova(data: bytes, folder: Path) -> None:
    path = folder / "a.ova"
    _write(path, data)
    import_ova.from_ova(path, folder, force=True).text()


def _convert(data: bytes, folder: Path) -> None:
    path = folder / "foreign"
    _write(path, data)
    convert(path, folder / "out.img")


def _payload(data: bytes, folder: Path) -> None:
    path = folder / "a.img"
    _write(path, data)
    with Image.open(path) as image:
        for blob in image.config_blobs():
            image.read_config(blob.name)
        audit.describe(image)


def _yaml(data: bytes, folder: Path) -> None:
    config = Config.from_text(data, "a.yaml", folder, environment={})
    assert Config.from_resolved(config.resolved().encode(), "machine.json").machine is not None


def _resolved(data: bytes, _: Path) -> None:
    Config.from_resolved(data, "machine.json").resolved().encode()


def _walk(tree: FileTree) -> None:
    for _path, node in tree.walk():
        if node.is_file:
            for _ in node.content.pieces():
                pass


def _tar(data: bytes, folder: Path) -> None:
    path, tree = folder / "a.tar", FileTree()
    _write(path, data)
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        from_tar.add(tree, from_tar.unpacked(file, "a.tar", stack), "a.tar", latest_sec=None)
        _walk(tree)


def _saved(data: bytes, folder: Path) -> None:
    path = folder / "a.tar"
    _write(path, data)
    with ExitStack() as stack:
        _walk(from_oci.read(path, "a.tar", stack, None)[0])


READERS: dict[str, Reader] = {
    "yaml": Reader(_yaml, seeds.yaml, seeds.YAML_TOKENS),
    "resolved": Reader(_resolved, seeds.resolved, seeds.YAML_TOKENS),
    "domain": Reader(_import_text, seeds.domain, seeds.XML_TOKENS),
    "ovf": Reader(_import_text, seeds.ovf, seeds.XML_TOKENS),
    "qemu": Reader(_import_text, seeds.qemu, seeds.QEMU_TOKENS),
    "ova": Reader(_import_ova, seeds.ova, repair=seeds.sum_headers),
    "tar": Reader(_tar, seeds.tar, repair=seeds.sum_headers),
    "saved": Reader(_saved, seeds.saved, repair=seeds.sum_headers),
    "kernel": Reader(lambda data, _: kernels.load(data, "kernel"), seeds.kernel),
    "payload": Reader(_payload, seeds.payload, repair=seeds.sign_payload),
    **{
        kind: Reader(_convert, lambda kind=kind: seeds.foreign(kind))  # type: ignore[misc]
        for kind in seeds.FORMATS
    },
}


def _ring(_signal: int, _frame: object) -> None:
    raise Hang(f"more than {SECONDS} seconds of the processor")


class RefusedError(Exception):
    """An error of ours: as it should be."""


def _try(reader: Reader, data: bytes) -> None:
    """RefusedError, or what was not caught where it should have been."""
    place = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="imgvm-fuzz-", dir=place) as folder:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader.read(data, Path(folder))
        except ImgvmError as error:
            assert error.message
            raise RefusedError(str(error)) from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _inputs(reader: Reader, valid: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    yield from valid
    corpus = [Seed(data) for data in valid]
    while True:
        data = mutate(rng.choice(corpus), corpus, reader.tokens, rng)
        if reader.repair and rng.random() < 0.7:
            reader.repair(data)
        yield bytes(data)


def run(name: str, count: int, seed: int) -> int:
    """In this process, which it limits: how many inputs were accepted. SystemExit when one did harm."""
    reader, accepted = READERS[name], 0
    valid = reader.seeds()
    inputs = _inputs(reader, valid, random.Random(f"{name} {seed}"))
    signal.signal(signal.SIGPROF, _ring)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for number, data in zip(range(count), inputs, strict=False):
        if number == 1:  # what is imported late is there now
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        try:
            _try(reader, data)
            accepted += 1
        except BaseException as fault:
            if isinstance(fault, RefusedError) and number >= len(valid):
                continue
            OUT.mkdir(parents=True, exist_ok=True)
            kept = OUT / f"{name}-{seed}-{number}"
            kept.write_bytes(data)
            raise SystemExit(
                f"{name}, seed {seed}, input {number}, kept as {kept}:\n{traceback.format_exc()}"
            ) from None
    return accepted


def fuzz(name: str, count: int, seed: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """In a process of its own, so that a crash and the limits are its own."""
    words = [sys.executable, __file__, name, "--count", str(count), "--seed", str(seed)]
    return subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=os.environ | {"PYTHONHASHSEED": "0"})


def main() -> int:
    parser = argparse.ArgumentParser(description="mutated input for every reader of foreign formats")
    parser.add_argument("reader", nargs="*", choices=[*READERS, []])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = options.reader or list(READERS)
    if len(names) == 1:
        accepted = run(names[0], options.count, options.seed)
        print(f"{names[0]}: {options.count} inputs, {accepted} accepted")
        return 0
    failed = 0
    for name in names:
        done = fuzz(name, options.count, options.seed, 3600)
        print(done.stdout + done.stderr, end="", flush=True)
        failed += done.returncode != 0
    return failed != 0


def missing(name: str) -> str | None:
    """The tool that makes a reader's seeds, when it is not installed."""
    tool = "tar" if name == "tar" else "qemu-img" if name in seeds.FORMATS else None
    return tool if tool is not None and shutil.which(tool) is None else None


if __name__ == "__main__":
    sys.exit(main())
