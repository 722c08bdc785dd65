# SPDX-License-Identifier: MIT
"""What the readers' fuzzer starts from: small and valid input of each format."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/pack"))

import builders

from imgvm.config import Config, resolved_text
from imgvm.exchange import vmdk
from imgvm.qcow2 import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
DISK = 300 * 1024
SPARSE = (0, 65536 * 3)  # where the disks have data

YAML_TOKENS = (
    b"&a ", b"*a", b"*a\n", b"<<: *a\n", b"!!python/object:os.system ", b"!!binary ", b"? ", b": ", b"- ", b"{", b"}", b"[", b"]",
    b"[[[[[[[[[[[[[[[[", b"{a: {a: {a: ", b"|2\n", b">-\n", b"---\n", b"...\n", b"%YAML 9.9\n", b"${x}", b"${", b"$$", b"${env:HOME}",
    b"include: [a.yaml]\n", b"vars: {x: '${x}'}\n", b"profiles: {p: {machine: {cpus: 2}}}\n", b"0x7fffffffffffffff", b"1e999",
    b".nan", b"-.inf", b"0o777", b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\t", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"2024-13-45",
    b"yes", b"~", b'"\\ud800"', b'"\\0"', b'"\\u0000"', b"64EiB", b"99999999999999999999999", b"cpus: 64\n", b"'", b'"', b'"\\U0010ffff"', b'"\\x', b"# ",
)  # fmt: skip
XML_TOKENS = (
    b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"&a;", b"&#0;", b"&#x110000;", b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?xml?>", b"</domain>",
    b"<disk type='file'>", b"<source file='/dev/zero'/>", b"<source file=''/>", b" unit='EiB'", b"99999999999999999999", b"-1",
    b"xmlns:a='b'", b"<a:b/>", b"\x00", b"\xff", b"encoding='utf-16'", b"<devices>" * 30, b"${x}", b"\xe2\x80\xae", b"'", b">",
)  # fmt: skip
QEMU_TOKENS = (
    b" -drive ", b"file=", b",", b",,", b"=", b" -m ", b"99999999999T", b"-1", b" -smp ", b"cpus=,", b" -kernel ", b" -append ", b"'", b'"',
    b"\\", b"\\\n", b"#", b" -device virtio-blk,drive=", b"id=", b" -blockdev ", b"{", b'{"a":', b"node-name=", b" -hda ", b"\x00", b"${x}",
    b"$(reboot)", b" -cpu host,+aes,-", b" qemu-system-x86_64 ", b"\xff", b" -", b" --",
)  # fmt: skip
DOMAIN = b"""<domain type='kvm'><name>web</name><memory unit='GiB'>2</memory><vcpu>4</vcpu><description>d</description>
<os><type arch='x86_64'>hvm</type><kernel>/boot/k</kernel><initrd>/boot/i</initrd><cmdline>console=ttyS0 a=$1</cmdline></os>
<cpu mode='host-passthrough'/><on_reboot>destroy</on_reboot><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/a b.qcow2'/><serial>one</serial><readonly/></disk>
<disk type='block'><source dev='/dev/vdb'/></disk><interface type='bridge'/><rng model='virtio'/><serial type='pty'/></devices></domain>
"""
OVF = b"""<?xml version='1.0'?><Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1' xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'
xmlns:rasd='http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData'>
<References><File ovf:id='f1' ovf:href='a.vmdk'/></References><DiskSection><Info>i</Info>
<Disk ovf:diskId='d1' ovf:fileRef='f1' ovf:capacity='307200'/></DiskSection>
<VirtualSystem ovf:id='vm'><Info>i</Info><Name>vm</Name><VirtualHardwareSection><Info>i</Info>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:InstanceID>2</rasd:InstanceID><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
<rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
<Item><rasd:InstanceID>3</rasd:InstanceID><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>
"""
QEMU = b"""#!/bin/sh
# a machine
exec qemu-system-x86_64 -enable-kvm -m 2G -smp cpus=4,sockets=1 -cpu host,-avx2 -name "guest=a b" \\
  -drive file=/srv/a,,b.qcow2,format=qcow2,if=virtio,readonly=on,serial=x -kernel k -initrd i -append "a='b c'" \\
  -blockdev driver=qcow2,node-name=n0,file.driver=file,file.filename=x.img -device virtio-blk-pci,drive=n0 \\
  -hda disk.raw -device virtio-rng-pci -nographic -no-reboot -netdev user,id=n
"""
COMPOSED = b"""version: 1
name: composed
vars: {size: 512MiB, word: {default: a, description: d, enum: [a, b]}}
machine: &m {memory: "${size}", cpus: 2, cpu: {model: portable, features: [+aes, -avx2]}}
profiles: {big: {machine: {memory: 4GiB}}}
boot: {kernel: {path: vmlinux}, cmdline: console=ttyS0, initrd: none}
disks:
  - {name: root, source: a.qcow2, format: qcow2, read_only: true}
