# SPDX-License-Identifier: MIT
"""Debian on many processors in software: that they all come up, and that they keep their heads under load."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_images import SECONDS

import imgvm

pytestmark = [pytest.mark.boot, pytest.mark.network]

STRESS = Path(__file__).parents[1] / "guest" / "stress.c"
SOFTWARE = pytest.mark.parametrize("accel", ["interp", "jit"])
# Every processor by itself, and what it says of its place: one package, a core each.
ALL_AT_WORK = """
set -e
n=$(nproc); echo "nproc $n"
i=0; while [ $i -lt $n ]; do
    [ $(taskset -c $i sed 's/.*) //; s/ \\+/ /g' /proc/self/stat | cut -d ' ' -f 37) = $i ]
    [ $(cat /sys/devices/system/cpu/cpu$i/topology/core_cpus_list) = $i ]
    i=$((i + 1))
done
echo "package $(cat /sys/devices/system/cpu/cpu0/topology/package_cpus_list)"
"""


def config(command: str, files: str = "[]") -> str:
    return f"""
version: 1
name: processors
machine: {{memory: 1GiB}}
boot: {{kernel: {{distro: "debian:bookworm"}}, cmdline: [console=ttyS0, quiet], files: {files}}}
exec: {{command: {json.dumps(command)}}}
"""


def run(image: Path, accel: str, processors: int, seconds: float) -> str:
    with imgvm.run(image, accel, [f"machine.cpus={processors}"]) as vm:
        result = vm.wait(seconds)
        said = vm.console.text().replace("\r", "")
    assert result is not None, f"no end after {seconds} s:\n{said[-3000:]}"
    assert (result.reason, result.status) == ("exec", 0), said[-3000:]
    return said


def come_up(pack_config: Callable[[str], Path], accel: str, processors: int) -> None:
    said = run(pack_config(config(ALL_AT_WORK)), accel, processors, SECONDS)
    assert f"nproc {processors}\n" in said
    assert f"package 0-{processors - 1}\n" in said


@SOFTWARE
def test_eight_processors(accel: str, pack_config: Callable[[str], Path]) -> None:
    come_up(pack_config, accel, 8)


@pytest.mark.nightly
@SOFTWARE
def test_sixty_four_processors(accel: str, pack_config: Callable[[str], Path]) -> None:
    come_up(pack_config, accel, 64)


def stress(
    pack_config: Callable[[str], Path], folder: Path, accel: str, processors: int, seconds: int
) -> None:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    subprocess.run(["cc", "-O2", "-static", "-pthread", STRESS, "-o", folder / "stress"], check=True)
    files = "[{path: /bin/stress, source: stress, mode: '0755'}]"
    said = run(pack_config(config(f"stress {seconds}", files)), accel, processors, SECONDS + 5 * seconds)
    found = re.search(
        r"^stress: processors=(\d+) status=0 compute=\d+ fork=(\d+) pipe=(\d+) shootdown=(\d+) code=(\d+)$",
        said,
        re.M,
    )
    assert found is not None, said[-3000:]
    assert int(found[1]) == processors
    assert all(map(int, found.groups()[1:])), found[0]
    assert not re.search(r"rcu:|lockup|BUG:|Oops", said), said[-3000:]


@SOFTWARE
def test_load_on_all(accel: str, pack_config: Callable[[str], Path], tmp_path: Path) -> None:
    stress(pack_config, tmp_path, accel, 4, 5)


@pytest.mark.nightly
@SOFTWARE
@pytest.mark.parametrize("processors", [2, 4, 8])
def test_long_load_on_all(
    accel: str, processors: int, pack_config: Callable[[str], Path], tmp_path: Path
) -> None:
    stress(pack_config, tmp_path, accel, processors, 120)
