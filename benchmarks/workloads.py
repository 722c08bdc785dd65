# SPDX-License-Identifier: MIT
"""What is measured. Each function prepares a contest in a folder of its own, or raises AbsentError."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import platformdirs

from benchmarks import packing, peers
from benchmarks.contest import AbsentError, Contest, Contestant
from benchmarks.disks import disks, disks_processor
from benchmarks.programs import programs
from imgvm.config import Config
from imgvm.errors import PackError
from imgvm.pack import pack
from imgvm.pack.deb import DebCache
from imgvm.qcow2 import Image

DISTRO, PACKAGE = "debian:bookworm", "linux-image-cloud-amd64"
CMDLINE = "console=ttyS0 quiet"
MEMORY_MIB = 512
MARKER = "userland reached"
ENGINES = ("interp", "jit")
TCG = "QEMU TCG"


def config(name: str, programs: Sequence[str], command: Sequence[str], cpus: int = 1) -> str:
    """Debian's kernel with these programs in its initrd, one of which is the command."""
    return json.dumps({  # which is YAML, too
        "version": 1,
        "name": name,
        "machine": {"memory": f"{MEMORY_MIB}MiB", "cpus": cpus, "entropy": False},
        "boot": {
            "kernel": {"distro": DISTRO, "package": PACKAGE},
            "cmdline": CMDLINE,
            "files": [{"path": f"/{program}", "source": program, "mode": "0755"} for program in programs],
        },
        "exec": {"command": command},
    })


def qemu(
    kernel: Path, initrd: Path, cmdline: str = CMDLINE, cpus: int = 1, memory_mib: int = MEMORY_MIB
) -> list[str | Path]:
    """The same machine in QEMU."""
    accel = "tcg" if cpus == 1 else "tcg,thread=multi"
    return [
        peers.qemu(), "-accel", accel, "-smp", str(cpus), "-M", "q35", "-nodefaults", "-display", "none",
        "-no-reboot", "-m", str(memory_mib), "-serial", "stdio",
        "-kernel", kernel, "-initrd", initrd, "-append", cmdline,
    ]  # fmt: skip


class Debian:
    """Debian's cloud kernel, and an initrd that runs the kernels' program, as each contestant takes them."""

    def __init__(self, folder: Path) -> None:
        self.user_loop = peers.compile_user_loop(folder)
        self.image, self.vmlinux, self.initrd = folder / "bench.img", folder / "vmlinux", folder / "initrd"
        try:
            command = ["sh", "-c", f"echo {MARKER}; exec /user_loop"]
            pack(Config.from_text(config("bench", ["user_loop"], command), "bench.yaml", folder), self.image)
            cache = DebCache(platformdirs.user_cache_path("imgvm"))
            self.bzimage = next(cache.unpacked(cache.kernel(DISTRO, PACKAGE)).glob("boot/vmlinuz-*"))
        except PackError as error:
            raise AbsentError(str(error)) from None
        with Image.open(self.image) as image:
            self.vmlinux.write_bytes(image.read_config("kernel"))
            self.initrd.write_bytes(image.read_config("initrd"))

    def in_imgvm(self, engine: str) -> list[str | Path]:
        return peers.imgvm("run", self.image, "--accel", engine)

    def in_qemu(self, kernel: Path) -> list[str | Path]:
        return qemu(kernel, self.initrd)


debian = cache(Debian)


def boot(folder: Path) -> Contest:
    guest = debian(folder)
    row, marker, absent = "boot to userland", MARKER.encode(), []

    def contestant(name: str, command: list[str | Path]) -> Contestant:
        return Contestant(name, lambda: {row: peers.seconds_until(command, marker)})

    contestants = [contestant(f"imgvm {engine}", guest.in_imgvm(engine)) for engine in ENGINES]
    try:
        contestants.append(contestant(f"{TCG}, bzImage", guest.in_qemu(guest.bzimage)))
        contestants.append(contestant(f"{TCG}, vmlinux", guest.in_qemu(guest.vmlinux)))
    except AbsentError as missing:
        absent.append(f"{TCG}: {missing}")
    kernels = ("bzImage", "vmlinux")
    ratios = [(f"imgvm {engine}", f"{TCG}, {kernel}") for engine in ENGINES for kernel in kernels]
    what = (
        f"`{PACKAGE}` of {DISTRO} with the same initrd, {MEMORY_MIB} MiB, one processor, from the start of "
        "the command until the initrd's command has written a line. imgvm runs the vmlinux that it unpacked "
        "when it packed; QEMU runs Debian's bzImage through its BIOS, and that vmlinux too."
    )
    return Contest("Boot of Debian's cloud kernel", what, contestants, ratios, absent)


def _kernels(output: str) -> dict[str, list[str]]:
    """`kernel NAME NANOSECONDS CHECKSUM ...` -> the words after the name."""
    lines = [line.split() for line in output.splitlines()]
    return {words[1]: words[2:] for words in lines if len(words) >= 4 and words[0] == "kernel"}


