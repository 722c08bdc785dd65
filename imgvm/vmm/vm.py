# SPDX-License-Identifier: MIT
"""The handle of a running machine, over the vm part of imgvm_api.h.

The guest runs on native threads; Python only starts it, waits for its end, and may press its power button.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from imgvm import binding
from imgvm.errors import STATUS_CANNOT_RUN, STATUS_ERROR, STATUS_PANIC, EngineError
from imgvm.machine import Machine
from imgvm.record import NOTHING, Record
from imgvm.vmm import engine as _engine

if TYPE_CHECKING:
    from imgvm.vmm.capture import Capture

MULTIBOOT_MAGIC = 0x1BADB002  # Multiboot 1, section 3.1.1
MULTIBOOT_SEARCH_BYTES = 8192


class Result(Record, unshown=("console", "counts")):
    """How a run ended. `status` is the process status that it stands for."""

    reason: str  # poweroff debug_exit reset triple_fault panic stopped internal exec timeout signal
    status: int
    accel: str
    seconds: float
    instructions: int | None  # in software (under KVM: in hand-overs); None: not counted (Watch.count)
    handovers: int = 0  # times that KVM could not go on and the software processor did
    message: str = ""
    console: str = ""
    disk_errors: int = 0  # requests for a disk that failed on this host
    disk_message: str = ""  # why the first one did
    output_error: str = ""  # why the rest of the console's output could not be written
    trace_error: str = ""  # the same of the trace
    counts: Mapping[str, Mapping[str, int]] = NOTHING  # docs/debugging.md
    is_stuck: bool = False  # its threads still run: nothing that they use may be closed

    @property
    def is_crash(self) -> bool:
        return self.reason in ("triple_fault", "panic", "internal")


class Program(Record):
    """What is loaded into memory before the start."""

    kernel: bytes | memoryview = b""
    initrd: bytes | memoryview | None = None
    modules: tuple[bytes | memoryview, ...] = ()
    firmware: bytes | None = None  # in place of a kernel


class Drive(Record):
    """An opened image (its native handle) as the guest's disk. `owner` lives as long as the machine."""

    handle: Any
    read_only: bool
    serial: str
    owner: Any = None
    cache: str = "writeback"
    discard: bool = True


class Watch(Record):
    """How closely a run is looked at."""

    count: bool = False  # the translator counts instructions and executors, which makes it slower
    trace: str = ""  # kinds of events with commas between (docs/debugging.md), a line each
    trace_file: Path | None = None  # where; None: stderr
    perf_map: bool = False  # /tmp/perf-PID.map names what the translator made
    lockstep: bool = False  # the interpreter checks every block that the translator runs


NO_WATCH = Watch()

# Python handles signals only between native calls; each of them costs an idle machine something.
WAIT_SLICE_S = 0.25


def wait_slice(deadline: float | None) -> float:
    """How many seconds to wait now for a machine that is given until `deadline` (of time.monotonic)."""
    return WAIT_SLICE_S if deadline is None else min(WAIT_SLICE_S, max(0.0, deadline - time.monotonic()))


@functools.cache
def _perf_map(pid: int) -> int:
    """Where Linux perf looks for names of this process's code: open until it ends, for all its machines."""
    path = Path(f"/tmp/perf-{pid}.map")
    path.unlink(missing_ok=True)  # an older process's, or somebody's trap: nothing there is followed
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def check_trace(kinds: str) -> None:
    """Raises unless all of Watch.trace is known."""
    binding.call(EngineError, "imgvm_trace_check", kinds.encode())


