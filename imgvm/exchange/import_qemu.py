# SPDX-License-Identifier: MIT
"""QEMU's command line as a config. Its options are those of qemu-system-x86_64(1)."""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Sequence

from imgvm import units
from imgvm.errors import UsageError
from imgvm.exchange.importing import Imported

MAX_SCRIPT_CHARACTERS = 128 << 10
# Options without a value that say nothing that a config would.
_FLAGS = {
    "nographic", "nodefaults", "no-user-config", "no-acpi", "no-hpet", "S", "daemonize", "snapshot",
    "enable-kvm",
}  # fmt: skip
# Options with a value that have no place, or a default that is right.
_QUIET = {
    "display", "serial", "monitor", "vga", "rtc", "machine", "M", "accel", "pidfile", "qmp", "boot",
    "chardev",
}  # fmt: skip
_DRIVES = {"hda", "hdb", "hdc", "hdd", "sda"}
_SIZE = re.compile(r"([0-9]{1,12})([kKMGT]?)[iI]?[bB]?")
_SHIFTS = {"k": 10, "K": 10, "M": 20, "G": 30, "T": 40, "": 20}


def command_of(text: str, name: str) -> list[str]:
    """The words of the first command in a script that runs QEMU."""
    if len(text) > MAX_SCRIPT_CHARACTERS:  # the time that a shell's words take grows with their square
        hint = "leave the rest of it out"
        raise UsageError(f"{name} is too large for a script that runs QEMU", hint)
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ")
    for line in joined.splitlines():
        if "qemu" not in line or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"{name}: {error}", "the command line is read as a shell reads it") from None
        for index, word in enumerate(words):
            if re.search(r"(^|/)qemu(-system-[a-z0-9_]+|-kvm)?$", word):
                return words[index:]
    raise UsageError(f"{name} holds no QEMU command line", "it begins with qemu-system-x86_64")


def from_command(words: Sequence[str]) -> Imported:
    """`words` begin with the program."""
    return _Reader(words).read()


class _Reader:
    def __init__(self, words: Sequence[str]) -> None:
        self._words = deque(words)
        self._found = Imported()
        self._values: dict[str, str] = {}
        self._drives: dict[str, dict[str, str]] = {}
        self._serials: dict[str, str] = {}
        self._entropy = False

    def read(self) -> Imported:
        program = self._words.popleft() if self._words else ""
        if "system-" in program and not program.endswith("x86_64"):
            self._found.note(f"another architecture: {program[-40:]}")
        while self._words:
            word = self._words.popleft()
            if word in ("&", ";", "|", "&&", "||", ">", "2>&1"):
                break
            if not word.startswith("-"):
                if word != "$@":
                    self._drive(f"file={word.replace(',', ',,')},if=ide")
                continue
            self._option(word.lstrip("-"))
        self._finish()
        return self._found

    def _option(self, name: str) -> None:
        if name == "no-reboot":
            self._found.put("exit", "on_reboot", "exit")
            return
        if name in _FLAGS:
            return
        if not self._words:
            self._found.note(f"-{name}")
            return
        value = self._words.popleft()
        if name == "name":
            self._found.name = _parts(value).get("guest") or value.partition(",")[0]
        elif name in ("kernel", "initrd", "append"):
            self._values[name] = value
        elif name == "m":
            words = _parts(value, "size").get("size", "")
            match = _SIZE.fullmatch(words)
            self._found.memory(int(match[1]) << _SHIFTS[match[2]] if match else None, words)
        elif name == "smp":
            parts = _parts(value, "cpus")
            self._found.cpus(parts.get("cpus") or parts.get("maxcpus"))
        elif name == "cpu":
            self._cpu(value)
        elif name == "drive":
            self._drive(value)
        elif name in _DRIVES:
            self._drive(f"file={value.replace(',', ',,')},if=ide")
        elif name == "device":
            self._device(value)
        elif name not in _QUIET:
            self._found.note(f"-{name} {value}")

    def _cpu(self, value: str) -> None:
        model, _, more = value.partition(",")
        if model in ("host", "max"):
            self._found.put("machine", "cpu", {"model": "host"})
        else:
            self._found.note(f"the processor model {model[:60]}: the default is portable")
        if more:
            self._found.note(f"the processor features {more[:150]}")

    def _drive(self, value: str) -> None:
        parts = _parts(value)
        if parts.get("media") == "cdrom" or parts.get("if") in ("floppy", "pflash", "mtd"):
            self._found.note(f"-drive {value}")
        elif "file" not in parts:
            self._found.note(f"-drive {value}, which names no file")
        else:
            self._drives[parts.get("id") or f"drive {len(self._drives)}"] = parts

    def _device(self, value: str) -> None:
        parts = _parts(value, "driver")
        driver = parts.get("driver", "")
        if driver.startswith("virtio-rng"):
            self._entropy = True
        elif driver == "isa-debug-exit":
            port = parts.get("iobase", "0x501")
            if re.fullmatch(r"0x[0-9a-fA-F]{1,4}|[0-9]{1,5}", port) and int(port, 0) <= 0xFFFF:
                self._found.put("devices", "debug_exit", {"port": int(port, 0), "mapping": "qemu"})
        elif "drive" in parts:
            self._serials[parts["drive"]] = parts.get("serial", "")
        elif driver not in ("pvpanic", "virtio-serial-pci"):
            self._found.note(f"-device {value}")

    def _finish(self) -> None:
        self._found.put("machine", "entropy", self._entropy)
        if "memory" not in self._found.document["machine"]:
            self._found.memory(128 * units.MIB, "")  # QEMU's own default
        for name, parts in self._drives.items():
            read_only = parts.get("readonly", parts.get("read-only", "off")) in ("on", "true")
            form, serial = parts.get("format", "auto"), parts.get("serial") or self._serials.get(name, "")
            self._found.disk(parts["file"], form, read_only=read_only, serial=serial)
        values = self._values
        self._found.kernel(values.get("kernel"), values.get("initrd"), values.get("append"))


def _parts(value: str, first: str = "") -> dict[str, str]:
    """`a=b,c=d` as a map; `,,` is a comma; a first word without `=` gets the name `first`."""
    found: dict[str, str] = {}
    for index, part in enumerate(re.split(r"(?<!,),(?!,)", value)):
        key, equals, text = part.partition("=")
        if equals:
            found[key] = text.replace(",,", ",")
        elif index == 0 and first:
            found[first] = part.replace(",,", ",")
        else:
            found[key] = "on"
    return found
