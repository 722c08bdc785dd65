# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import json

import pytest

from imgvm.pack import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(shown: progress.Progress) -> None:
    shown.step("fetching it", 1000)
    shown.advance(500)
    shown.note("from the cache")
    shown.step("writing")
    shown.finish()


def test_bar_draws_shares_and_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0.0)
    out = Terminal()
    run(progress.choose("auto", out))
    text = out.getvalue()
    assert "[############............]  50% fetching it" in text
    assert "imgvm: from the cache\n" in text
    assert text.endswith("\r\x1b[K")


def test_other_modes() -> None:
    plain, quiet, rows = io.StringIO(), io.StringIO(), io.StringIO()
    run(progress.choose("plain", plain))
    run(progress.choose("auto", quiet))
    run(progress.choose("json", rows))
    assert plain.getvalue() == "imgvm: fetching it\nimgvm: from the cache\nimgvm: writing\n"
    assert quiet.getvalue() == ""
    assert [json.loads(row)["event"] for row in rows.getvalue().splitlines()] == [
        "step",
        "note",
        "step",
        "finish",
    ]


@pytest.mark.parametrize("mode", ["bar", "plain", "json"])
def test_names_do_not_drive_the_terminal(mode: str) -> None:
    out = Terminal()
    shown = progress.choose(mode, out)
    shown.step("reading \x1b[31ma\nb\u202e")
    shown.note("\x1b[31ma\nb\u202e")
    text = out.getvalue()
    assert "\x1b[31m" not in text and "a\nb" not in text and "\u202e" not in text