def detect_protocol(kernel: bytes | memoryview) -> str:
    """multiboot when a valid Multiboot 1 header stands in the first 8 KiB, else linux."""
    head = kernel[:MULTIBOOT_SEARCH_BYTES]
    for offset in range(0, len(head) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", head, offset)
        if magic == MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return "multiboot"
    return "linux"


def escape_byte(escape: str) -> int:
    """The control character of `ctrl-a`; 0 for none."""
    return 0 if escape == "none" else ord(escape[-1].upper()) & 0x1F


class Vm:
    """A machine: built, loaded, started, waited for. Closing it stops it."""

    def __init__(
        self,
        machine: Machine,
        engine: str,
        program: Program,
        drives: Sequence[Drive] = (),
        watch: Watch = NO_WATCH,
    ) -> None:
        self.machine = machine
        self.accel = engine
        self._watch = watch
        self._drives = tuple(drives)
        self._started_at = 0.0
        self._capture: Capture | None = None
        self._result: Result | None = None
        self._handle: Any = self._create()
        try:
            for drive in self._drives:
                cache = getattr(binding.lib(), f"IMGVM_CACHE_{drive.cache.upper()}")
                serial = drive.serial.encode()
                self._call("add_disk", drive.handle, drive.read_only, serial, cache, drive.discard)
            self._load(program)
        except BaseException:
            self.close()
            raise

    def _create(self) -> Any:
        # The config only points to these.
        smbios, _texts = _smbios(self.machine)
        model = binding.ffi().new("char[]", self.machine.hardware.cpu.model.encode())
        features = binding.ffi().new("char[]", " ".join(self.machine.hardware.cpu.features).encode())
        config = self._config()
        vendor = binding.ffi().new("char[]", self.machine.hardware.cpu.vendor.encode())
        config.cpu_model, config.cpu_features, config.cpu_vendor = model, features, vendor
        config.smbios = smbios
        with contextlib.ExitStack() as stack:
            if self._watch.trace:
                kinds = binding.ffi().new("char[]", self._watch.trace.encode())
                config.trace, config.trace_fd = kinds, 2
                if self._watch.trace_file is not None:
                    config.trace_fd = stack.enter_context(self._watch.trace_file.open("w")).fileno()
            try:
                return binding.open_handle(EngineError, "imgvm_vm_create", config)
            except EngineError as error:
                if error.errno == errno.ENOTSUP:
                    error.status = STATUS_CANNOT_RUN
                raise

    def _config(self) -> Any:
        lib, machine, debug_exit = binding.lib(), self.machine, self.machine.debug_exit
        config = binding.ffi().new("imgvm_vm_config *")
        config.abi = lib.IMGVM_ABI
        config.engine = _engine.native_id(self.accel)
        config.cpus = machine.hardware.cpus
        config.memory_bytes = machine.hardware.memory_bytes
        config.entropy = machine.hardware.entropy
        config.count = self._watch.count
        config.lockstep = self._watch.lockstep
        config.perf_map_fd = _perf_map(os.getpid()) if self._watch.perf_map else 0
        config.firmware_shadow = machine.hardware.firmware.path is not None
        config.reset_is_exit = machine.exit.on_reboot == "exit"
        if debug_exit is not None:
            mappings = {"raw": lib.IMGVM_DEBUG_EXIT_RAW, "qemu": lib.IMGVM_DEBUG_EXIT_QEMU}
            config.debug_exit = mappings[debug_exit.mapping]
            config.debug_exit_port = debug_exit.port
        return config

    def _call(self, name: str, *args: Any) -> int:
        if self._handle is None:
            raise EngineError("the machine is closed")
        return binding.call(EngineError, f"imgvm_vm_{name}", self._handle, *args)

    def _load(self, program: Program) -> None:
        boot, ffi = self.machine.boot, binding.ffi()
        if program.firmware is not None:
            kinds = (f"IMGVM_BOOT_{kind.upper()}" for kind in self.machine.boot_order)
            order = bytes(getattr(binding.lib(), kind) for kind in kinds)
            rom = ffi.from_buffer(program.firmware)
            self._call("load_firmware", rom, len(program.firmware), ffi.from_buffer(order), len(order))
            return
        cmdline = self.machine.kernel_cmdline.encode("utf-8", "surrogateescape")
        protocol = boot.protocol if boot else "auto"
        if protocol == "auto":
            protocol = detect_protocol(program.kernel)
        if protocol == "multiboot":
            words = boot.modules if boot else ()
            for index, module in enumerate(program.modules):
                line = words[index] if index < len(words) else ""
                self._call("add_module", ffi.from_buffer(module), len(module), line.encode())
            self._call("load_multiboot", ffi.from_buffer(program.kernel), len(program.kernel), cmdline)
            return
        kernel, initrd = program.kernel, program.initrd or b""
        initrd_at = ffi.from_buffer(initrd) if initrd else ffi.NULL
        self._call("load_linux", ffi.from_buffer(kernel), len(kernel), initrd_at, len(initrd), cmdline)

    def set_console(self, input_fd: int, output_fd: int, escape: str = "none") -> None:
        """Connects the serial port; the descriptors stay the caller's and must outlive the machine."""
        self._call("set_console", input_fd, output_fd, escape_byte(escape))

    def capture_console(self) -> Capture:
        """Connects the serial port to memory: `vm.console` then reads and writes it."""
        from imgvm.vmm.capture import Capture

        self._capture = Capture()
        self.set_console(self._capture.input_fd, self._capture.output_fd)
        return self._capture

    @property
    def console(self) -> Capture:
        if self._capture is None:
            raise EngineError("this machine's console is not captured")
        return self._capture

    def set_gdb(self, address: str) -> str:
        """Waits for gdb at HOST:PORT, PORT or unix:PATH; returns the address taken. Once started, the machine
        stands at its first instruction until gdb lets it go."""
        where = binding.ffi().new("char[256]")
        self._call("set_gdb", address.encode(), where, 256)
        return binding.text(where)

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._call("start")

    def wait(self, timeout: float | None = None) -> Result | None:
        """The result, or None when the machine still runs after `timeout` seconds (None: waits for ever)."""
        if self._result is not None:
            return self._result
        if self._handle is None:
            raise EngineError("the machine is closed")
        out = binding.ffi().new("imgvm_result *")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = wait_slice(deadline)
            if binding.lib().imgvm_vm_wait(self._handle, int(left * 1000), out):
                self._result = self._translate(out)
                return self._result
            if deadline is not None and time.monotonic() >= deadline:
                return None

    def _translate(self, out: Any) -> Result:
        reason, status = _reasons().get(out.reason, ("internal", STATUS_ERROR))
        return Result(
            reason=reason,
            status=out.status & 0xFF if status is None else status,
            accel=self.accel,
            seconds=out.run_ns / 1e9,
            instructions=None if out.instructions == binding.lib().IMGVM_UNCOUNTED else out.instructions,
            handovers=out.handovers,
            message=binding.text(out.message),
            console=self._capture.text() if self._capture else "",
            disk_errors=out.disk_errors,
            disk_message=binding.text(out.disk_message),
            output_error=os.strerror(out.output_errno) if out.output_errno else "",
            trace_error=os.strerror(out.trace_errno) if out.trace_errno else "",
            counts=self._counts(),
        )

    def _counts(self) -> dict[str, dict[str, int]]:
        lib, ffi = binding.lib(), binding.ffi()
        items = ffi.new("imgvm_count[]", lib.imgvm_vm_counts(self._handle, ffi.NULL, 0))
        counts: dict[str, dict[str, int]] = {}
        for item in items[0 : min(len(items), lib.imgvm_vm_counts(self._handle, items, len(items)))]:
            counts.setdefault(binding.text(item.group), {})[binding.text(item.name)] = item.value
        return counts

    def power_button(self) -> None:
        """Presses it; what happens is the guest's choice."""
        if self._handle is not None:
            binding.lib().imgvm_vm_power_button(self._handle)

    def stop(self) -> None:
        """Ends the run without asking the guest."""
        if self._handle is not None:
            binding.lib().imgvm_vm_stop(self._handle)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            binding.lib().imgvm_vm_destroy(handle)
        drives, self._drives = self._drives, ()
        for drive in reversed(drives):  # the image that others lie in is the first
            if drive.owner is not None:
                drive.owner.close()
        if self._capture is not None:
            self._capture.close()

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _smbios(machine: Machine) -> tuple[Any, list[Any]]:
    """What SMBIOS says, and the texts that it points to."""
    ffi = binding.ffi()
    wish = vars(machine.smbios)
    texts = {key: ffi.new("char[]", text.encode()) for key, text in wish.items() if isinstance(text, str)}
    oem = [ffi.new("char[]", text.encode()) for text in machine.smbios.oem_strings]
    rows = ffi.new("char *[]", oem)
    uuid = bytes.fromhex(machine.hardware.uuid.replace("-", "")) or bytes(16)
    fields = {**texts, "uuid": uuid, "oem_strings": rows, "oem_count": len(oem)}
    return ffi.new("imgvm_smbios *", fields), [*texts.values(), *oem, rows]


def _reasons() -> dict[int, tuple[str, int | None]]:
    """IMGVM_REASON_* to a name and a process status; None: the guest's own."""
    lib = binding.lib()
    return {
        lib.IMGVM_REASON_POWEROFF: ("poweroff", 0),
        lib.IMGVM_REASON_DEBUG_EXIT: ("debug_exit", None),
        lib.IMGVM_REASON_RESET: ("reset", 0),
        lib.IMGVM_REASON_TRIPLE_FAULT: ("triple_fault", STATUS_PANIC),
        lib.IMGVM_REASON_PANIC: ("panic", STATUS_PANIC),
        lib.IMGVM_REASON_STOPPED: ("stopped", 0),
        lib.IMGVM_REASON_INTERNAL: ("internal", STATUS_ERROR),
        lib.IMGVM_REASON_EXEC: ("exec", None),
    }
