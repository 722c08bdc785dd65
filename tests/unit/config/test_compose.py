# SPDX-License-Identifier: MIT
"""Configs put together: includes, profiles, variables; a fault names the file and line that it stands in."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from imgvm import units
from imgvm.cli import main
from imgvm.config import Config, include
from imgvm.config.revise import revise
from imgvm.errors import ConfigError, UsageError
from imgvm.machine import Disk, File, Machine, Rootfs

HEAD = "version: 1\nboot: {kernel: k}\n"


def write(folder: Path, **texts: str) -> Path:
    """Files of YAML; `a__b` is a/b.yaml. Says where ci.yaml is."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder / "ci.yaml"


def faults(path: Path, *variables: str, profiles: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> list[str]:
    """Each fault, with the folder cut off."""
    with pytest.raises(ConfigError) as caught:
        Config.load(path, sets, variables=variables, profiles=profiles)
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


# Includes


def test_includes_are_merged_maps_deeply_named_lists_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base="machine: {cpus: 2, memory: 1GiB}\ndisks: [{name: a, size: 1MiB}]\nlabels: {x: '1', y: '2'}\n"
        "boot: {kernel: base, cmdline: [quiet, ro], files: [{path: /a, content: '1'}, {path: /b, content: '2'}]}\n",
        more="machine: {cpus: 4}\nlabels: {y: null}\n",
        ci="version: 1\ninclude: [base.yaml, {path: more.yaml}, {path: gone.yaml, optional: true}]\n"
        "boot: {cmdline: [debug], files: [{path: /b, mode: '0600'}, {path: /c, content: '3'}]}\n"
        "disks: [{name: a, read_only: true}]\nlabels: {z: '3'}\n",
    )
    config = Config.load(path)
    machine, boot = config.machine, config.machine.boot
    assert boot is not None
    assert (machine.hardware.cpus, machine.hardware.memory_bytes) == (4, units.GIB)
    assert machine.labels == {"x": "1", "z": "3"}
    assert machine.disks == (Disk("a", size_bytes=units.MIB, read_only=True, serial="a"),)
    assert boot.kernel.path == "base" and boot.cmdline == "debug"
    assert boot.files == (File("/a", content="1"), File("/b", content="2", mode=0o600), File("/c", content="3"))
    assert [part.origin for part in config.includes] == ["base.yaml", "more.yaml"]
    assert config.text.startswith("version: 1\ninclude:")
    assert machine.name == "ci"


def test_a_fault_names_the_included_files_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        parts__base="# first\nmachine:\n  memroy: 1GiB\n  cpus: 0\nexit: {timeout: 5}\n",
        ci=HEAD + "include: [parts/base.yaml]\nmachine: {memory: 5, entropy: maybe}\n",
    )
    assert faults(path) == [
        "ci.yaml:4:19: machine.memory: must be a size such as 512MiB, not 5 (sizes carry a unit: 5MiB?)",
        'ci.yaml:4:31: machine.entropy: must be true or false, not "maybe"',
        "parts/base.yaml:3:3: machine.memroy: unknown key (did you mean memory?)",
        "parts/base.yaml:4:9: machine.cpus: must be at least 1, not 0",
        "parts/base.yaml:5:17: exit.timeout: must be none or a duration such as 1m30s, not 5 (durations carry a unit: 5s?)",
    ]
    write(tmp_path, parts__base="machine: {cpus: 1, cpus: 2}\n")
    assert "parts/base.yaml:1:20: machine.cpus: duplicate key (first given in line 1)" in faults(path)
    write(tmp_path, parts__base="machine: [\n")
    assert faults(path)[0].startswith("parts/base.yaml:2:1: not YAML")


