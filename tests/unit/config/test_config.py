# SPDX-License-Identifier: MIT
"""Configs become machines; faults become problems with a place, a path and a hint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgvm import units
from imgvm.config import Config, document, overrides, report, resolved_text
from imgvm.config.features import CPU_FEATURES
from imgvm.config.schema import schema, schema_text
from imgvm.errors import ConfigError, ImgvmError, UsageError
from imgvm.machine import Cpu, DebugExit, Disk, Exec, File, Kernel
from imgvm.vmm import _build

HEAD = "version: 1\nboot: {kernel: k}\n"  # what follows begins in line 3
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_text(text, "f", overrides=overrides)
    return [str(problem) for problem in caught.value.problems]


def test_defaults() -> None:
    machine = Config.from_text(HEAD, "Some Where/My Box.yaml").machine
    assert machine.name == "my-box"
    assert (machine.hardware.cpus, machine.hardware.memory_bytes, machine.hardware.accel) == (1, 512 << 20, "auto")
    assert machine.boot is not None
    assert machine.boot.kernel == Kernel(path="k")
    assert machine.boot.initrd_is_auto
    assert machine.debug_exit is None
    assert machine.exec is None
    assert machine.exit.timeout_ns is None
    assert machine.image.cluster_bytes == 65536


def test_the_features_are_those_of_the_native_core() -> None:
    rows = (Path(_build.__file__).parent / "native" / "arch" / "cpuid.def").read_text()
    named = re.findall(r'^FEATURE\(\w+, .*"(\w+)", (\w+)\)', rows, re.M)
    assert tuple(name for name, kind in named if kind != "LIVE") == CPU_FEATURES


FULL = """
version: 1
name: full
description: "costs $5 and ${nothing}"
labels: {team: core}
x-mine: [1, "${kept}"]
machine: {cpus: 2, memory: 1.5GiB, accel: interp, entropy: false, cpu: {model: x86-64-v3, features: [+aes, -fma]}}
boot:
  kernel: {distro: "debian:trixie"}
  initrd: auto
  cmdline: [console=ttyS0, "a=$$b"]
  modules: [ext4]
  protocol: linux
  files:
    - {path: /etc/motd, content: "hi\\n", mode: "0600"}
    - {path: /bin/x, source: ./x}
    - {path: /lib64, link: lib}
