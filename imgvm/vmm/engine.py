# SPDX-License-Identifier: MIT
"""Which engine runs a machine, and why: KVM, or imgvm's software processor.

`/dev/kvm` alone proves little: it may be there without permission, or be offered by a host that has no
virtualisation hardware itself and emulates it, where ordinary kernels do not survive. `auto` takes KVM only
with hardware behind it; `kvm` takes whatever opens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imgvm import binding
from imgvm.errors import STATUS_CANNOT_RUN, EngineError
from imgvm.record import Record

KVM, JIT, INTERP = "kvm", "jit", "interp"
ACCELS = ("auto", KVM, JIT, INTERP)
TITLES = {KVM: "KVM", JIT: "the software processor, translating", INTERP: "the software processor"}

DEV_KVM = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")


class Choice(Record):
    engine: str
    why: str

    def __str__(self) -> str:
        return f"engine {self.engine}: {TITLES[self.engine]}, {self.why}"


class Host(Record):
    """What decides about KVM. `obstacle` is empty when it can be used; `hint` says what to do about it."""

    hardware: str  # vmx, svm or empty
    obstacle: str
    hint: str = ""


def native_id(engine: str) -> int:
    """IMGVM_ENGINE_* of a name."""
    lib = binding.lib()
    ids = {KVM: lib.IMGVM_ENGINE_KVM, JIT: lib.IMGVM_ENGINE_JIT, INTERP: lib.IMGVM_ENGINE_INTERP}
    return int(ids[engine])


def probe(engine: str) -> None:
    """Raises EngineError when the native core says that the engine cannot run here."""
    binding.call(EngineError, "imgvm_engine_probe", native_id(engine))


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    try:
        with cpuinfo.open() as lines:
            for line in lines:
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def inspect_host(
    dev_kvm: Path = DEV_KVM, cpuinfo: Path = CPUINFO, try_kvm: Callable[[], None] = lambda: probe(KVM)
) -> Host:
    flags = cpu_flags(cpuinfo)
    hardware = "vmx" if "vmx" in flags else "svm" if "svm" in flags else ""
    if not dev_kvm.exists():
        hint = "load the module kvm_intel or kvm_amd" if hardware else "this processor offers no vmx or svm"
        return Host(hardware, f"{dev_kvm} is absent", hint)
    if not os.access(dev_kvm, os.R_OK | os.W_OK):
        hint = "join its group: usermod -aG kvm $USER, then log in again"
        return Host(hardware, f"no permission for {dev_kvm}", hint)
    try:
        try_kvm()
    except EngineError as error:
        return Host(hardware, error.message, error.hint or "")
    return Host(hardware, "")


def choose(accel: str, host: Callable[[], Host] = inspect_host) -> Choice:
    """The engine for `auto`, `kvm`, `jit` or `interp`. EngineError with status 126 when it cannot be had."""
    if accel in (INTERP, JIT):
        return Choice(accel, "as asked")
    if accel not in ACCELS:
        raise EngineError(f"there is no engine {accel}", "engines: " + ", ".join(ACCELS))
    found = host()
    if accel == KVM:
        if found.obstacle:
            hint = "; ".join(filter(None, (found.hint, "or take --accel jit")))
            raise EngineError(f"KVM cannot be used: {found.obstacle}", hint, STATUS_CANNOT_RUN)
        return Choice(KVM, "as asked" if found.hardware else "as asked, but without hardware (no vmx or svm)")
    if found.obstacle:
        return Choice(JIT, f"because {found.obstacle}")
    if not found.hardware:
        return Choice(JIT, f"because {DEV_KVM} is not backed by hardware (no vmx or svm in {CPUINFO})")
    return Choice(KVM, f"with {found.hardware}")
