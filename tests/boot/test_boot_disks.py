# SPDX-License-Identifier: MIT
"""A Debian guest sees its disks in order, with their sizes, serial numbers and modes, and each keeps what is written to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_images import SECONDS

from imgvm.qcow2 import Image, overlay

pytestmark = [pytest.mark.boot, pytest.mark.network]

MIB = 1 << 20
LOOK = (
    "for d in vda vdb vdc vdd; do cd /sys/block/$d; "
    "echo $d $(cat size) $(cat serial) $(cat ro) $(cat queue/write_cache); done; "
    "head -c 7 /dev/vdc; echo; "
    "! dd if=/dev/zero of=/dev/vdc bs=512 count=1 conv=fsync 2>/dev/null; "
    "for d in vda vdb vdd; do echo on $d | dd of=/dev/$d bs=512 seek=3 conv=fsync,notrunc 2>/dev/null; done"
)


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "imgvm", "-q", "run", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("accel", ["interp", "jit"])
def test_four_disks(accel: str, pack_config: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "cd.iso").write_bytes(b"content" + bytes(4 * 2048 - 7))
    (tmp_path / "host.raw").write_bytes(bytes(5 * MIB))
    image = pack_config(
        "version: 1\nname: disks\nboot: {kernel: {distro: 'debian:bookworm'}, cmdline: [console=ttyS0, quiet]}\n"
        "disks:\n- {name: root, size: 3MiB}\n- {name: data, size: 64MiB, serial: D-42, cache: writethrough}\n"
        "- {name: cd, source: cd.iso, read_only: true}\n- {name: host, source: host.raw, format: raw, embed: false}\n"
        f"exec: {{command: [sh, -ec, '{LOOK}']}}\n"
    )
    refused = run(image, "--accel", accel)
    assert refused.returncode == 126 and f"its disk host is a file of this host, {tmp_path / 'host.raw'}" in refused.stderr
    done = run(image, "--accel", accel, "--allow", "disks")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.replace("\r", "").splitlines()[-5:] == [
        "vda 6144 root 0 write back",
        "vdb 131072 D-42 0 write through",
        "vdc 16 cd 1 write back",
        "vdd 10240 host 0 write back",
        "content",
    ]
    with Image.open(image) as opened:
        assert opened.check().clean
        assert opened.read(1536, 7) == b"on vda\n"
        assert opened.open_disk("data").read(1536, 7) == b"on vdb\n"
        assert opened.open_disk("cd").read(0, 8192) == (tmp_path / "cd.iso").read_bytes()
    assert (tmp_path / "host.raw").read_bytes()[1536:1543] == b"on vdd\n"


def counting(*disks: str) -> str:
    """A machine that counts its runs on each of its disks."""
    names = " ".join(f"vd{letter}" for letter, _ in zip("abcdef", disks, strict=False))
    count = f"for d in {names}; do n=$(head -c 1 /dev/$d | tr -d '\\\\0'); n=$((0$n + 1)); echo $d $n; " \
        "printf $n | dd of=/dev/$d conv=fsync,notrunc 2>/dev/null; done"  # fmt: skip
    return (
        "version: 1\nname: disks\nboot: {kernel: {distro: 'debian:bookworm'}, cmdline: [console=ttyS0, quiet]}\n"
        + "disks:\n" + "".join(f"- {{{disk}}}\n" for disk in disks)
        + f"exec:\n  command:\n  - sh\n  - -ec\n  - {json.dumps(count)}\n"
    )  # fmt: skip


def test_what_is_written_lies_beside_the_image(pack_config: Callable[[str], Path]) -> None:
    image = pack_config(counting("name: one, size: 1MiB, persist: overlay", "name: two, size: 1MiB, persist: overlay"))
    image.chmod(0o444)
    packed = image.read_bytes()

    def lines(*words: str) -> list[str]:
        done = run(image, "--accel", "jit", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.replace("\r", "").splitlines()[-2:]

    assert lines() == ["vda 1", "vdb 1"]
    assert lines() == ["vda 2", "vdb 2"]
    assert lines("--ephemeral") == ["vda 3", "vdb 3"]
    assert lines() == ["vda 3", "vdb 3"]
    assert image.read_bytes() == packed
    with Image.open(overlay.path_of(image)) as opened:
        assert opened.check().clean


def test_a_disk_that_gives_no_space_back(pack_config: Callable[[str], Path]) -> None:
    image = pack_config(
        "version: 1\nname: disks\nboot: {kernel: {distro: 'debian:bookworm'}, cmdline: [console=ttyS0, quiet]}\n"
        "disks:\n- {name: gives, size: 1MiB}\n- {name: keeps, size: 1MiB, discard: false}\n"
        "exec: {command: 'cd /sys/block; cat vda/queue/discard_max_bytes vdb/queue/discard_max_bytes'}\n"
    )
    done = run(image, "--accel", "jit")
    assert done.returncode == 0, done.stdout + done.stderr
    gives, keeps = map(int, done.stdout.split())
    assert gives > 0 and keeps == 0


def test_what_is_written_is_gone(pack_config: Callable[[str], Path]) -> None:
    """On the disk that forgets, every run is the first."""
    image = pack_config(counting("name: gone, size: 1MiB, persist: discard", "name: kept, size: 1MiB"))
    for number in (1, 2):
        done = run(image, "--accel", "jit")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.replace("\r", "").splitlines()[-2:] == ["vda 1", f"vdb {number}"]
    with Image.open(image) as opened:
        assert opened.check().clean and opened.read(0, 1) == b"\0" and opened.open_disk("kept").read(0, 1) == b"2"


def test_a_cloud_init_seed(pack_config: Callable[[str], Path]) -> None:
    """Mounted as cloud-init does it, without saying which file system it is."""
    image = pack_config(
        "version: 1\nname: seeded\nboot: {kernel: {distro: 'debian:bookworm'}, cmdline: [console=ttyS0, quiet]}\n"
        "disks: [{name: root, size: 1MiB}]\ncloud_init: {user_data: {packages: [vim]}, meta_data: \"instance-id: i-1\\n\"}\n"
        "exec: {command: [sh, -ec, 'mount -r /dev/vdb /mnt; cd /mnt; ls; cat user-data meta-data']}\n"
    )
    done = run(image, "--accel", "interp")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.replace("\r", "").splitlines()
    assert (lines[0].split(), lines[1]) == (["meta-data", "user-data"], "#cloud-config")
    assert lines[-1] == "instance-id: i-1"