class Loops:
    """Runs the kernels in one way or another; every way must come to the same checksums."""

    def __init__(self) -> None:
        self.checksums: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def turn(self, command: list[str | Path]) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            found = _kernels(peers.output_of(command))
            if not found:
                raise RuntimeError(f"{command[0]} ran no kernel")
            for name, words in found.items():
                if self.checksums.setdefault(name, words[1]) != words[1]:
                    expected = self.checksums[name]
                    raise RuntimeError(f"{command[0]}: {name} came to {words[1]}, not to {expected}")
                if len(words) > 2:
                    self.counts[name] = int(words[2])
            return {name: int(words[0], 0) / 1e9 for name, words in found.items()}

        return run


def loops(folder: Path) -> Contest:
    cpu_loop, state, absent = peers.compile_cpu_loop(folder), Loops(), []
    contestants = [Contestant(f"{engine}, bare", state.turn([cpu_loop, engine])) for engine in ENGINES]
    try:
        guest = debian(folder)
        for engine in ENGINES:
            contestants.append(Contestant(f"{engine}, in Debian", state.turn(guest.in_imgvm(engine))))
        try:
            contestants.append(Contestant(f"{TCG}, in Debian", state.turn(guest.in_qemu(guest.bzimage))))
        except AbsentError as missing:
            absent.append(f"{TCG}: {missing}")
        contestants.append(Contestant("native", state.turn([guest.user_loop])))
    except AbsentError as missing:
        absent.append(f"all but the bare processor: {missing}")
    what = (
        "Integer programs (`benchmarks/kernels.c`), the same machine code for all: on the software processor "
        "alone, as a program under Debian's kernel, and on the host. Times are those of the program's clock."
    )
    ratios = [(f"{engine}, in Debian", f"{TCG}, in Debian") for engine in ENGINES]
    ratios += [(f"{engine}, bare", "native") for engine in ENGINES]
    rated = [f"{engine}, bare" for engine in ENGINES]
    return Contest("Integer loops", what, contestants, ratios, absent, lambda: state.counts, rated)


def narrow(folder: Path) -> Contest:
    """32-bit code, under a 64-bit kernel."""
    program, state = peers.compile_narrow_loop(folder), Loops()
    image, absent = folder / "narrow.img", []
    try:
        text = config("narrow", ["narrow_loop"], ["/narrow_loop"])
        pack(Config.from_text(text, "narrow.yaml", folder), image)
    except PackError as error:
        raise AbsentError(str(error)) from None
    for name in ("kernel", "initrd"):
        (folder / name).write_bytes(_blob(image, name))
    ours = {engine: peers.imgvm("run", image, "--accel", engine) for engine in ENGINES}
    contestants = [Contestant(f"imgvm {engine}", state.turn(command)) for engine, command in ours.items()]
    try:
        contestants.append(Contestant(TCG, state.turn(qemu(folder / "kernel", folder / "initrd"))))
    except AbsentError as missing:
        absent.append(f"{TCG}: {missing}")
    contestants.append(Contestant("native", state.turn([program])))
    ratios = [(f"imgvm {engine}", TCG) for engine in ENGINES]
    ratios += [("imgvm jit", "imgvm interp"), ("imgvm jit", "native")]
    what = (
        "A 32-bit program (`benchmarks/narrow_loop.c`) in compatibility mode under Debian's 64-bit kernel. "
        "Times are those of the program's clock."
    )
    return Contest("32-bit integer loops", what, contestants, ratios, absent)


def _packed(name: str, text: str, folder: Path) -> Path:
    """The config's image; its kernel and initrd lie beside it, for QEMU."""
    image = folder / f"{name}.img"
    try:
        pack(Config.from_text(text, f"{name}.yaml", folder), image)
    except PackError as error:
        raise AbsentError(str(error)) from None
    for blob in ("kernel", "initrd"):
        (folder / blob).write_bytes(_blob(image, blob))
    return image


def faults(folder: Path) -> Contest:
    """Address translation takes no global lock: two processors do twice the work of one."""
    program = peers.compile_faults(folder)
    command = ["sh", "-c", "exec /faults $(sed 's/.*processes=//' /proc/cmdline)"]
    image, absent = _packed("faults", config("faults", ["faults"], command, cpus=2), folder), []

    def contestant(name: str, command: list[str | Path]) -> Contestant:
        def turn() -> Mapping[str, float]:
            words = peers.output_of(command).split()
            return {"page faults": int(words[words.index("faults") + 1]) / 1e9}

        return Contestant(name, turn)

    contestants, ratios = [], []
    for processes in (1, 2):
        cmdline = f"{CMDLINE} processes={processes}"
        contestants.append(contestant(f"native, {processes} at once", [program, str(processes)]))
        for engine in ENGINES:
            change = ["--set", f"boot.cmdline={json.dumps(cmdline)}"]
            command = peers.imgvm("run", image, "--accel", engine, *change)
            contestants.append(contestant(f"imgvm {engine}, {processes} at once", command))
        try:
            in_qemu = qemu(folder / "kernel", folder / "initrd", cmdline, cpus=2)
            contestants.append(contestant(f"{TCG}, {processes} at once", in_qemu))
        except AbsentError as missing:
            absent.append(f"{TCG}: {missing}")
    for name in [*(f"imgvm {engine}" for engine in ENGINES), TCG, "native"]:
        if any(contestant.name.startswith(name) for contestant in contestants):
            ratios.append((f"{name}, 1 at once", f"{name}, 2 at once"))
    what = (
        "The same number of page faults in Debian on two processors, by one process and by two at once: the "
        "ratio is how well it scales. The time is that of the program's clock."
    )
    return Contest("Page faults on two processors", what, contestants, ratios, absent)


