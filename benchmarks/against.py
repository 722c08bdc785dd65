# SPDX-License-Identifier: MIT
"""This tree's engines against those of an older commit: the same programs under the same kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import peers
from benchmarks.contest import AbsentError, Contest, Contestant
from benchmarks.workloads import ENGINES, Loops, config


def _run(words: list[str | Path], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AbsentError(f"{words[0]} says: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def _older(commit: str, tree: Path) -> None:
    """The commit's files, with its native core built in place."""
    tree.mkdir()
    archive = tree.parent / "older.tar"
    _run(["git", "archive", "--output", archive, commit], peers.HERE.parent)
    _run(["tar", "-xf", archive], tree)
    build = "from setuptools import setup; setup()"
    _run([sys.executable, "-c", build, "-q", "build_ext", "--inplace"], tree)


def _imgvm(tree: Path, *words: str | Path) -> list[str | Path]:
    """-P: not what lies in the folder that this was started in."""
    return ["env", f"PYTHONPATH={tree}", sys.executable, "-P", "-m", "imgvm", *words]


def against(commit: str, folder: Path) -> Contest:
    trees = {"now": peers.HERE.parent, commit: folder / "older"}
    peers.compile_user_loop(folder)
    peers.compile_mixed_loop(folder)
    text = config("against", ["user_loop", "mixed_loop"], ["sh", "-c", "/user_loop && exec /mixed_loop"])
    (folder / "against.yaml").write_text(text)
    _older(commit, trees[commit])
    contestants, ratios, absent, state = [], [], [], Loops()
    for name, tree in trees.items():  # each packs for itself: it may not know the other's images
        peers.output_of(_imgvm(tree, "pack", folder / "against.yaml", "-o", folder / f"{name}.img"))
    for engine in ENGINES:
        for name, tree in trees.items():
            command = _imgvm(tree, "run", folder / f"{name}.img", "--accel", engine)
            try:
                state.turn(command)()  # not counted: reads what lies on the disk
            except RuntimeError as error:
                absent.append(f"{engine}, {name}: {error}".strip().splitlines()[-1])
                continue
            contestants.append(Contestant(f"{engine}, {name}", state.turn(command)))
        ratios.append((f"{engine}, now", f"{engine}, {commit}"))
    what = (
        "The same static programs (`benchmarks/kernels.c`, `benchmarks/mixed_loop.c`) in Debian, this tree "
        f"and {commit} in turn. Times are those of the program's clock."
    )
    return Contest(f"Against {commit}", what, contestants, ratios, absent)
