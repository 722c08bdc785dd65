# SPDX-License-Identifier: MIT
"""The machine's handle against a recording stand-in for the native core (with the real declarations)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Any

import pytest
from cffi import FFI

from imgvm import binding
from imgvm.config import Config
from imgvm.errors import EngineError
from imgvm.vmm import _build
from imgvm.vmm.vm import Drive, Program, Vm

MULTIBOOT = (0x1BADB002).to_bytes(4, "little") + bytes(4) + (-0x1BADB002 & 0xFFFFFFFF).to_bytes(4, "little")


class Core:
    """imgvm_vm_*: writes down what it is called with."""

    def __init__(self) -> None:
        self.ffi = FFI()
        self.ffi.cdef(_build.declarations())
        self.calls: list[tuple[Any, ...]] = []
        self.fail: str | None = None
        self.errno = 12
        self.end: dict[str, Any] = {"reason": 1}
        self.ends_after = 0
        self.constants = {
            name: int(value, 0)
            for name, value in re.findall(r"#\s*define (IMGVM_\w+) (\w+)", _build.declarations())
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("IMGVM_"):
            return self.constants[name]
        if name == "imgvm_vm_create":
            return self._create
        return lambda *args: self._record(name.removeprefix("imgvm_vm_"), *args)

    def typed(self, kind: str) -> Any:
        return self.ffi.new(kind)

    def _create(self, config: Any, out: Any, err: Any) -> int:
        self.config = {field: getattr(config, field) for field, _ in self.ffi.typeof("imgvm_vm_config").fields}
        for field in ("cpu_model", "cpu_features", "cpu_vendor"):  # the core may read them during this call alone
            self.config[field] = self.ffi.string(self.config[field])
        said = self.config.pop("smbios")
        names = ("manufacturer", "product", "version", "serial", "sku", "family", "asset_tag")
        self.smbios = {name: self.ffi.string(getattr(said, name)).decode() for name in names} | {"uuid": bytes(said.uuid).hex()}
        self.oem_strings = [self.ffi.string(said.oem_strings[index]) for index in range(said.oem_count)]
        out[0] = self.ffi.cast("imgvm_vm *", 0x1000)
        return self._record("create", err)

    def _record(self, name: str, *args: Any) -> int:
        if name == "wait":
            self.calls.append(("wait",))
            if len([call for call in self.calls if call == ("wait",)]) <= self.ends_after:
                return 0
            for field, value in self.end.items():
                setattr(args[2], field, value)
            return 1
        self.calls.append((name, *(self._plain(arg) for arg in args)))
        if name == self.fail:
            args[-1].message = b"it will not"
            return -self.errno
        return 0

    def _plain(self, arg: Any) -> Any:
        if not isinstance(arg, FFI.CData):
            return arg
        kind = self.ffi.typeof(arg).cname
        return bytes(self.ffi.buffer(arg)) if kind.startswith("char[") else kind


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    core = Core()
    monkeypatch.setattr(binding, "ffi", lambda: core.ffi)
    monkeypatch.setattr(binding, "lib", lambda: core)
    open_handle = core.ffi.new("imgvm_vm **")

    def opened(_kind: object, function: str, *args: Any) -> Any:
        binding.call(EngineError, function, *args, open_handle)
        return open_handle[0]

    monkeypatch.setattr(binding, "open_handle", opened)
    yield core


def vm_of(text: str, program: Program, drives: list[Drive] | None = None, engine: str = "interp") -> Vm:
    return Vm(Config.from_text(f"version: 1\n{text}", "t").machine, engine, program, drives or [])


def test_the_machine_is_described_to_the_core(core: Core) -> None:
    text = """
machine:
  {cpus: 2, memory: 64MiB, entropy: false, cpu: {model: x86-64-v3, features: [+aes, -fma], vendor: amd},
   uuid: 12345678-9ABC-def0-0102-030405060708, smbios: {serial: S, asset_tag: A, oem_strings: [a=b, c]}}
