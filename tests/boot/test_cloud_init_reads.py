# SPDX-License-Identifier: MIT
"""Seeds as cloud-init's NoCloud data source takes them: Debian's package, on the host's Python, without the mounting."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import platformdirs
import pytest

from imgvm.config import Config
from imgvm.errors import PackError
from imgvm.pack import cloud_init
from imgvm.pack.deb import DebCache

pytestmark = [pytest.mark.boot, pytest.mark.network]

PYTHON = "/usr/bin/python3.11"  # that of the packages
PACKAGES = (
    "cloud-init", "python3-yaml", "python3-requests", "python3-urllib3", "python3-certifi", "python3-chardet", "python3-idna",
    "python3-configobj", "python3-six", "python3-jinja2", "python3-markupsafe", "python3-netifaces", "python3-oauthlib",
    "python3-jsonpatch", "python3-json-pointer", "libyaml-0-2",
)  # fmt: skip
READ = """
import json, sys
from cloudinit import helpers, util
from cloudinit.net import network_state
from cloudinit.sources import DataSourceNoCloud as nocloud
folder, cmdline, scratch = sys.argv[1:]
util.mount_cb = lambda device, callback, data: callback(folder, data)
util.get_cmdline = lambda: cmdline
nocloud.DataSourceNoCloud._get_devices = lambda self, label: ["/dev/vdb"]
source = nocloud.DataSourceNoCloud({}, None, helpers.Paths({"cloud_dir": scratch, "run_dir": scratch}))
assert source._get_data()
state = network_state.parse_net_config_data(source._network_config)
print(json.dumps({
    "seed": source.seed, "meta": source.metadata, "user": util.decode_binary(source.userdata_raw),
    "vendor": util.decode_binary(source.vendordata_raw), "interfaces": [row["name"] for row in state.iter_interfaces()],
}))
"""
SEED = """
version: 1
name: box
boot: {kernel: k}
cloud_init:
  user_data: {hostname: box, runcmd: [[echo, "a: b"]]}
  vendor_data: "#!/bin/sh\\necho vendor\\n"
  network_config: {version: 2, ethernets: {eth0: {dhcp4: true}}}
  attach: %s
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cloud-init and what it imports, unpacked."""
    if not Path(PYTHON).exists() or not shutil.which("dpkg-deb"):
        pytest.skip("Debian's Python 3.11 is not installed")
    folder = tmp_path_factory.mktemp("cloud-init")
    cache = DebCache(platformdirs.user_cache_path("imgvm"))
    try:
        for name in PACKAGES:
            subprocess.run(["dpkg-deb", "-x", cache.get("debian:bookworm", name).path, folder], check=True)
    except PackError as error:
        if "cannot be reached" in error.message or "apt-get is not here" in error.message:
            pytest.skip(error.message)
        raise
    return folder


READ_SERIAL = """
import json, sys
from cloudinit import dmi, helpers, util
from cloudinit.sources import DataSourceNoCloud as nocloud
serial, scratch = sys.argv[1:]
dmi.read_dmi_data = {"system-serial-number": serial}.get
util.get_cmdline = lambda: "quiet"
nocloud.DataSourceNoCloud._get_devices = lambda self, label: []
source = nocloud.DataSourceNoCloud({}, None, helpers.Paths({"cloud_dir": scratch, "run_dir": scratch}))
assert source._get_data()
print(json.dumps({"seed": source.seed, "meta": source.metadata, "user": util.decode_binary(source.userdata_raw)}))
"""


def python(library: Path, *words: str | Path) -> str:
    paths = {
        "PYTHONPATH": str(library / "usr/lib/python3/dist-packages"),
        "LD_LIBRARY_PATH": str(library / "usr/lib/x86_64-linux-gnu"),
    }
    done = subprocess.run([PYTHON, "-s", "-c", *words], capture_output=True, text=True, env=os.environ | paths)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("where", ["", "file://"])
def test_nocloud_reads_the_serial_number(library: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed/user-data").write_text("#cloud-config\n{}\n")
    (tmp_path / "seed/meta-data").write_text("instance-id: not-this\nlocal-hostname: inside\n")
    text = "version: 1\nname: box\nboot: {kernel: k}\ncloud_init: {attach: smbios, meta_data: {instance-id: i-7}, seed_from: %s}\n"
    machine = Config.from_text(text % f"{where}{tmp_path}/seed/").machine
    found = json.loads(python(library, READ_SERIAL, machine.smbios.serial, tmp_path / "run"))
    assert found["seed"].startswith("dmi,") and found["user"] == "#cloud-config\n{}\n"
    assert (found["meta"]["instance-id"], found["meta"]["local-hostname"]) == ("i-7", "inside")
    alone = Config.from_text("version: 1\nname: box\nboot: {kernel: k}\ncloud_init: {attach: smbios}\n").machine
    found = json.loads(python(library, READ_SERIAL, alone.smbios.serial, tmp_path / "run"))
    assert (found["seed"], found["user"]) == ("dmi", "")
    assert (found["meta"]["instance-id"], found["meta"]["local-hostname"]) == ("iid-box", "box")


@pytest.mark.parametrize(("serial", "found"), [(None, True), ("other", False)])
def test_ds_identify_finds_the_serial_number(library: Path, tmp_path: Path, serial: str | None, found: bool) -> None:
    """What decides at the guest's start whether cloud-init is to run at all."""
    if serial is None:
        text = "version: 1\nname: box\nboot: {kernel: k}\ncloud_init: {attach: smbios}\n"
        serial = Config.from_text(text).machine.smbios.serial
    for folder in ("sys/class/dmi/id", "proc/1", "run", "etc/cloud"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_serial").write_text(f"{serial}\n")
    (tmp_path / "proc/cmdline").write_text("quiet\n")
    (tmp_path / "proc/1/environ").write_text("a=b\0")
    (tmp_path / "etc/cloud/cloud.cfg").write_text("datasource_list: [ NoCloud, ConfigDrive, Ec2, None ]\n")
    words = ["sh", library / "usr/lib/cloud-init/ds-identify", "--force"]
    subprocess.run(words, env=os.environ | {"PATH_ROOT": str(tmp_path)}, capture_output=True)
    said = (tmp_path / "run/cloud-init/cloud.cfg").read_text()
    assert ("NoCloud" in said) == found, said


@pytest.mark.parametrize("kind", ["iso", "vfat"])
def test_nocloud_reads_the_seed(library: Path, tmp_path: Path, kind: str) -> None:
    machine = Config.from_text(SEED % kind, "seed.yaml").machine
    assert machine.cloud_init is not None
    seed = tmp_path / "seed"
    seed.write_bytes(cloud_init.image(machine.cloud_init, machine.name, 0))
    (tmp_path / "mnt").mkdir()
    if not shutil.which("mcopy" if kind == "vfat" else "isoinfo"):
        pytest.skip("mtools or genisoimage is not installed")
    if kind == "vfat":
        subprocess.run(["mcopy", "-i", seed, "::*", tmp_path / "mnt"], check=True)
    else:
        for name in cloud_init.files(machine.cloud_init, "box"):
            done = subprocess.run(["isoinfo", "-J", "-x", f"/{name}", "-i", seed], capture_output=True, check=True)
            (tmp_path / "mnt" / name).write_bytes(done.stdout)
    found = json.loads(python(library, READ, tmp_path / "mnt", machine.kernel_cmdline, tmp_path / "run"))
    assert found["seed"] == "cmdline,/dev/vdb"
    assert found["user"].startswith("#cloud-config\n{") and found["vendor"] == "#!/bin/sh\necho vendor\n"
    assert found["meta"]["local-hostname"] == "box" and found["meta"]["instance-id"].startswith("iid-")
    assert found["interfaces"] == ["eth0"]