description: "${word}"
exit: {on_reboot: exit}
"""


def yaml() -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(EXAMPLES.glob("*.yaml"))] + [COMPOSED]


def resolved() -> Sequence[bytes]:
    return [resolved_text(Config.load(path).machine).encode() for path in sorted(EXAMPLES.glob("*.yaml"))]


def domain() -> Sequence[bytes]:
    return [DOMAIN]


def ovf() -> Sequence[bytes]:
    return [OVF]


def qemu() -> Sequence[bytes]:
    return [QEMU]


def _disk() -> list[tuple[int, bytes]]:
    """Little of it: what a disk holds is copied, and nobody reads it."""
    return [(at, b"%d some data " % at * 20) for at in SPARSE]


def ova() -> Sequence[bytes]:
    disk = io.BytesIO()
    vmdk.write(disk, DISK, _disk())
    return [builders.tar([("vm.ovf", {}, OVF), ("a.vmdk", {}, disk.getvalue())])]


def sum_headers(tar: bytearray, at: int = 0, end: int | None = None) -> None:
    """The checksums of the members' headers, and of those of archives in it, made true again (POSIX, pax, "ustar
    Interchange Format")."""
    end = len(tar) if end is None else min(end, len(tar))
    while at + 512 <= end:
        if tar[at + 257 : at + 262] == b"ustar":
            tar[at + 148 : at + 156] = b" " * 8
            tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
        try:
            size = int(tar[at + 124 : at + 136].strip(b" \0") or b"0", 8)
        except ValueError:
            return
        if size >= 512:
            sum_headers(tar, at + 512, at + 512 + size)
        at += 512 + -(-max(size, 0) // 512) * 512


def _short(tar: bytes) -> bytes:
    """Without the zeros that fill its last record of 10 KiB, but for two blocks of them."""
    data = tar.rstrip(b"\0")
    return data + bytes(-len(data) % 512 + 1024)


_FILES = [
    ("./", {"type": tarfile.DIRTYPE, "mode": 0o755}, b""), ("usr/bin/a", {"mode": 0o4755, "uid": 1 << 22}, b"a" * 700),
    ("é" * 90, {"mtime": 1.5, "pax_headers": {"SCHILY.xattr.user.a": "b"}}, b"x"), ("bin", {"type": tarfile.SYMTYPE, "linkname": "usr/bin"}, b""),
    ("bin/b", {"type": tarfile.LNKTYPE, "linkname": "usr/bin/a"}, b""), ("dev/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
    ("run/pipe", {"type": tarfile.FIFOTYPE}, b""), ("l" * 150, {"type": tarfile.SYMTYPE, "linkname": "m" * 150}, b""),
]  # fmt: skip
_UPPER = [(".wh.run", {}, b""), ("usr/.wh..wh..opq", {}, b""), ("usr/bin/c", {}, b"c"), ("bin/d", {}, b"d")]


def tar() -> Sequence[bytes]:
    plain = builders.tar(_FILES), builders.tar([row for row in _FILES if "é" not in row[0]], tarfile.GNU_FORMAT)
    with tempfile.TemporaryDirectory() as name:
        with (Path(name) / "holes").open("wb") as stream:
            stream.write(b"begin")
            stream.seek(200_000)
            stream.write(b"middle")
            stream.truncate(400_000)
        forms = (["--format=gnu"], ["--format=pax", "--sparse-version=1.0"], ["--format=pax", "--sparse-version=0.1"])
        sparse = [subprocess.run(["tar", "-C", name, "--sparse", *form, "-c", "holes"], check=True, capture_output=True).stdout for form in forms]
    return list(map(_short, [*plain, *sparse]))


def saved() -> Sequence[bytes]:
    """As `docker save` writes it, whose layers have no digests."""
    manifest = b'[{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["one/layer.tar", "two/layer.tar"]}]'
    layers = [("one/layer.tar", {}, builders.tar(_FILES)), ("two/layer.tar", {}, builders.tar(_UPPER))]
    return [_short(builders.tar([("manifest.json", {}, manifest), *((name, facts, _short(data)) for name, facts, data in layers)], tarfile.GNU_FORMAT))]


def kernel() -> Sequence[bytes]:
    """A bzImage of each compression, an ELF file and a Multiboot kernel, all of them small."""
    multiboot = struct.pack("<3I", 0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16)) & 0xFFFFFFFF).rjust(76, b"\0").ljust(600, b"\x90")
    return [*(builders.kernel(form, builders.vmlinux(3000)) for form in sorted(builders.COMPRESSORS)), builders.vmlinux(3000), multiboot]


FORMATS = {
    "vmdk": ("vmdk", "subformat=monolithicSparse"), "vmdk-stream": ("vmdk", "subformat=streamOptimized"), "vdi": ("vdi", ""),
    "vpc": ("vpc", "subformat=dynamic"), "vpc-fixed": ("vpc", "subformat=fixed"), "vhdx": ("vhdx", "block_size=1M,log_size=1M"),
}  # fmt: skip


def foreign(kind: str) -> Sequence[bytes]:
    form, options = FORMATS[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "raw").open("wb") as stream:
            stream.truncate(DISK)
            for at, data in _disk():
                stream.seek(at)
                stream.write(data)
        command = ["qemu-img", "convert", "-f", "raw", "-O", form, *(["-o", options] if options else []), "raw", "out"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return [(folder / "out").read_bytes()]


def payload() -> Sequence[bytes]:
    made = []
    with tempfile.TemporaryDirectory() as name:
        for cluster in (512, 4096):
            path = Path(name) / f"{cluster}.img"
            with Image.create(path, DISK, cluster_bytes=cluster) as image:
                image.set_config({"machine.yaml": COMPOSED, "kernel": b"k" * 5000, "empty": b""}, date=1)
            made.append(path.read_bytes())
    return made


def sign_payload(image: bytearray) -> None:
    """The digest over the payload's head and index, made true again (docs/image-format.md)."""
    at = image.find(b"IMGVMCFG")
    if at < 0 or at + 64 > len(image):
        return
    (count,) = struct.unpack_from(">I", image, at + 12)
    index = image[at + 64 : at + 64 + 112 * min(count, 1024)]
    image[at + 32 : at + 64] = hashlib.sha256(image[at : at + 32] + index).digest()
