# SPDX-License-Identifier: MIT
"""A root file system of 1 GiB becomes a qcow2: by imgvm, and by e2fsprogs and qemu-img."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks import peers
from benchmarks.contest import AbsentError, Contest, Contestant
from imgvm.qcow2 import Image

GIB = 1 << 30
SOURCES = ("/usr/share", "/usr/lib")
CONFIG = "version: 1\nname: bench\nboot: {kernel: {bundled: true}}\nrootfs: {dir: root}\n"
ROW, PEER = "folder to qcow2", "mke2fs -d, qemu-img convert"


def rootfs(folder: Path) -> Contest:
    tools = {name: _tool(name) for name in ("mke2fs", "qemu-img")}
    count, size_bytes = _copy_system(folder / "root")
    (folder / "bench.yaml").write_text(CONFIG)
    image, raw, qcow2 = (folder / name for name in ("bench.img", "bench.raw", "bench.qcow2"))

    def ours() -> Mapping[str, float]:
        image.unlink(missing_ok=True)
        return {ROW: peers.seconds_of(peers.imgvm("-q", "pack", folder / "bench.yaml", "-o", image))}

    def theirs() -> Mapping[str, float]:
        with Image.open(image) as packed:
            blocks = packed.info.disk_bytes // 4096
        raw.unlink(missing_ok=True)
        qcow2.unlink(missing_ok=True)
        seconds = peers.seconds_of(
            [tools["mke2fs"], "-q", "-t", "ext4", "-b", "4096", "-d", folder / "root", raw, str(blocks)]
        )
        return {ROW: seconds + peers.seconds_of([tools["qemu-img"], "convert", "-O", "qcow2", raw, qcow2])}

    what = (
        f"{count} files with {size_bytes / GIB:.2f} GiB of the host's `/usr/share` and `/usr/lib` as the "
        "ext4 of a qcow2 image; for imgvm the whole command, with the config and a kernel in the image."
    )
    contestants = [Contestant("imgvm pack", ours), Contestant(PEER, theirs)]
    return Contest("Packing a root file system", what, contestants, [("imgvm pack", PEER)])


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise AbsentError(f"{name} is not installed")
    return found


def _copy_system(target: Path) -> tuple[int, int]:
    """1 GiB of files that every system has: how many they are, and their bytes."""
    count = size_bytes = 0
    for source in map(Path, SOURCES):
        for place, folders, names in os.walk(source):
            folders.sort()
            here = target / Path(place).relative_to("/")
            here.mkdir(parents=True)
            for name in sorted(names):
                path = Path(place, name)
                count += 1
                if path.is_symlink():
                    (here / name).symlink_to(path.readlink())
                elif path.is_file() and os.access(path, os.R_OK):
                    shutil.copyfile(path, here / name)
                    size_bytes += path.stat().st_size
            if size_bytes >= GIB:
                return count, size_bytes
    return count, size_bytes
