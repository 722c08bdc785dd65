# SPDX-License-Identifier: MIT
"""What was counted during a run, as text (docs/debugging.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from imgvm.vmm.vm import Result

MOST_ROWS = 20  # of a group
RANKED = ("executors", "exits", "exceptions", "ports", "mmio", "msr")  # groups in order of their values


def text(result: Result, format: str) -> str:
    counts = {"run": _run(result), **result.counts}
    return json.dumps(counts) if format == "json" else _table(counts)


def _run(result: Result) -> dict[str, int | float]:
    run: dict[str, int | float] = {"seconds": round(result.seconds, 3)}
    if result.instructions is not None:
        run["instructions"] = result.instructions
    if result.handovers:
        run["handovers"] = result.handovers
    return run


def _row(name: str, value: int | float) -> str:
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    return f"  {name:<24}{number:>18}"


def _table(counts: Mapping[str, Mapping[str, int | float]]) -> str:
    lines = []
    for group, rows in counts.items():
        shown = [(name, value) for name, value in rows.items() if value]
        if group in RANKED:
            shown.sort(key=lambda row: -row[1])
        if shown:
            lines.append(group)
        for name, value in shown[:MOST_ROWS]:
            lines.append(_row(name.replace("_", " "), value))
        if len(shown) > MOST_ROWS:
            rest = shown[MOST_ROWS:]
            lines.append(_row(f"{len(rest)} more", sum(value for _, value in rest)))
    return "\n".join(lines)