def guest_disks(folder: Path) -> Contest:
    """A disk from inside the guest, in the same image for all."""
    peers.compile_guest_disk(folder)
    text = json.loads(config("disk", ["guest_disk"], ["/guest_disk", "/dev/vda"]))
    text["disks"] = [{"name": "d", "size": "128MiB"}]
    image, copy, absent = _packed("disk", json.dumps(text), folder), folder / "copy.img", []

    def contestant(name: str, command: list[str | Path]) -> Contestant:
        def turn() -> Mapping[str, float]:
            shutil.copyfile(image, copy)
            with copy.open("r+b") as stream:
                os.fsync(stream.fileno())
            found = _kernels(peers.output_of(command))
            return {name.replace("_", " "): int(words[0]) / 1e9 for name, words in found.items()}

        return Contestant(name, turn)

    contestants = [contestant("imgvm jit", peers.imgvm("run", copy, "--accel", "jit"))]
    ways = {"io_uring": ("io_uring", ""), "threads": ("threads", ""), "iothread": ("threads", ",iothread=io")}
    try:
        for name, (aio, thread) in ways.items():
            drive = f"file={copy},format=qcow2,if=none,id=d,cache=writeback,aio={aio}"
            device = f"virtio-blk-pci,drive=d{thread}"
            in_qemu = qemu(folder / "kernel", folder / "initrd")
            in_qemu += ["-object", "iothread,id=io", "-drive", drive, "-device", device]
            contestants.append(contestant(f"{TCG}, {name}", in_qemu))
    except AbsentError as missing:
        absent.append(f"{TCG}: {missing}")
    what = (
        "128 MiB of virtio-blk in Debian on one processor, past the guest's page cache "
        "(`benchmarks/guest_disk.c`), in a qcow2 image that has nothing of it yet; the host has all of it in "
        "its page cache. QEMU with `cache=writeback`, by io_uring, by threads, and by threads with an "
        "iothread. Times are those of the program's clock."
    )
    ratios = [("imgvm jit", f"{TCG}, {name}") for name in ways]
    return Contest("A disk from inside the guest", what, contestants, ratios, absent)


def start(folder: Path) -> Contest:
    image, result = folder / "hello.img", folder / "result.json"
    pack(Config.load(peers.HERE.parent / "examples" / "hello.yaml"), image)
    (folder / "hello.elf").write_bytes(_blob(image, "kernel"))
    command = peers.imgvm("run", image, "--accel", "interp", "--result-file", result)

    def ours() -> Mapping[str, float]:
        seconds = peers.seconds_of(command)
        return {"the whole command": seconds, "the machine in it": json.loads(result.read_text())["seconds"]}

    contestants, absent = [Contestant("imgvm interp", ours)], []
    try:
        in_qemu: list[str | Path] = [
            peers.qemu(), "-accel", "tcg", "-M", "q35", "-nodefaults", "-display", "none", "-no-reboot",
            "-m", "64", "-serial", "stdio", "-kernel", folder / "hello.elf", "-append", "name=hello",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        ]  # fmt: skip
        # isa-debug-exit makes 1 of the guest's 0
        contestants.append(Contestant(TCG, lambda: {"the whole command": peers.seconds_of(in_qemu, (1,))}))
    except AbsentError as missing:
        absent.append(f"{TCG}: {missing}")
    what = "`examples/hello.yaml`, a Multiboot kernel of our own: from the start of the command to its end."
    return Contest("Start of the embedded guest", what, contestants, [("imgvm interp", TCG)], absent)


def _blob(image: Path, name: str) -> bytes:
    with Image.open(image) as opened:
        return opened.read_config(name)


WORKLOADS: dict[str, Callable[[Path], Contest]] = {
    "boot": boot,
    "loops": loops,
    "narrow": narrow,
    "faults": faults,
    "programs": partial(programs, qemu=qemu),
    "start": start,
    "disks": disks,
    "disks-processor": disks_processor,
    "guest-disks": guest_disks,
    "rootfs": packing.rootfs,
}
