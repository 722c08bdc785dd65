# SPDX-License-Identifier: MIT
"""The image driver against `qemu-img bench` and the plain file: the same transfers, in the same files."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.contest import AbsentError, Contest, Contestant

MIB = 1 << 20
DISK = 128 * MIB
DEPTH = 32
# Steps of the golden section visit every block once, each far from the one before.
FAR = (int(DISK // 4096 * 0.618) | 1) * 4096
KINDS = ("fresh", "preallocated", "compressed", "chain")
PLAIN, SOURCE = "plain file", "source.raw"
BACKENDS = {"imgvm": "ring", "imgvm without io_uring": "threads"}
PEERS = {"qemu-img bench, io_uring": "io_uring", "qemu-img bench, threads": "threads"}


@dataclass(frozen=True)
class Work:
    name: str
    write: bool
    bytes: int
    step: int
    count: int
    interval: int = 0
    cold: bool = False

    def count_on(self, kind: str) -> int:
        """Less of what takes long: whole clusters are decompressed or copied for each of them."""
        return self.count // 20 if self._takes_long(kind) else self.count

    def _takes_long(self, kind: str) -> bool:
        return self.bytes < 65536 and (kind == "compressed" or (kind == "chain" and self.write))

    def runs_on(self, kind: str) -> int:
        """More of what is over soon, each with a disk that nobody has written to."""
        return 5 if self.write and (self.bytes >= 65536 or self._takes_long(kind)) else 1


WORKS = (
    Work("sequential read", False, 256 * 1024, 256 * 1024, DISK // (256 * 1024) * 4),
    Work("random 4k read", False, 4096, FAR, 50_000),
    Work("sequential read, not in memory", False, 256 * 1024, 256 * 1024, DISK // (256 * 1024), cold=True),
    Work("random 4k read, not in memory", False, 4096, FAR, 10_000, cold=True),
    Work("sequential write", True, 256 * 1024, 256 * 1024, DISK // (256 * 1024)),
    Work("random 4k write", True, 4096, FAR, 20_000),
    Work("random 4k write, not in memory", True, 4096, FAR, 20_000, cold=True),
    Work("random 4k write, a flush after each 64", True, 4096, FAR, 6_400, 64),
)


class Disks:
    """One disk of each kind; whoever writes gets a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, peers.compile_disk_loop(folder)
        if shutil.which("qemu-img") is None:
            raise AbsentError("qemu-img is not installed")
        self._make()

    def _make(self) -> None:
        rng = random.Random(1)
        with (self.folder / SOURCE).open("wb") as stream:
            for _ in range(DISK // 65536):  # to be compressed to about a third
                stream.write((rng.randbytes(20_000) + b"the same again " * 4_000)[:65536])
        self._tool("create", "-q", "-f", "qcow2", "fresh", DISK)
        self._tool("create", "-q", "-f", "qcow2", "-o", "preallocation=full", "preallocated", DISK)
        self._tool("convert", "-n", "-O", "qcow2", SOURCE, "preallocated")
        self._tool("convert", "-c", "-O", "qcow2", SOURCE, "compressed")
        self._tool("convert", "-O", "qcow2", SOURCE, "base")
        for name, below, first in (("middle", "base", 0), ("chain", "middle", 1)):
            self._tool("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name)
            writes = [word for at in range(first, DISK // MIB, 4) for word in ("-c", f"write -P 7 {at}M 1M")]
            subprocess.run(["qemu-io", *writes, name], cwd=self.folder, check=True, capture_output=True)

    def _tool(self, *words: object) -> None:
        subprocess.run(["qemu-img", *map(str, words)], cwd=self.folder, check=True, capture_output=True)

    def file(self, name: str, work: Work) -> str:
        if work.write:
            subprocess.run(["cp", "--sparse=always", name, "copy"], cwd=self.folder, check=True)
            name = "copy"
            _bring_to_disk(self.folder / name)  # else the first flush does it
        for each in (name, SOURCE, "base", "middle", *KINDS):
            if work.cold:
                _forget(self.folder / each)
            else:
                _read(self.folder / each)
        return name

    def run(self, *command: object) -> tuple[str, float]:
        """What it wrote, and the processor time of all its threads."""
        words = [str(word) for word in command]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(words, cwd=self.folder, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def in_loop(self, how: str, kind: str, work: Work, count: int) -> tuple[float, float]:
        name = self.file(SOURCE if how == "plain" else kind, work)
        operation = "write" if work.write else "read"
        words = (operation, name, count, work.bytes, work.step, DEPTH, work.interval)
        said, used = self.run(self.program, how, *words)
        return int(said) / 1e9, used

    def in_qemu(self, aio: str, kind: str, work: Work, count: int) -> tuple[float, float]:
        options: list[object] = ["-w"] if work.write else []
        options += [f"--flush-interval={work.interval}"] if work.interval else []
        numbers = ("-c", count, "-d", DEPTH, "-s", work.bytes, "-S", work.step)
        name = self.file(kind, work)
        said, used = self.run(
            "qemu-img", "bench", "-f", "qcow2", "-t", "writeback", "-i", aio, *numbers, *options, name
        )
        match = re.search(r"completed in ([0-9.]+)", said)
        assert match is not None
        return float(match[1]), used


def _bring_to_disk(path: Path) -> None:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


def _forget(path: Path) -> None:
    _bring_to_disk(path)
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    room = bytearray(MIB)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(room):
            pass


Measure = Callable[[str, str, Work, int], tuple[float, float]]


def _elapsed(measure: Measure, how: str, kind: str, work: Work) -> float:
    return sum(measure(how, kind, work, work.count_on(kind))[0] for _ in range(work.runs_on(kind)))


def _processor(measure: Measure, how: str, kind: str, work: Work) -> float:
    """A run's, less that of a run of one transfer: starting and closing."""
    runs = range(work.runs_on(kind))
    many, one = (sum(measure(how, kind, work, n)[1] for _ in runs) for n in (work.count_on(kind), 1))
    return max(many - one, 1e-6)


def _turn(
    measure: Measure, of: Callable[[Measure, str, str, Work], float], how: str, works: Sequence[Work] = WORKS
) -> Callable[[], Mapping[str, float]]:
    def turn() -> Mapping[str, float]:
        return {f"{kind}: {work.name}": of(measure, how, kind, work) for kind in KINDS for work in works}

    return turn


def _done_by(aio: str) -> Sequence[Work]:
    """By io_uring `qemu-img bench` hears of ended requests while it submits others, goes on with those, and
    does not make the flush that was due: of five, as few as one were made."""
    return [work for work in WORKS if aio != "io_uring" or not work.interval]


def _contest(folder: Path, title: str, of: Callable[[Measure, str, str, Work], float], clock: str) -> Contest:
    made = Disks(folder)
    ours = {**BACKENDS, PLAIN: "plain"}
    contestants = [Contestant(name, _turn(made.in_loop, of, how)) for name, how in ours.items()]
    for name, aio in PEERS.items():
        contestants.append(Contestant(name, _turn(made.in_qemu, of, aio, _done_by(aio))))
    ratios: Sequence[tuple[str, str]] = [(name, peer) for name in BACKENDS for peer in (*PEERS, PLAIN)]
    what = (
        f"A disk of {DISK // MIB} MiB in an image that has nothing yet, is preallocated, is compressed "
        f"(zlib), or is the third of a chain; {DEPTH} requests at a time, through the queue that a machine's "
        "disk uses and in `qemu-img bench`, the same ones in the same order. All go through the host's page "
        "cache (`-t writeback`), which has all of the files but where it says that it has nothing; nobody "
        "flushes but where it says so, and then with nothing else under way, and not after the last request. "
        "What is over soon is done to five new copies of the disk in turn. "
        f"{clock} The plain file is a raw one, read and written one request at a "
        "time with pread and pwrite. Random offsets are steps of the golden section. By io_uring "
        "`qemu-img bench` leaves out some of the flushes, so it takes no part in rows with them."
    )
    return Contest(title, what, contestants, ratios)


def disks(folder: Path) -> Contest:
    clock = "The time is from the open file to the end of the last transfer."
    return _contest(folder, "Disks", _elapsed, clock)


def disks_processor(folder: Path) -> Contest:
    clock = (
        "The time is what all threads took of the processors, less that of a run of one transfer: on a host "
        "that others keep busy, elapsed time goes to whoever has the most threads."
    )
    return _contest(folder, "Disks, processor time", _processor, clock)
