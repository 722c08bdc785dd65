# SPDX-License-Identifier: MIT
"""The strict YAML reader: scalars, places, and what it refuses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvm.config import document, tree
from imgvm.config.scalars import scalar
from imgvm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("22:22", "22:22"), ("2026-01-01", "2026-01-01"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("nullx", "nullx"),
        ("12", 12), ("-3", -3), ("+4", 4), ("0o17", 15), ("0x1F", 31), ("017", 17), ("1_000", "1_000"), ("0b1", "0b1"),
        ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("1.", 1.0), (".inf", math.inf), ("-.inf", -math.inf),
        ("=", "="), ("512MiB", "512MiB"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_are_text() -> None:
    assert document.parse("a: '12'\nb: \"true\"\nc: |\n  1\n", "f").data == {"a": "12", "b": "true", "c": "1\n"}
    assert document.parse("a: !!str 12\n", "f").data == {"a": "12"}


def test_every_node_has_its_place() -> None:
    read = document.parse("a: 1\nb:\n  - x\n  - {c: d}\n", "f")
    assert read.keys[("b",)] == (2, 1)
    assert read.values[("b", 0)] == (3, 5)
    assert read.keys[("b", 1, "c")] == (4, 6)
    assert read.values[("b", 1, "c")] == (4, 9)
    assert read.mark(("b", 1, "nothing")) == (4, 5)


def problems(text: str | bytes) -> list[str]:
    try:
        return [str(problem) for problem in document.parse(text, "f").problems]
    except ConfigError as error:
        return [str(problem) for problem in error.problems]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1: a: duplicate key (first given in line 1)"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 'f:3:3: c: merge keys are not supported (write the keys out)'),
        ("1: a\n", 'f:1:1: the key 1 is not text (quote it: "1")'),
        ("true: a\n", 'f:1:1: the key true is not text (quote it: "true")'),
        ("a: !x 1\n", "f:1:4: a: the tag !x is not supported (quote text instead)"),
        ("a: !!python/name:os.system x\n",
         "f:1:4: a: the tag tag:yaml.org,2002:python/name:os.system is not supported (quote text instead)"),
        ("a: 1\n---\nb: 1\n", "f:2:1: a second document begins here (a config is one document)"),
        ("a: *x\n", "f:1:4: the alias *x refers to nothing that is complete before it"),
        ("a: &x [*x]\n", "f:1:8: a: the alias *x refers to nothing that is complete before it"),
        ("{[1]: 2}\n", "f:1:2: a key must be text, not a map or list"),
        ("a: [1\nb: 2\n", "f:2:2: not YAML"),
        ("a:\n\t- 1\n", "not YAML"),
        ("a: \x01\n", "f:1:4: character U+0001 is not allowed in YAML"),
        (b"a: 1\nb: \xff\n", "f:2:4: the text is not UTF-8"),
        ("a: " + "9" * 50 + "\n", "f:1:4: a: the number is too long"),
        ("[" * 100, "f:1:33: "),
        ("a: " + "x" * document.MAX_TEXT_BYTES, "f:1:1: the text is larger than 256KiB"),
    ],
)  # fmt: skip
def test_refused(text: str | bytes, message: str) -> None:
    assert any(message in problem for problem in problems(text)), problems(text)


def test_duplicates_are_all_reported_and_the_first_kept() -> None:
    read = document.parse("a: 1\na: {b: [2]}\nc: 3\nc: 4\n", "f")
    assert read.data == {"a": 1, "c": 3}
    assert len(read.problems) == 2
    assert read.values[("a",)] == (1, 4)


def test_aliases_are_copied_and_counted() -> None:
    read = document.parse("a: &x {b: 1}\nc: *x\n", "f")
    read.data["c"]["b"] = 2
    assert read.data["a"] == {"b": 1}
    assert read.mark(("c", "b")) == (2, 4)
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        laughs += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    assert "more than 20000 values" in problems(laughs)[0]
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
    assert "nested deeper than 32 levels" in problems(deep)[0]


@given(st.text(alphabet="ab:-[]{}&*!|>'\"# \n\t%?,0.~<", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_tree_or_a_config_error(text: str) -> None:
    try:
        document.parse(text, "f")
    except ConfigError as error:
        assert error.problems


@pytest.mark.parametrize(
    ("path", "text"), [(("a", 0, "b"), "a[0].b"), (("labels", "x.y"), 'labels."x.y"'), ((), ""), ((3,), "[3]")]
)
def test_paths_are_shown_as_set_takes_them(path: tree.Path, text: str) -> None:
    assert tree.format_path(path) == text
