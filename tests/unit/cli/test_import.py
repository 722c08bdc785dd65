# SPDX-License-Identifier: MIT
"""`imgvm import`: what our own exports, libvirt and QEMU's users write, as configs; and hostile input."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiboot_guest import leave, say

from imgvm.cli import main
from imgvm.config import Config
from imgvm.errors import ImgvmError
from imgvm.exchange import vmdk
from imgvm.exchange.import_qemu import command_of, from_command
from imgvm.exchange.importing import from_xml
from imgvm.qcow2 import Image
from imgvm.qcow2.foreign import open_foreign

Images = Callable[..., Path]
MIB = 1 << 20

DOMAIN = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>Web Server 1</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='GiB'>2</memory><vcpu placement='static'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/boot/k</kernel><initrd>/boot/i</initrd>
      <cmdline>console=ttyS0 a=$1</cmdline></os>
  <cpu mode='host-passthrough'/><on_reboot>destroy</on_reboot>
  <sysinfo type='smbios'/>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/a b.qcow2'/>
      <target dev='vda' bus='virtio'/><serial>one</serial><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/srv/x.iso'/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <graphics type='vnc' port='-1'/><serial type='pty'/>
  </devices>
</domain>
"""


def test_a_domain(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vm.xml").write_text(DOMAIN)
    assert main(["import", str(tmp_path / "vm.xml"), "-o", str(tmp_path / "c.yaml")]) == 0
    machine = Config.load(tmp_path / "c.yaml").machine
    assert (machine.name, machine.hardware.cpus, machine.hardware.memory_bytes) == ("web-server-1", 4, 2 << 30)
    assert machine.boot is not None
    assert (machine.boot.kernel.path, machine.boot.initrd, machine.boot.cmdline) == ("/boot/k", ("/boot/i",), "console=ttyS0 a=$1")
    (disk,) = machine.disks
    assert (disk.source, disk.format, disk.serial, disk.read_only) == ("/srv/a b.qcow2", "qcow2", "one", True)
    assert (machine.hardware.cpu.model, machine.exit.on_reboot, machine.hardware.entropy) == ("host", "exit", True)
    said = capfd.readouterr()
    assert said.out == f"{tmp_path}/c.yaml\n"
    notes = [line.removeprefix("imgvm: not taken over: ") for line in said.err.splitlines()]
    assert notes == ["<sysinfo>", "the device <disk> of type file", "the device <interface> of type bridge", "the device <graphics> of type vnc"]
    assert "# not taken over: the device <interface> of type bridge\n" in (tmp_path / "c.yaml").read_text()
    assert main(["import", str(tmp_path / "vm.xml"), "-o", str(tmp_path / "c.yaml")]) == 125


def test_our_own_exports_come_back(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source.raw").write_bytes(b"from the disk" + bytes(2 * MIB - 13))
    image = image_of(say("again") + leave(3), "disks: [{name: data, source: source.raw}]\nexit: {on_reboot: exit}")
    for target, file in (("qemu", "run.sh"), ("libvirt", "domain.xml")):
        assert main(["export", str(image), "--to", target, "-o", target]) == 0
        assert main(["import", f"{target}/{file}", "-o", f"{target}.yaml"]) == 0
        machine = Config.load(f"{target}.yaml").machine
        assert (machine.name, machine.hardware.memory_bytes, machine.exit.on_reboot) == ("small", 16 * MIB, "exit")
        assert machine.boot is not None and machine.boot.cmdline == "a=b"
        capfd.readouterr()
        assert main(["-q", "pack", f"{target}.yaml", "-o", f"{target}.img"]) == 0
        with Image.open(f"{target}.img") as packed:
            assert packed.read(0, 13) == b"from the disk"
    # isa-debug-exit's status is (value << 1) | 1.
    assert main(["-q", "run", "qemu.img", "--accel", "interp"]) == 7


@pytest.mark.parametrize(("target", "file"), [("qemu", "run.sh"), ("libvirt", "domain.xml")])
def test_a_machine_that_boots_from_its_disk_comes_back(boot_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(boot_disk), "--to", target, "-o", target]) == 0
    assert main(["import", f"{target}/{file}", "-o", "back.yaml"]) == 0
    config = Config.load("back.yaml")
    assert config.machine.boot is None
    assert main(["-q", "pack", "back.yaml", "-o", "back.img"]) == 0
    assert main(["-q", "run", "back.img", "--accel", "interp", "--set", "devices.debug_exit=true"]) == 5


def test_ova(image_of: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source.raw").write_bytes(bytes(range(256)) * 8192)
    image = image_of(leave(0), "disks: [{name: data, source: source.raw}]")
    assert main(["export", str(image), "--to", "ova", "-o", "ova"]) == 0
    assert main(["import", "ova/small.ova"]) == 125
    assert "name that with -o" in capfd.readouterr().err
    (tmp_path / "out").mkdir()
    assert main(["import", "ova/small.ova", "-o", "out/c.yaml"]) == 0
    config = Config.load("out/c.yaml")
    (disk,) = config.machine.disks
    assert config.machine.hardware.memory_bytes == 16 * MIB
    assert disk.source == str(tmp_path / "out" / "small-disk0.qcow2")
    with Image.open(disk.source) as opened:
        assert opened.read(0, opened.info.disk_bytes) == (tmp_path / "source.raw").read_bytes()
    assert config.machine.boot is None
    assert "not taken over" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected", "notes"),
    [
        ("qemu-system-x86_64 -m 1G -smp 2 -kernel bz -append 'a b' -nographic -enable-kvm",
         {"machine": {"cpus": 2, "memory": "1GiB", "entropy": False}, "boot": {"kernel": "bz", "initrd": "none", "cmdline": "a b"}}, []),
        ("sudo qemu-system-x86_64 -m size=512M,slots=2 -smp cpus=3,sockets=1 -cpu host -kernel k -initrd i -no-reboot",
         {"machine": {"cpus": 3, "memory": "512MiB", "cpu": {"model": "host"}, "entropy": False}, "boot": {"kernel": "k", "initrd": "i"}, "exit": {"on_reboot": "exit"}}, []),
        ("/usr/bin/qemu-kvm -kernel k -drive file=a,,b.qcow2,if=none,id=d,format=qcow2,readonly=on -device virtio-blk-pci,drive=d,serial=S -nic user,hostfwd=tcp::2222-:22",
         {"machine": {"entropy": False, "memory": "128MiB"}, "boot": {"kernel": "k", "initrd": "none"},
          "disks": [{"name": "disk0", "source": "a,b.qcow2", "format": "qcow2", "read_only": True, "serial": "S"}]},
         ["-nic user,hostfwd=tcp::2222-:22"]),
        ("qemu-system-x86_64 -hda disk.img -device virtio-rng-pci -device isa-debug-exit,iobase=0xf4,iosize=4 | tee log",
         {"machine": {"entropy": True, "memory": "128MiB"}, "devices": {"debug_exit": {"port": 244, "mapping": "qemu"}},
          "disks": [{"name": "disk0", "source": "disk.img"}]}, []),
        ("qemu-system-x86_64 -m 128",
         {"machine": {"entropy": False, "memory": "128MiB"}, "boot": {"kernel": {"distro": "debian:bookworm"}, "cmdline": "console=ttyS0"}},
         ["it has nothing to boot; Debian's kernel is put in"]),
        ("qemu-system-aarch64 -m nonsense -cpu cortex-a57,pmu=off -kernel k -bogus", None,
         ["another architecture: qemu-system-aarch64", "memory of nonsense", "the processor model cortex-a57: the default is portable",
          "the processor features pmu=off", "-bogus"]),
    ],
)  # fmt: skip
def test_command_lines(line: str, expected: dict[str, object] | None, notes: list[str]) -> None:
    found = from_command(command_of(line, "x"))
    assert found.notes == notes
    if expected is not None:
        assert found.document == expected
    Config.from_text(found.text(), "x")


@pytest.mark.parametrize("script", ["qemu-system-x86_64 '" + "a" * 900_000 + "'", "qemu-system-x86_64 " + "-a b " * 180_000])
def test_scripts_beyond_reason(script: str) -> None:
    with pytest.raises(ImgvmError, match="too large for a script"):
        command_of(script, "x")


def test_a_command_line_after_dashes(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--", "qemu-system-x86_64", "-m", "256", "-kernel", "k", "-name", "x"]) == 0
    config = Config.from_text(capfd.readouterr().out, "x")
    assert (config.machine.name, config.machine.hardware.memory_bytes) == ("x", 256 * MIB)
    assert main(["import", "a", "b"]) == 125
    assert main(["import", "/no/such.xml"]) == 127


BOMB = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;'>]><domain><name>&b;</name></domain>"


@pytest.mark.parametrize(
    "text",
    [BOMB, "<domain", "<a/>", "<domain/>" * 2, "<Envelope/>", "no machine", "", "<domain>" + "<a>" * 100_000, " " * (2 << 20),
     "<domain><os><kernel>\x01</kernel></os></domain>", "<domain><os><kernel></kernel></os></domain>", "qemu-system-x86_64 -append 'open",
     "<?xml version='1.0' encoding='utf-16'?><domain/>", "<?xml version='1.0' encoding='none'?><domain/>"],
)  # fmt: skip
def test_hostile_texts(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text(text)
    assert main(["import", str(tmp_path / "x")]) in (0, 125)
    said = capfd.readouterr().err
    assert "fault of imgvm" not in said and "aaaaaaaaaaaaaaa" not in said


def test_hostile_archives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ova, out = tmp_path / "a.ova", tmp_path / "out.yaml"
    ovf = b"<Envelope><References><File id='f' href='../../x'/></References><DiskSection><Disk diskId='d' fileRef='f'/></DiskSection><VirtualSystem id='v'><Item><ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource></Item></VirtualSystem></Envelope>"

    def archive(**members: bytes) -> None:
        with tarfile.open(ova, "w") as tar:
            for name, data in members.items():
                entry = tarfile.TarInfo(name.replace("_", "."))
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))

    archive(a_ovf=ovf, **{"../../x": b"KDMV" + bytes(10_000)})
    before = sorted(tmp_path.parent.rglob("*"))
    assert main(["import", str(ova), "-o", str(out)]) == 125
    assert "damaged vmdk" in capfd.readouterr().err
    archive(a_ovf=ovf, **{"../../x": b"no disk" * 1000})
    assert main(["import", str(ova), "-o", str(out)]) == 125
    assert "is no disk that can be read" in capfd.readouterr().err
    archive(a_ovf=ovf)
    assert main(["import", str(ova), "-o", str(out)]) == 125
    archive(b=b"")
    assert main(["import", str(ova), "-o", str(out)]) == 125
    archive(**{f"m{n}": b"" for n in range(200)})
    assert main(["import", str(ova), "-o", str(out)]) == 125
    ova.write_bytes(b"no tar" * 1000)
    assert main(["import", str(ova), "-o", str(out)]) == 125
    archive(a_ovf=ovf)
    ova.write_bytes(ova.read_bytes()[:700])
    assert main(["import", str(ova), "-o", str(out)]) == 125
    said = capfd.readouterr().err
    assert "fault of imgvm" not in said
    assert sorted(tmp_path.parent.rglob("*")) == before


WORDS = st.sampled_from(
    ["-m", "1G", "-smp", "2", "-drive", "file=a,format=raw", "file=,", ",,,", "-device", "x,drive=a", "-cpu", "host,+a", "-kernel", "-name", "a=b,c", "$@", "-append"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS | st.text(max_size=12), max_size=12))
def test_any_command_line_gives_a_config_or_an_error(words: list[str]) -> None:
    try:
        Config.from_text(from_command(["qemu-system-x86_64", *words]).text(), "x")
    except ImgvmError as error:
        assert error.message


TAGS = st.sampled_from(["domain", "name", "memory", "vcpu", "os", "kernel", "devices", "disk", "source", "Envelope", "VirtualSystem", "Item", "ResourceType", "VirtualQuantity", "File", "Disk"])
ELEMENTS = st.recursive(
    st.text("a1 ./$&<>\n", max_size=6).map(lambda text: text.replace("&", "&amp;").replace("<", "&lt;")),
    lambda inner: st.builds(
        lambda tag, key, value, children: f"<{tag} {key}='{value}'>{''.join(children)}</{tag}>",
        TAGS, st.sampled_from(["unit", "file", "type", "id", "href"]), st.text("a1/.", max_size=4), st.lists(inner, max_size=4),
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["domain", "Envelope"]), st.lists(ELEMENTS, max_size=6))
def test_any_xml_gives_a_config_or_an_error(root: str, children: list[str]) -> None:
    try:
        Config.from_text(from_xml(f"<{root}>{''.join(children)}</{root}>".encode(), "x").text(), "x")
    except ImgvmError as error:
        assert error.message


def _ova(path: Path, disk: bytes, **header: object) -> None:
    """An OVA of one disk, `a.vmdk`, whose header is as said."""
    ovf = b"<Envelope><References><File id='f' href='a.vmdk'/></References><DiskSection><Disk diskId='d' fileRef='f'/></DiskSection><VirtualSystem id='v'><Item><ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource></Item></VirtualSystem></Envelope>"
    with path.open("wb") as out:
        for name, data in (("a.ovf", ovf), ("a.vmdk", disk)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for key, value in header.items() if name == "a.vmdk" else ():
                setattr(entry, key, value)
            out.write(entry.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        out.write(bytes(1024))


def test_places_that_no_file_has(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a member that is larger than any file, tarfile goes on where nobody can seek to."""
    for size in (1 << 64, 1 << 80, -(1 << 20)):
        _ova(tmp_path / "a.ova", b"x" * 512, size=size)
        assert main(["import", str(tmp_path / "a.ova"), "-o", str(tmp_path / "c.yaml")]) == 125
        said = capfd.readouterr().err
        assert "is no OVA" in said and "fault of imgvm" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.ova"]


def test_sparse_members_are_no_disks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One of a kilobyte could be unpacked to terabytes of zeros."""
    _ova(tmp_path / "a.ova", b"")
    data = bytearray((tmp_path / "a.ova").read_bytes())
    at = data.rindex(b"a.vmdk\0")
    data[at + 156] = ord("S")  # GNU's sparse files: the map at 386, the real size at 483
    data[at + 386 : at + 410] = b"%011o\0%011o\0" % (0, 0)
    data[at + 483 : at + 495] = b"%011o\0" % (8 << 30)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "a.ova").write_bytes(data)
    with tarfile.open(tmp_path / "a.ova") as tar:
        assert tar.getmember("a.vmdk").size == 8 << 30
    assert main(["import", str(tmp_path / "a.ova"), "-o", str(tmp_path / "c.yaml")]) == 125
    assert "a.vmdk is a sparse file" in capfd.readouterr().err


def test_an_envelope_keeps_to_its_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Else its author could have a file of the host packed into an image."""
    for href in ("/etc/passwd", "../secret", "a/../../secret"):
        text = f"<Envelope><File id='f' href='{href}'/><Disk diskId='d' fileRef='f'/><VirtualSystem id='v'><Item><ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource></Item></VirtualSystem></Envelope>"
        (tmp_path / "a.ovf").write_text(text)
        assert main(["import", str(tmp_path / "a.ovf")]) == 0
        said = capfd.readouterr()
        assert "source:" not in said.out and "is not in the envelope's folder" in said.err


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 17), st.binary(min_size=1, max_size=8)), max_size=5), st.integers(0, 1 << 17))
def test_any_vmdk_is_read_or_refused(changes: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(VMDK)
    for at, patch in changes:
        at %= len(data)
        data[at : at + len(patch)] = patch
    with tempfile.TemporaryFile() as stream:
        stream.write(data[: len(data) - cut % len(data)])
        stream.seek(0)
        try:
            disk = open_foreign(Path("x"), stream)
            total = sum(len(piece) for _, piece in disk.parts()) if disk else 0
            assert total <= 64 * MIB
        except ImgvmError as error:
            assert error.message


def _vmdk() -> bytes:
    stream = io.BytesIO()
    vmdk.write(stream, 3 * MIB, [(0, b"x" * 100_000), (2 * MIB, b"y" * 70_000)])
    return stream.getvalue()


VMDK = _vmdk()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("form", ["vmdk", "vdi", "vpc", "vhdx"])
def test_an_ova_of_other_disks(form: str, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"a disk's data".ljust(MIB, b"z"))
    words = ["qemu-img", "convert", "-f", "raw", "-O", form, *(["-o", "force_size=on"] if form == "vpc" else []), "raw", "disk"]
    subprocess.run(words, cwd=tmp_path, check=True)
    _ova(tmp_path / "a.ova", (tmp_path / "disk").read_bytes())
    assert main(["import", str(tmp_path / "a.ova"), "-o", str(tmp_path / "c.yaml")]) == 0
    (disk,) = Config.load(tmp_path / "c.yaml").machine.disks
    assert disk.source is not None
    with Image.open(disk.source) as opened:
        assert opened.read(0, MIB) == (tmp_path / "raw").read_bytes()
