# SPDX-License-Identifier: MIT
"""What the documents say of the tree is there: links, paths, verbs, configs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imgvm.cli import VERBS
from imgvm.config import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
# A path from the root, in code: `imgvm/vmm/vm.py`, `tests/isa`; not one with a wildcard or a placeholder.
PATH = re.compile(r"`((?:imgvm|tests|docs|schemas|examples|benchmarks)/[\w./-]*)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    dead = [link for link in links if link and not (page.parent / link).exists()]
    built = ("imgvm/_guest",)
    missing = [path for path in PATH.findall(text) if not path.startswith(built) and not (ROOT / path).exists()]
    assert (dead, missing) == ([], [])


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=name)
def test_every_page_can_be_found(page: Path) -> None:
    others = [other for other in PAGES if other != page]
    assert any(f"({relative(page, other.parent)})" in other.read_text() for other in others), "no page links to it"


def relative(page: Path, folder: Path) -> str:
    up = 0
    while not page.is_relative_to(folder):
        folder, up = folder.parent, up + 1
    return "../" * up + page.relative_to(folder).as_posix()


def test_the_readme_names_every_verb_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## The verbs") : text.index("`imgvm run` ends with")]
    first = re.findall(r"`imgvm ([a-z]+)", table)
    more = re.findall(r"`([a-z]+)(?: IMAGE)?`", table)
    assert sorted({*first, *more} - {"imgvm"}) == sorted(VERBS)


def test_configs_in_the_readme_are_valid() -> None:
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"^    (version: 1\n(?:    .*\n)+)", text, re.M)
    assert shown
    for config in shown:
        Config.from_text(re.sub(r"^    ", "", config, flags=re.M), "README.md", ROOT)


def test_the_readme_shows_the_example_as_it_is() -> None:
    text = (ROOT / "README.md").read_text()
    session = re.search(r"\$ cat (examples/\S+)\n((?:    .+\n)+)", text)
    assert session is not None
    shown = Config.from_text(re.sub(r"^    ", "", session[2], flags=re.M), "README.md", ROOT).machine
    real = Config.load(ROOT / session[1]).machine
    assert (shown.boot, shown.disks, shown.hardware) == (real.boot, real.disks, real.hardware)


@pytest.mark.parametrize("target", ["build", "fast", "test", "lint", "asan", "bench"])
def test_make_has_what_contributing_names(target: str) -> None:
    assert f"make {target} " in (ROOT / "CONTRIBUTING.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
