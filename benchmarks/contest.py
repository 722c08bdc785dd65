# SPDX-License-Identifier: MIT
"""Contestants take turns at the same work; of each the best round counts.

Turns, because a shared host is now fast, now slow: what one contestant suffers, the next suffers too. The
best round, because noise only ever adds.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Turn = Callable[[], Mapping[str, float]]  # seconds, by row of the table


class AbsentError(Exception):
    """A peer or a workload cannot be had here; the text says why."""


@dataclass(frozen=True)
class Contestant:
    name: str
    turn: Turn


@dataclass(frozen=True)
class Contest:
    title: str
    what: str
    contestants: Sequence[Contestant]
    ratios: Sequence[tuple[str, str]] = ()  # of which contestant's time to whose
    absent: Sequence[str] = ()
    instructions: Callable[[], Mapping[str, int]] | None = None  # of a row, once the turns are over
    rated: Sequence[str] = ()  # whose instructions a second are shown


@dataclass
class Outcome:
    contest: Contest
    best: dict[tuple[str, str], float] = field(default_factory=dict)  # seconds, by row and contestant
    spread: float = 1.0  # the worst round over the best, of whoever varied most

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.best))

    def markdown(self, rounds: int) -> str:
        contest = self.contest
        names = [contestant.name for contestant in contest.contestants]
        ratios = [(ours, peer) for ours, peer in contest.ratios if {ours, peer} <= set(names)]
        counts = contest.instructions() if contest.instructions else {}
        rated = [name for name in contest.rated if name in names and counts]
        times = [["", *names, *(f"{name}, million instructions a second" for name in rated)]]
        shares = [["", *(f"{ours} / {peer}" for ours, peer in ratios)]]
        for row in self.rows:
            rates = [self._rate(row, name, counts[row]) for name in rated]
            times.append([row, *(self._seconds(row, name) for name in names), *rates])
            shares.append([row, *(self._ratio(row, ours, peer) for ours, peer in ratios)])
        lines = [f"## {contest.title}", "", contest.what, "", *_table(times)]
        if ratios:
            lines += ["", "The same as ratios of times:", "", *_table(shares)]
        spread = f"a contestant's own rounds differed by up to {self.spread:.2f} times"
        lines += ["", f"Best of {rounds}, taking turns; {spread}."]
        lines += [f"Absent: {absent}." for absent in contest.absent]
        return "\n".join(lines) + "\n"

    def _seconds(self, row: str, name: str) -> str:
        seconds = self.best.get((row, name))
        return "–" if seconds is None else f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"

    def _ratio(self, row: str, our: str, peer: str) -> str:
        mine, theirs = self.best.get((row, our)), self.best.get((row, peer))
        return "–" if mine is None or theirs is None else f"{mine / theirs:.2f}"

    def _rate(self, row: str, name: str, count: int) -> str:
        seconds = self.best.get((row, name))
        return "–" if seconds is None else f"{count / seconds / 1e6:.0f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]]


def hold(contest: Contest, rounds: int, say: Callable[[str], None]) -> Outcome:
    outcome = Outcome(contest)
    seen: dict[tuple[str, str], list[float]] = {}
    for number in range(1, rounds + 1):
        for contestant in contest.contestants:
            say(f"{contest.title}: round {number} of {rounds}, {contestant.name}")
            for row, seconds in contestant.turn().items():
                seen.setdefault((row, contestant.name), []).append(seconds)
    outcome.best = {key: min(values) for key, values in seen.items()}
    outcome.spread = max((max(values) / min(values) for values in seen.values()), default=1.0)
    return outcome


def machine() -> str:
    """What the numbers were taken on."""
    cpu = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    version = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout
    compiler = version.partition("\n")[0]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    system = f"{os.cpu_count()} processors, Linux {platform.release()}, {compiler}"
    return f"{cpu}, {system}; load average {load} at the start"