def test_paths_of_an_included_file_start_at_its_folder(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        parts__base="include: [deep/more.yaml]\nboot: {kernel: {path: vmlinuz}, files: [{path: /x, source: ~/x}, {path: /y, source: y}]}\n"
        "disks: [{name: d, source: '${IMAGE}'}]\nvars: {IMAGE: d.raw}\n",
        ci="version: 1\ninclude: [parts/base.yaml]\nboot: {files: [{path: /x, source: mine}]}\n",
    )
    (tmp_path / "parts/deep").mkdir()
    (tmp_path / "parts/deep/more.yaml").write_text("disks: [{name: d, size: 1MiB}, {name: e, source: e.raw}]\n")
    assert [disk.source for disk in Config.load(path).machine.disks] == ["parts/d.raw", "parts/deep/e.raw"]
    boot = Config.load(path, ["disks=[]"]).machine.boot
    assert boot is not None and boot.kernel.path == "parts/vmlinuz"
    assert [file.source for file in boot.files] == ["mine", "parts/y"]
    (tmp_path / "parts/deep/more.yaml").write_text("{}\n")
    assert Config.load(path).machine.disks[0].source == "parts/d.raw"
    assert Config.load(path, variables=["IMAGE=/abs"]).machine.disks[0].source == "/abs"
    assert Config.load(path, ["disks.d.source=mine.raw"]).machine.disks[0].source == "mine.raw"


def test_words_beside_paths_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, parts__a="boot: {kernel: k, initrd: auto}\n", ci="version: 1\ninclude: [parts/a.yaml]\n")
    boot = Config.load(path).machine.boot
    assert boot is not None and boot.initrd_is_auto and boot.kernel.path == "parts/k"
    write(tmp_path, parts__a="boot: {kernel: ../k, initrd: [a, /b]}\n")
    boot = Config.load(path).machine.boot
    assert boot is not None and boot.initrd == ("parts/a", "/b") and boot.kernel.path == "k"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("[gone.yaml]", "ci.yaml:3:11: include[0]: gone.yaml: no such file (looked for in "),
        ("[ci.yaml]", "ci.yaml:3:11: include[0]: ci.yaml includes itself (ci.yaml → ci.yaml)"),
        ("[a.yaml]", "b.yaml:1:11: include[0]: a.yaml includes itself (a.yaml → b.yaml → a.yaml)"),
        ("[/]", "include[0]: / is no file"),
        ("['${X}.yaml']", "variables are not known yet where files are included"),
        ("[list.yaml]", "list.yaml:1:1: must be a map, as every config is"),
        ("[{path: ok.yaml, sha256: " + "0" * 64 + "}]", "include[0]: ok.yaml has another SHA-256: "),
        ("[{path: ok.yaml, sha256: 12}]", "include[0]"),
        ("[{pth: ok.yaml}]", "ci.yaml:3:12: include[0].pth: unknown key (did you mean path?)"),
        ("ok.yaml", 'ci.yaml:3:10: include: must be a list, not "ok.yaml"'),
    ],
)
def test_impossible_includes(tmp_path: Path, entry: str, message: str) -> None:
    path = write(
        tmp_path, a="include: [b.yaml]\n", b="include: [a.yaml]\n", list="[1]\n", ok="name: ok\n", ci=f"{HEAD}include: {entry}\n"
    )
    found = faults(path)
    assert any(message in fault for fault in found), found


def test_a_pinned_include(tmp_path: Path) -> None:
    path = write(tmp_path, ok="name: ok\n", ci="")
    digest = hashlib.sha256(b"name: ok\n").hexdigest()
    path.write_text(f"{HEAD}include: [{{path: ok.yaml, sha256: {digest}}}]\n")
    config = Config.load(path)
    assert config.machine.name == "ok" and config.includes[0].sha256 == digest


