# SPDX-License-Identifier: MIT
"""The choice between KVM and the software processor, and the words for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgvm.errors import EngineError
from imgvm.vmm import engine
from imgvm.vmm.engine import Choice, Host


@pytest.mark.parametrize(
    ("accel", "host", "choice"),
    [
        ("auto", Host("vmx", ""), Choice("kvm", "with vmx")),
        ("auto", Host("vmx", "/dev/kvm is absent", "load it"), Choice("jit", "because /dev/kvm is absent")),
        ("auto", Host("", ""), Choice("jit", "because /dev/kvm is not backed by hardware (no vmx or svm in /proc/cpuinfo)")),
        ("kvm", Host("svm", ""), Choice("kvm", "as asked")),
        ("kvm", Host("", ""), Choice("kvm", "as asked, but without hardware (no vmx or svm)")),
        ("interp", Host("vmx", ""), Choice("interp", "as asked")),
    ],
)
def test_choice(accel: str, host: Host, choice: Choice) -> None:
    assert engine.choose(accel, lambda: host) == choice


def test_the_words_name_engine_and_reason() -> None:
    assert str(Choice("interp", "because /dev/kvm is absent")) == (
        "engine interp: the software processor, because /dev/kvm is absent"
    )


def test_kvm_that_cannot_be_used_is_an_error_of_126() -> None:
    with pytest.raises(EngineError) as caught:
        engine.choose("kvm", lambda: Host("vmx", "no permission for /dev/kvm", "join its group"))
    assert caught.value.status == 126
    assert caught.value.message == "KVM cannot be used: no permission for /dev/kvm"
    assert caught.value.hint == "join its group; or take --accel jit"


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="there is no engine tcg"):
        engine.choose("tcg")


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu vme svm sse\n\nflags\t\t: never\n")
    return path


def test_host_is_looked_at(tmp_path: Path, cpuinfo: Path) -> None:
    dev = tmp_path / "kvm"
    assert engine.cpu_flags(cpuinfo) == {"fpu", "vme", "svm", "sse"}
    assert engine.inspect_host(dev, cpuinfo, lambda: None).obstacle == f"{dev} is absent"
    assert "this processor" in engine.inspect_host(dev, tmp_path / "none", lambda: None).hint
    dev.touch()
    assert engine.inspect_host(dev, cpuinfo, lambda: None) == Host("svm", "")

    def refuse() -> None:
        raise EngineError("KVM has version 11", "update")

    assert engine.inspect_host(dev, cpuinfo, refuse) == Host("svm", "KVM has version 11", "update")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_permission_is_told_from_absence(tmp_path: Path, cpuinfo: Path) -> None:
    dev = tmp_path / "kvm"
    dev.touch(mode=0)
    found = engine.inspect_host(dev, cpuinfo, lambda: None)
    assert found.obstacle == f"no permission for {dev}"
    assert "usermod" in found.hint
