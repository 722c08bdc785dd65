# SPDX-License-Identifier: MIT
"""`imgvm inspect`: what an image carries."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated, Any

import typer

from imgvm.cli.options import Allow, AsJson, ImageFile
from imgvm.errors import UsageError


def command(
    image: ImageFile,
    config: Annotated[bool, typer.Option("--config", help="The config, as it was written.")] = False,
    as_json: AsJson = False,
    allow: Allow = None,
) -> int:
    """Show an image's machine, its disk and its blobs."""
    from imgvm import audit, edit, launch, units
    from imgvm.log import for_stdout, json_text, one_line, printable
    from imgvm.machine import to_document

    if config and as_json:
        raise UsageError("--config and --json exclude each other")
    opened = launch.open_image(image, writable=False, allow=launch.parse_grants(allow))
    with opened.image:
        if config:
            text = edit.text_of(opened.image)
            sys.stdout.write(for_stdout(text if text.endswith("\n") else text + "\n"))
            return 0
        facts = audit.describe(opened.image)
    if as_json:
        document: dict[str, Any] = {"machine": to_document(opened.machine), **facts}
        print(json_text(document, indent=2))
        return 0
    machine = opened.machine
    size = units.format_size
    print(f"name      {machine.name}")
    if machine.description:
        print(textwrap.indent(printable(machine.description.strip()), " " * 10))
    memory = size(machine.hardware.memory_bytes)
    print(f"machine   {machine.hardware.cpus} cpu, {memory} memory, engine {machine.hardware.accel}")
    if machine.loaded is None:
        other = machine.hardware.firmware.path
        print(f"boot      {one_line(other) if other else 'built-in BIOS: ' + ', '.join(machine.boot_order)}")
    else:
        print(f"boot      {machine.loaded.protocol}: {one_line(machine.kernel_cmdline)}")
    print(f"disk      {size(facts['disk_bytes'])}, clusters of {size(facts['cluster_bytes'])}")
    for disk in machine.further_disks:
        where = "in the image" if disk.embed else f"the host's {one_line(disk.source or '')}"
        bytes_ = f"{size(facts['further_disks'][disk.name])}, " if disk.name in facts["further_disks"] else ""
        print(f"disk      {bytes_}{disk.name}, {where}")
    if facts["backing_file"] is not None:
        print(f"backing   {one_line(facts['backing_file'])}")
    names = [one_line(blob["name"]) for blob in facts["blobs"]]
    width = max([12, *map(len, names)])
    for name, blob in zip(names, facts["blobs"], strict=True):
        print(f"blob      {name:{width}} {blob['bytes']:>10} bytes  sha256 {blob['sha256']}")
    return 0
