# SPDX-License-Identifier: MIT
"""Programs in a guest: more code than fits a cache, in several address spaces, at other addresses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.contest import AbsentError, Contest, Contestant
from imgvm.config import Config
from imgvm.errors import PackError
from imgvm.pack import pack
from imgvm.qcow2 import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "boot"))

import guest_root

GCC = "x86_64-linux-gnu-gcc-12 -O2 -c"
MEMORY_MIB = 1024
FUNCTIONS = 25
STARTS = 60
ROWS = {
    "a file compiled": "compile 1",
    "two at the same time": "compile 2",
    "four at the same time": "compile 4",
    f"{2 * STARTS} programs started": "start",
}
FUNCTION = """
struct s{i} {{ int a, b[{n}]; double d; }};
int f{i}(struct s{i} *p, int n)
{{
    int t = 0;
    for (int i = 0; i < n; i++) {{
        t += p[i].a * {i};
        for (int k = 0; k < {n}; k++)
            t ^= p[i].b[k] << (k % 5);
        p[i].d += t * 0.{i};
        if (t % {m} == 0)
            printf("%d %f\\n", t, p[i].d);
    }}
    return t;
}}
"""
SCRIPT = """
dmesg -n 1
cat >/tmp/a.c <<'END'
#include <stdio.h>
{functions}
END
now() {{ cut -d' ' -f1 /proc/uptime; }}
compile() {{
    k=0
    while [ $k -lt $1 ]; do
        ({gcc} -o /tmp/a$k.o /tmp/a.c || echo failed) &
        k=$((k + 1))
    done
    wait
}}
start() {{
    k=0
    while [ $k -lt {starts} ]; do
        x86_64-linux-gnu-as --version >/dev/null || echo failed
        x86_64-linux-gnu-ld --version >/dev/null || echo failed
        k=$((k + 1))
    done
}}
turn() {{
    before=$(now)
    "$@"
    echo "turn $before $(now)"
}}
compile 1
start
{turns}
"""


def _script() -> str:
    functions = "".join(FUNCTION.format(i=i, n=i % 7 + 2, m=i + 5) for i in range(1, FUNCTIONS + 1))
    turns = "\n".join(f"turn {words}" for words in ROWS.values())
    return SCRIPT.format(functions=functions, gcc=GCC, starts=STARTS, turns=turns)


def _turns(output: str) -> Mapping[str, float]:
    lines = [line.split() for line in output.splitlines()]
    found = [float(words[2]) - float(words[1]) for words in lines if words[:1] == ["turn"]]
    if ["failed"] in lines or len(found) != len(ROWS):
        raise RuntimeError(f"the guest did not finish: {output[-500:]}")
    return dict(zip(ROWS, found, strict=True))


def programs(folder: Path, qemu: Callable[..., list[str | Path]]) -> Contest:
    image, vmlinux, initrd = folder / "programs.img", folder / "vmlinux", folder / "initrd"
    text = (
        f"version: 1\nname: programs\nmachine: {{memory: {MEMORY_MIB}MiB}}\n"
        'boot: {kernel: {distro: "debian:bookworm"}, initrd: initrd, cmdline: [console=ttyS0, quiet]}\n'
    )
    try:
        initrd.write_bytes(guest_root.build(_script(), guest_root.COMPILER))
        pack(Config.from_text(text, "programs.yaml", folder), image)
    except PackError as error:
        raise AbsentError(str(error)) from None
    with Image.open(image) as opened:
        vmlinux.write_bytes(opened.read_config("kernel"))

    def turn(command: list[str | Path]) -> Mapping[str, float]:
        return _turns(peers.output_of(command))

    commands = {"imgvm jit": peers.imgvm("-q", "run", image, "--accel", "jit")}
    absent = []
    try:
        command = qemu(vmlinux, initrd, "console=ttyS0 quiet panic=-1", memory_mib=MEMORY_MIB)
        commands["QEMU TCG"] = command
        commands["QEMU TCG, -cpu max"] = [*command, "-cpu", "max"]
    except AbsentError as missing:
        absent.append(f"QEMU TCG: {missing}")
    contestants = [Contestant(name, partial(turn, words)) for name, words in commands.items()]
    ratios = [("imgvm jit", name) for name in commands if name != "imgvm jit"]
    what = (
        f"Debian's gcc 12 (`-O2`) over {FUNCTIONS} small functions; `as --version` and `ld --version`, "
        f"{STARTS} times each, which the dynamic linker puts elsewhere each time. A guest of {MEMORY_MIB} "
        "MiB and one processor, after a turn of each that does not count; by its own clock."
    )
    return Contest("A compiler, and programs that are started", what, contestants, ratios, absent)
