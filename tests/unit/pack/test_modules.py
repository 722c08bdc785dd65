# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest
from builders import module, module_tree

from imgvm.errors import PackError
from imgvm.pack.modules import DEVICE_MODULES, ENTROPY_MODULES, ModuleTree, dependencies, find_tree


@pytest.fixture
def tree(tmp_path: Path) -> ModuleTree:
    return ModuleTree.of_folder(module_tree(tmp_path))


def names(tree: ModuleTree, *wanted: str, optional: tuple[str, ...] = ()) -> list[str]:
    return [module.name for module in tree.in_load_order(wanted, optional)]


def test_devices_come_after_what_they_need(tree: ModuleTree) -> None:
    order = names(tree, optional=DEVICE_MODULES + ENTROPY_MODULES)
    assert order == ["virtio_ring", "virtio", "virtio_pci", "virtio_blk", "virtio_rng"]


def test_compressed_modules_are_unpacked(tree: ModuleTree) -> None:
    assert all(
        found.data.startswith(b"\x7fELF") for found in tree.in_load_order(DEVICE_MODULES[:2], ENTROPY_MODULES)
    )


def test_built_in_and_soft_dependencies(tree: ModuleTree) -> None:
    assert names(tree, "needy") == ["helper", "extra", "needy"]
    assert names(tree, "crc32") == []
    assert names(tree, "virtio-rng")[-1] == "virtio_rng"


def test_missing_modules(tree: ModuleTree) -> None:
    assert names(tree, optional=("absent",)) == []
    with pytest.raises(PackError, match=r"the kernel 6\.1\.0-test has no module absent"):
        names(tree, "absent")
    with pytest.raises(PackError, match="no module nowhere, which orphan needs"):
        names(tree, "orphan")
    with pytest.raises(PackError, match="not a kernel module"):
        names(tree, "nothing")


def test_circles_end(tmp_path: Path) -> None:
    for name, needs in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.ko").write_bytes(module(needs))
    assert names(ModuleTree.of_folder(tmp_path), "a") == ["b", "a"]


def test_long_chains_end(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"m{number}.ko").write_bytes(module(f"m{number + 1}"))
    with pytest.raises(PackError, match="the module m0 needs one that needs one, and so on"):
        names(ModuleTree.of_folder(tmp_path), "m0")


def test_modinfo() -> None:
    assert dependencies(module("a-b,c", "pre: x y post: z pre: w"), "m") == (
        ["a_b", "c"],
        ["x", "y", "w"],
    )
    assert dependencies(module(), "m") == ([], [])


def test_a_kernel_finds_its_modules_beside_it_or_on_the_host(tmp_path: Path) -> None:
    folder = module_tree(tmp_path / "near")
    kernel = tmp_path / "near/boot/vmlinuz"
    found = find_tree(kernel, "6.1.0-test", root=tmp_path)
    assert found is not None and found.where == str(folder)
    host = module_tree(tmp_path / "host", "6.2")
    found = find_tree(kernel, "6.2", root=tmp_path / "host")
    assert found is not None and found.where == str(host)
    assert find_tree(kernel, "6.3", root=tmp_path) is None
    assert find_tree(kernel, None) is None
