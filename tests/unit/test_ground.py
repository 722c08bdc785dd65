# SPDX-License-Identifier: MIT
"""The ground floor: units, errors, the log."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvm import units
from imgvm.errors import ConfigError, ImgvmError, Problem
from imgvm.log import Log, json_text, one_line, printable


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("512MiB", 512 << 20), ("1.5GiB", 3 << 29), ("1KB", 1000), ("2TB", 2 * 10**12), ("0.5KiB", 512)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "512", "MiB", "512 MiB", "512mib", "-1KiB", "0.3B", "1MiB\n", "9999999TiB", "1e3KiB"])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|bytes|large"):
        units.parse_size(text)


@given(st.integers(0, (1 << 63) - 1))
def test_sizes_survive_their_text(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(("text", "milliseconds"), [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("2h", 7_200_000)])
def test_durations(text: str, milliseconds: int) -> None:
    assert units.parse_duration(text) == milliseconds * 10**6
    assert units.format_duration(milliseconds * 10**6) == text


@pytest.mark.parametrize("text", ["", "30", "s", "1.5s", "1 s", "10s\n"])
def test_texts_that_are_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        units.parse_duration(text)


@given(st.integers(0, 10**7))
def test_durations_survive_their_text(milliseconds: int) -> None:
    assert units.parse_duration(units.format_duration(milliseconds * 10**6)) == milliseconds * 10**6


def test_errors_say_what_and_what_to_do() -> None:
    assert str(ImgvmError("it broke", "mend it")) == "it broke (mend it)"
    assert str(ImgvmError("it broke")) == "it broke"
    error = ConfigError([Problem("f", 1, 2, "a", "x", "y"), Problem("--set b=1", 0, 0, "b", "z")])
    assert str(error) == "f:1:2: a: x (y)\n--set b=1: b: z"


def test_log_levels_and_a_closed_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    quiet, normal = Log(0), Log(1)
    quiet.info("unsaid")
    quiet.error("said", "do")
    normal.info("two\nlines")
    normal.verbose("unsaid")
    assert out.getvalue() == "imgvm: said\nimgvm: hint: do\nimgvm: two\n       lines\n"
    out.close()
    normal.error("nobody hears")


def test_words_of_others_do_nothing_to_a_terminal() -> None:
    text = "a\x1b[2J\x9b1m\u202eb\nc\td\udc80\u2028é"
    assert printable(text) == "a\\x1b[2J\\x9b1m\\u202eb\nc\td\\udc80\\u2028é"
    assert one_line(text) == "a\\x1b[2J\\x9b1m\\u202eb\\x0ac\\x09d\\udc80\\u2028é"
    document = {"key\u202e": [text, 1]}
    for indent in (None, 1):
        shown = json_text(document, indent)
        assert json.loads(shown) == document
        assert one_line(shown.replace("\n", "")) == shown.replace("\n", "") and "é" in shown


def test_long_words_and_many_problems_are_cut() -> None:
    found = ConfigError(Problem("f", line, 1, "a" * 10_000, "b" * 10_000, "c" * 10_000) for line in range(1, 1000))
    assert len(str(found)) < 101 * 4000
    assert len(found.problems) == 101 and found.problems[-1].message == "899 more problems are not shown"
    again = ConfigError(found.problems, 5)
    assert again.problems == found.problems
    assert len(ConfigError(found.problems[:100]).problems) == 100
