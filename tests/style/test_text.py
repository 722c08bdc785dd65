# SPDX-License-Identifier: MIT
"""Every file says its licence; no text names a place or a tool of where it was written; linters pass."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from files import ROOT, name, project_files, texts

LICENSED = (".py", ".c", ".h", ".def", ".S", ".s", ".ld", ".sh", ".yaml", ".yml", ".mk")
LICENSED_NAMES = ("Makefile", "bootstrap", "run")


@pytest.mark.parametrize(
    "path", [path for path in project_files() if path.suffix in LICENSED or path.name in LICENSED_NAMES], ids=name
)
def test_licence(path: Path) -> None:
    head = path.read_text().splitlines()[:3]
    assert any("SPDX-License-Identifier: MIT" in line for line in head)


# In halves, so that this file passes itself.
FORBIDDEN = re.compile(
    "|".join([
        "/wo" r"rk/(main|shared|\.)", "/tmp/br" "ief", r"\bA\.?I\b\.? (agent|assistant|model|generated)", r"\bL" r"LMs?\b",
        "clau" "de", "anthr" "opic", "open" "ai", "chat" "gpt", "copi" "lot", r"co-authored" r"-by",
        r"issues sh" r"ow \d", r"(this|another|previous|next) sess" "ion", r"help" r"er agents?",
    ]),
    re.I,
)  # fmt: skip


def test_no_text_names_where_it_was_written() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


def test_forbidden_words_are_seen() -> None:
    for text in ("see /wo" + "rk/main/x", "written by an A" + "I assistant", "Co-Authored" + "-By: x", "Clau" + "de"):
        assert FORBIDDEN.search(text), text
    assert not FORBIDDEN.search("a pseudo-terminal of another process; the helper that exits; the guest agent; HAI model")


def test_text_files_end_with_a_newline_and_hold_no_tabs_or_trailing_space() -> None:
    wrong = []
    for path in texts(".py", ".c", ".h", ".def", ".yaml", ".json", ".toml"):
        content = path.read_text()
        if content and not content.endswith("\n"):
            wrong.append(f"{name(path)}: no newline at its end")
        if re.search(r"[ \t]+$", content, re.M):
            wrong.append(f"{name(path)}: trailing space")
        if "\t" in content and path.suffix != ".def":
            wrong.append(f"{name(path)}: tabs")
    assert wrong == []


def run_tool(*arguments: str) -> None:
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed (pip install -e '.[dev]')")
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_ruff() -> None:
    run_tool("ruff", "check", "--no-fix", ".")


def test_mypy() -> None:
    run_tool("mypy")
