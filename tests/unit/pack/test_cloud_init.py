# SPDX-License-Identifier: MIT
"""The seed disk, read by isoinfo and blkid, and as cloud-init's NoCloud data source looks at it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from file_trees import has, run

from imgvm.config import Config
from imgvm.errors import ConfigError, PackError
from imgvm.machine import CloudInit
from imgvm.pack import cloud_init, iso9660, vfat
from imgvm.qcow2 import Image

HEAD = "version: 1\nname: box\nboot: {kernel: {bundled: true}}\n"
SEED = (
    "cloud_init:\n  user_data:\n    hostname: box\n    runcmd: [[echo, 'a: b'], touch /x]\n"
    "  network_config: |\n    version: 2\n    ethernets: {}\n"
)


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def seed_of(text: str, folder: Path) -> bytes:
    from imgvm.pack import pack

    pack(Config.from_text(HEAD + text, "box.yaml", folder), folder / "box.img", force=True)
    with Image.open(folder / "box.img") as image:
        disk = image.open_disk("cidata")
        return disk.read(0, disk.info.disk_bytes)


def tool(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@needs("isoinfo")
def test_isoinfo_reads_the_files(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_bytes(seed_of(SEED, tmp_path))
    head = tool("isoinfo", "-d", "-i", path)
    assert "Volume id: CIDATA" in head and "Joliet with UCS level 3 found" in head
    assert f"Volume size is: {path.stat().st_size // 2048}" in head
    names = [line.split()[-1] for line in tool("isoinfo", "-J", "-l", "-i", path).splitlines() if line.startswith("-")]
    assert sorted(names) == ["meta-data", "network-config", "user-data"]

    def read(name: str) -> str:
        return tool("isoinfo", "-J", "-x", f"/{name}", "-i", path)

    assert read("user-data").startswith("#cloud-config\n")
    assert yaml.safe_load(read("user-data")) == {"hostname": "box", "runcmd": [["echo", "a: b"], "touch /x"]}
    assert yaml.safe_load(read("meta-data"))["local-hostname"] == "box"
    assert read("network-config") == "version: 2\nethernets: {}\n"
    plain = tool("isoinfo", "-x", "/USER_DAT.;1", "-i", path)
    assert plain == read("user-data")


@needs("blkid")
def test_blkid_knows_the_label(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_bytes(seed_of(SEED, tmp_path))
    facts = tool("blkid", "-p", "-o", "export", path)
    assert "LABEL=CIDATA\n" in facts and "TYPE=iso9660\n" in facts


@pytest.mark.skipif(not has("fsck.vfat", "mtype", "mdir"), reason="dosfstools and mtools are not installed")
def test_mtools_read_a_fat_seed(tmp_path: Path) -> None:
    path = tmp_path / "seed.img"
    text = SEED + "  vendor_data: {packages: [tree]}\n  attach: vfat\n"
    path.write_bytes(seed_of(text, tmp_path))
    run("fsck.vfat", "-n", path)
    assert "Volume in drive : is CIDATA" in run("mdir", "-i", path, "::")
    for name, data in cloud_init.files(Config.from_text(HEAD + text).machine.cloud_init or CloudInit(), "box").items():
        assert run("mtype", "-i", path, f"::{name}") == data.decode(), name
    assert yaml.safe_load(run("mtype", "-i", path, "::vendor-data")) == {"packages": ["tree"]}
    facts = run("blkid", "-p", "-o", "export", path)
    assert "LABEL=CIDATA\n" in facts and "TYPE=vfat\n" in facts
    assert seed_of(text, tmp_path) == path.read_bytes()


@pytest.mark.skipif(not has("fsck.vfat", "mcopy"), reason="dosfstools and mtools are not installed")
def test_fat_files_of_many_sizes_and_names(tmp_path: Path) -> None:
    sizes = (0, 1, 2047, 2048, 2049, 100_000, 1_500_000)
    files = {f"{'n' * (12 + index)}": bytes([index + 65]) * size for index, size in enumerate(sizes)}
    files |= {"A long name with spaces.and.dots": b"1", "größer": b"2", "x" * 255: b"3"}
    path = tmp_path / "fat.img"
    path.write_bytes(vfat.image("TEST", files, 1_700_000_000))
    run("fsck.vfat", "-n", path)
    (tmp_path / "out").mkdir()
    run("mcopy", "-i", path, "-m", "::*", tmp_path / "out")
    found = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert found == files
    with pytest.raises(PackError, match="less than 8MiB"):
        vfat.image("X", {"a": bytes(9 << 20)})
    with pytest.raises(PackError, match="fewer files"):
        vfat.image("X", {"f" * 200 + str(index): b"" for index in range(40)})


def test_cloud_init_is_told_where_its_data_are() -> None:
    def cmdline(text: str) -> str:
        return Config.from_text(HEAD.replace("{bundled: true}", "k") + text).machine.kernel_cmdline

    assert cmdline("cloud_init: {}\n") == "ds=nocloud"
    assert Config.from_text(HEAD + "cloud_init: {}\n").machine.boot is not None
    given = HEAD.replace("{bundled: true}", "k, cmdline: 'ds=none quiet'") + "cloud_init: {}\n"
    assert Config.from_text(given).machine.kernel_cmdline == "ds=none quiet"


def test_the_same_config_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seed_of(SEED, tmp_path)
    assert seed_of(SEED, tmp_path) == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    later = seed_of(SEED, tmp_path)
    assert later != first and b"2023111422132000" in later and b"1970010100000000" in first


def test_an_instance_is_another_when_its_data_are() -> None:
    def instance(user_data: str) -> str:
        found = cloud_init.files(CloudInit(user_data=user_data), "box")
        return str(yaml.safe_load(found["meta-data"])["instance-id"])

    assert instance("#!/bin/sh\n") == instance("#!/bin/sh\n") != instance("#!/bin/bash\n")
    own = cloud_init.files(CloudInit(meta_data="instance-id: mine\n"), "box")
    assert own == {"user-data": b"#cloud-config\n{}\n", "meta-data": b"instance-id: mine\n"}


def test_the_resolved_config_has_the_texts(tmp_path: Path) -> None:
    config = Config.from_text(HEAD + SEED, "box.yaml", tmp_path)
    document = json.loads(config.resolved())
    assert document["cloud_init"]["user_data"].startswith('#cloud-config\n{\n "hostname"')
    assert Config.from_resolved(config.resolved(), "machine.json").machine == config.machine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cloud_init: {user_data: 'hostname: box'}", "cloud_init.user_data: is text that cloud-init would pass over (begin it with"),
        ("cloud_init: {vendor_data: 'hostname: box'}", "cloud_init.vendor_data: is text that cloud-init would pass over"),
        ("cloud_init: {attach: smbios, user_data: '#!'}", "cloud_init.user_data: does not go into a serial number (attach: iso;"),
        ("cloud_init: {attach: smbios, network_config: x}", "cloud_init.network_config: does not go into a serial number"),
        ("cloud_init: {attach: smbios, meta_data: text}", "cloud_init.meta_data: must be a map where it is a serial number"),
        ("cloud_init: {attach: smbios, meta_data: {a: 'b;c'}}", "a must be text without spaces, quotes and semicolons"),
        ("cloud_init: {attach: smbios, meta_data: {a: [b]}}", "a must be text without spaces"),
        ("cloud_init: {attach: smbios, meta_data: {'a b': c}}", "a b must be text without spaces"),
        ("cloud_init: {attach: smbios, seed_from: /srv}", "must be a folder of the guest, such as /srv/seed/"),
        ("cloud_init: {attach: smbios}\nmachine: {smbios: {serial: x}}", "machine.smbios.serial: is what cloud_init.attach: smbios makes it"),
        ("cloud_init: {seed_from: /srv/}", "cloud_init.seed_from: is said in a serial number, and the seed is a disk (attach: smbios)"),
        ("cloud_init: {vendor: x}", "cloud_init.vendor: unknown key"),
        ("cloud_init: {}\ndisks: [{name: cidata, size: 1MiB}]", "cidata is the name of the disk that cloud_init makes"),
    ],
)  # fmt: skip
def test_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_text(HEAD + text + "\n")
    assert any(message in str(problem) for problem in caught.value.problems), caught.value.problems


def serial_of(text: str) -> str:
    return Config.from_text(HEAD + f"cloud_init: {{attach: smbios{text}}}\n").machine.smbios.serial


def test_a_serial_number_in_place_of_a_disk(tmp_path: Path) -> None:
    assert serial_of("") == "ds=nocloud;instance-id=iid-box;local-hostname=box"
    assert serial_of(", meta_data: {instance-id: i-7}") == "ds=nocloud;instance-id=i-7"
    assert serial_of(", seed_from: 'http://10.0.2.2/seed/'") == "ds=nocloud;seedfrom=http://10.0.2.2/seed/"
    both = serial_of(", meta_data: {local-hostname: a}, seed_from: /srv/")
    assert both == "ds=nocloud;local-hostname=a;seedfrom=/srv/"
    config = Config.from_text(HEAD + "cloud_init: {attach: smbios, meta_data: {instance-id: i-7}}\n", "box.yaml", tmp_path)
    machine = config.machine
    assert Config.from_resolved(config.resolved(), "machine.json").machine == machine
    assert machine.attached == () and machine.kernel_cmdline == ""
    Config.from_text(HEAD + "cloud_init: {attach: smbios}\ndisks: [{name: cidata, size: 1MiB}]\n")

    from imgvm.pack import pack

    pack(config, tmp_path / "box.img")
    with Image.open(tmp_path / "box.img") as image:
        assert image.disk_names() == ()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PackError, match="apart"):
        iso9660.image("X", {"network-config": b"", "network-other": b""})
    with pytest.raises(PackError, match="fewer files"):
        iso9660.image("X", {f"{number}-{'x' * 60}": b"" for number in range(40)})


@needs("isoinfo")
def test_empty_and_long_files(tmp_path: Path) -> None:
    files = {"empty": b"", "exact": b"x" * 2048, "long": bytes(range(256)) * 100, "more": b"end"}
    path = tmp_path / "a.iso"
    path.write_bytes(iso9660.image("TEST", files))
    for name, data in files.items():
        done = subprocess.run(["isoinfo", "-J", "-x", f"/{name}", "-i", path], check=True, capture_output=True)
        assert done.stdout == data
