# SPDX-License-Identifier: MIT
"""`imgvm export`: each target's files, held against the program that takes them, or its schema."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as Xml
from collections.abc import Callable
from pathlib import Path

import pytest
from multiboot_guest import leave, say

from imgvm.cli import main
from imgvm.exchange import vmdk
from imgvm.exchange.export import TARGETS
from imgvm.launch import open_image
from imgvm.qcow2 import Image
from imgvm.qcow2.foreign import open_foreign

Images = Callable[..., Path]
MIB = 1 << 20
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@pytest.fixture
def image(image_of: Images, tmp_path: Path) -> Path:
    """A Multiboot guest with a disk that holds something."""
    with (tmp_path / "source.raw").open("wb") as stream:
        stream.truncate(70 * MIB + 512)
        for offset in (0, 5 * MIB + 100, 40 * MIB, 70 * MIB):
            stream.seek(offset)
            stream.write(b"content of the disk " * 20)
    more = "disks: [{name: data, source: source.raw, serial: 'a,b'}]\nexit: {timeout: 90s, on_reboot: exit}\nlabels: {team: ci, 'a b': c d}"
    return image_of(say("on qemu\n") + leave(5), more)


@pytest.fixture
def linux(image: Path) -> Path:
    return with_linux(image)


def with_linux(image: Path) -> Path:
    """The same with a kernel that looks like Linux: an ELF file of 64 bits, and an initrd."""
    elf = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0\1\0\0\0" + bytes(200)
    with Image.open(image, writable=True) as opened:
        blobs = {blob.name: opened.read_config(blob.name) for blob in opened.config_blobs()}
        opened.set_config(blobs | {"kernel": elf, "initrd": b"the initrd"}, date=0)
    return image


def exported(image: Path, target: str, *words: str) -> Path:
    folder = image.parent / f"out-{target}"
    assert main(["export", str(image), "--to", target, "-o", str(folder), *words]) == 0
    return folder


@needs("qemu-system-x86_64")
def test_qemu_runs_it(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = exported(image, "qemu")
    assert capfd.readouterr().out.splitlines() == [str(folder / name) for name in ("kernel", "disk.qcow2", "run.sh")]
    done = subprocess.run([folder / "run.sh"], capture_output=True, text=True, env={**os.environ, "QEMU_ACCEL": "tcg"}, timeout=60)
    assert (done.stdout, done.returncode, done.stderr) == ("on qemu\n", 5, "")
    assert "timeout --foreground 90 " in (folder / "run.sh").read_text()


@needs("qemu-system-x86_64")
def test_qemu_boots_its_disk(boot_disk: Path) -> None:
    folder = exported(boot_disk, "qemu")
    assert sorted(path.name for path in folder.iterdir()) == ["disk.qcow2", "run.sh"]
    done = subprocess.run([folder / "run.sh"], capture_output=True, text=True, env={**os.environ, "QEMU_ACCEL": "tcg"}, timeout=60)
    assert done.returncode == 5, done.stderr
    assert "SeaBIOS" in done.stdout


def test_a_machine_that_boots_from_its_disk_goes_where_there_is_a_bios(boot_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = Xml.parse(exported(boot_disk, "libvirt") / "domain.xml").getroot()
    boot = root.find("os/boot")
    assert root.find("os/kernel") is None and boot is not None and boot.get("dev") == "hd"
    exported(boot_disk, "ova")
    assert "boots from its disk" not in capfd.readouterr().err
    for target in ("firecracker", "vagrant", "kubevirt"):
        assert main(["export", str(boot_disk), "--to", target, "-o", f"{boot_disk}.{target}"]) == 125
        assert "its machine boots from its disk, which this target cannot" in capfd.readouterr().err


@needs("virt-xml-validate")
def test_libvirt_accepts_the_domain(linux: Path) -> None:
    folder = exported(linux, "libvirt")
    subprocess.run(["virt-xml-validate", folder / "domain.xml", "domain"], check=True, capture_output=True)
    root = Xml.parse(folder / "domain.xml").getroot()
    assert root.findtext("name") == "small"
    assert root.findtext("os/kernel") == str(folder.resolve() / "kernel")
    assert root.findtext("on_reboot") == "destroy"
    assert root.find("devices/disk/serial") is None  # a,b
    source = root.find("devices/disk/source")
    assert source is not None and Path(source.attrib["file"]).is_file()
    assert (folder / "initrd").read_bytes() == b"the initrd"


def test_firecracker(linux: Path) -> None:
    folder = exported(linux, "firecracker")
    document = json.loads((folder / "firecracker.json").read_text())
    assert document["boot-source"] == {"kernel_image_path": "kernel", "boot_args": "a=b", "initrd_path": "initrd"}
    assert document["machine-config"] == {"vcpu_count": 1, "mem_size_mib": 16}
    assert document["drives"] == [{"drive_id": "data", "path_on_host": "disk.raw", "is_root_device": False, "is_read_only": False}]
    assert (folder / "disk.raw").read_bytes() == (linux.parent / "source.raw").read_bytes()


def test_what_cannot_load_multiboot_says_so(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for target in ("firecracker", "vagrant", "kubevirt"):
        assert main(["export", str(image), "--to", target, "-o", str(tmp_path / "no")]) == 125
        assert "Multiboot kernel, which this target cannot load" in capfd.readouterr().err
    assert main(["export", str(image), "--to", "xen", "-o", str(tmp_path / "no")]) == 125
    assert "targets: qemu, libvirt" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()


def test_vagrant(linux: Path) -> None:
    box = exported(linux, "vagrant") / "small.box"
    with tarfile.open(box) as tar:
        names = tar.getnames()
        metadata, disk, vagrantfile = (tar.extractfile(name) for name in ("metadata.json", "box.img", "Vagrantfile"))
        assert metadata and disk and vagrantfile
        assert json.load(metadata) == {"provider": "libvirt", "format": "qcow2", "virtual_size": 1}
        assert disk.read() == linux.read_bytes()
        assert "libvirt.cmd_line = 'a=b'" in vagrantfile.read().decode()
    assert sorted(names) == ["Vagrantfile", "box.img", "initrd", "kernel", "metadata.json"]
    assert box.read_bytes()[4:8] == bytes(4)  # no time: the same image gives the same box
    if shutil.which("ruby"):
        subprocess.run(["tar", "-C", str(linux.parent), "-xzf", str(box), "Vagrantfile"], check=True)
        subprocess.run(["ruby", "-c", str(linux.parent / "Vagrantfile")], check=True, capture_output=True)


@needs("qemu-img")
def test_ova(image: Path) -> None:
    ova = exported(image, "ova") / "small.ova"
    with tarfile.open(ova) as tar:
        assert tar.getnames() == ["small.ovf", "small.mf", "disk.vmdk"]
        tar.extractall(image.parent, filter="data")
    for line in (image.parent / "small.mf").read_text().splitlines():
        name, digest = line.removeprefix("SHA256(").split(")= ")
        assert hashlib.sha256((image.parent / name).read_bytes()).hexdigest() == digest
    subprocess.run(["qemu-img", "compare", "source.raw", "disk.vmdk"], cwd=image.parent, check=True, capture_output=True)
    root = Xml.parse(image.parent / "small.ovf").getroot()
    disk = root.find(f"{OVF}DiskSection/{OVF}Disk")
    assert disk is not None and disk.attrib[f"{OVF}capacity"] == str(70 * MIB + 512)
    assert len(root.findall(f"{OVF}VirtualSystem/{OVF}VirtualHardwareSection/{OVF}Item")) == 4


@needs("qemu-img")
@pytest.mark.parametrize("size", [512, 65536, 32 * MIB, 33 * MIB + 512])
def test_vmdk_round_trips(size: int, tmp_path: Path) -> None:
    data = bytearray(size)
    for at in range(0, size, 3 * MIB):
        data[at : at + 300] = os.urandom(min(300, size - at))
    data[-5:] = b"final"
    path = tmp_path / "a.vmdk"
    with path.open("wb") as stream:
        vmdk.write(stream, size, ((at, bytes(data[at : at + MIB])) for at in range(0, size, MIB)))
    (tmp_path / "a.raw").write_bytes(data)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", "a.raw", "a.vmdk"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "a.raw", "b.vmdk"], cwd=tmp_path, check=True)
    for name in ("a.vmdk", "b.vmdk"):
        read = bytearray(size)
        with (tmp_path / name).open("rb") as stream:
            disk = open_foreign(tmp_path / name, stream)
            assert disk is not None and disk.disk_bytes == size
            for at, piece in disk.parts():
                read[at : at + len(piece)] = piece
        assert read == data, name


def test_a_further_disk_of_nothing(image_of: Images) -> None:
    """Its zeros are not even counted, or this would take days."""
    image = image_of(leave(0), "disks: [{name: a, size: 1MiB}, {name: b, size: 100TiB}]")
    with Image.open(image, writable=True) as opened:
        opened.open_disk("b").write(70 << 40, b"far away")
    with Image.open(exported(image, "qemu") / "disk-b.qcow2") as copy:
        assert copy.info.disk_bytes == 100 << 40
        assert copy.read(70 << 40, 8) == b"far away"


@pytest.mark.parametrize("target", ["ova", "libvirt"])
def test_texts_that_xml_cannot_hold(target: str, image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = image_of(leave(0), 'description: "a\\x01b\\nc"\ndisks: [{name: data, size: 1MiB}]')
    folder = exported(image, target)
    assert "note: control characters" in capfd.readouterr().err
    if target == "ova":
        with tarfile.open(folder / "small.ova") as tar:
            tar.extract("small.ovf", folder, filter="data")
    root = Xml.parse(folder / ("small.ovf" if target == "ova" else "domain.xml")).getroot()
    assert "a\ufffdb\nc" in {element.text for element in root.iter()}


def test_kubernetes_manifests(linux: Path) -> None:
    folder = exported(linux, "kubevirt", "--ref", "registry.test/team/small:1")
    machine = json.loads((folder / "vm.json").read_text())
    assert machine["metadata"]["labels"] == {"team": "ci"}
    assert machine["metadata"]["annotations"] == {"imgvm.invalid/a-b": "c d"}
    domain = machine["spec"]["template"]["spec"]["domain"]
    assert domain["firmware"]["kernelBoot"]["container"] == {
        "image": "registry.test/team/small:1", "kernelPath": "/boot/kernel", "initrdPath": "/boot/initrd",
    }  # fmt: skip
    assert domain["memory"] == {"guest": "16Mi"}
    assert machine["spec"]["template"]["spec"]["volumes"][0]["name"] == domain["devices"]["disks"][0]["name"]
    for words in (folder / "Containerfile").read_text().splitlines():
        if words.startswith("COPY"):
            assert all((folder / word).is_file() for word in words.split()[2:-1])
    job = json.loads((exported(linux, "k8s-job") / "job.json").read_text())
    assert job["spec"]["activeDeadlineSeconds"] == 150
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "small:latest"


@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed")
def test_kubernetes_accepts_the_job(linux: Path) -> None:
    import kubernetes_validate

    job = json.loads((exported(linux, "k8s-job") / "job.json").read_text())
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    job["spec"]["backofLimit"] = 0
    with pytest.raises(Exception, match="backofLimit"):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


@needs("qemu-img")
def test_an_overlay_is_exported_whole(image: Path) -> None:
    over = image.parent / "over.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.name, "-F", "qcow2", over], check=True, cwd=image.parent)
    with Image.open(over, writable=True) as opened:
        opened.write(0, b"above")
    folder = exported(over, "qemu")
    with Image.open(folder / "disk.qcow2") as copied:
        assert copied.info.backing_file is None
        assert copied.read(0, 12) == b"above" + b"content of the disk "[5:12]
    assert open_image(folder / "disk.qcow2", writable=False).machine.name == "small"


def test_every_target_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(target in shown for target in TARGETS)


def test_further_disks(image_of: Images, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.raw").write_bytes(b"second" * 1000 + bytes(MIB - 6000))
    more = (
        "disks: [{name: a, size: 1MiB}, {name: b, source: b.raw, read_only: true, cache: unsafe}, "
        "{name: c, source: b.raw, format: raw, embed: false}]"
    )
    image = image_of(leave(5), more)
    folder = exported(image, "qemu")
    script = (folder / "run.sh").read_text()
    assert "file=disk-b.qcow2,format=qcow2,cache=unsafe,read-only=on" in script and "drive=disk1,serial=b" in script
    assert "note: the disk c is the file b.raw of this host: not taken along" in capfd.readouterr().err
    with Image.open(folder / "disk-b.qcow2") as disk:
        assert disk.read(0, MIB) == (tmp_path / "b.raw").read_bytes()
    domain = Xml.parse(exported(image, "libvirt") / "domain.xml")
    assert [target.get("dev") for target in domain.findall("devices/disk/target")] == ["vda", "vdb"]
    exported(image, "ova")
    assert "note: the disk b is not taken along" in capfd.readouterr().err


def test_a_root_disk_is_the_first(image_of: Images, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "b.raw").write_bytes(b"second" * 1000 + bytes(MIB - 6000))
    disks = "disks: [{name: b, source: b.raw}]\ncloud_init: {}\nrootfs: {dir: root, read_only: true}"
    image = with_linux(image_of(leave(5), disks))
    folder = exported(image, "qemu")
    script = (folder / "run.sh").read_text()
    for words in (
        "id=disk0,file=disk.qcow2,format=qcow2,cache=writeback,read-only=on", "drive=disk0,serial=root",
        "id=disk1,file=disk-b.qcow2,format=qcow2,cache=writeback ", "drive=disk1,serial=b",
        "id=disk2,file=disk-cidata.qcow2,format=qcow2,cache=writeback,read-only=on", "drive=disk2,serial=cidata",
    ):  # fmt: skip
        assert words in script, words
    rows = Xml.parse(exported(image, "libvirt") / "domain.xml").findall("devices/disk")
    assert [(row.find("target").get("dev"), row.findtext("serial")) for row in rows] == [  # type: ignore[union-attr]
        ("vda", "root"), ("vdb", "b"), ("vdc", "cidata"),
    ]  # fmt: skip
    folder = exported(image, "firecracker")
    drives = json.loads((folder / "firecracker.json").read_text())["drives"]
    assert [(row["drive_id"], row["path_on_host"], row["is_read_only"]) for row in drives] == [
        ("root", "disk.raw", True), ("b", "disk-b.raw", False), ("cidata", "disk-cidata.raw", True),
    ]  # fmt: skip
    with Image.open(image) as opened:
        assert (folder / "disk.raw").read_bytes() == opened.read(0, opened.info.disk_bytes)
    assert (folder / "disk-b.raw").read_bytes() == (tmp_path / "b.raw").read_bytes()
    manifest = json.loads((exported(image, "kubevirt", "--ref", "r.example/a:1") / "vm.json").read_text())
    devices = manifest["spec"]["template"]["spec"]["domain"]["devices"]
    assert devices["disks"] == [{"name": "disk", "disk": {"bus": "virtio", "readonly": True}}]