def test_includes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"n{index}": f"include: [n{index + 1}.yaml]\n" for index in range(12)}
    assert "more than 8 deep" in faults(write(tmp_path, ci=HEAD + "include: [n0.yaml]\n", **names))[0]
    monkeypatch.setattr(include, "MAX_INCLUDES", 3)
    path = write(tmp_path, n12="{}\n", ci=HEAD + "include: [n12.yaml, n12.yaml, n12.yaml, n12.yaml]\n")
    assert "more than 3 files" in faults(path)[0]
    big = "labels:\n" + "".join(f"  k{index}: v\n" for index in range(15_000))
    path = write(tmp_path, big=big, n12=big.replace("  k", "  l"), ci=HEAD + "include: [big.yaml, n12.yaml]\n")
    assert "more than 20000 values" in faults(path)[0]


def test_a_diamond_is_no_circle(tmp_path: Path) -> None:
    path = write(
        tmp_path, d="machine: {cpus: 3}\n", b="include: [d.yaml]\n", c="include: [d.yaml]\n",
        ci=HEAD + "include: [b.yaml, c.yaml]\n",
    )  # fmt: skip
    assert Config.load(path).machine.hardware.cpus == 3


def test_a_resolved_config_includes_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("name: secret\n")
    text = json.dumps({"version": 1, "boot": {"kernel": "k"}, "include": [str(secret)], "vars": {"A": 1}})
    with pytest.raises(ConfigError) as caught:
        Config.from_resolved(text, "image")
    assert [problem.message for problem in caught.value.problems] == ["a resolved config has no such key"] * 2


# Profiles

PROFILES = (
    HEAD + "machine: {cpus: 2}\ndisks: [{name: d, size: 1MiB}]\nexec: {command: x}\nprofiles:\n"
    "  big: {machine: {memory: 8GiB}, disks: [{name: d, size: 2MiB}]}\n"
    "  many:\n    machine:\n      cpus: ${CPUS}\n    exec: null\n    boot: {cmdline: debug}\n"
)


def test_profiles_are_laid_over_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, ci=PROFILES)
    plain = Config.load(path).machine
    assert plain.hardware.cpus == 2 and plain.exec is not None
    big = Config.load(path, profiles=["big"]).machine
    assert (big.hardware.memory_bytes, big.hardware.cpus, big.disks[0].size_bytes) == (8 * units.GIB, 2, 2 * units.MIB)
    both = Config.load(path, profiles=["big", "many"], variables=["CPUS=7"]).machine
    assert (both.hardware.cpus, both.hardware.memory_bytes) == (7, 8 * units.GIB)
    assert both.exec is None and both.boot is not None and both.boot.cmdline == "debug"
    with pytest.raises(UsageError, match="no profile of that name") as caught:
        Config.load(path, profiles=["bgi"])
    assert caught.value.hint == "did you mean big?"
    over = Config.load(path, ["machine.cpus=9"], profiles=["many"], variables=["CPUS=7"]).machine
    assert over.hardware.cpus == 9


def test_every_profile_is_checked_for_what_it_says(tmp_path: Path) -> None:
    text = HEAD + "profiles:\n  a: {machine: {memroy: 1GiB}}\n  b: {disks: [{name: d}], machine: {cpus: 0}}\n  c: {include: [x]}\n"
    assert faults(write(tmp_path, ci=text)) == [
        "ci.yaml:4:17: profiles.a.machine.memroy: unknown key (did you mean memory?)",
        "ci.yaml:5:43: profiles.b.machine.cpus: must be at least 1, not 0",
        "ci.yaml:6:7: profiles.c.include: unknown key (there is include at the top level)",
    ]
    bad = write(tmp_path, ci=HEAD + "profiles:\n  b: {disks: [{name: d}]}\n")
    assert faults(bad, profiles=("b",)) == ["ci.yaml:4:15: disks[0]: give source, size or both"]


# Variables


def load(text: str, *variables: str, environment: dict[str, str] | None = None) -> Config:
    return Config.from_text(HEAD + text, "f", variables=variables, environment=environment or {})


