# SPDX-License-Identifier: MIT
"""A C compiler at work in a guest: more code than fits a cache, in several address spaces by turns."""

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
ROWS = {"one file": 1, "two files at the same time": 2, "four files at the same time": 4}
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
turn() {{
    before=$(now)
    k=0
    while [ $k -lt $1 ]; do
        ({gcc} -o /tmp/a$k.o /tmp/a.c || echo failed) &
        k=$((k + 1))
    done
    wait
    echo "turn $1 $before $(now)"
}}
turn 1 >/dev/null
{turns}
"""


def _script() -> str:
    functions = "".join(FUNCTION.format(i=i, n=i % 7 + 2, m=i + 5) for i in range(1, FUNCTIONS + 1))
    turns = "\n".join(f"turn {files}" for files in ROWS.values())
    return SCRIPT.format(functions=functions, gcc=GCC, turns=turns)


def _turns(output: str) -> Mapping[str, float]:
    found = {}
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["failed"]:
            raise RuntimeError("the compiler failed")
        if words[:1] == ["turn"]:
            found[int(words[1])] = float(words[3]) - float(words[2])
    if set(found) != set(ROWS.values()):
        raise RuntimeError(f"the guest did not finish: {output[-500:]}")
    return {row: found[files] for row, files in ROWS.items()}


def compiler(folder: Path, qemu: Callable[..., list[str | Path]]) -> Contest:
    image, vmlinux, initrd = folder / "compiler.img", folder / "vmlinux", folder / "initrd"
    text = (
        f"version: 1\nname: compiler\nmachine: {{memory: {MEMORY_MIB}MiB}}\n"
        'boot: {kernel: {distro: "debian:bookworm"}, initrd: initrd, cmdline: [console=ttyS0, quiet]}\n'
    )
    try:
        initrd.write_bytes(guest_root.build(_script(), guest_root.COMPILER))
        pack(Config.from_text(text, "compiler.yaml", folder), image)
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
        f"`{GCC}` over {FUNCTIONS} small functions, Debian's gcc 12 in a guest of {MEMORY_MIB} MiB and one "
        "processor, after one file that does not count. The guest's own clock."
    )
    return Contest("A compiler", what, contestants, ratios, absent)