disks: [{name: data, size: 64MiB, read_only: true}]
console: {device: serial, escape: "ctrl-]"}
devices: {debug_exit: {port: 0x501, mapping: qemu}}
exec: {command: "echo $HOME", env: {A: 1, B: true, C: no}, cwd: /tmp}
exit: {timeout: 1m30s, on_reboot: exit}
image: {size: 128MiB, cluster_size: 4KiB, compression: none}
"""


def test_every_key_reaches_the_machine() -> None:
    machine = Config.from_text(FULL, "f").machine
    boot = machine.boot
    assert boot is not None
    assert machine.description == "costs $5 and ${nothing}"
    assert machine.labels == {"team": "core"}
    assert (machine.hardware.cpus, machine.hardware.memory_bytes) == (2, 1536 << 20)
    assert not machine.hardware.entropy
    assert machine.hardware.cpu == Cpu("x86-64-v3", ("+aes", "-fma"))
    assert boot.kernel == Kernel(distro="debian:trixie", package="linux-image-cloud-amd64")
    assert boot.cmdline == "console=ttyS0 a=$b"
    assert boot.files == (
        File("/etc/motd", content="hi\n", mode=0o600), File("/bin/x", source="./x"), File("/lib64", link="lib"),
    )  # fmt: skip
    assert machine.disks == (Disk("data", size_bytes=64 << 20, read_only=True, serial="data"),)
    assert machine.console.escape == "ctrl-]"
    assert machine.debug_exit == DebugExit(0x501, "qemu")
    assert machine.exec == Exec(("/bin/sh", "-c", "echo $HOME"), {"A": "1", "B": "true", "C": "no"}, "/tmp")
    assert (machine.exit.timeout_ns, machine.exit.on_reboot) == (90 * 10**9, "exit")
    assert (machine.image.size_bytes, machine.image.cluster_bytes) == (128 << 20, 4096)


@pytest.mark.parametrize("text", [FULL, HEAD, "version: 1\nboot: {kernel: {bundled: true}}\n"])
def test_the_resolved_config_reads_back_as_the_same_machine(text: str) -> None:
    config = Config.from_text(text, "f")
    again = Config.from_resolved(config.resolved(), "g")
    assert again.machine == config.machine
    assert again.resolved() == config.resolved()
    escaped = config.resolved().replace("$5 and ${nothing}", "little").replace("$", "$$")
    as_yaml = Config.from_text(escaped, "h").machine
    assert (as_yaml.boot, as_yaml.exec, as_yaml.image) == (config.machine.boot, config.machine.exec, config.machine.image)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert Config.load(path).machine.name == path.stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machine: {memroy: 1GiB}", "f:3:11: machine.memroy: unknown key (did you mean memory?)"),
        ("disks:\n- {name: a, size: 1MiB, readOnly: true}",
         "f:4:25: disks[0].readOnly: unknown key (did you mean read_only?)"),
        ("machine: {ram: 1GiB}", "f:3:11: machine.ram: unknown key (did you mean memory?)"),
        ("machine: {}\nmemory: 1GiB", "f:4:1: memory: unknown key (there is machine.memory)"),
        ("machine: {exit: {}}", "f:3:11: machine.exit: unknown key (there is exit at the top level)"),
        ("networks: none", "f:3:1: networks: unknown key: this version of imgvm does not support it yet"),
        ("netwroks: none",
         "f:3:1: netwroks: unknown key (did you mean networks? This version of imgvm does not support that yet)"),
        ("cloud_init: {attach: smbios}", "f:3:22: cloud_init.attach: smbios is not supported by this version of imgvm yet"
                                         " (supported: iso, vfat)"),
        ("machine: {accel: intrep}",
         'f:3:18: machine.accel: must be one of auto, kvm, jit, interp, not "intrep" (did you mean interp?)'),
        ("machine:\n  cpu: {model: x86-64-v4}",
         'f:4:16: machine.cpu.model: must be one of portable, x86-64, x86-64-v2, x86-64-v3, host, not "x86-64-v4"'),
        ("machine:\n  cpu: {features: [+aes, -avx_2]}",
         "f:4:26: machine.cpu.features[1]: avx_2 is not a processor feature (did you mean -avx2?)"),
        ("machine:\n  cpu: {features: [+aes, -aes]}",
         "f:4:26: machine.cpu.features[1]: aes is both given and taken away (decide for one of them)"),
        ("machine:\n  cpu: {features: [aes]}",
         "f:4:20: machine.cpu.features[0]: \"aes\" must be + or - and the name of a processor feature, such as +aes"),
        ("machine: {memory: 512}",
         "f:3:19: machine.memory: must be a size such as 512MiB, not 512 (sizes carry a unit: 512MiB?)"),
        ('machine: {memory: "512MiB\\n"}', "is not a size"),
        ("machine: {memory: 1.0000001KiB}", "f:3:19: machine.memory: '1.0000001KiB' is not a whole number of bytes"),
        ("machine: {memory: 4KiB}", "f:3:19: machine.memory: must be at least 1MiB, not 4KiB"),
        ("machine: {memory: 2000001B}", "f:3:19: machine.memory: must be a multiple of 4096 bytes, not 2000001B"),
        ("machine: {memory: 2TiB}", "f:3:19: machine.memory: must be at most 1TiB, not 2TiB"),
        ("machine: {cpus: 2.0}", "f:3:17: machine.cpus: must be a whole number, not 2.0"),
        ('machine: {cpus: "2"}', 'f:3:17: machine.cpus: must be a whole number, not "2" (write it without quotes)'),
        ("machine: {cpus: 0}", "f:3:17: machine.cpus: must be at least 1, not 0"),
        ("machine: {cpus: 65}", "f:3:17: machine.cpus: must be at most 64, not 65"),
        ("machine: {entropy: no}", 'f:3:20: machine.entropy: must be true or false, not "no" (write false)'),
        ("machine:", "f:3:9: machine: must be a map, not nothing"),
        ("machine: [1]", "f:3:10: machine: must be a map, not a list"),
        ("name: Hello", 'f:3:7: name: "Hello" must be 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit'),
        ("labels: {a: 1}", "f:3:13: labels.a: must be text, not 1 (quote it)"),
        ("disks:\n- {name: a}", "f:4:3: disks[0]: give source, size or both"),
        ("disks:\n- {size: 1MiB}", "f:4:3: disks[0]: name is missing"),
        ("disks:\n- {name: a, size: 100B}", "f:4:19: disks[0].size: must be at least 512B, not 100B"),
        ("disks:\n- {name: a, size: 1MiB}\n- {name: a, size: 1MiB}",
         "f:5:10: disks[1].name: a is given twice (first as disks[0])"),
        ("disks:" + "".join(f"\n- {{name: d{i}, size: 1MiB}}" for i in range(25)), "f:4:1: disks: a machine has at most 24 disks"),
        ("disks:\n- {name: a, source: x, format: raw, embed: false}", "disks[0].embed: the first disk is the image's own"),
        ("disks:\n- {name: a, size: 1MiB}\n- {name: b, size: 1MiB, format: raw, embed: false}",
         "disks[1]: a disk outside the image needs a source (name the file of the host)"),
        ("disks:\n- {name: a, size: 1MiB}\n- {name: b, source: x, embed: false}",
         "disks[1]: a disk outside the image needs its format (format: raw or format: qcow2)"),
        ("disks:\n- {name: a, size: 1MiB}\n- {name: b, source: x, size: 1MiB, format: raw, embed: false}",
         "f:5:24: disks[1].size: a disk outside the image has the size of its file"),
        ("disks:\n- {name: a, source: x, bus: ide}", "disks[0].bus: unknown key: this version of imgvm does not support it yet"),
        ("disks:\n- {name: a, source: x, filesystem: ext4}", "disks[0].filesystem: is for a disk without a source"),
        ("disks:\n- {name: a, size: 1MiB, sha256: " + "f" * 64 + "}", "disks[0].sha256: is that of a source which is packed"),
        ("disks:\n- {name: a, size: 1MiB}\n- {name: b, source: x, format: vdi, embed: false}",
         "disks[1]: a disk outside the image needs its format (format: raw or format: qcow2)"),
        ("exit: {timeout: 10}", "f:3:17: exit.timeout: must be none or a duration such as 1m30s, not 10"
                                " (durations carry a unit: 10s?)"),
        ("exit: {timeout: 10x}", 'f:3:17: exit.timeout: must be none or a duration such as 1m30s, not "10x"'),
        ("exit: {timeout: 0s}", "f:3:17: exit.timeout: must be longer than nothing (write none for no timeout)"),
        ("console: {escape: ctrl-1}", 'f:3:19: console.escape: "ctrl-1" must be none or ctrl- and one of a-z'),
        ("devices: {debug_exit: 1}", "f:3:23: devices.debug_exit: must be true or false or a map, not 1"),
        ("devices: {debug_exit: {port: 65536}}", "f:3:30: devices.debug_exit.port: must be at most 65535, not 65536"),
        ("exec: {command: []}", "f:3:17: exec.command: must not be empty"),
        ("exec: {command: [a, 1]}", "f:3:21: exec.command[1]: must be text, not 1 (quote it)"),
        ("exec: {command: a, env: {1A: x}}", 'f:3:26: exec.env.1A: "1A" is not the name of an environment variable'),
        ("exec: {command: 'a${B}'}",
         "f:3:17: exec.command: there is no variable B (declare it under vars; write $${ for a ${ that the guest is to see)"),
        ('exec: {command: "a\\0b"}', "f:3:17: exec.command: the text contains a NUL character"),
        ('description: "a\\0b"', "f:3:14: description: the text contains a NUL character"),
        ('labels: {"a\\ud800": b}', "the text contains half a surrogate pair, which is no character"),
        ("image: {cluster_size: 3KiB}", "f:3:23: image.cluster_size: 3KiB is not a power of two"),
        ("image: {cluster_size: 4MiB}", "f:3:23: image.cluster_size: must be at most 2MiB, not 4MiB"),
        ("image: {compression: lzo}", "image.compression: must be one of none, zlib, zstd"),
    ],
)  # fmt: skip
def test_faults(text: str, message: str) -> None:
    found = faults(HEAD + text + "\n")
    assert any(message in fault for fault in found), found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("boot", "message"),
    [
        ("{kernel: {}}", "f:2:16: boot.kernel: give one of: path; bundled; from_rootfs; distro, package or both"),
        ("{kernel: {path: a, bundled: true}}", "boot.kernel: give one of"),
        ("{kernel: {path: a, package: abc}}", "boot.kernel: give one of"),
        ("{kernel: {bundled: false}}", "f:2:26: boot.kernel.bundled: must be true, not false"),
        ("{kernel: 5}", "f:2:16: boot.kernel: must be a path or a map, not 5"),
        ("{kernel: ''}", "f:2:16: boot.kernel: must not be empty"),
        ("{kernel: {distro: fedora:40}}", 'boot.kernel.distro: "fedora:40" must be debian:<suite>'),
        ("{kernel: {pakage: abc}}", "boot.kernel.pakage: unknown key (did you mean package?)"),
        ("{}", "f:2:7: boot: nothing to boot: there is neither boot.kernel nor a disk"),
        ("{order: [disk]}", "f:2:7: boot: nothing to boot: there is neither boot.kernel nor a disk"),
        ("{kernel: k, order: [disk]}", "boot.order: the kernel is loaded, and nothing else booted"),
        ("{order: [tape]}", "boot.order[0]: must be one of disk, cdrom"),
        ("{order: [floppy]}", "floppy is not supported by this version of imgvm yet"),
        ("{kernel: k, initrd: [1]}", "f:2:28: boot.initrd[0]: must be a path, not 1"),
        ("{kernel: k, initrd: {a: b}}", "f:2:27: boot.initrd: must be auto, none, a path or a list of paths, not a map"),
        ("{kernel: k, cmdline: {a: b}}", "f:2:28: boot.cmdline: must be text or a list, not a map"),
        ('{kernel: k, cmdline: "a\\nb"}', "boot.cmdline: must be one line"),
        (f"{{kernel: k, cmdline: {'x' * 2048}}}", "boot.cmdline: is longer than 2047 bytes"),
        ("{kernel: k, protocol: pvh}", "pvh is not supported by this version of imgvm yet"),
        ("{kernel: k, protocol: multiboot, initrd: x}", "boot.initrd: a multiboot kernel takes no initrd"),
        ("{kernel: {bundled: true}, initrd: x}", "boot.initrd: the bundled guest takes no initrd"),
        ("{kernel: k, initrd: none, modules: [a]}", "boot.modules: kernel modules need the automatic initrd"),
        ("{kernel: k, initrd: x, files: [{path: /a, content: b}]}", "boot.files: needs the automatic initrd"),
        ("{kernel: k, protocol: linux, modules: [a/b]}", "'a/b' is not the name of a kernel module"),
        ("{kernel: k, files: [{path: a, content: b}]}", '"a" must be an absolute path in the guest'),
        ("{kernel: k, files: [{path: /a/../b, content: b}]}", "/a/../b must not contain . or .. or empty parts"),
        ("{kernel: k, files: [{path: /a}]}", "boot.files[0]: give one of source, content and link"),
        ("{kernel: k, files: [{path: /a, content: b, link: c}]}", "give one of source, content and link"),
        ("{kernel: k, files: [{path: /a, link: c}, {path: /a, link: d}]}", "boot.files[1].path: /a is given twice"),
        ("{kernel: k, files: [{path: /a, content: b, mode: 0644}]}",
         'boot.files[0].mode: must be octal digits in quotes, such as "0755", not 644'),
        ("{kernel: k, files: [{path: /a, link: b, mode: '0644'}]}", "a symbolic link has no mode"),
    ],
)  # fmt: skip
def test_faults_of_boot(boot: str, message: str) -> None:
    found = faults(f"version: 1\nboot: {boot}\n")
    assert any(message in fault for fault in found), found
    assert len(found) == 1


DISKS = "disks: [{name: a, size: 1MiB}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DISKS + "boot: {cmdline: quiet}", "f:3:8: boot.cmdline: needs a kernel (boot.kernel names the kernel to boot)"),
        (DISKS + "exec: {command: a}", "f:3:1: exec: needs a kernel, whose automatic initrd runs it"),
        (DISKS + "machine: {firmware: none}", "f:3:21: machine.firmware: without a kernel and a firmware nothing is booted"),
        (DISKS + "machine: {firmware: uefi}", 'must be auto, none, bios or a map with path, not "uefi"'),
        (DISKS + "machine: {firmware: {path: a, vars: a}}", "machine.firmware.vars: unknown key: this version of imgvm does not support it yet"),
        ("boot: {kernel: k}\nmachine: {firmware: bios}", "f:3:21: machine.firmware: there is no disk that the firmware could boot from"),
        (DISKS + "rootfs: {dir: a, partition_table: mbr, bootloader: grub}", "rootfs.bootloader: there is no kernel for it to start"),
        (DISKS + "rootfs: {dir: a, format: initramfs}", "rootfs.format: an initramfs needs a kernel"),
    ],
)
def test_faults_of_firmware(text: str, message: str) -> None:
    found = faults(f"version: 1\n{text}\n")
    assert any(message in fault for fault in found), found
    assert len(found) == 1


def test_a_disk_without_a_kernel_is_booted() -> None:
    machine = Config.from_text(f"version: 1\n{DISKS}boot: {{order: [cdrom]}}\nmachine: {{firmware: {{path: b.bin}}}}\n").machine
    assert machine.boot is None
    assert machine.boot_order == ("cdrom",)
    assert machine.hardware.firmware.path == "b.bin"
    assert Config.from_resolved(resolved_text(machine), "f").machine == machine


def test_a_firmware_that_is_asked_for_takes_the_place_of_the_kernel() -> None:
    text = "version: 1\nboot: {kernel: k, order: [disk]}\nrootfs: {dir: a, partition_table: gpt, bootloader: grub}\n"
    assert Config.from_text(text, overrides=["machine.firmware=bios"]).machine.loaded is None
    machine = Config.from_text(text.replace(", order: [disk]", "")).machine
    assert machine.loaded == machine.boot is not None


def test_exec_needs_the_automatic_initrd() -> None:
    text = "version: 1\nboot: {kernel: {bundled: true}}\nexec: {command: a}\n"
    assert faults(text) == ["f:3:1: exec: needs the automatic initrd (the bundled guest has none)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: the config is empty (it begins with `version: 1`)"),
        ("[]", "f:1:1: must be a map, not a list"),
        ("boot: {kernel: k}", "f:1:1: version is missing (a config begins with `version: 1`)"),
        ("version: 2\nboot: {kernel: k}", "f:1:10: version: version 2 is not known to this version of imgvm"),
        ("version: 1", "f:1:1: nothing to boot: there is neither boot.kernel nor a disk (boot.kernel names the kernel to boot;"),
    ],
)
def test_faults_of_the_whole(text: str, message: str) -> None:
    found = faults(text)
    assert any(message in fault for fault in found), found


def test_all_faults_are_shown_at_once_in_the_order_of_the_text() -> None:
    text = HEAD + "machine: {cpus: 0, cpus: 1, memory: 5}\nnetworks: none\nexit: {on_reboot: stop}\n"
    assert [fault.split(": ")[0] for fault in faults(text)] == ["f:3:17", "f:3:20", "f:3:37", "f:4:1", "f:5:19"]


def test_overrides() -> None:
    sets = ["machine.memory=1GiB", "disks.0.size=2GiB", "disks[0].name=data", "disks.data.read_only=true",
            "exit.timeout=5s", 'labels."a.b"=c', "boot.modules[0]=ext4"]  # fmt: skip
    machine = Config.from_text(HEAD, "f", overrides=sets).machine
    assert machine.hardware.memory_bytes == units.GIB
    assert machine.disks == (Disk("data", size_bytes=2 * units.GIB, read_only=True, serial="data"),)
    assert machine.exit.timeout_ns == 5 * 10**9
    assert machine.labels == {"a.b": "c"}
    assert machine.boot is not None
    assert machine.boot.modules == ("ext4",)


def test_faults_of_an_override_name_it() -> None:
    assert faults(HEAD, "machine.memory=5") == [
        "--set machine.memory=5: machine.memory: must be a size such as 512MiB, not 5"
        " (sizes carry a unit: 5MiB?)"
    ]
    assert faults(HEAD + "machine: {cpus: 0}\n", "machine.memroy=1GiB")[0].startswith(
        "--set machine.memroy=1GiB: machine.memroy: unknown key"
    )


@pytest.mark.parametrize(
    "override",
    ["machine.memory", "=1", "a..b=1", "machine.memory=[", "disks.data.size=1GiB", "version.x=1",
     "boot.modules[5]=a", "a=1\n---\nb", "[0]=1"],
)  # fmt: skip
def test_impossible_overrides(override: str) -> None:
    text = HEAD.replace("k}", "k, modules: [a]}") + "disks: [{name: x, size: 1MiB}]\n"
    with pytest.raises(UsageError) as caught:
        Config.from_text(text, "f", overrides=[override])
    assert caught.value.hint


def test_an_untrusted_resolved_config_is_checked() -> None:
    for text in ("", "{", "[" * 100_000, '{"version": 1}', '{"version": 1, "boot": {"kernel": 3}}', "5", "null"):
        with pytest.raises(ConfigError):
            Config.from_resolved(text, "image")
    with pytest.raises(ConfigError, match="too large"):
        Config.from_resolved(" " * (1 << 21), "image")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ImgvmError) as caught:
        Config.load(tmp_path / "none.yaml")
    assert caught.value.status == 127
    with pytest.raises(ImgvmError) as caught:
        Config.load(tmp_path)
    assert caught.value.status == 125


def test_reports() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_text(HEAD + "machine: {memroy: 1}\n", "a,b.yaml")
    problems = caught.value.problems
    assert report.as_text(problems) == "a,b.yaml:3:11: machine.memroy: unknown key (did you mean memory?)"
    assert json.loads(report.as_json(problems)) == [{
        "file": "a,b.yaml", "line": 3, "column": 11, "path": "machine.memroy", "message": "unknown key",
        "hint": "did you mean memory?",
    }]  # fmt: skip
    github = "::error file=a%2Cb.yaml,line=3,col=11::machine.memroy: unknown key (did you mean memory?)"
    assert report.as_github(problems) == github


def test_the_schema_is_a_schema() -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json.loads(schema_text()))


def test_no_key_is_both_supported_and_planned() -> None:
    def walk(node: object) -> None:
        if isinstance(node, dict):
            known = {*node.get("properties", {}), *map(str, node.get("enum", ()))}
            assert not known & set(node.get("x-planned", ())), node
            if "properties" in node and "type" in node:
                assert node.get("additionalProperties") is False
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(schema())


@given(st.from_regex(overrides._WORD, fullmatch=True) | st.from_regex(overrides._QUOTED, fullmatch=True))
@settings(max_examples=300, deadline=None)
def test_plain_values_of_overrides_are_what_yaml_says(text: str) -> None:
    read = document.parse(text, "f")
    found = overrides._value(text, f"a={text}")
    assert found == read.data and type(found) is type(read.data)
