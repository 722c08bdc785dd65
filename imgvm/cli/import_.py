# SPDX-License-Identifier: MIT
"""`imgvm import`: another program's machine as a config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from imgvm.errors import UsageError
from imgvm.log import for_stdout, log


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE | -- qemu-system-x86_64 ...",
            help="A libvirt domain, OVF or OVA, a script that runs QEMU; or its command line after --.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="CONFIG", help="By default stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> int:
    """Make a config of another program's machine. What it could not take over is said on stderr.

    The disks of an OVA become qcow2 files beside the config.
    """
    from imgvm.exchange import import_ova, importing
    from imgvm.exchange.import_qemu import from_command
    from imgvm.pack.output import check_output

    if output is not None:
        check_output(output, force=force)
    source, folder = Path(words[0]), output.parent if output else Path()
    base = source.parent
    if len(words) > 1:
        if "qemu" not in source.name:
            raise UsageError("name one file, or a QEMU command line after --", "see `imgvm import --help`")
        found, base = from_command(words), Path()
    elif import_ova.is_ova(source):
        if output is None:
            raise UsageError(f"{source}: an OVA has disks, which go beside the config", "name that with -o")
        found = import_ova.from_ova(source, folder, force=force)
    else:
        found = importing.from_file(source)
    found.move(base, folder)
    text = found.text()
    if output is None:
        sys.stdout.write(for_stdout(text))
    else:
        output.write_text(text)
        print(output)
    for note in found.notes:
        log.info(f"not taken over: {note}")
    return 0