def test_where_values_come_from() -> None:
    text = "vars: {A: {default: 1, env: true}, B: {env: OTHER}}\nlabels: {a: '${A}', b: '${B:-none}', c: '$$x $y ${A}${A}'}\n"
    assert load(text).machine.labels == {"a": "1", "b": "none", "c": "$x $y 11"}
    environment = {"A": "e", "OTHER": "o", "B": "not asked"}
    assert load(text, environment=environment).machine.labels["a"] == "e"
    assert load(text, environment=environment).machine.labels["b"] == "o"
    assert load(text, "A=given", environment=environment).machine.labels["a"] == "given"
    assert load("labels: {a: '${X:-d$$}'}\n", "X=v").machine.labels == {"a": "v"}
    assert load("labels: {a: '${X:-d$$}'}\n").machine.labels == {"a": "d$"}


def test_plain_values_take_the_type_that_they_show() -> None:
    text = "vars: {N: 3, ON: no, M: 64MiB}\nmachine:\n  cpus: ${N}\n  memory: ${M}\n  entropy: ${RNG:-false}\nlabels: {a: '${N}'}\n"
    machine = load(text).machine
    assert (machine.hardware.cpus, machine.hardware.memory_bytes, machine.hardware.entropy) == (3, 64 << 20, False)
    assert machine.labels == {"a": "3"}
    with pytest.raises(ConfigError, match=r"f:4:9: machine.cpus: must be a whole number, not \"many\""):
        load("machine:\n  cpus: ${N:-many}\n")
    with pytest.raises(ConfigError, match="write it without quotes"):
        load("machine: {cpus: '${N:-3}'}\n")


def test_variables_of_variables() -> None:
    text = "vars: {A: '${B}-x', B: '${C:-deep}'}\nlabels: {a: '${A}'}\n"
    assert load(text).machine.labels == {"a": "deep-x"}
    with pytest.raises(ConfigError, match=r"the variable A needs itself \(A → B → A\)"):
        load("vars: {A: '${B}', B: '${A}'}\n")
    with pytest.raises(ConfigError, match="longer than 64KiB"):
        load("vars: {A: " + "x" * 1000 + ", B: " + "'" + "${A}" * 60 + "', C: '" + "${B}" * 60 + "'}\nlabels: {a: '${C}'}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {a: '${X}'}", "f:3:13: labels.a: there is no variable X (declare it under vars"),
        ("vars: {TAG: 1}\nlabels: {a: '${TGA}'}", "labels.a: there is no variable TGA (did you mean TAG?)"),
        ("labels: {a: '${X:?name the build}'}", "labels.a: X: name the build (give it with --var X=...)"),
        ("labels: {a: '${X:?}'}", "labels.a: X: a value is needed"),
        ("vars: {X: {env: true}}\nlabels: {a: '${X}'}", "labels.a: the variable X has no value"),
        ("vars: {X: {required: true}}", "f:3:8: vars.X: a value is needed (give it with --var X=...)"),
        ("vars: {X: {default: c, enum: [a, b]}}", "vars.X: must be one of a, b, not c"),
        ("labels: {a: 'x${'}", "${ begins no variable"),
        ("labels: {a: '${1}'}", "${ begins no variable"),
        ("labels: {a: '${A:-${B}}'}", "${ begins no variable"),
        ("vars: {1a: 2}", '"1a" is not the name of a variable'),
        ("vars: {A: [1]}", "vars.A: must be a value or a map with default, description, enum, required, env, not a list"),
        ("vars: {A: {defualt: 1}}", "vars.A.defualt: unknown key (did you mean default?)"),
        ("labels: {a: '${A:-\\0}'}", None),
    ],
)
def test_faults_of_variables(text: str, message: str | None) -> None:
    if message is None:
        assert load(text + "\n").machine.labels == {"a": "\\0"}
        return
    with pytest.raises(ConfigError) as caught:
        load(text + "\n")
    assert message in str(caught.value)


