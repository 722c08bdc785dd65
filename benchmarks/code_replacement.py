# SPDX-License-Identifier: MIT
"""python -m benchmarks.code_replacement: decoded and translated code evicted by CLOCK, or all at once.

A guest calls functions at random: some often, and more others than there is room for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import peers

POLICIES = {"CLOCK": [], "all at once": ["-DSEGMENTS=1", "-DJIT_SEGMENTS=1"]}
MIXES = ((256, 1024), (512, 8192), (1024, 16384))
ROUNDS = 3


def best(program: Path, engine: str, hot: int, cold: int) -> tuple[float, int, int]:
    said = [peers.output_of([program, engine, str(hot), str(cold)]).split() for _ in range(ROUNDS)]
    rate, decoded, translated = max(said, key=lambda words: float(words[0]))
    return float(rate), int(decoded), int(translated)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="imgvm-bench-") as name:
        programs = {}
        for i, (policy, flags) in enumerate(POLICIES.items()):
            folder = Path(name) / str(i)
            folder.mkdir()
            programs[policy] = peers.compile_code_replacement(folder, flags)
        print("| engine | often | others | decoded, CLOCK | at once | translated, CLOCK | at once | speed |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        for engine in ("interp", "jit"):
            for hot, cold in MIXES:
                clock, all_ = (best(programs[policy], engine, hot, cold) for policy in POLICIES)
                print(
                    f"| {engine} | {hot} | {cold} | {clock[1]} | {all_[1]} | {clock[2]} | {all_[2]} "
                    f"| {clock[0] / all_[0]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