boot: {kernel: k, cmdline: a=b}
devices: {debug_exit: {port: 0x501, mapping: qemu}}
exit: {on_reboot: exit}
"""
    vm_of(text, Program(b"KERNEL", b"INITRD"), engine="kvm")
    assert core.config == {
        "abi": 1, "engine": 1, "cpus": 2, "memory_bytes": 64 << 20, "debug_exit": 2, "debug_exit_port": 0x501,
        "entropy": False, "reset_is_exit": True, "rtc_offset_sec": 0,
        "cpu_model": b"x86-64-v3", "cpu_features": b"+aes -fma", "cpu_vendor": b"amd", "count": False, "lockstep": False,
            "trace": core.ffi.NULL, "trace_fd": 0, "perf_map_fd": 0, "firmware_shadow": False,
    }  # fmt: skip
    said = {name: text for name, text in core.smbios.items() if text}
    assert said == {"serial": "S", "asset_tag": "A", "uuid": "123456789abcdef00102030405060708"}
    assert core.oem_strings == [b"a=b", b"c"]
    assert core.calls[1] == (
        "load_linux", "imgvm_vm *", b"KERNEL", 6, b"INITRD", 6, b"a=b", "imgvm_error *",
    )  # fmt: skip


def test_a_processor_that_cannot_be_had_here_is_no_error_of_ours(core: Core) -> None:
    core.fail, core.errno = "create", errno.ENOTSUP
    with pytest.raises(EngineError, match="it will not") as caught:
        vm_of("boot: {kernel: k}", Program(b"KERNEL"))
    assert caught.value.status == 126


def test_defaults_are_described_to_the_core(core: Core) -> None:
    vm_of("boot: {kernel: k}", Program(b"KERNEL"))
    assert (core.config["engine"], core.config["debug_exit"], core.config["entropy"]) == (2, 0, True)
    assert core.calls[1][2:6] == (b"KERNEL", 6, "void *", 0)


def test_a_firmware_takes_the_place_of_a_kernel(core: Core) -> None:
    disks = "disks: [{name: d, size: 1MiB}]\nboot: {order: [cdrom, disk]}\n"
    vm_of(disks, Program(firmware=b"ROM"))
    assert core.calls[-1][:6] == ("load_firmware", "imgvm_vm *", b"ROM", 3, b"\2\1", 2)
    assert core.config["firmware_shadow"] is False
    vm_of(disks + "machine: {firmware: {path: other.bin}}", Program(firmware=b"ROM"))
    assert core.config["firmware_shadow"] is True


def test_multiboot_modules_come_first_with_their_words(core: Core) -> None:
    text = 'boot: {kernel: k, protocol: multiboot, cmdline: c, modules: ["disk.img ro", b]}'
    vm_of(text, Program(MULTIBOOT, None, (b"ONE", b"TWO!")))
    assert [call[0] for call in core.calls] == ["create", "add_module", "add_module", "load_multiboot"]
    assert core.calls[1][2:5] == (b"ONE", 3, b"disk.img ro")
    assert core.calls[2][2:5] == (b"TWO!", 4, b"b")
    assert core.calls[3][2:5] == (MULTIBOOT, 12, b"c")


def test_protocol_auto_looks_at_the_kernel(core: Core) -> None:
    vm_of("boot: {kernel: k}", Program(MULTIBOOT))
    assert core.calls[-1][0] == "load_multiboot"


def test_disks_and_console(core: Core) -> None:
    image = core.ffi.cast("imgvm_image *", 1)
    vm = vm_of("boot: {kernel: k}", Program(b"K"), [Drive(image, True, "data", cache="unsafe"), Drive(image, False, "b", discard=False)])
    vm.set_console(0, 1, "ctrl-a")
    assert core.calls[1] == ("add_disk", "imgvm_vm *", "imgvm_image *", True, b"data", 2, True, "imgvm_error *")
    assert core.calls[2] == ("add_disk", "imgvm_vm *", "imgvm_image *", False, b"b", 0, False, "imgvm_error *")
    assert core.calls[-1] == ("set_console", "imgvm_vm *", 0, 1, 1, "imgvm_error *")


@pytest.mark.parametrize(
    ("end", "reason", "status"),
    [
        ({"reason": 1}, "poweroff", 0),
        ({"reason": 2, "status": 33}, "debug_exit", 33),
        ({"reason": 2, "status": 0x1FF}, "debug_exit", 255),
        ({"reason": 3}, "reset", 0),
        ({"reason": 4, "message": b"rip 0x1000"}, "triple_fault", 255),
        ({"reason": 5}, "panic", 255),
        ({"reason": 6}, "stopped", 0),
        ({"reason": 7}, "internal", 125),
        ({"reason": 8, "status": 7}, "exec", 7),
        ({"reason": 99}, "internal", 125),
    ],
)
def test_results(core: Core, end: dict[str, Any], reason: str, status: int) -> None:
    core.end = {"run_ns": 1_500_000_000, "instructions": 3, **end}
    vm = vm_of("boot: {kernel: k}", Program(b"K"))
    vm.start()
    result = vm.wait()
    assert result is not None
    assert (result.reason, result.status, result.seconds, result.instructions) == (reason, status, 1.5, 3)
    assert result.message == end.get("message", b"").decode()
    assert vm.wait(0) is result


def test_wait_gives_up_in_time(core: Core) -> None:
    core.ends_after = 3
    vm = vm_of("boot: {kernel: k}", Program(b"K"))
    assert vm.wait(0) is None
    assert vm.wait() is not None


def test_a_failure_while_loading_destroys_the_machine(core: Core) -> None:
    core.fail = "load_linux"
    with pytest.raises(EngineError, match="it will not") as caught:
        vm_of("boot: {kernel: k}", Program(b"K"))
    assert caught.value.errno == 12
    assert core.calls[-1][0] == "destroy"


def test_closing_destroys_once_and_lets_go_of_the_disk(core: Core) -> None:
    closed: list[str] = []

    class Owner:
        def close(self) -> None:
            closed.append(core.calls[-1][0])

    with vm_of("boot: {kernel: k}", Program(b"K"), [Drive(core.ffi.NULL, False, "a", Owner())]) as vm:
        vm.power_button()
        vm.stop()
    vm.close()
    assert [call[0] for call in core.calls[-3:]] == ["power_button", "stop", "destroy"]
    assert closed == ["destroy"]  # after the machine, which borrows it
    with pytest.raises(EngineError, match="closed"):
        vm.start()
    with pytest.raises(EngineError, match="closed"):
        vm.wait()


def test_a_debugger_is_waited_for(core: Core) -> None:
    vm = vm_of("boot: {kernel: k}", Program(b"K"))
    assert vm.set_gdb("unix:/tmp/x") == ""
    assert core.calls[-1][:3] == ("set_gdb", "imgvm_vm *", b"unix:/tmp/x")
