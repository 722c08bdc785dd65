# SPDX-License-Identifier: MIT
"""Random sequences of everything that an image can be asked, against a model of it; QEMU's tools check what comes out, and
are kept out while it is open."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from disks import MIB, pattern
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from imgvm.errors import ImageError
from imgvm.qcow2 import Image

DISK_MAX = 3 * MIB
SIZES = st.sampled_from([512, 513, 4096, 65536, 70_001, 400_000])
PLACES = st.integers(0, DISK_MAX - 1)
FORMS: tuple[dict[str, Any], ...] = (
    {"cluster_bytes": 512}, {"cluster_bytes": 4096, "version": 2}, {}, {"cluster_bytes": 2 * MIB},
    {"cluster_bytes": 16384, "extended_l2": True}, {"cluster_bytes": 8192, "compression": "zstd", "refcount_bits": 64},
    {"cluster_bytes": 1024, "refcount_bits": 4, "lazy_refcounts": True},
)  # fmt: skip
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-io") or not shutil.which("qemu-img"), reason="QEMU's tools are not installed")


def tool(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)


class Sequence(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="imgvm-sequence-"))
        self.path = self.folder / "a.img"
        self.kept: dict[str, bytes] = {}
        self.config: dict[str, bytes] | None = None
        self.made = 0

    @initialize(form=st.sampled_from(FORMS), overlay=st.booleans())
    def create(self, form: dict[str, Any], overlay: bool) -> None:
        size, self.model = 2 * MIB + 512 * 5, bytearray()
        if overlay:
            self.model[:] = pattern(MIB + 512 * 3)
            (self.folder / "base").write_bytes(self.model)
            form = form | {"backing_file": "base", "backing_format": "raw"}
        self.model += bytes(size - len(self.model))
        self.image = Image.create(self.path, size, **form)
        self.cluster = self.image.info.cluster_bytes

    def span(self, at: int, size: int) -> tuple[int, int]:
        at %= len(self.model)
        return at, min(size, len(self.model) - at)

    @rule(at=PLACES, size=SIZES, seed=st.integers(0, 255))
    def write(self, at: int, size: int, seed: int) -> None:
        at, size = self.span(at, size)
        self.model[at : at + size] = data = pattern(size, seed)
        self.image.write(at, data)

    @rule(at=PLACES, count=st.integers(1, 3), seed=st.integers(0, 255))
    def write_compressed(self, at: int, count: int, seed: int) -> None:
        at, size = self.span(at % len(self.model) // self.cluster * self.cluster, count * self.cluster)
        data = (pattern(100, seed) * (size // 100 + 1))[:size]
        self.model[at : at + size] = data
        self.image.write_compressed(at, data)

    @rule(at=PLACES, size=SIZES, give_back=st.booleans())
    def zero(self, at: int, size: int, give_back: bool) -> None:
        at, size = self.span(at, size)
        self.model[at : at + size] = bytes(size)
        self.image.zero(at, size, give_back=give_back)

    @rule(at=PLACES, size=SIZES)
    def discard(self, at: int, size: int) -> None:
        at, size = self.span(at, size)
        self.image.discard(at, size)
        after = self.image.read(at, size)
        assert all(new in (0, old) for new, old in zip(after, self.model[at : at + size], strict=True))
        self.model[at : at + size] = after

    @rule(at=PLACES, size=SIZES)
    def read(self, at: int, size: int) -> None:
        at, size = self.span(at, size)
        assert self.image.read(at, size) == self.model[at : at + size]

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @rule()
    def reopen(self) -> None:
        self.image.close()
        self.image = Image.open(self.path, writable=True)
        assert self.image.read(0, len(self.model)) == self.model

    @rule(sectors=st.integers(1, DISK_MAX // 512))
    def resize(self, sectors: int) -> None:
        size = sectors * 512
        self.image.resize(size)
        self.model = self.model[:size] + bytes(max(size - len(self.model), 0))

    @rule(state=st.sampled_from([b"", b"state" * 5000]))
    def snapshot(self, state: bytes) -> None:
        if len(self.kept) < 5:
            self.made += 1
            self.image.create_snapshot(f"s{self.made}", date=self.made, state=state)
            self.kept[f"s{self.made}"] = bytes(self.model)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kept)))
        self.image.apply_snapshot(name)
        self.model = bytearray(self.kept[name])

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kept)))
        self.image.delete_snapshot(name)
        del self.kept[name]

    @rule(size=st.sampled_from([0, 10, 5000, 100_000]), seed=st.integers(0, 255))
    def set_config(self, size: int, seed: int) -> None:
        self.config = {"machine.yaml": b"version: 1\n", "kernel": pattern(size, seed)}
        self.image.set_config(self.config, date=seed)

    @rule()
    def qemu_is_kept_out(self) -> None:
        for command in (["write -P 1 0 512"], ["-r", "read 0 512"]):
            refused = tool("qemu-io", *command[:-1], "-c", command[-1], self.path)
            assert refused.returncode != 0
            assert "lock" in refused.stderr + refused.stdout

    def teardown(self) -> None:
        if not hasattr(self, "image"):
            return
        try:
            self._look()
        finally:
            self.image.close()
            shutil.rmtree(self.folder)

    def _look(self) -> None:
        size = len(self.model)
        assert self.image.info.disk_bytes == size
        assert self.image.read(0, size) == self.model
        for name, content in self.kept.items():
            assert self.image.read_snapshot(name, 0, len(content)) == content
        if self.config is None:
            with pytest.raises(ImageError):
                self.image.config_blobs()
        else:
            assert {blob.name: self.image.read_config(blob.name) for blob in self.image.config_blobs()} == self.config
        assert self.image.check().clean
        self.image.close()
        checked = tool("qemu-img", "check", self.path)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        out = self.folder / "out.raw"
        assert tool("qemu-img", "convert", "-O", "raw", self.path, out).returncode == 0
        assert out.read_bytes() == self.model


def run(examples: int, steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Sequence,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=not os.environ.get("IMGVM_RANDOM"),
            suppress_health_check=slow, database=None,
        ),
    )  # fmt: skip


@needs_qemu
def test_sequences() -> None:
    run(12, 25)


@needs_qemu
@pytest.mark.nightly
def test_many_long_sequences() -> None:
    run(400, 60)
