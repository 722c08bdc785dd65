# SPDX-License-Identifier: MIT
"""python -m benchmarks [WORKLOAD...] [--against COMMIT] [--rounds N] [--write FILE]"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.against import against
from benchmarks.contest import AbsentError, hold, machine
from benchmarks.workloads import WORKLOADS


def main() -> int:
    what = "imgvm and its peers, side by side."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=what)
    parser.add_argument("workload", nargs="*", choices=[*WORKLOADS, []], help="all of them, unless named")
    parser.add_argument(
        "--against", metavar="COMMIT", help="hold this tree's engines against those of that commit instead"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant; the best counts (3)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables there, as Markdown")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed imgvm has its bytecode

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        peer = f"QEMU {peers.qemu_version()}"
    except AbsentError as missing:
        peer = str(missing)
    parts = [f"# Results\n\nOn {machine()}; {peer}.\n"]
    workloads = WORKLOADS
    if options.against:
        workloads = {"against": partial(against, options.against)}
    for name in (not options.against and options.workload) or workloads:
        with tempfile.TemporaryDirectory(prefix="imgvm-bench-") as folder:
            try:
                contest = workloads[name](Path(folder))
                parts.append(hold(contest, options.rounds, say).markdown(options.rounds))
            except AbsentError as missing:
                parts.append(f"## {name}\n\nNot held: {missing}.\n")
    text = "\n".join(parts)
    print(text)
    if options.write:
        options.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
