# SPDX-License-Identifier: MIT
"""Other people's programs on the built-in BIOS: GRUB, isolinux and memtest86+; and another BIOS, SeaBIOS, with the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bios_programs import services_disk
from boot_images import SECONDS
from loaders import STATUS, debian, fat_disk, file_of, grub_disk, grub_iso, isolinux_iso, syslinux_disk

import imgvm
from imgvm import units

pytestmark = pytest.mark.network

SOFTWARE = pytest.mark.parametrize("accel", ["interp", "jit"])
DISK_BYTES = 8 * units.MIB
BOOT_DEBIAN = "set timeout=0\nmenuentry Debian { linux /vmlinuz console=ttyS0\n initrd /initrd\n}\n"
MENU = """set timeout=60
menuentry first { echo the first one; sleep 60 }
menuentry second { echo the second one; halt }
"""
ISOLINUX = """DEFAULT none
PROMPT 1
LABEL debian
    KERNEL /vmlinuz
    INITRD /initrd
    APPEND console=ttyS0
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Pack = Callable[[str], Path]
Boot = Callable[..., "Running"]


class Running:
    """A machine that was started from a disk."""

    def __init__(self, vm: imgvm.Vm) -> None:
        self.vm = vm

    def expect(self, pattern: str) -> None:
        self.vm.console.expect(pattern, SECONDS)

    def end(self) -> tuple[str, int]:
        result = self.vm.wait(SECONDS)
        assert result is not None, self.text()[-3000:]
        return result.reason, result.status

    def text(self) -> str:
        return ESCAPES.sub("", self.vm.console.text()).replace("\r", "")


@pytest.fixture
def boot(pack_config: Pack) -> Boot:
    @contextmanager
    def run(disk: Path, accel: str, memory: str = "256MiB", firmware: str = "bios") -> Iterator[Running]:
        read_only = "true" if disk.suffix == ".iso" else "false"
        image = pack_config(f"""version: 1
machine: {{memory: {memory}, firmware: {firmware}}}
devices: {{debug_exit: true}}
disks: [{{name: d, source: {disk}, format: raw, read_only: {read_only}}}]
""")
        with imgvm.run(image, accel=accel) as vm:
            yield Running(vm)
        image.unlink()

    return run


@pytest.mark.boot
@SOFTWARE
def test_grub_boots_debian(boot: Boot, tmp_path: Path, accel: str) -> None:
    with boot(grub_disk(tmp_path, BOOT_DEBIAN, debian()), accel) as running:
        assert running.end() == ("exec", STATUS)
        said = running.text()
    assert "userland says hello\nBOOT_IMAGE=/vmlinuz console=ttyS0\n" in said
    assert "BIOS-e820: [mem 0x0000000000000000-0x000000000009bfff] usable" in said
    assert "ACPI: RSDP 0x00000000000E0000" in said


@SOFTWARE
def test_grub_takes_keys_and_switches_off(boot: Boot, tmp_path: Path, accel: str) -> None:
    with boot(grub_disk(tmp_path, MENU, {}), accel, memory="64MiB") as running:
        running.expect("Use the")
        running.vm.console.send("\x1b[B")
        running.vm.console.send("\r")
        assert running.end() == ("poweroff", 0)
        assert "the second one" in running.text()
        assert "the first one" not in running.text()


@SOFTWARE
def test_grub_of_an_iso_image(boot: Boot, tmp_path: Path, accel: str) -> None:
    config = "set timeout=0\nmenuentry only { echo from the CD-ROM; halt }\n"
    with boot(grub_iso(tmp_path, config, {}), accel, memory="64MiB") as running:
        assert running.end() == ("poweroff", 0)
        assert "from the CD-ROM" in running.text()


@pytest.mark.boot
@SOFTWARE
def test_isolinux_boots_debian(boot: Boot, tmp_path: Path, accel: str) -> None:
    """Its kernel is entered in real mode, and asks the BIOS itself."""
    with boot(isolinux_iso(tmp_path, ISOLINUX, debian()), accel, memory="256MiB, cpus: 2") as running:
        running.expect("boot: ")
        running.vm.console.send("debian\r")
        assert running.end() == ("exec", STATUS)
        said = running.text()
    assert "userland says hello\nBOOT_IMAGE=/vmlinuz console=ttyS0 initrd=/initrd\n" in said
    assert "\nprocessors 2\n" in said
    assert "BIOS-e820: [mem 0x0000000000000000-0x000000000009bfff] usable" in said


@pytest.mark.boot
def test_syslinux_boots_debian(boot: Boot, tmp_path: Path) -> None:
    config = ISOLINUX.replace("DEFAULT none\nPROMPT 1", "DEFAULT debian").replace("/", "")
    with boot(syslinux_disk(tmp_path, config, debian()), "jit") as running:
        assert running.end() == ("exec", STATUS)
        assert "userland says hello\n" in running.text()


@SOFTWARE
def test_the_boot_sector_of_an_empty_fat_waits_for_a_key_and_begins_again(boot: Boot, tmp_path: Path, accel: str) -> None:
    """As DOS's does: INT 10h, INT 16h, INT 19h."""
    with boot(fat_disk(tmp_path, {}), accel, memory="16MiB") as running:
        for presses in range(3):
            running.expect(rf"(?s)(This is not a bootable disk.*press any key.*){{{presses + 1}}}")
            running.vm.console.send("x")
        running.vm.stop()


@pytest.mark.parametrize("width", ["x64", "ia32"])
@SOFTWARE
def test_memtest_tests(boot: Boot, tmp_path: Path, accel: str, width: str) -> None:
    program = file_of("memtest86+", f"boot/memtest86+{width}.bin")
    config = "DEFAULT memtest\nLABEL memtest\n KERNEL /memtest\n APPEND console=ttyS0,115200\n"
    with boot(isolinux_iso(tmp_path, config, {"memtest": program}), accel, memory="16MiB") as running:
        running.expect(r"#\d+ +\[[A-Z][a-z]+")  # the number and the name of a test
        assert "Memtest86+ v6" in running.text()
        running.vm.stop()


def seabios(folder: Path) -> str:
    (folder / "seabios.bin").write_bytes(file_of("seabios", "usr/share/seabios/bios-256k.bin"))
    return "{path: seabios.bin}"


@SOFTWARE
def test_seabios_serves(boot: Boot, tmp_path: Path, accel: str) -> None:
    """Everything but a screen, for which it wants a video BIOS."""
    disk = tmp_path / "services.raw"
    disk.write_bytes(services_disk(tmp_path, DISK_BYTES, "NO_SCREEN"))
    with boot(disk, accel, memory="64MiB", firmware=seabios(tmp_path)) as running:
        assert running.end() == ("debug_exit", 0), running.text()
        assert running.text().count("\nok ") > 45


@pytest.mark.boot
def test_grub_boots_debian_on_seabios(boot: Boot, tmp_path: Path) -> None:
    with boot(grub_disk(tmp_path, BOOT_DEBIAN, debian()), "jit", firmware=seabios(tmp_path)) as running:
        assert running.end() == ("exec", STATUS)
        assert "userland says hello\nBOOT_IMAGE=/vmlinuz console=ttyS0\n" in running.text()