def test_the_environment_is_not_read_unless_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGVM_TEST_SECRET", "s3cret")
    path = write(tmp_path, ci=HEAD + "labels: {a: '${IMGVM_TEST_SECRET:-unknown}'}\n")
    assert Config.load(path).machine.labels == {"a": "unknown"}
    path.write_text(HEAD + "vars: {IMGVM_TEST_SECRET: {env: true}}\nlabels: {a: '${IMGVM_TEST_SECRET}'}\n")
    assert Config.load(path).machine.labels == {"a": "s3cret"}


@pytest.mark.parametrize("variable", ["X", "=1", "1A=2", "TGA=1"])
def test_impossible_values(variable: str) -> None:
    with pytest.raises(UsageError) as caught:
        load("vars: {TAG: 1}\n", variable)
    assert caught.value.hint


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path, base="vars: {N: {required: true}}\nprofiles: {fast: {exit: {timeout: 1s}}}\n",
        ci=HEAD + "include: [base.yaml]\nmachine:\n  cpus: ${N}\n",
    )  # fmt: skip
    assert main(["pack", "--dry-run", str(path), "--var", "N=3", "--profile", "fast"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["machine"]["cpus"], shown["exit"]["timeout"]) == (3, "1s")
    assert not {"vars", "include", "profiles"} & shown.keys()
    assert main(["validate", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"{os.path.normpath(tmp_path / 'base.yaml')}:1:8: vars.N: a value is needed" in out
    assert main(["run", "--print-config", str(path), "--var", "N=4"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["cpus"] == 4


def test_a_change_after_packing_knows_no_variables() -> None:
    """What they were when the image was packed is not known any more: a default must not slip in."""
    old = HEAD + "vars: {T: 5s}\nexit:\n  timeout: ${T}\n"
    resolved = Config.from_text(old, "f", variables=["T=9s"]).resolved()

    def change(new: str) -> Machine:
        return revise(old, new, resolved, "f", lambda path: path[0] == "exit")

    assert change(old.replace("${T}", "7s")).exit.timeout_ns == 7 * 10**9
    assert change(old.replace("exit:", "exit:\n  on_reboot: exit")).exit.timeout_ns == 9 * 10**9
    with pytest.raises(ConfigError, match=r"f:5:12: exit.timeout: variables are settled when the image is packed"):
        change(old.replace("${T}", "${T:-6s}"))


def test_the_paths_of_an_included_rootfs_start_at_its_folder(tmp_path: Path) -> None:
    for source, wanted in (
        ("dir: root", Rootfs(dir="common/root", files=(File("/a", source="common/a"),))),
        ("tar: base.tar", Rootfs(tar=("common/base.tar",), files=(File("/a", source="common/a"),))),
        ("tar: [/base.tar, more.tar]", Rootfs(tar=("/base.tar", "common/more.tar"), files=(File("/a", source="common/a"),))),
        ("oci: layout", Rootfs(oci="common/layout", files=(File("/a", source="common/a"),))),
        ("oci: {registry: 'r.example/a/b:1'}", Rootfs(registry="r.example/a/b:1", files=(File("/a", source="common/a"),))),
    ):
        path = write(
            tmp_path,
            common__base=f"rootfs: {{{source}, files: [{{path: /a, source: a}}]}}\n",
            ci=f"{HEAD}include: [common/base.yaml]\n",
        )
        assert Config.load(path).machine.rootfs == wanted


def test_variables_that_need_each_other_without_end() -> None:
    chain = ", ".join(f"v{index}: '${{v{index + 1}}}'" for index in range(2000))
    with pytest.raises(ConfigError, match="variables need each other more than 50 deep"):
        Config.from_text(f"version: 1\nname: '${{v0}}'\nvars: {{{chain}, v2000: a}}\nboot: {{kernel: k}}\n", "f")
    chain = ", ".join(f"v{index}: '${{v{index + 1}}}'" for index in range(40))
    config = Config.from_text(f"version: 1\nname: '${{v0}}'\nvars: {{{chain}, v40: a}}\nboot: {{kernel: k}}\n", "f")
    assert config.machine.name == "a"
