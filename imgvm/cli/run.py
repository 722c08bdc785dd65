# SPDX-License-Identifier: MIT
"""`imgvm run`: a machine on this terminal; its status becomes ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgvm.cli import GDB_ADDRESS
from imgvm.cli.options import Allow, Profiles, Sets, Vars


def command(
    source: Annotated[
        Path, typer.Argument(metavar="IMAGE|CONFIG", help="An image, or a config to pack first.")
    ],
    accel: Annotated[
        str | None,
        typer.Option("--accel", metavar="auto|kvm|jit|interp", help="The engine.", show_default=False),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("-m", "--memory", metavar="SIZE", help="RAM, as 1GiB.")
    ] = None,
    cpus: Annotated[int | None, typer.Option("-c", "--cpus", metavar="N", help="Processors.")] = None,
    sets: Sets = None,
    vars: Vars = None,
    profiles: Profiles = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="End with status 124 after this, as 10m.")
    ] = None,
    result_file: Annotated[
        Path | None, typer.Option("--result-file", metavar="FILE", help="Write how the run ended, as JSON.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved config and do not run.")
    ] = False,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Throw away what the guest writes; the image stays as it is.")
    ] = False,
    allow: Allow = None,
    gdb: Annotated[
        str | None,
        typer.Option(
            "--gdb", metavar="[=ADDRESS]", help=f"Wait for gdb at HOST:PORT or unix:PATH ({GDB_ADDRESS})."
        ),
    ] = None,
    stats: Annotated[
        str | None,
        typer.Option(
            "--stats",
            metavar="[=json]",
            help="Say what the engine did and how often. It makes --accel jit slower.",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            metavar="KIND,...",
            help="A line for each of exits, exceptions, interrupts, modes, msrs, ports, mmio; or all.",
        ),
    ] = None,
    trace_file: Annotated[
        Path | None, typer.Option("--trace-file", metavar="FILE", help="Where they go instead of to stderr.")
    ] = None,
    perf_map: Annotated[
        bool, typer.Option("--perf-map", help="With --accel jit: name its code for Linux perf.")
    ] = False,
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="With --accel jit: check all it translates by interpreting.")
    ] = False,
) -> int:
    """Run an image (or a config, packed for this run only).

    The guest's status becomes imgvm's. Besides: 124 timeout, 125 imgvm's own error, 126 cannot run here,
    127 no such image or no config in it, 128+N signal, 255 guest panic or triple fault.

    The guest's console reaches the terminal byte for byte: mind whose guest it is. Input from a pipe waits
    until the guest receives; its end does not end the guest.
    """
    from imgvm.cli import on_terminal

    return on_terminal.command(
        source,
        accel=accel,
        memory=memory,
        cpus=cpus,
        sets=sets,
        vars=vars,
        profiles=profiles,
        timeout=timeout,
        result_file=result_file,
        print_config=print_config,
        ephemeral=ephemeral,
        allow=allow,
        gdb=gdb,
        stats=stats,
        trace=trace,
        trace_file=trace_file,
        perf_map=perf_map,
        lockstep=lockstep,
    )
