# SPDX-License-Identifier: MIT
"""Edits of a config's text: in place, with all else kept, or written anew; and what they do to the resolved config."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgvm.config import Config, document, overrides
from imgvm.config.revise import MISSING, differences, revise, set_values
from imgvm.errors import ConfigError

TEXT = """\
# the top
version: 1
machine:   # hardware
    memory: 512MiB  # enough
    cpus: 2
boot: {kernel: k, cmdline: "a=b"}
labels:
exit:
    timeout: 10m
# the end
"""


@pytest.mark.parametrize(
    ("assignment", "old", "new"),
    [
        ("machine.memory=1GiB", "memory: 512MiB  # enough", "memory: 1GiB  # enough"),
        ("boot.cmdline=quiet rw", 'cmdline: "a=b"', "cmdline: quiet rw"),
        ("boot.cmdline=[a, b]", 'cmdline: "a=b"', "cmdline: [a, b]"),
        ("boot.cmdline=x, y", 'cmdline: "a=b"', 'cmdline: "x, y"'),  # plain, it would be two values there
        ('boot.cmdline="x, y"', 'cmdline: "a=b"', 'cmdline: "x, y"'),
        ("boot.cmdline='x}'", 'cmdline: "a=b"', "cmdline: 'x}'"),
        ("machine.accel=interp", "    cpus: 2\n", "    cpus: 2\n    accel: interp\n"),
        ("machine.cpu.model=host", "    cpus: 2\n", "    cpus: 2\n    cpu:\n      model: host\n"),
        ("boot.protocol=linux", '"a=b"}', '"a=b", protocol: linux}'),
        ("labels.one=x", "labels:\n", "labels: {one: x}\n"),
        ('labels."a.b"=x', "labels:\n", 'labels: {"a.b": x}\n'),
        ("exit.on_reboot=exit", "timeout: 10m\n", "timeout: 10m\n    on_reboot: exit\n"),
        ("console.escape=none", "timeout: 10m\n", "timeout: 10m\nconsole:\n  escape: none\n"),
        ("exit={timeout: 5s}", "\n    timeout: 10m", '\n    {timeout: 5s}'),
    ],
)  # fmt: skip
def test_only_the_value_changes(assignment: str, old: str, new: str) -> None:
    assert TEXT.count(old) == 1
    assert set_values(TEXT, [assignment], "t") == (TEXT.replace(old, new), True)


def test_a_last_line_without_newline() -> None:
    assert set_values("version: 1", ["name=x"], "t") == ("version: 1\nname: x\n", True)
    assert set_values("version: 1\nmachine:\n  cpus: 1", ["machine.memory=1GiB"], "t") == ("version: 1\nmachine:\n  cpus: 1\n  memory: 1GiB\n", True)


def test_what_cannot_be_edited_is_written_anew() -> None:
    text = "version: 1\nx-one: &a {b: 1} # lost\nlabels: *a\n"
    new, kept = set_values(text, ["labels.b=2"], "t")
    assert not kept and "#" not in new
    assert document.parse(new, "t").data == {"version": 1, "x-one": {"b": 1}, "labels": {"b": 2}}


def test_literal_blocks() -> None:
    text = "version: 1\ndescription: |\n  two\n  lines\nname: x # kept\n"
    new, kept = set_values(text, ["description=one"], "t")
    assert kept and document.parse(new, "t").data == {"version": 1, "description": "one", "name": "x"}
    assert "# kept" in new
    new, kept = set_values("x-a:\n  b: |\n    text\n", ["x-a.c=1"], "t")
    assert (new, kept) == ("x-a:\n  b: |\n    text\n  c: 1\n", True)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text("ab: #-{}[],'\"\\\n é", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab .-#:", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)
MAPS = st.dictionaries(st.sampled_from("abcd"), VALUES, min_size=1, max_size=4)


@given(MAPS, st.booleans(), st.lists(st.sampled_from("abcd"), min_size=1, max_size=3), VALUES)
def test_an_edited_text_means_what_was_set(data: dict[str, object], flow: bool, path: list[str], value: object) -> None:
    import yaml

    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    tree = document.parse(text, "t")
    assignment = f"{'.'.join(path)}={json.dumps(value)}"
    try:
        overrides.apply(tree, assignment)
    except Exception:
        return  # a path through a value
    new, _ = set_values(text, [assignment], "t")
    assert document.parse(new, "t").data == tree.data


def test_differences() -> None:
    old = {"a": 1, "m": {"x": 1, "y": [1]}, "gone": {"k": 1}, "u": {"v": True}}
    new = {"a": True, "m": {"x": 1, "y": [1, 2]}, "new": {"deep": {"k": 1}}, "u": {"v": {"w": 1}}}
    assert list(differences(old, new)) == [
        (("a",), True), (("m", "y"), [1, 2]), (("gone", "k"), MISSING), (("u", "v"), {"w": 1}), (("new", "deep"), {"k": 1}),
    ]  # fmt: skip


def revised(old: str, new: str, sets: list[str] | None = None) -> Config:
    packed = Config.from_text(old, "t", overrides=sets or [])
    machine = revise(old, new, packed.resolved(), "t.yaml", lambda path: path[0] != "boot")
    return Config(machine, new, "t.yaml", packed.folder)


def test_what_was_set_at_pack_time_stays() -> None:
    old = "version: 1\nboot: {kernel: k}\nmachine: {cpus: 2}\ndevices: {debug_exit: {port: 5}}\n"
    new = "version: 1\nboot: {kernel: k}\nexit: {timeout: 1m}\n"
    machine = revised(old, new, ["machine.memory=1GiB", "boot.cmdline=quiet"]).machine
    assert (machine.hardware.memory_bytes, machine.hardware.cpus) == (1 << 30, 1)
    assert machine.boot is not None and machine.boot.cmdline == "quiet"
    assert machine.debug_exit is None
    assert machine.exit.timeout_ns == 60 * 10**9
    assert revised(old, old.replace("{port: 5}", "true")).machine.debug_exit is not None
    assert revised(old, old + 'name: "a$$b"\n'.replace("$$", "")).machine.name == "ab"


def test_problems_have_their_places() -> None:
    old = "version: 1\nboot: {kernel: k}\n"
    new = "version: 1\nboot: {kernel: other}\nmachine: {memory: 5}\nlabels: {a: '${V}'}\n"
    with pytest.raises(ConfigError) as caught:
        revised(old, new)
    assert [str(problem).partition(" (")[0] for problem in caught.value.problems] == [
        "t.yaml:2:8: boot.kernel: this is settled when the image is packed",
        "t.yaml:3:19: machine.memory: must be a size such as 512MiB, not 5",
        "t.yaml:4:13: labels.a: variables are settled when the image is packed",
    ]
