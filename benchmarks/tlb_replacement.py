# SPDX-License-Identifier: MIT
"""python -m benchmarks.tlb_replacement: what the second-level TLB misses by CLOCK, and by FIFO.

Both see the same traces, those of whole runs of Debian's kernel: boot, then many short processes, or few with
more pages than fit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import peers
from benchmarks.workloads import CMDLINE, DISTRO, PACKAGE
from imgvm.config import Config
from imgvm.pack import pack
from imgvm.qcow2 import Image

MODELS = ("portable", "host")  # without PCIDs and with them
COMMANDS = {
    "200 pipelines": "for i in $(seq 200); do cat /proc/self/maps | sort -r | md5sum; done > /dev/null",
    "two sorts": "seq 300000 | sort -r | md5sum > /dev/null & seq 300000 | sort | md5sum > /dev/null; wait",
}
CONFIG = """
version: 1
name: bench
boot:
  kernel: {{distro: "{distro}", package: {package}}}
exec: {{command: [sh, -c, "{command}"]}}
"""
WRAPPED = ("lookup", "insert", "select", "drop_all", "drop_local", "drop_space", "drop_page", "drop_page_of")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="imgvm-bench-") as name:
        folder = Path(name)
        program = peers.compile_tlb_trace(folder, [f"-Wl,--wrap=stlb_{name}" for name in WRAPPED])
        vmlinux, initrd = folder / "vmlinux", folder / "initrd"
        print("| guest | model | lookups | missed, CLOCK | missed, FIFO | FIFO / CLOCK |")
        print("|---|---|--:|--:|--:|--:|")
        for what, command in COMMANDS.items():
            text = CONFIG.format(distro=DISTRO, package=PACKAGE, command=command)
            image = folder / f"{what}.img"
            pack(Config.from_text(text, "bench.yaml", folder), image)
            with Image.open(image) as opened:
                vmlinux.write_bytes(opened.read_config("kernel"))
                initrd.write_bytes(opened.read_config("initrd"))
            for model in MODELS:
                said = peers.output_of([program, model, vmlinux, initrd, CMDLINE])
                rows = {words[0]: words[1:] for words in map(str.split, said.splitlines())}
                lookups, clock, fifo = int(rows["CLOCK"][0]), int(rows["CLOCK"][1]), int(rows["FIFO"][1])
                rates = f"{clock / lookups:.2%} | {fifo / lookups:.2%} | {fifo / clock:.2f}"
                print(f"| {what} | {model} | {lookups} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
