# SPDX-License-Identifier: MIT
"""TODO.md tells the truth: each row has a known state, and names tests that exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from files import ROOT

TODO = ROOT / "TODO.md"
STATES = ("done", "partial", "planned")
WISHES = range(1, 23)  # the rows of KVM's old TODO page, none of which may get lost
NO_PROOF = ("", "-", "–", "—")


@dataclass(frozen=True)
class Row:
    number: str
    capability: str
    state: str
    proof: str

    def tests(self) -> list[str]:
        return re.findall(r"`?(tests/[\w./-]+(?:::\w+)*)`?", self.proof)


def rows(text: str) -> list[Row]:
    """The rows of all tables whose header is | # | capability | state | proof |."""
    found, inside = [], False
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if [cell.lower() for cell in cells] == ["#", "capability", "state", "proof"]:
            inside = True
        elif inside and not set("".join(cells)) <= set("-: "):
            assert len(cells) == 4, f"not four cells: {line}"
            found.append(Row(*cells))
    return found


def faults(row: Row, root: Path = ROOT) -> list[str]:
    wrong = []
    if row.state not in STATES:
        wrong.append(f"state {row.state!r} is none of {', '.join(STATES)}")
    tests = row.tests()
    if row.state != "planned" and not tests:
        wrong.append(f"{row.state}, but names no test")
    if row.proof not in NO_PROOF and not tests:
        wrong.append(f"the proof {row.proof!r} names no test")
    for test in tests:
        path, *names = test.split("::")
        file = root / path
        if not file.is_file():
            wrong.append(f"{path} does not exist")
        elif not Path(path).name.startswith("test_"):
            wrong.append(f"{path} is not a test")
        elif names and not re.search(rf"^\s*(?:async )?def {re.escape(names[-1])}\(", file.read_text(), re.M):
            wrong.append(f"{path} has no {names[-1]}")
    return wrong


def test_rows_name_tests_that_exist() -> None:
    if not TODO.exists():
        pytest.skip("there is no TODO.md")
    table = rows(TODO.read_text())
    assert table, "TODO.md has no table | # | capability | state | proof |"
    assert {f"row {row.number}": wrong for row in table if (wrong := faults(row))} == {}
    numbers = [row.number for row in table]
    assert len(set(numbers)) == len(numbers), "a number is given twice"
    assert {str(number) for number in WISHES} <= set(numbers), "a wish is missing"


def test_false_rows_are_seen() -> None:
    here = "tests/style/test_todo.py"
    table = rows(
        "| # | capability | state | proof |\n|---|---|:-:|---|\n"
        f"| 1 | a | done | `{here}::test_false_rows_are_seen` |\n"
        f"| 2 | b | done | {here}::test_nothing |\n"
        "| 3 | c | done | - |\n| 4 | d | nearly | - |\n| 5 | e | planned | - |\n| 6 | f | partial | `tests/no.py` |\n"
        "| 7 | g | planned | a benchmark |\n"
        "\n| not | this |\n"
    )
    assert [row.number for row in table] == list("1234567")
    assert [bool(faults(row)) for row in table] == [False, True, True, True, False, True, True]
