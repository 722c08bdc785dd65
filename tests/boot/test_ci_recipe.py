# SPDX-License-Identifier: MIT
"""docs/recipes.md, "In continuous integration": its files as they stand there, run end to end against a registry."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from boot_images import SECONDS

pytestmark = [pytest.mark.boot, pytest.mark.network]

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEST = "uname -s\ndd if=/dev/zero of=/dev/vda bs=4096 count=4 2>/dev/null\n"


def blocks() -> tuple[str, dict[Any, Any], dict[Any, Any]]:
    """The config, the workflow of GitHub and the pipeline of GitLab."""
    section = PAGE.read_text().split("## In continuous integration\n")[1]
    config, github, gitlab = (textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", section, re.M))
    return config, yaml.safe_load(github), yaml.safe_load(gitlab)


class Project:
    """A checkout with the recipe's config and its lock, and a runner's environment."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        (self.folder / "ci.yaml").write_text(config)
        (self.folder / "test.sh").write_text(TEST)
        (folder / "home").mkdir()
        keep = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "http_proxy", "https_proxy") if name in os.environ}
        # The cache of the user who runs the tests has Debian's packages already.
        cache = keep.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "HOME": str(folder / "home"), **keep, "XDG_CACHE_HOME": cache}

    def run(self, lines: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        script = "set -eo pipefail\n" + "\n".join(lines)
        everything = self.environment | environment
        return subprocess.run(["bash", "-c", script], cwd=self.folder, env=everything, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)

    def lock(self) -> None:
        done = self.run(["imgvm pack ci.yaml", "rm ci.img"])
        if "cannot be reached" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr

    def check_published(self, ref: str) -> None:
        published = self.run([f"imgvm pull {ref} -o pulled.img", "cmp ci.img pulled.img", "imgvm run pulled.img --ephemeral", "imgvm config get ci.img labels"])
        assert published.returncode == 0, published.stderr
        assert "Linux" in published.stdout and COMMIT in published.stdout


def expanded(text: str, values: dict[str, str]) -> str:
    """A workflow's ${{ }}."""
    return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda use: values[use[1]], text)


def test_github(host: str, tmp_path: Path) -> None:
    config, workflow, _ = blocks()
    project = Project(tmp_path, config)
    project.lock()
    job = workflow["jobs"]["vm"]
    values = {"github.sha": COMMIT, "github.repository": "team/project"}
    environment = {name: expanded(value, values) for name, value in job["env"].items()}
    environment["REF"] = environment["REF"].replace("ghcr.io", host)
    steps = [step["run"] for step in job["steps"] if step.get("run", "").startswith("imgvm ")]
    assert [step.split()[1] for step in steps] == ["pack", "run", "push"]
    done = project.run(steps, **environment)
    assert done.returncode == 0, done.stderr
    assert f"{host}/team/project/ci@sha256:" in done.stdout and "Linux" in done.stdout
    assert json.loads((project.folder / "result.json").read_text())["status"] == 0
    project.check_published(environment["REF"])

    (project.folder / "test.sh").write_text("exit 3\n")
    changed = project.run(["rm ci.img", *steps], **environment)
    assert changed.returncode == 125 and "--frozen: boot.files[0]: test.sh has SHA-256" in changed.stderr


def test_gitlab_with_a_test_that_fails(host: str, tmp_path: Path) -> None:
    config, _, pipeline = blocks()
    project = Project(tmp_path, config)
    job = pipeline["vm"]
    given = {
        "CI_PROJECT_DIR": str(project.folder), "CI_COMMIT_SHA": COMMIT, "CI_COMMIT_SHORT_SHA": COMMIT[:8],
        "CI_REGISTRY": host, "CI_REGISTRY_IMAGE": f"{host}/team/project", "CI_REGISTRY_USER": "me", "CI_REGISTRY_PASSWORD": "secret",
    }  # fmt: skip
    environment = {name: re.sub(r"\$(\w+)", lambda use: given[use[1]], value) for name, value in job["variables"].items()} | given
    assert environment.pop("XDG_CACHE_HOME") == f"{project.folder}/.cache"
    (project.folder / "test.sh").write_text(TEST + "exit 3\n")
    project.lock()
    failed = project.run(job["script"], **environment)
    assert failed.returncode == 3, failed.stderr
    assert json.loads((project.folder / "result.json").read_text())["reason"] == "exec"
    assert not (tmp_path / "home/.docker").exists()

    (project.folder / "test.sh").write_text(TEST)
    project.run(["rm ci.img"])
    project.lock()
    done = project.run(job["script"], **environment)
    assert done.returncode == 0, done.stderr
    login = json.loads((tmp_path / "home/.docker/config.json").read_text())
    assert base64.b64decode(login["auths"][host]["auth"]) == b"me:secret"
    project.check_published(environment["REF"])
