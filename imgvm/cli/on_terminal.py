# SPDX-License-Identifier: MIT
"""One run at this terminal, from a file name to a process status."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from imgvm import launch, units
from imgvm.config import Config, resolved_text
from imgvm.errors import STATUS_SIGNAL, ImgvmError, UsageError
from imgvm.log import log
from imgvm.machine import Machine
from imgvm.qcow2 import overlay
from imgvm.vmm import console, engine
from imgvm.vmm.vm import NO_WATCH, Result, Vm, Watch, check_trace

STATS_FORMATS = ("table", "json")
REASONS = {
    "triple_fault": "the guest's processor stopped on a triple fault",
    "panic": "the guest reported a panic",
    "internal": "the machine had to be stopped",
    "timeout": "timeout",
    "signal": "ended",
}


def command(
    source: Path,
    *,
    accel: str | None = None,
    memory: str | None = None,
    cpus: int | None = None,
    sets: Sequence[str] | None = None,
    vars: Sequence[str] | None = None,
    profiles: Sequence[str] | None = None,
    timeout: str | None = None,
    result_file: Path | None = None,
    print_config: bool = False,
    ephemeral: bool = False,
    allow: Sequence[str] | None = None,
    gdb: str | None = None,
    stats: str | None = None,
    trace: str | None = None,
    trace_file: Path | None = None,
    perf_map: bool = False,
    lockstep: bool = False,
) -> int:
    """`imgvm run`, by its options as they were given; the status of the process."""
    overrides = list(sets or ())
    for value, path in ((accel, "machine.accel"), (memory, "machine.memory"), (timeout, "exit.timeout")):
        if value is not None:
            if not value.strip():
                raise UsageError(f"the value for {path} is empty")
            overrides.append(f'{path}="{value}"')
    if cpus is not None:
        overrides.append(f"machine.cpus={cpus}")
    if stats not in (None, *STATS_FORMATS):
        raise UsageError(f"--stats={stats}: there are {' and '.join(STATS_FORMATS)}")
    if trace is not None:
        check_trace(trace)
    return run(
        source,
        overrides,
        result_file,
        variables=vars or (),
        profiles=profiles or (),
        print_config=print_config,
        ephemeral=ephemeral,
        allow=launch.parse_grants(allow),
        gdb=gdb,
        watch=Watch(
            count=stats is not None,
            trace=trace or "",
            trace_file=trace_file,
            perf_map=perf_map,
            lockstep=lockstep,
        ),
        stats=stats,
    )


def run(
    source: Path,
    overrides: Sequence[str],
    result_file: Path | None,
    *,
    print_config: bool = False,
    ephemeral: bool = False,
    allow: Collection[str] = (),
    gdb: str | None = None,
    watch: Watch = NO_WATCH,
    stats: str | None = None,
    variables: Sequence[str] = (),
    profiles: Sequence[str] = (),
) -> int:
    if result_file is not None:
        _check_result_file(result_file)
    try:
        with contextlib.ExitStack() as stack:
            result = _run(
                source,
                overrides,
                stack,
                print_config=print_config,
                ephemeral=ephemeral,
                allow=allow,
                gdb=gdb,
                watch=watch,
                variables=variables,
                profiles=profiles,
            )
            if result is not None and result.is_stuck:
                _report(result, result_file, stats)
                os._exit(result.status)  # closing what its threads use would be worse
    except ImgvmError as error:
        if result_file is not None:
            _write_result(result_file, {"reason": "error", "status": error.status, "message": str(error)})
        raise
    if result is None:
        return 0
    _report(result, result_file, stats)
    return result.status


def _report(result: Result, result_file: Path | None, stats: str | None) -> None:
    if result_file is not None:
        _write_result(result_file, {
            "reason": result.reason,
            "status": result.status,
            "accel": result.accel,
            "seconds": round(result.seconds, 6),
            "instructions": result.instructions,
            "handovers": result.handovers,
            "message": result.message,
            "disk_errors": result.disk_errors,
            "disk_message": result.disk_message,
            "output_error": result.output_error,
            "trace_error": result.trace_error,
            "counts": result.counts,
        })
    _say_end(result, stats)


def _run(
    source: Path,
    overrides: Sequence[str],
    stack: contextlib.ExitStack,
    *,
    print_config: bool,
    ephemeral: bool,
    allow: Collection[str],
    gdb: str | None,
    watch: Watch,
    variables: Sequence[str],
    profiles: Sequence[str],
) -> Result | None:
    if launch.is_image(source):
        if variables or profiles:
            hint = "give them to `imgvm pack`"
            raise UsageError(f"{source} is an image: its variables and profiles are settled", hint)
        writable, kept = False if print_config else None, overlay.path_of(source)
        is_new = not kept.exists()
        opened = launch.open_image(source, overrides, writable=writable, allow=allow, ephemeral=ephemeral)
        stack.callback(opened.image.close)
        if opened.overlay is not None and is_new:
            log.info(f"{source} stays as it is: what its machine writes is kept in {kept.name}, beside it")
        if print_config:
            sys.stdout.write(resolved_text(opened.machine))
            return None
        choice = _choose(opened.machine)
    else:
        config = Config.load(source, overrides, variables=variables, profiles=profiles)
        if print_config:
            sys.stdout.write(config.resolved())
            return None
        choice = _choose(config.machine)
        image = stack.enter_context(_packed(config))
        opened = launch.open_image(image, allow=launch.GRANTS)  # who wrote the config has asked for it
        stack.callback(opened.image.close)
    vm = stack.enter_context(launch.build(opened, choice.engine, watch))
    return _on_terminal(vm, gdb)


def _choose(machine: Machine) -> engine.Choice:
    choice = engine.choose(machine.hardware.accel)
    log.info(str(choice))
    return choice


def _cache_folder() -> Path:
    import platformdirs

    folder = Path(platformdirs.user_cache_path("imgvm")) / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _folder(prefix: str, where: Path) -> Iterator[str]:
    """A temporary folder, gone at the end. Those of runs that were killed are swept away."""
    import shutil
    import tempfile

    for old in where.glob(f"{prefix}*"):
        owner = old.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=where) as folder:
        yield folder


@contextlib.contextmanager
def _packed(config: Config) -> Iterator[Path]:
    """An image of the config that lives as long as the run."""
    from imgvm.pack import pack

    with _folder("pack-", _cache_folder()) as folder:
        image = Path(folder) / f"{config.machine.name}.img"
        pack(config, image)
        if any(not disk.read_only for disk in config.machine.attached):
            log.info("the disk is packed for this run only; `imgvm pack` makes an image that keeps it")
        yield image


def _usable(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _on_terminal(vm: Vm, gdb: str | None = None) -> Result:
    """Starts the machine on stdin and stdout and waits for its end."""
    sys.stdout.flush()
    machine = vm.machine
    connected = machine.console.device == "serial"
    output = 1 if _usable(1) else -1
    terminal = connected and console.is_terminal(0) and output == 1 and os.isatty(1)
    # A terminal that is not ours to read would stop the process.
    readable = _usable(0) and (terminal or not os.isatty(0) or console.is_terminal(0))
    escape = machine.console.escape if terminal else "none"
    if connected and output >= 0:
        vm.set_console(0 if readable else -1, output, escape)
    if gdb is not None:
        log.info(f"waiting for gdb: target remote {vm.set_gdb(gdb)}")
    with contextlib.ExitStack() as stack:
        if terminal:
            if escape != "none":
                log.info(f"{escape} x ends the run")
            stack.enter_context(console.raw_terminal(0))
        vm.start()
        return console.attend(
            vm, timeout_ns=machine.exit.timeout_ns, output_fd=output if connected else None, say=log.info
        )


def _say_end(result: Result, stats: str | None) -> None:
    words = REASONS.get(result.reason)
    # A reader that has seen enough is no error worth a word.
    if words is not None and result.status != STATUS_SIGNAL + signal.SIGPIPE:
        log.error(f"{words}: {result.message}" if result.message else words)
    if result.disk_errors:
        log.error(f"{_times(result.disk_errors, 'disk request')} failed: {result.disk_message}")
    if result.output_error:
        log.error(f"the rest of the guest's output could not be written: {result.output_error}")
    if result.trace_error:
        log.error(f"the trace is not whole: {result.trace_error}")
    rate = ""
    if result.instructions and result.seconds > 0:
        rate = f", {result.instructions} instructions ({result.instructions / result.seconds / 1e6:.0f} M/s)"
    after = units.format_duration(int(result.seconds * 1000) * 1_000_000)
    say = log.info if stats == "table" else log.verbose
    say(f"{result.reason} after {after}, status {result.status}{rate}")
    if stats is None:
        return
    from imgvm.cli import stats as stats_text

    if stats == "table":
        for line in stats_text.text(result, stats).splitlines():
            log.info(line)
    else:
        sys.stderr.write(stats_text.text(result, stats) + "\n")


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _check_result_file(path: Path) -> None:
    """Before a long run, rather than after it."""
    written = path if path.exists() and not _is_replaced(path) else path.resolve().parent
    if path.is_dir() or not os.access(written, os.W_OK):
        raise UsageError(f"--result-file {path} cannot be written")


def _is_replaced(path: Path) -> bool:
    """A link (/dev/stdout), a pipe or a device stays what it is, and is written through."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _write_result(path: Path, result: dict[str, Any]) -> None:
    import tempfile

    text = json.dumps(result, indent=2) + "\n"
    if not _is_replaced(path):
        path.write_text(text)
        return
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
