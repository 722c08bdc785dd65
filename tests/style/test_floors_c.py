# SPDX-License-Identifier: MIT
"""Who may include whom in the native core (docs/architecture.md), read off the #include lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from files import NATIVE

# Folder -> the folders it may include, its own aside. The longest matching folder decides.
FLOORS: dict[str, set[str]] = {
    "include": set(),
    "base": {"include"},
    "arch": {"base"},
    "mem": {"base"},
    "block": {"base", "include"},
    "net": {"base"},
    "dev": {"base", "arch", "mem", "block", "net"},
    "cpu": {"base", "arch", "mem"},
    "cpu/decode": {"base", "arch"},
    "cpu/mmu": {"base", "arch", "mem", "cpu"},
    "cpu/exec": {"base", "arch", "mem", "cpu", "cpu/decode", "cpu/mmu"},
    "cpu/jit": {"base", "arch", "mem", "cpu", "cpu/decode", "cpu/mmu", "cpu/exec"},
    "cpu/virt": {"base", "arch", "mem", "cpu", "cpu/decode", "cpu/mmu", "cpu/exec"},
    "cpu/pmu": {"base", "arch", "mem", "cpu"},
    "backend": {"base", "arch", "mem", "include", "cpu", "cpu/decode", "cpu/mmu", "cpu/exec", "cpu/jit", "cpu/virt", "cpu/pmu"},
    "machine": {"base", "arch", "mem", "include", "block", "net", "dev", "backend", "firmware"},
    "firmware": set(),
}
# The PCI bus is what the virtio devices plug into.
DEVICE_FAMILIES = {"dev/pci": set(), "dev/virtio": {"dev/pci"}}

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)
SYSTEM_INCLUDE = re.compile(r"^\s*#\s*include\s*<([^>]+)>", re.M)


def sources() -> list[Path]:
    return sorted(path for path in NATIVE.rglob("*") if path.suffix in (".c", ".h", ".def", ".S"))


def folder_of(path: Path) -> str:
    return path.parent.relative_to(NATIVE).as_posix()


def floor_of(folder: str) -> str:
    return next((known for known in sorted(FLOORS, key=len, reverse=True) if (folder + "/").startswith(known + "/")), "")


def includes(path: Path, text: str) -> list[Path]:
    """What a file includes, found beside it or from the top of native/."""
    found = []
    for word in INCLUDE.findall(text):
        beside, top = (path.parent / word).resolve(), (NATIVE / word).resolve()
        found.append(beside if beside.exists() or not top.exists() else top)
    return found


def faults(path: Path, text: str) -> list[str]:
    folder = folder_of(path)
    floor = floor_of(folder)
    if not floor:
        return [f"{folder} is on no floor"]
    wrong = []
    for target in includes(path, text):
        if not target.is_relative_to(NATIVE) or not target.exists():
            wrong.append(f"includes {target.name}, which is not there")
            continue
        other = floor_of(folder_of(target))
        relative = target.relative_to(NATIVE).as_posix()
        if other != floor and other not in FLOORS[floor]:
            wrong.append(f"{floor} includes {relative}")
        elif floor == "dev" and other == "dev" and not _same_device(path, target):
            wrong.append(f"a device includes another: {relative}")
        elif floor == "cpu/decode" and relative == "arch/state.h":
            wrong.append("the decoder sees the processor's state")
    for header in SYSTEM_INCLUDE.findall(text):
        if header == "linux/kvm.h" and not (floor == "backend" and path.name.startswith("kvm")):
            wrong.append("only backend/kvm* sees <linux/kvm.h>")
    return wrong


def _same_device(path: Path, target: Path) -> bool:
    folder, other = folder_of(path), folder_of(target)
    if folder in DEVICE_FAMILIES:
        return other == folder or other in DEVICE_FAMILIES[folder]
    # A device in several files: lapic.c, lapic_timer.c, lapic.h, lapic_internal.h.
    return folder == other and path.stem.partition("_")[0] == target.stem.partition("_")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(NATIVE).as_posix())
def test_includes_go_down(path: Path) -> None:
    assert faults(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("base/bits.h", '#include "../mem/bus.h"'),
        ("mem/bus.c", '#include "../dev/pic.h"'),
        ("dev/pic.c", '#include "pit.h"'),
        ("dev/pic.c", '#include "../cpu/cpu.h"'),
        ("dev/pic.c", '#include "../backend/backend.h"'),
        ("dev/serial.c", '#include "pci/host.h"'),
        ("cpu/decode/decode.c", '#include "../../arch/state.h"'),
        ("cpu/decode/decode.c", '#include "../cpu.h"'),
        ("cpu/mmu/mmu.c", '#include "../exec/exec.h"'),
        ("cpu/exec/run.c", '#include "../../dev/pic.h"'),
        ("machine/boot.c", '#include "../cpu/cpu.h"'),
        ("firmware/disk.c", '#include "../dev/virtio/blk.h"'),
        ("machine/boot.c", "#include <linux/kvm.h>"),
        ("backend/soft.c", " # include <linux/kvm.h>"),
    ],
)
def test_an_include_that_goes_up_is_seen(name: str, line: str) -> None:
    assert faults(NATIVE / name, line + "\n")


MAY_NOT_CALL = re.compile(r"(?<![\w.>])(exit|_exit|abort|quick_exit)\s*\(")
# A definition at file scope: `static` without const, up to `;`, `=` or `[`, and no parameter list before it.
MUTABLE = re.compile(r"^(?:static|_Thread_local|static _Thread_local) (?!const\b|inline\b|_Noreturn\b)[^({;=\n]*[;=\[]", re.M)


# Signal dispositions belong to the process, and so does the record of what they were before.
PROCESS_WIDE = {"cpu/exec/trap.c": {"previous", "install_error", "installed"}, "backend/alarm.c": {"installed"}}


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)


# The firmware is a guest's program.
CORE = [path for path in sources() if folder_of(path) != "firmware"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(NATIVE).as_posix())
def test_the_core_neither_exits_nor_keeps_state_of_its_own(path: Path) -> None:
    text = without_comments(path.read_text())
    assert not MAY_NOT_CALL.findall(text)
    allowed = PROCESS_WIDE.get(path.relative_to(NATIVE).as_posix(), set())
    kept = [
        match for match in MUTABLE.findall(text)
        if not re.search(r"\bconst\b", match) and not allowed & set(re.findall(r"\w+", match))
    ]  # fmt: skip
    assert not kept


def test_state_of_its_own_is_seen() -> None:
    for text in ("static int count;", "static struct vm *last = NULL;", "static int table[4];", "static _Thread_local int x;"):
        assert MUTABLE.search(text), text
    for text in ("static const int four = 4;", "static int add(int a, int b)", "static inline int f(void)", "    static_assert(x);"):
        assert not MUTABLE.search(text), text
    assert MAY_NOT_CALL.search("    abort();")
    assert not MAY_NOT_CALL.search("vm->exit(vm); on_exit(x); debug_exit (x)")
